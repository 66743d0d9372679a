#pragma once

#include <cstdint>

namespace nibble {

constexpr std::int64_t kSampleChunk = 64;  // logits a chunk of maxima and of sums

struct Candidate {
  float logit;
  std::int32_t token;
};

// Passes over one row of logits. A NaN counts as -inf and +inf as the largest float; both are
// called clean(x) below. A softmax weight is w(x) = exp((clean(x) - max) * inverse_temperature), or
// 0 if that is below min_weight.
struct SamplingKernels {
  const char* name;
  // The lowest index of the largest clean(x); 0 if all are -inf.
  std::int64_t (*arg_max)(const float* x, std::int64_t count);
  // max[c] = largest clean(x) of chunk c; returns the largest of all.
  float (*chunk_max)(const float* x, std::int64_t count, float* max);
  // sum[c] = sum of w over chunk c: element i in lane i % 16, tree 8-4-2-1. If w is not null, it
  // gets every weight.
  void (*chunk_weight)(const float* x, std::int64_t count, float max, float inverse_temperature,
                       float min_weight, float* sum, float* w);
  // Sum of all w >= threshold: element i in lane i % 16, tree.
  float (*sum_at_least)(const float* w, std::int64_t count, float threshold);
  // All x with clean(x) >= threshold in order of index; returns how many.
  std::int64_t (*collect)(const float* x, std::int64_t count, float threshold, Candidate* out);
  std::int64_t (*count_greater)(const float* x, std::int64_t count, float value);
};

extern const SamplingKernels kRefSampling;
extern const SamplingKernels kAvx2Sampling;
extern const SamplingKernels kAvx512Sampling;

}  // namespace nibble
