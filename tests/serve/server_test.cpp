#include "serve/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "base/log.h"
#include "tests/serve/client.h"
#include "tests/serve/fakes.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using testing::Client;
using testing::ClientResponse;
using testing::FakeEngine;
using testing::FakeText;
using ::testing::HasSubstr;
using ::testing::Not;

template <typename Condition>
bool Eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

ServerConfig TestConfig() {
  ServerConfig config;
  config.http.port = 0;
  config.served_model_names = {"org/model", "model"};
  config.model_root = "models/model";
  config.handle_signals = false;
  config.log_requests = false;
  config.shutdown_timeout = milliseconds(2000);
  return config;
}

// A running server over a fake engine; it is drained at the end of the test.
class Running {
 public:
  explicit Running(FakeEngine& engine, ServerConfig config = TestConfig()) {
    SetLogLevel(LogLevel::kError);
    auto created = Server::Create(std::move(config), engine, text_);
    EXPECT_TRUE(created) << created.error().message;
    server_ = std::move(*created);
    thread_ = std::jthread([this] { EXPECT_TRUE(server_->Run()); });
  }
  ~Running() {
    server_->Stop();
    server_->Stop();
  }
  std::uint16_t port() const { return server_->port(); }
  Server& server() { return *server_; }
  void Join() { thread_.join(); }

 private:
  FakeText text_;
  std::unique_ptr<Server> server_;
  std::jthread thread_;
};

json::Value Json(const std::string& text) {
  auto value = json::Parse(text);
  EXPECT_TRUE(value) << text;
  return value ? *value : json::Value();
}

const json::Value& At(const json::Value& value, std::string_view path) {
  static const json::Value kNothing = "(absent)";
  const json::Value* here = &value;
  while (!path.empty() && here != nullptr) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    const std::string_view step = path.substr(0, dot);
    if (const auto* array = here->AsArray()) {
      const auto index = static_cast<std::size_t>(std::stoi(std::string(step)));
      here = index < array->size() ? &(*array)[index] : nullptr;
    } else {
      here = here->Find(step);
    }
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return here == nullptr ? kNothing : *here;
}

std::string Text(const json::Value& value, std::string_view path) {
  return At(value, path).IsString() ? *At(value, path).AsString() : "(no string)";
}

constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kHi = R"({"messages":[{"role":"user","content":"hi"}]})";
constexpr std::string_view kHiStream =
    R"({"stream":true,"messages":[{"role":"user","content":"hi"}]})";

TEST(Server, AnswersAChat) {
  FakeEngine engine;
  Running running(engine);
  const ClientResponse response =
      Client(running.port()).Post(kChat, kHi, "X-Request-Id: abc-1\r\n");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(response.head, HasSubstr("Content-Type: application/json\r\n"));
  EXPECT_THAT(response.head, HasSubstr("X-Request-Id: abc-1\r\n"));
  const json::Value body = Json(response.body);
  EXPECT_EQ(Text(body, "id"), "chatcmpl-abc-1");
  EXPECT_EQ(Text(body, "object"), "chat.completion");
  EXPECT_EQ(Text(body, "model"), "org/model");
  EXPECT_EQ(Text(body, "choices.0.message.role"), "assistant");
  EXPECT_EQ(Text(body, "choices.0.message.content"), "hello");
  EXPECT_EQ(Text(body, "choices.0.finish_reason"), "stop");
  EXPECT_EQ(At(body, "usage.prompt_tokens").AsInt(), 18);  // "user:hi\nassistant:"
  EXPECT_EQ(At(body, "usage.completion_tokens").AsInt(), 6);
  EXPECT_EQ(At(body, "usage.total_tokens").AsInt(), 24);
}

