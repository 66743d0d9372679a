#include "serve/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/serve/fakes.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using testing::FakeScore;
using testing::FakeText;
using ::testing::HasSubstr;

// Everything on one thread, in the order in which the test says so.
class ManualExecutor final : public IoExecutor {
 public:
  void Post(std::function<void()> task) override { tasks_.push_back(std::move(task)); }
  void RunAll() {
    while (!tasks_.empty()) {
      for (const auto& task : std::exchange(tasks_, {})) {
        task();
      }
    }
  }

 private:
  std::vector<std::function<void()>> tasks_;
};

// Keeps each send apart.
class RecordingWriter final : public ResponseWriter {
 public:
  explicit RecordingWriter(std::shared_ptr<IoExecutor> executor) : executor_(std::move(executor)) {}
  void Respond(HttpResponse response) override {
    if (!streaming) {
      responses.push_back(std::move(response));
    }
  }
  void BeginStream(HttpResponse) override { streaming = true; }
  void WriteEvent(std::string_view event) override { sends.emplace_back(event); }
  void Finish(std::string_view last) override { sends.emplace_back(last); }
  std::size_t buffered_bytes() const override { return buffered; }
  void OnAbort(std::function<void()> callback) override { on_abort = std::move(callback); }
  void OnDrained(std::function<void()> callback) override { on_drained = std::move(callback); }
  std::shared_ptr<IoExecutor> executor() override { return executor_; }

  std::vector<HttpResponse> responses;
  std::vector<std::string> sends;
  std::function<void()> on_abort, on_drained;
  std::size_t buffered = 0;
  bool streaming = false;

 private:
  std::shared_ptr<IoExecutor> executor_;
};

// Gives the test the sinks.
class SinkEngine final : public Engine {
 public:
  Result<RequestId> Submit(GenerationRequest, std::shared_ptr<OutputSink> sink) override {
    sinks.push_back(std::move(sink));
    return static_cast<RequestId>(sinks.size());
  }
  void Cancel(RequestId id) override { cancelled.push_back(id); }
  bool Step() override { return false; }
  void RunLoop(std::stop_token) override {}
  void StartDraining() override {}
  bool idle() const override { return true; }
  EngineStats Stats() const override { return {}; }
  const EngineConfig& config() const override { return config_; }

  std::vector<std::shared_ptr<OutputSink>> sinks;
  std::vector<RequestId> cancelled;

 private:
  EngineConfig config_;
};

class GenerationTest : public ::testing::Test {
 protected:
  void Start(const std::string& body, bool chat = true) {
    ApiContext context;
    context.model_names = {"m"};
    context.engine.max_model_len = 64;
    context.engine.vocab_size = testing::kFakeVocab;
    context.text = &text_;
    auto request = chat ? ParseChatCompletion(body, context) : ParseCompletion(body, context);
    ASSERT_TRUE(request) << request.error().message;
    request->id = "id";
    request->created = 7;
    Generation::Start(
        {.engine = engine_, .text = text_, .registry = registry_, .stream_buffer_bytes = 100},
        std::move(*request), "", writer_);
  }
  static OutputEvent Token(std::int32_t choice, char c, int count,
                           std::optional<FinishReason> finish = {}) {
    OutputEvent event;
    event.choice = choice;
    event.tokens = {static_cast<TokenId>(c)};
    event.text = std::string(1, c);
    event.num_output_tokens = count;
    event.finish = finish;
    return event;
  }
  void Send(OutputEvent event) {
    engine_.sinks.front()->OnOutput(std::move(event));
    executor_->RunAll();
  }

  FakeText text_;
  SinkEngine engine_;
  GenerationRegistry registry_;
  std::shared_ptr<ManualExecutor> executor_ = std::make_shared<ManualExecutor>();
  std::shared_ptr<RecordingWriter> writer_ = std::make_shared<RecordingWriter>(executor_);
};

constexpr const char* kStream =
    R"({"stream":true,"messages":[{"role":"user","content":"hi"}],"max_tokens":9)";

TEST_F(GenerationTest, SendsExactlyTheseBytes) {
  Start(std::string(kStream) + R"(,"stream_options":{"include_usage":true}})");
  EXPECT_TRUE(writer_->streaming);
  EXPECT_TRUE(writer_->sends.empty());  // the role waits for the first output
  Send(Token(0, 'a', 1));
  OutputEvent prefill;
  Send(prefill);  // tells nothing, sends nothing
  OutputEvent stop = Token(0, 'b', 2, FinishReason::kStop);
  stop.stop_reason = std::string("x");
  Send(stop);
  const std::string head =
      R"(data: {"id":"id","object":"chat.completion.chunk","created":7,"model":"m","choices":[)";
  EXPECT_THAT(
      writer_->sends,
      ElementsAre(
          head + R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,)"
                 R"("finish_reason":null}]})"
                 "\n\n",
          head + R"({"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]})"
                 "\n\n",
          head + R"({"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":"stop",)"
                 R"("stop_reason":"x"}]})"
                 "\n\n",
          head + R"(],"usage":{"prompt_tokens":18,"completion_tokens":2,"total_tokens":20,)"
                 R"("prompt_tokens_details":{"cached_tokens":0}}})"
                 "\n\n",
          "data: [DONE]\n\n"));
  EXPECT_EQ(registry_.size(), 0U);
  EXPECT_TRUE(engine_.cancelled.empty());
}

