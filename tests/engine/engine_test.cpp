#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "tests/sim/fake_model.h"

namespace nibble {
namespace {

using sim::FakeExecutor;
using sim::VirtualClock;

/// Collects the events of one request; any thread may wait for its end.
class Collector final : public OutputSink {
 public:
  explicit Collector(std::int32_t n = 1) : open_(n) {}

  void OnOutput(OutputEvent event) override {
    const std::scoped_lock lock(mutex_);
    if (event.finish) {
      --open_;
      ended_.notify_all();
    }
    events_.push_back(std::move(event));
  }
  bool WaitForEnd(std::chrono::seconds limit = std::chrono::seconds(20)) {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, limit, [&] { return open_ == 0; });
  }
  std::vector<OutputEvent> events() {
    const std::scoped_lock lock(mutex_);
    return events_;
  }
  std::vector<TokenId> Tokens(std::int32_t choice = 0) {
    std::vector<TokenId> tokens;
    for (const OutputEvent& event : events()) {
      if (event.choice == choice) {
        tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
      }
    }
    return tokens;
  }
  std::optional<FinishReason> Finish(std::int32_t choice = 0) {
    std::optional<FinishReason> finish;
    for (const OutputEvent& event : events()) {
      finish = event.choice == choice && event.finish ? event.finish : finish;
    }
    return finish;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::int32_t open_;
  std::vector<OutputEvent> events_;
};

EngineConfig SmallConfig() {
  return {.max_num_sequences = 8,
          .max_batched_tokens = 32,
          .max_model_len = 128,
          .block_size_tokens = 4,
          .num_blocks = 64,
          .max_queued_requests = 4,
          .vocab_size = 50,
          .eos_token_ids = {TokenId{3}}};
}

GenerationRequest MakeRequest(std::int32_t prompt_size = 10, std::int32_t max_tokens = 12) {
  GenerationRequest request;
  for (std::int32_t i = 0; i < prompt_size; ++i) {
    request.prompt.push_back(TokenId{i % 7});
  }
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.seed = 5;
  return request;
}

struct Fixture {
  explicit Fixture(const EngineConfig& config = SmallConfig(), int depth = 0,
                   sim::ExecutorFaults faults = {})
      : executor(config, depth, 1, clock, faults),
        engine(*Engine::Create(config, executor, sim::MakeFakeText(), clock)) {
    SetLogLevel(LogLevel::kError);
  }
  std::shared_ptr<Collector> Submit(const GenerationRequest& request) {
    auto sink = std::make_shared<Collector>(request.n);
    const auto id = engine->Submit(request, sink);
    EXPECT_TRUE(id) << id.error().message;
    if (id) {
      executor.SetTenant(*id, sim::TenantOf(request.cache_salt));
      last = *id;
    }
    return sink;
  }
  void RunDry() {
    for (int i = 0; i < 10'000 && engine->Step(); ++i) {
      const auto audit = engine->Audit();
      ASSERT_TRUE(audit) << audit.error().message;
    }
    EXPECT_TRUE(engine->idle());
    EXPECT_EQ(executor.violation(), "");
  }

