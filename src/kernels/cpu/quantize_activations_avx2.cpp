#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// q = round-to-nearest-even(x * (levels / absmax)), scale = absmax / levels, per row (int16,
// balanced limbs) or per 64 columns (int8); the truth is ref/linear_ref.cpp. Moves 4 bytes in and 2
// or 1 out a value.

namespace nibble {
namespace {

struct Levels {
  float scale;
  float inverse;
};

Levels LevelsFrom(__m256i largest_bits, float levels) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest_bits),
                            _mm256_extracti128_si256(largest_bits, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  const auto largest = static_cast<std::uint32_t>(_mm_cvtsi128_si32(m));
  if (largest >= kInfinityBits) {
    return {__builtin_nanf(""), 0.0F};
  }
  if (largest < kTinyBits) {
    return {0.0F, 0.0F};
  }
  float absmax;
  __builtin_memcpy(&absmax, &largest, 4);
  return {absmax / levels, levels / absmax};
}

// Values [8 * i, 8 * i + 8) of a block of `count` values; zero beyond it.
__attribute__((always_inline)) inline __m256 Load(const float* x, int i, std::int64_t count) {
  const std::int64_t left = count - 8 * i;
  if (left >= 8) {
    return _mm256_loadu_ps(x + 8 * i);
  }
  float rest[8] = {};
  for (std::int64_t j = 0; j < left; ++j) {
    rest[j] = x[8 * i + j];
  }
  return _mm256_loadu_ps(rest);
}

__attribute__((always_inline)) inline __m256i Magnitude(__m256 v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}

__attribute__((always_inline)) inline std::int32_t Sum(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// 32 int32 in [-128, 127] to int8, in order.
__attribute__((always_inline)) inline void StoreBytes(std::int8_t* to, const __m256i* q) {
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(words, order));
}

template <bool kInt16>
void QuantizeRows(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                  std::int64_t row_end, const PackedActivations& packed) {
  for (std::int64_t m = row_begin; m < row_end; ++m) {
    const float* row = x + m * x_stride;
    Levels levels{0.0F, 0.0F};
    if (kInt16) {
      __m256i top = _mm256_setzero_si256();
      for (std::int64_t k = 0; k < packed.cols; k += 8) {
        top = _mm256_max_epu32(top, Magnitude(Load(row + k, 0, packed.cols - k)));
      }
      levels = LevelsFrom(top, kInt16Levels);
      packed.row_scales[m] = levels.scale;
    }
    for (std::int64_t block = 0; block < packed.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      const std::int64_t left = packed.cols - k0;
      const std::int64_t count = left < kActivationBlock ? left : kActivationBlock;
      __m256 v[8];
      __m256i top = _mm256_setzero_si256();
      for (int i = 0; i < 8; ++i) {
        v[i] = Load(row + k0, i, count);
        top = _mm256_max_epu32(top, Magnitude(v[i]));
      }
      if (!kInt16) {
        levels = LevelsFrom(top, kInt8Levels);
      }
      // inverse = 0 must give 0 for infinities too.
      const __m256i live = _mm256_set1_epi32(levels.inverse == 0.0F ? 0 : -1);
      const __m256 inverse = _mm256_set1_ps(levels.inverse);
      __m256i q[8];
      for (int i = 0; i < 8; ++i) {
        q[i] = _mm256_and_si256(live, _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse)));
      }
      std::int8_t* limbs =
          packed.limbs + (block * packed.block_rows + m) * kActivationBlock * (kInt16 ? 2 : 1);
      if (kInt16) {
        // q = 256 * high + low with low in [-128, 127]: high = (q + 128) >> 8.
        __m256i high[8];
        __m256i low[8];
        for (int i = 0; i < 8; ++i) {
          high[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
          low[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(high[i], 8));
        }
        StoreBytes(limbs, high);
        StoreBytes(limbs + 32, high + 4);
        StoreBytes(limbs + kActivationBlock, low);
        StoreBytes(limbs + kActivationBlock + 32, low + 4);
      } else {
        StoreBytes(limbs, q);
        StoreBytes(limbs + 32, q + 4);
      }
      ActivationBlock& info = packed.blocks[block * packed.block_rows + m];
      info.minus_sum[0] =
          -Sum(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])));
      info.minus_sum[1] =
          -Sum(_mm256_add_epi32(_mm256_add_epi32(q[4], q[5]), _mm256_add_epi32(q[6], q[7])));
      info.minus_sum[2] = info.minus_sum[0] + info.minus_sum[1];
      info.scale = kInt16 ? 1.0F : levels.scale;
      for (int part = 0; part < 3; ++part) {
        info.scaled_sum[part] = static_cast<float>(-info.minus_sum[part]) * info.scale;
      }
      info.unused = 0.0F;
    }
  }
}

void CopyRows(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
              const PackedActivations& packed) {
  for (std::int64_t m = row_begin; m < row_end; ++m) {
    for (std::int64_t block = 0; block < packed.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      float* values = packed.values + (block * packed.block_rows + m) * kActivationBlock;
      for (int i = 0; i < 8; ++i) {
        _mm256_storeu_ps(values + 8 * i, Load(x + m * x_stride + k0, i, packed.cols - k0));
      }
    }
  }
}

constexpr ActivationKernel kKernels[] = {
    {"activations.int16.avx2", LinearActivation::kInt16, Isa::kAvx2, QuantizeRows<true>},
    {"activations.int8.avx2", LinearActivation::kInt8, Isa::kAvx2, QuantizeRows<false>},
    {"activations.f32.avx2", LinearActivation::kF32, Isa::kAvx2, CopyRows},
};

}  // namespace

ActivationKernelList Avx2ActivationKernels() { return {kKernels, 3}; }

}  // namespace nibble