TEST_F(GenerationTest, PutsUsageInEveryChunkIfAsked) {
  Start(std::string(kStream) +
        R"(,"stream_options":{"include_usage":true,"continuous_usage_stats":true}})");
  Send(Token(0, 'a', 1, FinishReason::kLength));
  ASSERT_EQ(writer_->sends.size(), 4U);
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("completion_tokens":1)"));
}

TEST_F(GenerationTest, JoinsEventsWhileTheReaderIsSlow) {
  Start(R"({"prompt":"a","n":2,"stream":true,"logprobs":0})", /*chat=*/false);
  Send(Token(0, 'a', 1));
  writer_->buffered = 101;
  for (int i = 2; i <= 5; ++i) {
    OutputEvent event = Token(0, static_cast<char>('a' + i), i);
    event.logprobs = {FakeScore(event.tokens.front(), 0)};
    Send(event);
  }
  Send(Token(1, 'z', 1, FinishReason::kStop));
  OutputEvent last = Token(0, '!', 6, FinishReason::kLength);
  last.logprobs = {FakeScore(last.tokens.front(), 0)};
  Send(last);
  EXPECT_EQ(writer_->sends.size(), 1U);
  writer_->buffered = 0;
  writer_->on_drained();
  ASSERT_EQ(writer_->sends.size(), 4U);
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("text":"cdef!")"));
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("tokens":["c","d","e","f","!"])"));
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("finish_reason":"length")"));
  EXPECT_THAT(writer_->sends[2], HasSubstr(R"("index":1,"text":"z")"));
  EXPECT_EQ(writer_->sends[3], "data: [DONE]\n\n");
}

TEST_F(GenerationTest, CancelsEveryPromptWhenTheClientLeaves) {
  Start(R"({"prompt":["a","b"]})", /*chat=*/false);
  ASSERT_EQ(engine_.sinks.size(), 2U);
  writer_->on_abort();
  EXPECT_THAT(engine_.cancelled, ElementsAre(RequestId{1}, RequestId{2}));
  EXPECT_EQ(registry_.size(), 0U);
  Send(Token(0, 'a', 1, FinishReason::kCancelled));  // the engine's last word comes later
  EXPECT_TRUE(writer_->responses.empty());
}

TEST_F(GenerationTest, OneFailureEndsAllChoices) {
  Start(R"({"prompt":"a","n":2,"stream":true})", /*chat=*/false);
  Send(Token(0, 'a', 1));
  OutputEvent failed;
  failed.choice = 1;
  failed.finish = FinishReason::kDeadline;
  Send(failed);
  Send(Token(0, 'b', 2));
  ASSERT_EQ(writer_->sends.size(), 3U);
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("code":504)"));
  EXPECT_EQ(writer_->sends[2], "data: [DONE]\n\n");
  EXPECT_EQ(engine_.cancelled.size(), 1U);
}

TEST_F(GenerationTest, EchoComesFirstInAStream) {
  Start(R"({"prompt":[97,98],"stream":true,"echo":true,"logprobs":1,"max_tokens":2})",
        /*chat=*/false);
  OutputEvent first = Token(0, 'x', 1);
  first.prompt_logprobs = {FakeScore(TokenId{'a'}, 1), FakeScore(TokenId{'b'}, 1)};
  first.logprobs = {FakeScore(TokenId{'x'}, 1)};
  Send(first);
  OutputEvent second = Token(0, 'y', 2, FinishReason::kLength);
  second.logprobs = {FakeScore(TokenId{'y'}, 1)};
  Send(second);
  ASSERT_EQ(writer_->sends.size(), 3U);
  EXPECT_THAT(writer_->sends[0], HasSubstr(R"("text":"abx")"));
  EXPECT_THAT(writer_->sends[0], HasSubstr(R"("text_offset":[0,1,2])"));
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("text":"y")"));
  EXPECT_THAT(writer_->sends[1], HasSubstr(R"("text_offset":[3])"));
}

TEST(GenerationRegistry, BoundsOneTenantOnly) {
  GenerationRegistry registry;
  const FakeText text;
  SinkEngine engine;
  const auto executor = std::make_shared<ManualExecutor>();
  const auto make = [&] {
    return std::make_shared<Generation>(
        Generation::Services{.engine = engine, .text = text, .registry = registry}, ApiRequest{},
        "t", std::make_shared<RecordingWriter>(executor));
  };
  const auto first = make();
  EXPECT_FALSE(registry.busy_since());
  EXPECT_TRUE(registry.Add(first, "t", 1));
  EXPECT_TRUE(registry.busy_since());
  EXPECT_FALSE(registry.Add(make(), "t", 1));
  EXPECT_TRUE(registry.Add(make(), "other", 1));
  registry.Remove(first.get(), "t");
  EXPECT_TRUE(registry.Add(make(), "t", 1));
}

}  // namespace
}  // namespace nibble
