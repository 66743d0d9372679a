#include <immintrin.h>

#include <cstdint>

#include "kernels/gram_kernel.h"

// The formula and the order of sums are those of gram_avx512.cpp; tiles of 4 x 16 in 8
// accumulators.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

constexpr int kTileRows = 4;

__attribute__((always_inline)) inline void AddWidened(double* c, __m256 chain) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(chain));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(chain, 1));
  _mm256_storeu_pd(c, _mm256_add_pd(_mm256_loadu_pd(c), low));
  _mm256_storeu_pd(c + 4, _mm256_add_pd(_mm256_loadu_pd(c + 4), high));
}

// Rows [0, 4) of a against one panel.
__attribute__((always_inline)) inline void Tile(const float* a, const float* b, std::int64_t count,
                                                double* c, std::int64_t c_stride) {
  __m256 acc[kTileRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) acc[i][half] = _mm256_setzero_ps();
  }
  for (std::int64_t t = 0; t < count; ++t) {
    const __m256 low = _mm256_loadu_ps(b);
    const __m256 high = _mm256_loadu_ps(b + 8);
    NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
      const __m256 one = _mm256_broadcast_ss(a + i);
      acc[i][0] = _mm256_fmadd_ps(one, low, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(one, high, acc[i][1]);
    }
    a += kGramPanel;
    b += kGramPanel;
  }
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    AddWidened(c + i * c_stride, acc[i][0]);
    AddWidened(c + i * c_stride + 8, acc[i][1]);
  }
}

void Gram(const GramCall& call) {
  for (std::int64_t begin = 0; begin < call.rows; begin += kGramChain) {
    const std::int64_t left = call.rows - begin;
    const std::int64_t count = left < kGramChain ? left : kGramChain;
    for (int p = 0; p < call.num_panels; ++p) {
      for (int i = 0; i < kGramRows; i += kTileRows) {
        Tile(call.a + begin * kGramPanel + i, call.b + p * call.b_stride + begin * kGramPanel,
             count, call.c + i * call.c_stride + p * kGramPanel, call.c_stride);
      }
    }
  }
}

// Rows [0, 2) of a, as 4 accumulators a row.
__attribute__((always_inline)) inline void DowndateRows(const double* a, const double* b,
                                                        std::int64_t rows, double* c,
                                                        std::int64_t c_stride) {
  __m256d acc[2][4];
  NIBBLE_UNROLL for (int i = 0; i < 2; ++i) {
    NIBBLE_UNROLL for (int q = 0; q < 4; ++q) acc[i][q] = _mm256_loadu_pd(c + i * c_stride + q * 4);
  }
  for (std::int64_t t = 0; t < rows; ++t) {
    NIBBLE_UNROLL for (int i = 0; i < 2; ++i) {
      const __m256d one = _mm256_broadcast_sd(a + i);
      NIBBLE_UNROLL for (int q = 0; q < 4; ++q) {
        acc[i][q] = _mm256_fnmadd_pd(one, _mm256_loadu_pd(b + q * 4), acc[i][q]);
      }
    }
    a += kGramPanel;
    b += kGramPanel;
  }
  NIBBLE_UNROLL for (int i = 0; i < 2; ++i) {
    NIBBLE_UNROLL for (int q = 0; q < 4; ++q) _mm256_storeu_pd(c + i * c_stride + q * 4, acc[i][q]);
  }
}

void Downdate(const DowndateCall& call) {
  for (int i = 0; i < kGramRows; i += 2) {
    DowndateRows(call.a + i, call.b, call.rows, call.c + i * call.c_stride, call.c_stride);
  }
}

// The halves of words of two bf16 as floats.
__attribute__((always_inline)) inline __m256 Even(__m256i words) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
__attribute__((always_inline)) inline __m256 Odd(__m256i words) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}

__attribute__((always_inline)) inline void TileBf16(const std::uint32_t* a, const std::uint32_t* b,
                                                    std::int64_t pairs, double* c,
                                                    std::int64_t c_stride) {
  __m256 acc[kTileRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) acc[i][half] = _mm256_setzero_ps();
  }
  for (std::int64_t t = 0; t < pairs; ++t) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 8));
    const __m256 odd[2] = {Odd(low), Odd(high)};
    const __m256 even[2] = {Even(low), Even(high)};
    NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
      const __m256i one = _mm256_set1_epi32(static_cast<int>(a[i]));
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
        acc[i][half] = _mm256_fmadd_ps(Odd(one), odd[half], acc[i][half]);
        acc[i][half] = _mm256_fmadd_ps(Even(one), even[half], acc[i][half]);
      }
    }
    a += kGramPanel;
    b += kGramPanel;
  }
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    AddWidened(c + i * c_stride, acc[i][0]);
    AddWidened(c + i * c_stride + 8, acc[i][1]);
  }
}

void GramBf16(const GramBf16Call& call) {
  constexpr std::int64_t kPairs = kGramBf16Chain / 2;
  for (std::int64_t begin = 0; begin < call.pairs; begin += kPairs) {
    const std::int64_t left = call.pairs - begin;
    const std::int64_t count = left < kPairs ? left : kPairs;
    for (int p = 0; p < call.num_panels; ++p) {
      for (int i = 0; i < kGramRows; i += kTileRows) {
        TileBf16(call.a + begin * kGramPanel + i, call.b + p * call.b_stride + begin * kGramPanel,
                 count, call.c + i * call.c_stride + p * kGramPanel, call.c_stride);
      }
    }
  }
}

// Eight values rounded to bf16, in the upper halves.
__attribute__((always_inline)) inline __m256i RoundToBf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i is_tiny =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(kGramTinyBits)), magnitude);
  return _mm256_andnot_si256(is_tiny, _mm256_blendv_epi8(rounded, quiet, is_nan));
}

void PackBf16(const GramPackBf16Call& call) {
  __m256i mask[2];
  for (int half = 0; half < 2; ++half) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    mask[half] = _mm256_cmpgt_epi32(_mm256_set1_epi32(call.columns - 8 * half), lane);
  }
  const auto load = [&](std::int64_t row, int half) __attribute__((always_inline)) {
    const std::int64_t at = row * call.stride + std::int64_t{8} * half;
    __m256 x = _mm256_maskload_ps(call.x + at, mask[half]);
    if (call.minus != nullptr) {
      x = _mm256_sub_ps(x, _mm256_maskload_ps(call.minus + at, mask[half]));
    }
    return RoundToBf16(x);
  };
  for (std::int64_t row = 0; row < call.rows; row += 2) {
    for (int half = 0; half < 2; ++half) {
      const __m256i even = _mm256_srli_epi32(load(row, half), 16);
      const __m256i odd = row + 1 < call.rows
                              ? _mm256_and_si256(load(row + 1, half),
                                                 _mm256_set1_epi32(static_cast<int>(0xffff0000U)))
                              : _mm256_setzero_si256();
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(call.panel + row / 2 * kGramPanel + std::int64_t{8} * half),
          _mm256_or_si256(even, odd));
    }
  }
}

}  // namespace

const GramKernels kAvx2Gram = {.name = "avx2",
                               .gram = Gram,
                               .downdate = Downdate,
                               .gram_bf16 = GramBf16,
                               .pack_bf16 = PackBf16};

}  // namespace nibble