TEST(Server, StreamsOneEventAChunkAndEndsWithDone) {
  FakeEngine engine([](const GenerationRequest&) { return "ab"; });
  Running running(engine);
  const ClientResponse response =
      Client(running.port())
          .Post(kChat,
                R"({"stream":true,"stream_options":{"include_usage":true},"model":"model",)"
                R"("messages":[{"role":"user","content":"hi"}]})",
                "X-Request-Id: r1\r\n");
  ASSERT_EQ(response.status, 200);
  ASSERT_TRUE(response.complete);
  EXPECT_THAT(response.head, HasSubstr("Content-Type: text/event-stream; charset=utf-8\r\n"));
  ASSERT_EQ(response.chunks.size(), 6U) << response.body;
  for (const std::string& chunk : response.chunks) {
    EXPECT_TRUE(chunk.starts_with("data: ")) << chunk;
    EXPECT_TRUE(chunk.ends_with("\n\n")) << chunk;
    EXPECT_EQ(std::count(chunk.begin(), chunk.end(), '\n'), 2) << chunk;
    EXPECT_EQ(chunk.find('\r'), std::string::npos) << chunk;
  }
  const auto event = [&](std::size_t i) { return Json(response.chunks[i].substr(6)); };
  EXPECT_EQ(Text(event(0), "id"), "chatcmpl-r1");
  EXPECT_EQ(Text(event(0), "object"), "chat.completion.chunk");
  EXPECT_EQ(Text(event(0), "model"), "model");
  EXPECT_EQ(Text(event(0), "choices.0.delta.role"), "assistant");
  EXPECT_EQ(Text(event(0), "choices.0.delta.content"), "");
  EXPECT_EQ(Text(event(1), "choices.0.delta.content"), "a");
  EXPECT_EQ(At(event(1), "choices.0.delta").AsObject()->size(), 1U);  // no role again
  EXPECT_TRUE(At(event(1), "choices.0.finish_reason").IsNull());
  EXPECT_EQ(Text(event(2), "choices.0.delta.content"), "b");
  EXPECT_EQ(Text(event(3), "choices.0.finish_reason"), "stop");
  EXPECT_TRUE(At(event(4), "choices").AsArray()->empty());
  EXPECT_EQ(At(event(4), "usage.completion_tokens").AsInt(), 3);
  EXPECT_EQ(response.chunks[5], "data: [DONE]\n\n");
}

TEST(Server, NeverSendsHalfACharacter) {
  FakeEngine engine([](const GenerationRequest&) { return "\xF0\x9F\x98\x80!"; });
  Running running(engine);
  const ClientResponse response = Client(running.port()).Post(kChat, kHiStream);
  std::string text;
  for (const std::string& chunk : response.chunks) {
    if (chunk != "data: [DONE]\n\n") {
      const std::string piece = Text(Json(chunk.substr(6)), "choices.0.delta.content");
      EXPECT_TRUE(piece.empty() || piece == "\xF0\x9F\x98\x80" || piece == "!") << piece;
      text += piece;
    }
  }
  EXPECT_EQ(text, "\xF0\x9F\x98\x80!");
}

TEST(Server, StreamsSeveralChoices) {
  FakeEngine engine;
  Running running(engine);
  const ClientResponse response =
      Client(running.port())
          .Post("/v1/completions", R"({"prompt":["a","b"],"n":2,"stream":true,"max_tokens":3})");
  std::map<std::int64_t, std::string> texts;
  std::map<std::int64_t, int> finishes;
  for (const std::string& chunk : response.chunks) {
    if (chunk != "data: [DONE]\n\n") {
      const json::Value event = Json(chunk.substr(6));
      EXPECT_EQ(Text(event, "object"), "text_completion");
      const auto index = At(event, "choices.0.index").AsInt().value_or(-1);
      texts[index] += Text(event, "choices.0.text");
      finishes[index] += At(event, "choices.0.finish_reason").IsNull() ? 0 : 1;
    }
  }
  ASSERT_EQ(texts.size(), 4U);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(texts[i], "hel");
    EXPECT_EQ(finishes[i], 1);
  }
}

TEST(Server, AnswersPipelinedAndRepeatedRequestsInOrder) {
  FakeEngine engine;
  Running running(engine);
  Client client(running.port());
  client.Send("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
  client.SendPost(kChat, kHi);
  client.Send("GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(client.Read().body, R"({"version":"0.1.0"})");
  EXPECT_THAT(client.Read().body, HasSubstr("hello"));
  const ClientResponse last = client.Read();
  EXPECT_EQ(last.status, 200);
  EXPECT_EQ(last.body, "");
}

TEST(Server, CancelsWhenTheClientLeavesAStream) {
  FakeEngine engine([](const GenerationRequest&) { return std::string(200, 'x'); });
  engine.step_time = std::chrono::milliseconds(20);
  Running running(engine);
  Client client(running.port());
  client.SendPost(kChat, kHiStream);
  ASSERT_TRUE(client.WaitFor("delta"));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return engine.num_cancelled == 1; }));
  EXPECT_TRUE(engine.idle());
}