  VirtualClock clock;
  FakeExecutor executor;
  std::unique_ptr<Engine> engine;
  RequestId last{0};
};

ErrorCode RefusalOf(const GenerationRequest& request, std::string* message = nullptr) {
  const auto result = Validate(request, SmallConfig());
  if (result) {
    return ErrorCode::kInternal;
  }
  if (message != nullptr) {
    *message = result.error().message;
  }
  return result.error().code;
}

TEST(Validation, EveryParameterIsRefusedByItsName) {
  const std::map<std::string, std::function<void(GenerationRequest&)>> cases = {
      {"prompt", [](auto& r) { r.prompt.clear(); }},
      {"prompt:", [](auto& r) { r.prompt[3] = TokenId{50}; }},
      {"prompt: token id -1", [](auto& r) { r.prompt[3] = TokenId{-1}; }},
      {"maximum context length is 128", [](auto& r) { r.prompt.resize(128); }},
      {"max_tokens", [](auto& r) { r.sampling.max_tokens = -1; }},
      {"only with prompt logprobs", [](auto& r) { r.sampling.max_tokens = 0; }},
      {"n must", [](auto& r) { r.n = 17; }},
      {"temperature", [](auto& r) { r.sampling.temperature = -1.0F; }},
      {"temperature must", [](auto& r) { r.sampling.temperature = NAN; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 0.0F; }},
      {"min_p", [](auto& r) { r.sampling.min_p = 1.5F; }},
      {"top_k", [](auto& r) { r.sampling.top_k = -1; }},
      {"presence_penalty", [](auto& r) { r.sampling.presence_penalty = 2.5F; }},
      {"frequency_penalty", [](auto& r) { r.sampling.frequency_penalty = -2.5F; }},
      {"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = 0.0F; }},
      {"min_tokens", [](auto& r) { r.sampling.min_tokens = 13; }},
      {"logprobs", [](auto& r) { r.sampling.num_logprobs = 21; }},
      {"prompt_logprobs", [](auto& r) { r.sampling.num_prompt_logprobs = 21; }},
      {"first_prompt_logprob", [](auto& r) { r.sampling.first_prompt_logprob = 0; }},
      {"first_prompt_logprob must", [](auto& r) { r.sampling.first_prompt_logprob = 11; }},
      {"stop", [](auto& r) { r.sampling.stop = {""}; }},
      {"stop:", [](auto& r) { r.sampling.stop = {std::string(257, 'x')}; }},
      {"stop: 65", [](auto& r) { r.sampling.stop.assign(65, "x"); }},
      {"stop_token_ids", [](auto& r) { r.sampling.stop_token_ids = {TokenId{50}}; }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{TokenId{1}, 101.0F}};
       }},
      {"logit_bias:",
       [](auto& r) {
         r.sampling.logit_bias = {{TokenId{-2}, 1.0F}};
       }},
  };
  for (const auto& [name, spoil] : cases) {
    GenerationRequest request = MakeRequest();
    spoil(request);
    std::string message;
    EXPECT_EQ(RefusalOf(request, &message), ErrorCode::kInvalidArgument) << name;
    EXPECT_NE(message.find(name), std::string::npos) << name << ": " << message;
  }
  EXPECT_TRUE(Validate(MakeRequest(), SmallConfig()));
  GenerationRequest score_only = MakeRequest(128, 0);
  score_only.sampling.num_prompt_logprobs = 0;
  EXPECT_TRUE(Validate(score_only, SmallConfig()));
}

TEST(Engine, ARequestThatCanNeverFitIsRefusedWithTheNumbers) {
  EngineConfig config = SmallConfig();
  config.num_blocks = 5;  // 20 tokens
  Fixture fixture(config);
  const auto refused = fixture.engine->Submit(MakeRequest(10, 12), std::make_shared<Collector>());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("may need 6 KV blocks of 4 tokens"), std::string::npos)
      << refused.error().message;
  EXPECT_NE(refused.error().message.find("only 5 (20 tokens)"), std::string::npos);
  const auto sink = fixture.Submit(MakeRequest(10, 11));  // 20 tokens of keys and values: fits
  fixture.RunDry();
  EXPECT_EQ(sink->Tokens().size(), 11U);
}

TEST(Engine, TheQueueIsBounded) {
  Fixture fixture;
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(fixture.Submit(MakeRequest()));
  }
  const auto refused = fixture.engine->Submit(MakeRequest(), std::make_shared<Collector>());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kLimitExceeded);
  fixture.engine->Step();  // some were admitted: there is room again
  fixture.Submit(MakeRequest());
  fixture.RunDry();
}

TEST(Engine, DrainingRefusesNewWorkAndFinishesTheOld) {
  Fixture fixture;
  const auto sink = fixture.Submit(MakeRequest());
  fixture.engine->StartDraining();
  const auto refused = fixture.engine->Submit(MakeRequest(), std::make_shared<Collector>());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  fixture.RunDry();
  EXPECT_EQ(sink->Finish(), FinishReason::kLength);
}

