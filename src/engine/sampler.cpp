#include "engine/sampler.h"

namespace nibble {

SampleRow BuildSampleRow(const Sequence& sequence, std::int32_t position) {
  const Request& request = *sequence.request;
  const SamplingParams& params = request.params.sampling;
  SampleRow row;
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.seed = params.seed;
  row.choice = static_cast<std::uint32_t>(sequence.choice);
  row.position = static_cast<std::uint64_t>(position);
  row.num_top_logprobs = params.num_logprobs;
  if (sequence.NeedsHostTokens()) {
    row.output = sequence.output;
    if (params.repetition_penalty != 1.0F) {
      row.prompt = request.params.prompt;
    }
  }
  row.logit_bias = params.logit_bias;
  if (position - sequence.prompt_size() < params.min_tokens) {
    row.forbidden = request.end_tokens;
  }
  return row;
}

}  // namespace nibble
