#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"

namespace nibble {

/// How tokens are drawn and when a choice ends. Validated once by whoever builds it (Validate
/// below).
struct SamplingParams {
  float temperature = 1.0F;  // 0: greedy
  float top_p = 1.0F;
  float min_p = 0.0F;
  std::int32_t top_k = 0;  // 0: off
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  float repetition_penalty = 1.0F;
  std::uint64_t seed = 0;        // always set: the server draws one if the client gave none
  std::int32_t max_tokens = 16;  // 0 is legal with prompt_logprobs: score only
  std::int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;  // besides the model's end tokens
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::int32_t num_logprobs = -1;         // -1: none; 0: the sampled token's; k: and the k best
  std::int32_t num_prompt_logprobs = -1;  // the same for the prompt's tokens
  std::int32_t first_prompt_logprob = 1;  // ... from this position on; what comes before may be
                                          // taken from the prefix cache
};

/// One client request: n choices over one prompt.
struct GenerationRequest {
  std::string external_id;      // for logs
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;
  std::int32_t n = 1;
  std::string cache_salt;  // prefix-cache scope: the tenant, plus what the client asked for
  std::optional<Clock::TimePoint> deadline;
  std::optional<Clock::TimePoint> queue_deadline;  // no choice may still wait to begin then
};

/// Why a choice ended. Exactly one, always sent.
enum class FinishReason : std::uint8_t {
  kStop,       // end token, stop token or stop string
  kLength,     // max_tokens or the context is full
  kCancelled,  // the client left
  kDeadline,
  kQueueTimeout,  // queue_deadline passed before the first choice began
  kRejected,      // could never run, or the queue was full
  kError,         // the engine failed this request
  kShutdown,
};
const char* Name(FinishReason reason);

struct TokenLogprob {
  TokenId token{0};
  float logprob = 0.0F;
  std::int32_t rank = 0;
  std::vector<std::pair<TokenId, float>> top;  // best first
};

/// What the engine tells about one choice: new text and tokens, and at last how it ended. Per
/// choice, tokens come in order without gaps, and nothing follows the event that carries `finish`.
struct OutputEvent {
  RequestId request{0};
  std::int32_t choice = 0;
  std::string text;             // complete UTF-8; stop strings already removed or kept as asked
  std::vector<TokenId> tokens;  // new ones, the end token included
  std::vector<TokenLogprob> logprobs;  // one a token, if asked for
  std::vector<TokenLogprob>
      prompt_logprobs;  // once, on choice 0's first event, one a prompt token; unused before
                        // first_prompt_logprob (the first token has no left context)
  std::optional<FinishReason> finish;
  std::variant<std::monostate, TokenId, std::string>
      stop_reason;    // the stop token or stop string that matched
  std::string error;  // kRejected, kError: one sentence for the client
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache
  std::int32_t num_output_tokens = 0;  // of this choice so far
};

/// Where events go. Called on the engine thread, in order, once a step at most per choice; must not
/// block.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnOutput(OutputEvent event) = 0;
};

}  // namespace nibble