TEST(Engine, LaterChoicesShareThePromptsBlocks) {
  Fixture fixture;
  GenerationRequest request = MakeRequest(21);
  request.n = 3;
  const auto sink = fixture.Submit(request);
  fixture.RunDry();
  for (const OutputEvent& event : sink->events()) {
    EXPECT_EQ(event.num_cached_tokens, event.choice == 0 ? 0 : 20) << event.choice;
  }
  EXPECT_NE(sink->Tokens(0), sink->Tokens(1));
}

TEST(Engine, AWarmPrefixCacheGivesTheSameTokens) {
  Fixture fixture;
  const auto cold = fixture.Submit(MakeRequest(30));
  fixture.RunDry();
  const auto warm = fixture.Submit(MakeRequest(30));
  fixture.RunDry();
  EXPECT_EQ(cold->Tokens(), warm->Tokens());
  EXPECT_EQ(warm->events().back().num_cached_tokens, 28);
  const EngineStats stats = fixture.engine->Stats();
  EXPECT_EQ(stats.prefix_cache_hits, 28U);
  EXPECT_EQ(stats.prefix_cache_queries, 60U);
}

TEST(Engine, PreemptedSequencesGoOnWithTheSameTokens) {
  std::vector<std::vector<TokenId>> expected;
  for (const std::int32_t num_blocks : {200, 14}) {
    for (int depth = 0; depth <= 2; ++depth) {
      EngineConfig config = SmallConfig();
      config.num_blocks = num_blocks;
      config.max_queued_requests = 100;
      Fixture fixture(config, depth);
      std::vector<std::shared_ptr<Collector>> sinks;
      for (std::int32_t i = 0; i < 8; ++i) {
        GenerationRequest request = MakeRequest(5 + i, 30);
        request.sampling.seed = static_cast<std::uint64_t>(i);
        sinks.push_back(fixture.Submit(request));
      }
      fixture.RunDry();
      EXPECT_EQ(fixture.engine->Stats().num_preemptions > 0, num_blocks == 14);
      for (std::size_t i = 0; i < sinks.size(); ++i) {
        if (expected.size() <= i) {
          expected.push_back(sinks[i]->Tokens());
          EXPECT_EQ(expected.back().size(), 30U);
        }
        EXPECT_EQ(sinks[i]->Tokens(), expected[i]);
      }
    }
  }
}

TEST(Engine, PromptLogprobsComeOnceAndReadNoCache) {
  Fixture fixture;
  fixture.Submit(MakeRequest(40));
  fixture.RunDry();
  GenerationRequest request = MakeRequest(40, 0);
  request.sampling.num_prompt_logprobs = 1;
  const auto sink = fixture.Submit(request);
  fixture.RunDry();
  const auto events = sink->events();
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(events[0].finish, FinishReason::kLength);
  EXPECT_EQ(events[0].num_cached_tokens, 0);
  EXPECT_TRUE(events[0].tokens.empty());
  ASSERT_EQ(events[0].prompt_logprobs.size(), 40U);
  const auto expected = sim::Predict(request, 0, fixture.engine->config());
  for (std::size_t t = 1; t < 40; ++t) {
    EXPECT_EQ(events[0].prompt_logprobs[t].token, request.prompt[t]);
    EXPECT_EQ(events[0].prompt_logprobs[t].logprob, expected.prompt_scores[t - 1].logprob);
    EXPECT_EQ(events[0].prompt_logprobs[t].top.size(), 1U);
  }
}