TEST(Server, CancelsWhenTheClientOfAQueuedWholeAnswerLeaves) {
  FakeEngine engine;
  engine.paused = true;
  Running running(engine);
  for (const bool half : {false, true}) {
    Client client(running.port());
    const int before = engine.num_submitted;
    client.SendPost(kChat, kHi);
    ASSERT_TRUE(Eventually([&] { return engine.num_submitted == before + 1; }));
    half ? client.HalfClose() : client.Close();
    EXPECT_TRUE(Eventually([&] { return engine.idle(); }));
  }
  EXPECT_EQ(engine.num_cancelled, 2);
}

TEST(Server, DoesNotCountAClientThatLeavesAfterDone) {
  FakeEngine engine;
  Running running(engine);
  {
    Client client(running.port());
    client.SendPost(kChat, kHiStream);
    ASSERT_TRUE(client.WaitFor("[DONE]"));
  }
  EXPECT_THAT(Client(running.port()).Get("/metrics").body, Not(HasSubstr("4xx")));
  EXPECT_EQ(engine.num_cancelled, 0);
}

TEST(Server, SendsTheHeadOfAQueuedStreamAtOnce) {
  FakeEngine engine;
  engine.paused = true;
  Running running(engine);
  Client client(running.port());
  client.SendPost(kChat, kHiStream);
  EXPECT_TRUE(client.WaitFor("text/event-stream"));
}

TEST(Server, TellsErrorsBeforeAndAfterTheFirstByte) {
  FakeEngine engine;
  engine.fail_with = "the step failed";
  Running running(engine);
  const ClientResponse whole = Client(running.port()).Post(kChat, kHi);
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(Text(Json(whole.body), "error.message"), "the step failed");
  const ClientResponse stream = Client(running.port()).Post(kChat, kHiStream);
  EXPECT_EQ(stream.status, 200);
  ASSERT_EQ(stream.chunks.size(), 2U);
  EXPECT_EQ(Text(Json(stream.chunks[0].substr(6)), "error.type"), "InternalServerError");
  EXPECT_EQ(stream.chunks[1], "data: [DONE]\n\n");
}

