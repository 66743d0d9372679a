// The body of sampling_avx2.cpp and sampling_avx512.cpp, written in terms of V (vec16_*.inl,
// included before). Every pass reads the row once: judge by GB/s. Arithmetic: ref/sampling_ref.cpp.

namespace nibble {
namespace {

constexpr float kLowest = -__builtin_inff();

// Clean logits of lanes i..i+15; lanes beyond the row are -inf.
inline V LoadClean(const float* x, std::int64_t i, std::int64_t count) {
  const std::int64_t rest = count - i;
  const V raw = rest >= 16 ? Load(x + i) : Select(LoadFirst(x + i, rest), 0, rest, Set(kLowest));
  return Min(Max(raw, Set(kLowest)), Set(__FLT_MAX__));
}

float ChunkMax(const float* x, std::int64_t count, float* max) {
  V all = Set(kLowest);
  for (std::int64_t begin = 0; begin < count; begin += kSampleChunk) {
    V best = Set(kLowest);
    const std::int64_t end = begin + kSampleChunk < count ? begin + kSampleChunk : count;
    for (std::int64_t i = begin; i < end; i += 16) {
      best = Max(LoadClean(x, i, count), best);
    }
    max[begin / kSampleChunk] = Max(best);
    all = Max(best, all);
  }
  return Max(all);
}

std::int64_t ArgMax(const float* x, std::int64_t count) {
  // Four chains hide the latency of max; then the first place that holds it.
  V best[4] = {Set(kLowest), Set(kLowest), Set(kLowest), Set(kLowest)};
  std::int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    for (int c = 0; c < 4; ++c) {
      best[c] = Max(Load(x + i + 16 * c), best[c]);  // a NaN loses
    }
  }
  for (; i < count; i += 16) {
    best[0] = Max(LoadClean(x, i, count), best[0]);
  }
  const V largest =
      Min(Set(Max(Max(Max(best[0], best[1]), Max(best[2], best[3])))), Set(__FLT_MAX__));
  for (i = 0; i < count; i += 16) {
    if (const std::uint32_t mask = MaskAtLeast(LoadClean(x, i, count), largest); mask != 0) {
      return i + __builtin_ctz(mask);
    }
  }
  return 0;
}

inline V WeightOf(V x, V max, V inverse_temperature, V min_weight) {
  return KeepAtLeast(ExpOfNonPositive((x - max) * inverse_temperature), min_weight);
}

inline void StoreWeights(float* w, V a, std::int64_t rest) {
  if (rest >= 16) {
    Store(w, a);
  } else {
    StoreFirst(w, a, rest);
  }
}

template <bool kStore>
static void ChunkWeights(const float* x, std::int64_t count, float max, float inverse_temperature,
                         float min_weight, float* sum, float* w) {
  const V shift = Set(max);
  const V factor = Set(inverse_temperature);
  const V limit = Set(min_weight);
  for (std::int64_t begin = 0; begin < count; begin += kSampleChunk) {
    V lanes = Zero();
    const std::int64_t end = begin + kSampleChunk < count ? begin + kSampleChunk : count;
    for (std::int64_t i = begin; i < end; i += 16) {
      const V weight = WeightOf(LoadClean(x, i, count), shift, factor, limit);
      lanes = lanes + weight;
      if constexpr (kStore) {
        StoreWeights(w + i, weight, count - i);
      }
    }
    sum[begin / kSampleChunk] = Sum(lanes);
  }
}

void ChunkWeight(const float* x, std::int64_t count, float max, float inverse_temperature,
                 float min_weight, float* sum, float* w) {
  if (w != nullptr) {
    ChunkWeights<true>(x, count, max, inverse_temperature, min_weight, sum, w);
  } else {
    ChunkWeights<false>(x, count, max, inverse_temperature, min_weight, sum, w);
  }
}

float SumAtLeast(const float* w, std::int64_t count, float threshold) {
  const V limit = Set(threshold);
  V lanes = Zero();
  for (std::int64_t i = 0; i < count; i += 16) {
    const V a = count - i >= 16 ? Load(w + i) : LoadFirst(w + i, count - i);
    lanes = lanes + KeepAtLeast(a, limit);
  }
  return Sum(lanes);
}

std::int64_t Collect(const float* x, std::int64_t count, float threshold, Candidate* out) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; i += 16) {
    const V a = LoadClean(x, i, count);
    std::uint32_t mask = MaskAtLeast(a, Set(threshold));
    if (count - i < 16) {
      mask &= (1U << (count - i)) - 1U;
    }
    if (mask == 0) {
      continue;
    }
    float logits[16];
    Store(logits, a);
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      out[found].logit = logits[lane];
      out[found].token = static_cast<std::int32_t>(i + lane);
      ++found;
    }
  }
  return found;
}

std::int64_t CountGreater(const float* x, std::int64_t count, float value) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; i += 16) {
    found += __builtin_popcount(MaskGreater(LoadClean(x, i, count), Set(value)));
  }
  return found;
}

}  // namespace
}  // namespace nibble
