#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/ref/lanes.h"
#include "kernels/sampling_kernel.h"

namespace nibble {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A NaN logit counts as -inf, +inf as the largest float.
float Clean(float x) { return ref::Min(ref::Max(x, kLowest), std::numeric_limits<float>::max()); }

float Weight(float x, float max, float inverse_temperature, float min_weight) {
  const float w = ref::Exp((Clean(x) - max) * inverse_temperature);
  return w >= min_weight ? w : 0.0F;
}

std::int64_t ArgMax(const float* x, std::int64_t count) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < count; ++i) {
    if (Clean(x[i]) > Clean(x[best])) {
      best = i;
    }
  }
  return best;
}

float ChunkMax(const float* x, std::int64_t count, float* max) {
  float all = kLowest;
  for (std::int64_t begin = 0; begin < count; begin += kSampleChunk) {
    float best = kLowest;
    for (std::int64_t i = begin; i < std::min(count, begin + kSampleChunk); ++i) {
      best = ref::Max(Clean(x[i]), best);
    }
    max[begin / kSampleChunk] = best;
    all = ref::Max(best, all);
  }
  return all;
}

void ChunkWeight(const float* x, std::int64_t count, float max, float inverse_temperature,
                 float min_weight, float* sum, float* w) {
  for (std::int64_t begin = 0; begin < count; begin += kSampleChunk) {
    ref::Lanes lanes{};
    for (std::int64_t i = begin; i < std::min(count, begin + kSampleChunk); ++i) {
      const float weight = Weight(x[i], max, inverse_temperature, min_weight);
      lanes[static_cast<std::size_t>(i % 16)] += weight;
      if (w != nullptr) {
        w[i] = weight;
      }
    }
    sum[begin / kSampleChunk] = ref::Sum(lanes);
  }
}

float SumAtLeast(const float* w, std::int64_t count, float threshold) {
  ref::Lanes lanes{};
  for (std::int64_t i = 0; i < count; ++i) {
    lanes[static_cast<std::size_t>(i % 16)] += w[i] >= threshold ? w[i] : 0.0F;
  }
  return ref::Sum(lanes);
}

std::int64_t Collect(const float* x, std::int64_t count, float threshold, Candidate* out) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (Clean(x[i]) >= threshold) {
      out[found++] = {.logit = Clean(x[i]), .token = static_cast<std::int32_t>(i)};
    }
  }
  return found;
}

std::int64_t CountGreater(const float* x, std::int64_t count, float value) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    found += Clean(x[i]) > value ? 1 : 0;
  }
  return found;
}

}  // namespace

const SamplingKernels kRefSampling = {.name = "ref",
                                      .arg_max = ArgMax,
                                      .chunk_max = ChunkMax,
                                      .chunk_weight = ChunkWeight,
                                      .sum_at_least = SumAtLeast,
                                      .collect = Collect,
                                      .count_greater = CountGreater};

}  // namespace nibble