TEST(Engine, PromptLogprobsOfAPromptsEndReadTheCacheBeforeThem) {
  Fixture fixture;
  fixture.Submit(MakeRequest(40));
  fixture.RunDry();
  // Blocks of 4: what scores the tokens 37, 38 and 39 begins at position 36, which a block begins
  // with; for the token 36 the block before it has to be computed as well.
  for (const auto& [first, cached] : {std::pair(37, 36), std::pair(36, 32), std::pair(2, 0)}) {
    GenerationRequest request = MakeRequest(40, 0);
    request.sampling.num_prompt_logprobs = 1;
    request.sampling.first_prompt_logprob = first;
    const auto sink = fixture.Submit(request);
    fixture.RunDry();
    const auto events = sink->events();
    ASSERT_EQ(events.size(), 1U);
    EXPECT_EQ(events[0].num_cached_tokens, cached);
    ASSERT_EQ(events[0].prompt_logprobs.size(), 40U);
    const auto expected = sim::Predict(request, 0, fixture.engine->config());
    for (std::size_t t = static_cast<std::size_t>(first); t < 40; ++t) {
      EXPECT_EQ(events[0].prompt_logprobs[t].token, request.prompt[t]);
      EXPECT_EQ(events[0].prompt_logprobs[t].logprob, expected.prompt_scores[t - 1].logprob);
    }
    EXPECT_TRUE(events[0].prompt_logprobs[static_cast<std::size_t>(first) - 1].top.empty());
  }
}

TEST(Engine, AFailedStepEndsItsRequestsAndNoOthers) {
  Fixture fixture(SmallConfig(), 0, {.launch_failure = 1.0});
  const auto failed = fixture.Submit(MakeRequest());
  fixture.RunDry();
  EXPECT_EQ(failed->Finish(), FinishReason::kError);
  EXPECT_FALSE(failed->events().back().error.empty());
  EXPECT_EQ(fixture.engine->Stats().num_blocks_held, 0);
  const auto again = fixture.Submit(MakeRequest());  // it still serves (and fails again)
  fixture.RunDry();
  EXPECT_EQ(again->Finish(), FinishReason::kError);
}

TEST(Engine, OnceTheDeviceIsLostItSaysSoAndTakesNoRequests) {
  Fixture fixture(SmallConfig(), 0, {.launch_failure = 1.0, .lasts = true});
  EXPECT_EQ(fixture.engine->Stats().device_failure, "");
  const auto failed = fixture.Submit(MakeRequest());
  fixture.RunDry();
  EXPECT_EQ(failed->Finish(), FinishReason::kError);
  EXPECT_EQ(fixture.engine->Stats().device_failure, "a kernel: an illegal memory access");
  const auto refused = fixture.engine->Submit(MakeRequest(), failed);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(fixture.engine->Stats().num_blocks_held, 0);
}

TEST(Engine, WhoWaitsLongerThanTheQueueDeadlineIsToldAndWhoHasBegunIsNot) {
  EngineConfig config = SmallConfig();
  config.max_num_sequences = 1;
  Fixture fixture(config);
  GenerationRequest request = MakeRequest(10, 20);
  request.queue_deadline = fixture.clock.Now() + std::chrono::seconds(5);
  const auto begun = fixture.Submit(request);
  const auto waiting = fixture.Submit(request);
  fixture.engine->Step();
  fixture.clock.Advance(std::chrono::seconds(6));
  fixture.engine->Step();
  EXPECT_EQ(waiting->Finish(), FinishReason::kQueueTimeout);
  EXPECT_TRUE(waiting->Tokens().empty());
  EXPECT_FALSE(begun->Finish());
  fixture.RunDry();
  EXPECT_EQ(begun->Finish(), FinishReason::kLength);
  EXPECT_EQ(fixture.engine->Stats().num_requests_waiting, 0);
}

TEST(Engine, ACancelledRequestLeavesNothingBehind) {
  for (int depth = 0; depth <= 2; ++depth) {
    Fixture fixture(SmallConfig(), depth);
    const auto sink = fixture.Submit(MakeRequest(20, 90));
    for (int i = 0; i < 5; ++i) {
      fixture.engine->Step();
    }
    fixture.engine->Cancel(fixture.last);
    fixture.engine->Step();
    EXPECT_EQ(sink->Finish(), FinishReason::kCancelled);
    fixture.RunDry();
    const EngineStats stats = fixture.engine->Stats();
    EXPECT_EQ(stats.num_requests_running, 0);
    EXPECT_EQ(stats.kv_cache_usage, 0.0);
    EXPECT_EQ(stats.finished[static_cast<std::size_t>(FinishReason::kCancelled)], 1U);
  }
}

