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

Levels LevelsFrom(__m512i largest_bits, float levels) {
  const auto largest = static_cast<std::uint32_t>(_mm512_reduce_max_epu32(largest_bits));
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

// Values [16 * i, 16 * i + 16) of a block of `count` values; zero beyond it.
__attribute__((always_inline)) inline __m512 Load(const float* x, int i, std::int64_t count) {
  const std::int64_t left = count - 16 * i;
  if (left >= 16) {
    return _mm512_loadu_ps(x + 16 * i);
  }
  return left <= 0 ? _mm512_setzero_ps()
                   : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << left) - 1U), x + 16 * i);
}

__attribute__((always_inline)) inline __m512i Magnitude(__m512 v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

// 64 int32 in [-128, 127] to int8, in order.
__attribute__((always_inline)) inline __m512i Narrow(const __m512i* q) {
  const __m512i bytes =
      _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  // The packs work inside lanes of 128 bits: dword 4 * lane + i comes from vector i.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

// Sums of four neighbouring bytes.
__attribute__((always_inline)) inline __m512i SumFours(__m512i bytes) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
}

template <bool kInt16>
void QuantizeRows(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                  std::int64_t row_end, const PackedActivations& packed) {
  for (std::int64_t m = row_begin; m < row_end; ++m) {
    const float* row = x + m * x_stride;
    Levels levels{0.0F, 0.0F};
    if (kInt16) {
      __m512i top0 = _mm512_setzero_si512();
      __m512i top1 = _mm512_setzero_si512();
      std::int64_t k = 0;
      for (; k + 32 <= packed.cols; k += 32) {
        top0 = _mm512_max_epu32(top0, Magnitude(_mm512_loadu_ps(row + k)));
        top1 = _mm512_max_epu32(top1, Magnitude(_mm512_loadu_ps(row + k + 16)));
      }
      for (; k < packed.cols; k += 16) {
        top0 = _mm512_max_epu32(top0, Magnitude(Load(row + k, 0, packed.cols - k)));
      }
      levels = LevelsFrom(_mm512_max_epu32(top0, top1), kInt16Levels);
      packed.row_scales[m] = levels.scale;
    }
    for (std::int64_t block = 0; block < packed.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      const std::int64_t count =
          packed.cols - k0 < kActivationBlock ? packed.cols - k0 : kActivationBlock;
      __m512 v[4];
      for (int i = 0; i < 4; ++i) {
        v[i] = Load(row + k0, i, count);
      }
      if (!kInt16) {
        levels = LevelsFrom(_mm512_max_epu32(_mm512_max_epu32(Magnitude(v[0]), Magnitude(v[1])),
                                             _mm512_max_epu32(Magnitude(v[2]), Magnitude(v[3]))),
                            kInt8Levels);
      }
      // inverse = 0 must give 0 for infinities too.
      const auto live = static_cast<__mmask16>(levels.inverse == 0.0F ? 0U : 0xffffU);
      const __m512 inverse = _mm512_set1_ps(levels.inverse);
      __m512i q[4];
      for (int i = 0; i < 4; ++i) {
        q[i] = _mm512_maskz_cvtps_epi32(live, _mm512_mul_ps(v[i], inverse));
      }
      std::int8_t* limbs =
          packed.limbs + (block * packed.block_rows + m) * kActivationBlock * (kInt16 ? 2 : 1);
      __m512i sums;
      if (kInt16) {
        // q = 256 * high + low with low in [-128, 127]: high = (q + 128) >> 8.
        __m512i high[4];
        for (int i = 0; i < 4; ++i) {
          high[i] = _mm512_srai_epi32(_mm512_add_epi32(q[i], _mm512_set1_epi32(128)), 8);
          q[i] = _mm512_sub_epi32(q[i], _mm512_slli_epi32(high[i], 8));
        }
        const __m512i high_bytes = Narrow(high);
        const __m512i low_bytes = Narrow(q);
        _mm512_storeu_si512(limbs, high_bytes);
        _mm512_storeu_si512(limbs + kActivationBlock, low_bytes);
        sums = _mm512_add_epi32(_mm512_slli_epi32(SumFours(high_bytes), 8), SumFours(low_bytes));
      } else {
        const __m512i bytes = Narrow(q);
        _mm512_storeu_si512(limbs, bytes);
        sums = SumFours(bytes);
      }
      // Lanes 0..7 hold the first half, 8..15 the second.
      sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
      sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB));
      sums = _mm512_add_epi32(sums, _mm512_shuffle_i64x2(sums, sums, 0xb1));
      const std::int32_t first = _mm_cvtsi128_si32(_mm512_castsi512_si128(sums));
      const std::int32_t second = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(sums, 2));
      ActivationBlock& info = packed.blocks[block * packed.block_rows + m];
      info.minus_sum[0] = -first;
      info.minus_sum[1] = -second;
      info.minus_sum[2] = -(first + second);
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
      for (int i = 0; i < 4; ++i) {
        _mm512_storeu_ps(values + 16 * i, Load(x + m * x_stride + k0, i, packed.cols - k0));
      }
    }
  }
}

constexpr ActivationKernel kKernels[] = {
    {"activations.int16.avx512", LinearActivation::kInt16, Isa::kAvx512, QuantizeRows<true>},
    {"activations.int8.avx512", LinearActivation::kInt8, Isa::kAvx512, QuantizeRows<false>},
    {"activations.f32.avx512", LinearActivation::kF32, Isa::kAvx512, CopyRows},
};

}  // namespace

ActivationKernelList Avx512ActivationKernels() { return {kKernels, 3}; }

}  // namespace nibble
