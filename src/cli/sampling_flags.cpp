#include "cli/sampling_flags.h"

namespace nibble::cli {

void SamplingFlags::Declare(OptionSet& options) {
  options.Group("Sampling");
  options.Add("--max-tokens", &max_tokens, "tokens to generate at most");
  options.Add("--temperature", &temperature, "0: always the most likely token");
  options.Add("--top-p", &top_p, "keep the smallest set of tokens with this probability");
  options.Add("--top-k", &top_k, "keep the k most likely tokens (0: all)");
  options.Add("--min-p", &min_p,
              "drop tokens below this share of the most likely one's probability");
  options.Add("--repetition-penalty", &repetition_penalty,
              "above 1: tokens that occurred become less likely");
  options.Add("--seed", &seed, "of the random numbers; same seed, same text");
  options.Add("--stop", &stop, "end when this text appears; may be given several times");
}

SamplingParams SamplingFlags::ToParams() const {
  SamplingParams params;
  params.max_tokens = static_cast<std::int32_t>(max_tokens);
  params.temperature = static_cast<float>(temperature);
  params.top_p = static_cast<float>(top_p);
  params.min_p = static_cast<float>(min_p);
  params.top_k = static_cast<std::int32_t>(top_k);
  params.repetition_penalty = static_cast<float>(repetition_penalty);
  params.seed = static_cast<std::uint64_t>(seed);
  params.stop = stop;
  return params;
}

}  // namespace nibble::cli
