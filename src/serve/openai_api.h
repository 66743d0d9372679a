#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "json/value.h"
#include "serve/api_error.h"
#include "serve/model_text.h"

namespace nibble {

/// generation_config.json as far as a request may leave it out; a request's own value wins.
struct SamplingDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int32_t> top_k, max_tokens;
};

/// What requests are checked against. Fixed while the server runs.
struct ApiContext {
  std::vector<std::string> model_names;  // the first is the default
  EngineConfig engine;
  const ModelText* text = nullptr;
  SamplingDefaults defaults;
  bool strict = false;  // refuse unknown fields instead of ignoring them
};

/// One validated client request. Nothing in it needs checking again.
struct ApiRequest {
  enum class Kind { kChat, kCompletion };
  Kind kind = Kind::kChat;
  std::string model{};                        // the name to answer with
  std::string id{};                           // of the response: chatcmpl-..., cmpl-...
  std::int64_t created = 0;                   // Unix seconds
  std::vector<GenerationRequest> requests{};  // one a prompt
  std::vector<std::string> echo_texts{};      // with echo: the prompts' texts
  std::int32_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  bool logprobs = false;
  bool prompt_logprobs = false;  // asked for as such, not for the sake of echo
  bool tokens_as_ids = false;    // logprobs name tokens "token_id:123"
  bool return_token_ids = false;
};

/// Stop 2 of the golden path: JSON -> GenerationRequest, validated here once.
/// Fields that nibble knows but cannot do yet are refused by name; unknown ones are ignored.
ApiResult<ApiRequest> ParseChatCompletion(std::string_view body, const ApiContext& context);
ApiResult<ApiRequest> ParseCompletion(std::string_view body, const ApiContext& context);

/// POST /tokenize and /detokenize: body -> answer.
ApiResult<json::Value> Tokenize(std::string_view body, const ApiContext& context);
ApiResult<json::Value> Detokenize(std::string_view body, const ApiContext& context);

/// One choice as it grows from events.
struct ChoiceState {
  std::string text;
  std::vector<TokenId> tokens;  // kept only if the answer lists them
  std::int64_t num_tokens = 0;
  std::vector<TokenLogprob> logprobs;
  std::optional<FinishReason> finish;
  decltype(OutputEvent::stop_reason) stop_reason;
  bool opened = false;          // streams: the first chunk is out
  std::size_t text_offset = 0;  // streams: characters sent so far, for logprobs
};

/// One prompt and its n choices.
struct PromptState {
  std::vector<ChoiceState> choices;
  std::vector<TokenLogprob> prompt_logprobs;
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_cached_tokens = 0;
};

/// Takes an event into its prompt's state. What a stream has passed on already is not kept.
void Apply(const OutputEvent& event, const ApiRequest& request, PromptState& prompt);

/// "stop", "length", "abort" or "error".
const char* FinishName(FinishReason reason);
json::Value StopReasonJson(const decltype(OutputEvent::stop_reason)& reason);
json::Object UsageJson(const ApiRequest& request, const std::vector<PromptState>& prompts);

/// {"content":[{"token","logprob","bytes","top_logprobs"}...]}
json::Value ChatLogprobs(std::span<const TokenLogprob> logprobs, const ApiRequest& request,
                         const ModelText& text);
/// {"tokens","token_logprobs","top_logprobs","text_offset"}; text_offset counts characters and is
/// moved on. With echo the prompt's come first (prompt_tokens > 0 entries, [0] without a value).
json::Value CompletionLogprobs(std::span<const TokenLogprob> prompt,
                               std::span<const TokenId> prompt_tokens,
                               std::span<const TokenLogprob> logprobs, const ApiRequest& request,
                               const ModelText& text, std::size_t& text_offset);

/// The whole answer of a request that is not streamed.
json::Value CompletedResponse(const ApiRequest& request, const std::vector<PromptState>& prompts,
                              const ModelText& text);

/// GET /v1/models and /v1/models/{id}.
json::Value ModelJson(const std::string& name, const std::string& root, std::int64_t created,
                      const ApiContext& context);
ApiError UnknownModel(std::string_view name);

}  // namespace nibble
