// Structure-aware: the bytes choose fields and values of a chat or completions request, so that
// every field meets its limits (0, +-1, the limit and one more, 2^31, 2^63, 1e308) and every type.
// Oracles besides the sanitizers: an answer is a valid request within all limits, or an error with
// a status, a message and no crash. What is accepted is answered, whole and as a stream, with
// tokens from the input; every answer is JSON that our own parser takes.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "json/value.h"
#include "serve/openai_api.h"
#include "serve/sse_stream.h"
#include "tests/serve/fake_text.h"

namespace {

constexpr std::array kFields = std::to_array<std::string_view>({"model",
                                                                "messages",
                                                                "prompt",
                                                                "frequency_penalty",
                                                                "presence_penalty",
                                                                "logit_bias",
                                                                "logprobs",
                                                                "top_logprobs",
                                                                "max_completion_tokens",
                                                                "max_tokens",
                                                                "n",
                                                                "best_of",
                                                                "response_format",
                                                                "seed",
                                                                "stop",
                                                                "stream",
                                                                "stream_options",
                                                                "temperature",
                                                                "top_p",
                                                                "tools",
                                                                "tool_choice",
                                                                "reasoning_effort",
                                                                "top_k",
                                                                "min_p",
                                                                "repetition_penalty",
                                                                "min_tokens",
                                                                "ignore_eos",
                                                                "stop_token_ids",
                                                                "include_stop_str_in_output",
                                                                "skip_special_tokens",
                                                                "truncate_prompt_tokens",
                                                                "truncation_side",
                                                                "prompt_logprobs",
                                                                "use_beam_search",
                                                                "echo",
                                                                "add_generation_prompt",
                                                                "continue_final_message",
                                                                "add_special_tokens",
                                                                "documents",
                                                                "chat_template",
                                                                "chat_template_kwargs",
                                                                "structured_outputs",
                                                                "priority",
                                                                "request_id",
                                                                "return_tokens_as_token_ids",
                                                                "return_token_ids",
                                                                "cache_salt",
                                                                "stream_interval",
                                                                "suffix",
                                                                "guided_json",
                                                                "modalities",
                                                                "function_call",
                                                                "tokens",
                                                                "unknown"});

constexpr std::array kValues = std::to_array<std::string_view>(
    {"null",
     "true",
     "false",
     "0",
     "1",
     "-1",
     "2",
     "15",
     "16",
     "17",
     "20",
     "21",
     "63",
     "64",
     "65",
     "257",
     "258",
     "2147483647",
     "2147483648",
     "9223372036854775807",
     "9223372036854775808",
     "18446744073709551615",
     "18446744073709551616",
     "1e308",
     "-1e308",
     "1e-320",
     "0.5",
     "3.0",
     "\"\"",
     "\"a\"",
     "\"none\"",
     "\"auto\"",
     "\"left\"",
     "\"m\"",
     "\"\\u0000\\uD83D\\uDE00\"",
     "[]",
     "{}",
     "[1,2]",
     "[[1],[2,3]]",
     "[\"a\",\"b\"]",
     "[null]",
     "[[]]",
     "{\"65\":1,\"258\":1}",
     "{\"65\":-100}",
     "{\"type\":\"text\"}",
     "{\"type\":\"json_object\"}",
     "{\"include_usage\":true,\"continuous_usage_stats\":true}",
     "[{\"role\":\"user\",\"content\":\"hi\"}]",
     "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]",
     "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]",
     "[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"x\",\"function\":{"
     "\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}}]}]",
     "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]"
     "}"
     "]",
     "[{\"role\":\"user\",\"content\":\"refuse\"}]",
     "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"});

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

void CheckRequest(const nibble::ApiRequest& request, const nibble::ApiContext& context) {
  Require(!request.requests.empty() && request.n >= 1 && request.n <= nibble::limits::kChoices);
  for (const nibble::GenerationRequest& one : request.requests) {
    const nibble::SamplingParams& s = one.sampling;
    const auto length = static_cast<std::int64_t>(one.prompt.size());
    Require(length >= 1 && length + s.max_tokens <= context.engine.max_model_len);
    Require(s.max_tokens >= 0 && s.min_tokens >= 0 && s.min_tokens <= s.max_tokens);
    Require(s.temperature >= 0.0F && s.temperature <= 2.0F && s.top_p > 0.0F && s.top_p <= 1.0F);
    Require(s.min_p >= 0.0F && s.min_p <= 1.0F && s.top_k >= 0 && s.repetition_penalty > 0.0F);
    Require(s.num_logprobs <= nibble::limits::kTopLogprobs);
    for (const nibble::TokenId id : one.prompt) {
      Require(nibble::Raw(id) >= 0 && nibble::Raw(id) < context.engine.vocab_size);
    }
  }
}

nibble::TokenLogprob Score(std::uint8_t byte, int top) {
  const float logprob =
      byte == 0 ? -std::numeric_limits<float>::infinity() : -static_cast<float>(byte) / 16.0F;
  nibble::TokenLogprob score{.token = nibble::TokenId{byte}, .logprob = logprob, .rank = 1};
  for (int k = 0; k < top; ++k) {
    score.top.emplace_back(static_cast<nibble::TokenId>((byte * 7 + k) % 256), -0.5F);
  }
  return score;
}

void AnswerRequest(const nibble::ApiRequest& request, std::span<const std::uint8_t> tokens,
                   const nibble::ModelText& text) {
  const nibble::SseStream stream(request, text);
  std::vector<nibble::PromptState> prompts(request.requests.size());
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    prompts[p].choices.resize(static_cast<std::size_t>(request.n));
    const nibble::SamplingParams& sampling = request.requests[p].sampling;
    for (int choice = 0; choice < request.n; ++choice) {
      nibble::OutputEvent event;
      event.choice = choice;
      if (choice == 0 && sampling.num_prompt_logprobs >= 0) {
        for (const nibble::TokenId id : request.requests[p].prompt) {
          event.prompt_logprobs.push_back(
              Score(static_cast<std::uint8_t>(nibble::Raw(id)), sampling.num_prompt_logprobs));
        }
      }
      for (const std::uint8_t byte : tokens) {
        event.tokens.push_back(nibble::TokenId{byte});
        if (sampling.num_logprobs >= 0) {
          event.logprobs.push_back(Score(byte, sampling.num_logprobs));
        }
      }
      event.text = std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size());
      event.num_output_tokens = static_cast<std::int32_t>(tokens.size());
      event.finish = static_cast<nibble::FinishReason>(tokens.size() % 7);
      if (tokens.size() % 3 == 1) {
        event.stop_reason = nibble::TokenId{tokens.front()};
      } else if (tokens.size() % 3 == 2) {
        event.stop_reason = event.text;
      }
      nibble::Apply(event, request, prompts[p]);
      for (const std::string& sent : stream.OnEvent(prompts, p, event)) {
        Require(sent.starts_with("data: ") && sent.find('\n') == sent.size() - 2);
        Require(nibble::json::Parse(std::string_view(sent).substr(6)).has_value());
      }
    }
  }
  const std::string whole = nibble::json::Dump(nibble::CompletedResponse(request, prompts, text));
  Require(nibble::json::Parse(whole).has_value());
  Require(nibble::json::Parse(stream.Usage(prompts).substr(6)).has_value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const nibble::testing::FakeText text;
  static const nibble::ApiContext context = [] {
    nibble::ApiContext made;
    made.model_names = {"m"};
    made.engine.max_model_len = 64;
    made.engine.vocab_size = nibble::testing::kFakeVocab;
    made.text = &text;
    return made;
  }();
  std::array<bool, kFields.size()> used{};  // a repeated key would only be refused as such
  std::string body = "{\"user\":\"u\"";
  for (std::size_t i = 1; i + 1 < size; i += 2) {
    const std::size_t field = data[i] % kFields.size();
    if (!std::exchange(used[field], true)) {
      body += ",\"";
      body += kFields[field];
      body += "\":";
      body += kValues[data[i + 1] % kValues.size()];
    }
  }
  // Otherwise most requests would end at the missing prompt.
  body += used[1] ? "" : R"(,"messages":[{"role":"user","content":"hi"}])";
  body += used[2] ? "" : R"(,"prompt":"hi")";
  body += '}';
  for (const auto parse : {nibble::ParseChatCompletion, nibble::ParseCompletion}) {
    const auto parsed = parse(body, context);
    if (parsed) {
      CheckRequest(*parsed, context);
      AnswerRequest(*parsed, std::span(data, size).first(std::min<std::size_t>(size, 8)), text);
    } else {
      Require(parsed.error().status >= 400 && !parsed.error().message.empty());
    }
  }
  for (const auto answer : {nibble::Tokenize, nibble::Detokenize}) {
    const auto value = answer(body, context);
    Require(value.has_value() || value.error().status >= 400);
  }
  return 0;
}
