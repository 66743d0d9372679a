#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/limits.h"
#include "engine/engine.h"

namespace nibble {
namespace {

tl::unexpected<Error> Invalid(std::string message) {
  return Fail(ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

Result<void> Validate(const EngineConfig& config) {
  const auto at_least_one = [](const char* name, std::int64_t value) -> Result<void> {
    if (value < 1) {
      return Invalid(fmt::format("{} must be at least 1, not {}", name, value));
    }
    return {};
  };
  NIBBLE_TRY_VOID(at_least_one("max_num_seqs", config.max_num_sequences));
  NIBBLE_TRY_VOID(at_least_one("max_num_batched_tokens", config.max_batched_tokens));
  NIBBLE_TRY_VOID(at_least_one("max_model_len", config.max_model_len));
  NIBBLE_TRY_VOID(at_least_one("the block size", config.block_size_tokens));
  NIBBLE_TRY_VOID(at_least_one("the number of KV blocks", config.num_blocks));
  NIBBLE_TRY_VOID(at_least_one("max_queued_requests", config.max_queued_requests));
  NIBBLE_TRY_VOID(at_least_one("the vocabulary's size", config.vocab_size));
  if (config.num_host_blocks < 0) {
    return Invalid("the number of KV blocks in host memory is negative");
  }
  if (config.prefix_hash_bits < 1 || config.prefix_hash_bits > 64) {
    return Invalid("prefix_hash_bits must be in 1..64");
  }
  return {};
}

Result<void> Validate(const GenerationRequest& request, const EngineConfig& config) {
  const SamplingParams& s = request.sampling;
  const auto in_range = [](const char* name, double value, double low,
                           double high) -> Result<void> {
    if (!(value >= low && value <= high)) {  // also refuses NaN
      return Invalid(fmt::format("{} must be in [{}, {}], not {}", name, low, high, value));
    }
    return {};
  };
  const auto known = [&](const char* name, TokenId token) -> Result<void> {
    if (Raw(token) < 0 || Raw(token) >= config.vocab_size) {
      return Invalid(fmt::format("{}: token id {} is outside the vocabulary of {}", name,
                                 Raw(token), config.vocab_size));
    }
    return {};
  };
  const auto prompt_size = std::ssize(request.prompt);
  if (prompt_size == 0) {
    return Invalid("the prompt is empty: it needs at least one token");
  }
  const bool scores_only = s.max_tokens == 0;
  if (scores_only && s.num_prompt_logprobs < 0) {
    return Invalid("max_tokens must be at least 1 (0 only with prompt logprobs)");
  }
  if (s.max_tokens < 0) {
    return Invalid(fmt::format("max_tokens must be at least 1, not {}", s.max_tokens));
  }
  if (prompt_size + (scores_only ? 0 : 1) > config.max_model_len) {
    return Invalid(fmt::format(
        "This model's maximum context length is {} tokens. However, your prompt has {} tokens{}. "
        "Please reduce the length of the prompt.",
        config.max_model_len, prompt_size, scores_only ? "" : " and asks for at least 1 more"));
  }
  for (const TokenId token : request.prompt) {
    NIBBLE_TRY_VOID(known("prompt", token));
  }
  NIBBLE_TRY_VOID(in_range("n", request.n, 1, limits::kChoices));
  NIBBLE_TRY_VOID(in_range("temperature", static_cast<double>(s.temperature), 0, 1e6));
  if (!(s.top_p > 0.0F && s.top_p <= 1.0F)) {
    return Invalid(fmt::format("top_p must be in (0, 1], not {}", s.top_p));
  }
  NIBBLE_TRY_VOID(in_range("min_p", static_cast<double>(s.min_p), 0, 1));
  NIBBLE_TRY_VOID(in_range("top_k", s.top_k, 0, 2147483647));
  NIBBLE_TRY_VOID(in_range("presence_penalty", static_cast<double>(s.presence_penalty), -2, 2));
  NIBBLE_TRY_VOID(in_range("frequency_penalty", static_cast<double>(s.frequency_penalty), -2, 2));
  if (!(s.repetition_penalty > 0.0F && s.repetition_penalty <= 1e6F)) {
    return Invalid(
        fmt::format("repetition_penalty must be greater than 0, not {}", s.repetition_penalty));
  }
  NIBBLE_TRY_VOID(in_range("min_tokens", s.min_tokens, 0, s.max_tokens));
  NIBBLE_TRY_VOID(in_range("logprobs", s.num_logprobs, -1, limits::kTopLogprobs));
  NIBBLE_TRY_VOID(in_range("prompt_logprobs", s.num_prompt_logprobs, -1, limits::kTopLogprobs));
  NIBBLE_TRY_VOID(in_range("first_prompt_logprob", s.first_prompt_logprob, 1,
                           static_cast<std::int32_t>(prompt_size)));
  if (std::ssize(s.stop) > limits::kStopStrings) {
    return Invalid(fmt::format("stop: {} strings, at most {} are allowed", s.stop.size(),
                               limits::kStopStrings));
  }
  for (const std::string& stop : s.stop) {
    if (stop.empty() || stop.size() > limits::kStopStringBytes) {
      return Invalid(fmt::format("stop: a string of {} bytes; 1 to {} are allowed", stop.size(),
                                 limits::kStopStringBytes));
    }
  }
  if (std::ssize(s.stop_token_ids) > limits::kLogitBiasEntries) {
    return Invalid(fmt::format("stop_token_ids: {} entries, at most {} are allowed",
                               s.stop_token_ids.size(), limits::kLogitBiasEntries));
  }
  for (const TokenId token : s.stop_token_ids) {
    NIBBLE_TRY_VOID(known("stop_token_ids", token));
  }
  if (std::ssize(s.logit_bias) > limits::kLogitBiasEntries) {
    return Invalid(fmt::format("logit_bias: {} entries, at most {} are allowed",
                               s.logit_bias.size(), limits::kLogitBiasEntries));
  }
  for (const auto& [token, bias] : s.logit_bias) {
    NIBBLE_TRY_VOID(known("logit_bias", token));
    NIBBLE_TRY_VOID(in_range("logit_bias", static_cast<double>(bias), -100, 100));
  }
  return {};
}

}  // namespace nibble