TEST(Server, RefusesWhenTheQueueIsFull) {
  FakeEngine engine;
  engine.max_requests = 1;
  engine.paused = true;
  Running running(engine);
  Client first(running.port());
  first.SendPost(kChat, kHiStream);
  ASSERT_TRUE(first.WaitFor("200 OK"));
  const ClientResponse second = Client(running.port()).Post(kChat, kHi);
  EXPECT_EQ(second.status, 429);
  EXPECT_THAT(second.head, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_EQ(Text(Json(second.body), "error.type"), "rate_limit_error");
  // Several prompts: those that had been accepted are taken back.
  engine.max_requests = 2;
  const ClientResponse batch =
      Client(running.port()).Post("/v1/completions", R"({"prompt":["a","b","c"]})");
  EXPECT_EQ(batch.status, 429);
  EXPECT_EQ(engine.num_cancelled, 1);
}

TEST(Server, ListsModels) {
  FakeEngine engine;
  Running running(engine);
  const json::Value list = Json(Client(running.port()).Get("/v1/models").body);
  EXPECT_EQ(Text(list, "data.0.id"), "org/model");
  EXPECT_EQ(Text(list, "data.0.root"), "models/model");
  EXPECT_EQ(At(list, "data.0.max_model_len").AsInt(), 256);
  EXPECT_EQ(Text(list, "data.1.id"), "model");
  EXPECT_EQ(Client(running.port()).Get("/v1/models/org/model").status, 200);
  EXPECT_EQ(Client(running.port()).Get("/v1/models/org%2Fmodel").status, 200);
  const ClientResponse unknown = Client(running.port()).Get("/v1/models/other");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(Text(Json(unknown.body), "error.message"), "The model `other` does not exist.");
}

TEST(Server, TokenizesBothWays) {
  FakeEngine engine;
  Running running(engine);
  EXPECT_EQ(Client(running.port())
                .Post("/tokenize", R"({"prompt":"hi","add_special_tokens":false})")
                .body,
            R"({"count":2,"max_model_len":256,"tokens":[104,105],"token_strs":null})");
  EXPECT_EQ(Client(running.port()).Post("/detokenize", R"({"tokens":[104,105]})").body,
            R"({"prompt":"hi"})");
}

struct ErrorCase {
  const char* name;
  std::string request;
  int status;
  const char* type;
};

class ErrorTable : public ::testing::TestWithParam<ErrorCase> {};

TEST_P(ErrorTable, HasStatusAndType) {
  FakeEngine engine;
  ServerConfig config = TestConfig();
  config.api_keys = {"other-key", "sesame"};
  Running running(engine, config);
  Client client(running.port());
  client.Send(GetParam().request);
  const ClientResponse response = client.Read();
  EXPECT_EQ(response.status, GetParam().status) << response.body;
  EXPECT_THAT(response.head, HasSubstr("X-Request-Id: "));
  if (GetParam().type != nullptr) {
    const json::Value body = Json(response.body);
    EXPECT_EQ(Text(body, "error.type"), GetParam().type);
    EXPECT_EQ(At(body, "error.code").AsInt(), GetParam().status);
    EXPECT_FALSE(Text(body, "error.message").empty());
  }
}

std::string PostBytes(std::string_view path, std::string_view headers, std::string_view body) {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         std::string(headers) + "\r\n" + std::string(body);
}

constexpr std::string_view kKeyHeader = "Authorization: Bearer sesame\r\n";

INSTANTIATE_TEST_SUITE_P(
    Server, ErrorTable,
    ::testing::Values(
        ErrorCase{"NoKey", PostBytes(kChat, "", kHi), 401, "authentication_error"},
        ErrorCase{"WrongKey", PostBytes(kChat, "Authorization: Bearer x\r\n", kHi), 401,
                  "authentication_error"},
        ErrorCase{"EmptyKey", PostBytes(kChat, "Authorization: Bearer \r\n", kHi), 401,
                  "authentication_error"},
        ErrorCase{"RightKey", PostBytes(kChat, kKeyHeader, kHi), 200, nullptr},
        ErrorCase{"SecondKey", PostBytes(kChat, "authorization: bearer other-key\r\n", kHi), 200,
                  nullptr},
        ErrorCase{"UnknownPathUnderV1", "GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n", 401,
                  "authentication_error"},
        ErrorCase{"UnknownPath", "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404,
                  "NotFoundError"},
        ErrorCase{"WrongMethod",
                  "GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                  "sesame\r\n\r\n",
                  405, "Method Not Allowed"},
        ErrorCase{
            "WrongType",
            PostBytes(kChat, "Authorization: Bearer sesame\r\nContent-Type: text/plain\r\n", kHi),
            415, "Unsupported Media Type"},
        ErrorCase{
            "Compressed",
            PostBytes(kChat, "Authorization: Bearer sesame\r\nContent-Encoding: gzip\r\n", kHi),
            415, "Unsupported Media Type"},
        ErrorCase{"ForeignHost", "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403,
                  "permission_error"},
        ErrorCase{"NotJson", PostBytes(kChat, kKeyHeader, "{"), 400, "BadRequestError"},
        ErrorCase{"UnknownModel",
                  PostBytes(kChat, kKeyHeader,
                            R"({"model":"x","messages":[{"role":"user","content":"a"}]})"),
                  404, "NotFoundError"},
        ErrorCase{
            "TemplateRefuses",
            PostBytes(kChat, kKeyHeader, R"({"messages":[{"role":"user","content":"refuse"}]})"),
            400, "BadRequestError"},
        ErrorCase{"HealthIsOpen", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, nullptr},
        ErrorCase{"MetricsAreOpen", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 200,
                  nullptr},
        ErrorCase{"TooLarge",
                  "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                  "16777217\r\n\r\n",
                  413, "invalid_request_error"}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(Server, AnswersAPreflightFromTheSameMachineOnly) {
  FakeEngine engine;
  ServerConfig config = TestConfig();
  config.api_keys = {"sesame"};
  Running running(engine, config);
  const auto preflight = [&](const std::string& origin) {
    Client client(running.port());
    client.Send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: " + origin +
                "\r\nAccess-Control-Request-Headers: authorization,content-type\r\n\r\n");
    return client.Read();
  };
  const ClientResponse near = preflight("http://localhost:3000");
  EXPECT_EQ(near.status, 204);
  EXPECT_THAT(near.head, HasSubstr("Access-Control-Allow-Origin: http://localhost:3000\r\n"));
  EXPECT_THAT(near.head, HasSubstr("Access-Control-Allow-Headers: authorization,content-type\r\n"));
  EXPECT_THAT(preflight("https://evil.example").head, Not(HasSubstr("Allow-Origin")));
  EXPECT_THAT(preflight("http://127.0.0.1.evil.example").head, Not(HasSubstr("Allow-Origin")));
}

TEST(Server, ShowsMetricsUnderTheirKnownNames) {
  FakeEngine engine;
  Running running(engine);
  Client(running.port()).Post(kChat, kHi);
  Client(running.port()).Get("/nowhere/at/all");
  const ClientResponse response = Client(running.port()).Get("/metrics");
  EXPECT_THAT(response.head, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(response.body, HasSubstr("# TYPE vllm:num_requests_running gauge\n"
                                       "vllm:num_requests_running{engine=\"0\",model_name="
                                       "\"org/model\"} 0\n"));
  EXPECT_THAT(response.body, HasSubstr("vllm:num_preemptions_total{engine=\"0\",model_name=\"org/"
                                       "model\"} 7\n"));
  const std::string engine_label = "{engine=\"0\",model_name=\"org/model\"";
  for (const std::string& line :
       {"vllm:kv_offload_cpu_cache_usage_perc" + engine_label + "} 0.25\n",
        "vllm:kv_offload_total_bytes_total" + engine_label +
            ",transfer_type=\"GPU_to_CPU\"} 4096\n",
        "vllm:kv_offload_total_bytes_total" + engine_label +
            ",transfer_type=\"CPU_to_GPU\"} 1024\n",
        "vllm:external_prefix_cache_hits_total" + engine_label + "} 48\n"}) {
    EXPECT_THAT(response.body, HasSubstr(line));
  }
  EXPECT_THAT(response.body, HasSubstr("num_cpu_blocks=\"8\""));
  EXPECT_THAT(response.body,
              HasSubstr("http_requests_total{handler=\"/v1/chat/completions\",method=\"POST\","
                        "status=\"2xx\"} 1\n"));
  EXPECT_THAT(response.body,
              HasSubstr("http_requests_total{handler=\"none\",method=\"GET\",status=\"4xx\"} 1\n"));
  EXPECT_THAT(response.body, HasSubstr("process_resident_memory_bytes "));
}

TEST(Server, DeliversEverythingToASlowReader) {
  FakeEngine engine([](const GenerationRequest&) { return std::string(5000, 'x'); });
  engine.step_time = std::chrono::microseconds(0);
  ServerConfig config = TestConfig();
  config.http.num_io_threads = 1;
  Running running(engine, config);
  Client client(running.port(), /*receive_buffer_bytes=*/4096);
  // With many choices and log probabilities the kernel's buffers fill, then ours; what comes after
  // is joined.
  client.SendPost("/v1/completions",
                  R"({"prompt":"a","n":16,"stream":true,"max_tokens":200,"logprobs":20})");
  ASSERT_TRUE(client.WaitFor("data: "));
  EXPECT_TRUE(Eventually([&] { return engine.idle(); }));  // the engine never waits for a reader
  // The one I/O thread answers this when it is done with the events before; reading earlier would
  // race with it, and a thread slower than the reader has nothing to join.
  EXPECT_TRUE(Client(running.port()).Get("/health").complete);
  const ClientResponse response = client.Read();
  ASSERT_TRUE(response.complete);
  EXPECT_LT(response.chunks.size(), 16U * 200U);
  std::size_t num_characters = 0;
  std::size_t num_logprobs = 0;
  for (const std::string& chunk : response.chunks) {
    if (chunk != "data: [DONE]\n\n") {
      const json::Value event = Json(chunk.substr(6));
      num_characters += Text(event, "choices.0.text").size();
      num_logprobs += At(event, "choices.0.logprobs.tokens").AsArray()->size();
    }
  }
  EXPECT_EQ(num_characters, 16U * 200U);
  EXPECT_EQ(num_logprobs, 16U * 200U);
}

TEST(Server, FinishesRunningWorkWhenItDrains) {
  FakeEngine engine([](const GenerationRequest&) { return std::string(20, 'x'); });
  engine.step_time = std::chrono::milliseconds(5);
  Running running(engine);
  Client busy(running.port());
  busy.SendPost(kChat, kHiStream);
  ASSERT_TRUE(busy.WaitFor("delta"));
  Client early(running.port());  // connected and sending before the drain
  early.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n\r\n{");
  Client idle(running.port());
  ASSERT_EQ(idle.Get("/ready").status, 200);
  std::this_thread::sleep_for(milliseconds(10));
  running.server().Stop();
  EXPECT_TRUE(idle.AtEnd());
  early.Send(R"("prompt":"a"})");
  const ClientResponse refused = early.Read();
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.head, HasSubstr("Connection: close"));
  const ClientResponse stream = busy.Read();
  EXPECT_TRUE(stream.complete);
  EXPECT_THAT(stream.body, HasSubstr("[DONE]"));
  EXPECT_THAT(stream.body, Not(HasSubstr("error")));
  running.Join();
  EXPECT_FALSE(Client(running.port()).connected());
}

TEST(Server, EndsTheRestWhenTheDrainTakesTooLong) {
  FakeEngine engine;
  engine.paused = true;
  ServerConfig config = TestConfig();
  config.shutdown_timeout = milliseconds(30);
  Running running(engine, config);
  Client stream(running.port());
  stream.SendPost(kChat, kHiStream);
  ASSERT_TRUE(stream.WaitFor("event-stream"));
  Client whole(running.port());
  whole.SendPost(kChat, kHi);
  ASSERT_TRUE(Eventually([&] { return engine.num_submitted == 2; }));
  running.server().Stop();
  const ClientResponse cut = stream.Read();
  ASSERT_EQ(cut.chunks.size(), 2U) << cut.body;
  EXPECT_THAT(cut.chunks[0], HasSubstr("shutting down"));
  EXPECT_EQ(whole.Read().status, 503);
  running.Join();
  EXPECT_EQ(engine.num_cancelled, 2);
}

TEST(Server, DrainsOnSigterm) {
  FakeEngine engine;
  ServerConfig config = TestConfig();
  config.handle_signals = true;
  std::atomic<std::uint16_t> heard{0};
  config.on_listening = [&](std::uint16_t port) { heard = port; };
  Running running(engine, config);
  ASSERT_TRUE(Eventually([&] { return heard == running.port(); }));
  ::raise(SIGTERM);
  running.Join();
}

TEST(Server, IsUnhealthyWhenTheEngineStandsStillWithWork) {
  FakeEngine engine;
  engine.paused = true;
  ServerConfig config = TestConfig();
  config.stall_timeout = std::chrono::seconds(0);
  Running running(engine, config);
  EXPECT_EQ(Client(running.port()).Get("/health").status, 200);  // idle is healthy
  Client waiting(running.port());
  waiting.SendPost(kChat, kHiStream);
  ASSERT_TRUE(waiting.WaitFor("200 OK"));
  EXPECT_EQ(Client(running.port()).Get("/health").status, 503);
  EXPECT_EQ(Client(running.port()).Get("/ready").status, 503);
  EXPECT_EQ(Client(running.port()).Get("/live").status, 200);
}

TEST(Server, IsUnhealthyOnceTheDeviceIsLost) {
  FakeEngine engine;
  engine.device_failure = "a kernel: an illegal memory access";
  Running running(engine);
  for (const char* path : {"/health", "/ready"}) {
    const auto answer = Client(running.port()).Get(path);
    EXPECT_EQ(answer.status, 503) << path;
    EXPECT_NE(answer.body.find("restart the server"), std::string::npos) << answer.body;
  }
  EXPECT_EQ(Client(running.port()).Get("/live").status, 200);
}

TEST(Server, NamesAnAddressInUse) {
  FakeEngine engine;
  Running running(engine);
  ServerConfig config = TestConfig();
  config.http.port = running.port();
  const FakeText text;
  const auto second = Server::Create(config, engine, text);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message, HasSubstr("127.0.0.1:" + std::to_string(running.port())));
}

TEST(Server, RefusesAPublicAddressWithoutKeys) {
  FakeEngine engine;
  const FakeText text;
  ServerConfig config = TestConfig();
  config.http.host = "0.0.0.0";
  const auto open = Server::Create(config, engine, text);
  ASSERT_FALSE(open);
  EXPECT_THAT(open.error().message, HasSubstr("--insecure-bind"));
  config.api_keys = {"sesame"};
  EXPECT_TRUE(Server::Create(config, engine, text));
}

}  // namespace
}  // namespace nibble
