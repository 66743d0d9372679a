#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "kernels/context.h"

namespace nibble {

/// How to turn one row of logits into one token. Plain data, so that a device can hold it.
struct SampleRow {
  std::int32_t logits_row = 0;  // row of the logits matrix
  float temperature = 1.0F;     // 0, and anything below 1e-5: greedy
  std::int32_t top_k = 0;       // 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;  // > 0; over prompt and output tokens
  float presence_penalty = 0.0F;    // over output tokens
  float frequency_penalty = 0.0F;
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;
  std::uint64_t position = 0;  // of the token being sampled: the counter of the random number
  std::int32_t num_top_logprobs =
      -1;  // -1: no logprobs at all; 0: the sampled token's; k: and the k best
  std::span<const TokenId> prompt = {};  // for the repetition penalty only; else may be empty
  std::span<const TokenId> output = {};  // for the penalties; else may be empty
  std::span<const std::pair<TokenId, float>> logit_bias = {};
  std::span<const TokenId> forbidden = {};  // never sampled here: e.g. end tokens below min_tokens
  TokenId target{-1};  // >= 0: do not sample, score this token (prompt logprobs)
};

struct TokenScore {
  TokenId token{0};
  float logprob = 0.0F;
};

struct SampleResult {
  TokenId token{0};
  float logprob = 0.0F;   // of `token` under the unscaled distribution (before temperature, after
                          // penalties and bias)
  std::int32_t rank = 0;  // 1 + number of tokens with a greater logprob; only with logprobs
  std::vector<TokenScore> top;  // num_top_logprobs best, ties by lower id
};

/// Samples rows of logits [*, vocab_size] fp32 (row stride logits_stride) where they lie; logits
/// are scratch afterwards. The order of steps is vLLM's: bias and penalties, logprobs, temperature,
/// min_p, top_k, top_p, draw. The draw is a pure function of (seed, choice, position) and of the
/// row. Ties go to the lowest id: top_k keeps exactly k tokens. top_p keeps the shortest prefix of
/// the tokens in falling order whose share of what min_p and top_k left is at least top_p.
/// A NaN logit counts as -inf. If no logit is above -inf, the token is 0 and its logprob -inf.
/// On CUDA `results` are filled by CollectSamples (kernels/step.h), not here.
/// Token ids outside the vocabulary are ignored, a target there is not scored. Several rows may
/// share one row of logits. Errors: none; scratch as SamplingScratchBytes says.
void Sample(KernelContext& context, float* logits, std::int64_t logits_stride,
            std::int64_t vocab_size, std::span<const SampleRow> rows,
            std::span<SampleResult> results);

std::size_t SamplingScratchBytes(const Device& device, std::int64_t vocab_size);

}  // namespace nibble