TEST(Engine, StatisticsCountWhatHappened) {
  Fixture fixture;
  fixture.Submit(MakeRequest(10, 12));
  fixture.RunDry();
  const EngineStats stats = fixture.engine->Stats();
  EXPECT_EQ(stats.prompt_tokens, 10U);
  EXPECT_EQ(stats.generation_tokens, 12U);
  EXPECT_EQ(stats.num_steps, 12U);
  EXPECT_EQ(stats.time_to_first_token_s.count, 1U);
  EXPECT_EQ(stats.inter_token_latency_s.count, 11U);
  EXPECT_EQ(stats.e2e_request_latency_s.count, 1U);
  EXPECT_EQ(stats.iteration_tokens.sum, 21.0);
  EXPECT_EQ(stats.request_generation_tokens.sum, 12.0);
  EXPECT_EQ(stats.finished[static_cast<std::size_t>(FinishReason::kLength)], 1U);
  EXPECT_EQ(stats.time_to_first_token_s.counts.size(),
            stats.time_to_first_token_s.bounds.size() + 1);
}

/// Counts how often it is asked for the time: a loop that does not sleep gives itself away.
class CountingClock final : public Clock {
 public:
  TimePoint Now() const override {
    ++num_calls;
    return SystemClock().Now();
  }
  mutable std::atomic<std::uint64_t> num_calls{0};
};

struct Running {
  Running()
      : executor(SmallConfig(), 0, 1, virtual_clock, {}),
        engine(*Engine::Create(SmallConfig(), executor, sim::MakeFakeText(), clock)),
        thread([this](const std::stop_token& stop) { engine->RunLoop(stop); }) {
    executor.SetTenant(RequestId{1}, sim::TenantOf(""));
  }
  VirtualClock virtual_clock;
  CountingClock clock;
  FakeExecutor executor;
  std::unique_ptr<Engine> engine;
  std::jthread thread;
};

TEST(RunLoop, SleepsWhenIdleAndWakesForWork) {
  Running running;
  const auto sink = std::make_shared<Collector>();
  ASSERT_TRUE(running.engine->Submit(MakeRequest(), sink));
  ASSERT_TRUE(sink->WaitForEnd());
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::uint64_t calls = running.clock.num_calls;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(running.clock.num_calls, calls);
  const auto second = std::make_shared<Collector>();
  ASSERT_TRUE(running.engine->Submit(MakeRequest(), second));
  EXPECT_TRUE(second->WaitForEnd());
}

TEST(RunLoop, ManyThreadsMaySubmitCancelAndLook) {
  Running running;
  std::atomic<int> num_ended{0};
  {
    std::vector<std::jthread> clients;
    for (int t = 0; t < 4; ++t) {
      clients.emplace_back([&, t] {
        for (int i = 0; i < 20;) {
          auto sink = std::make_shared<Collector>();
          const auto id = running.engine->Submit(MakeRequest(5 + i, 1 + t), sink);
          if (!id) {
            EXPECT_EQ(id.error().code, ErrorCode::kLimitExceeded);
            std::this_thread::yield();
            continue;
          }
          ++i;
          if (i % 3 == 0) {
            running.engine->Cancel(*id);
          }
          static_cast<void>(running.engine->Stats());
          num_ended += sink->WaitForEnd() ? 1 : 0;
        }
      });
    }
  }
  EXPECT_EQ(num_ended, 80);
}

TEST(RunLoop, StoppingEndsEverythingWithShutdown) {
  Running running;
  std::vector<std::shared_ptr<Collector>> sinks;
  GenerationRequest request = MakeRequest(5, 100);
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(running.engine->Submit(request, sinks.back()));
  }
  running.thread.request_stop();
  running.thread.join();
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->Finish());
    EXPECT_TRUE(*sink->Finish() == FinishReason::kShutdown ||
                *sink->Finish() == FinishReason::kLength);
  }
  EXPECT_TRUE(running.engine->idle());
  EXPECT_EQ(running.engine->Stats().num_blocks_held, 0);
  EXPECT_FALSE(running.engine->Submit(request, std::make_shared<Collector>()));
}

}  // namespace
}  // namespace nibble
