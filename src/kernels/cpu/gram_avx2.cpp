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

// Rows [0, 4) of a block's panel of a against one of b.
__attribute__((always_inline)) inline void TileInt16(const std::uint32_t* a, const std::uint32_t* b,
                                                     std::int64_t pairs, double* c,
                                                     std::int64_t c_stride) {
  __m256i acc[kTileRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) acc[i][half] = _mm256_setzero_si256();
  }
  for (std::int64_t t = 1; t <= pairs; ++t) {
    const auto* row = reinterpret_cast<const __m256i*>(b + t * kGramPanel);
    const __m256i low = _mm256_loadu_si256(row);
    const __m256i high = _mm256_loadu_si256(row + 1);
    NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
      const __m256i one = _mm256_set1_epi32(static_cast<int>(a[t * kGramPanel + i]));
      acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(one, low));
      acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(one, high));
    }
  }
  const auto* a_steps = reinterpret_cast<const float*>(a);
  const auto* b_steps = reinterpret_cast<const float*>(b);
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    const __m256d step = _mm256_set1_pd(static_cast<double>(a_steps[i]));
    NIBBLE_UNROLL for (int q = 0; q < 4; ++q) {
      const __m128i part = q % 2 == 0 ? _mm256_castsi256_si128(acc[i][q / 2])
                                      : _mm256_extracti128_si256(acc[i][q / 2], 1);
      const __m256d steps = _mm256_mul_pd(step, _mm256_cvtps_pd(_mm_loadu_ps(b_steps + q * 4)));
      double* to = c + i * c_stride + q * 4;
      _mm256_storeu_pd(to, _mm256_fmadd_pd(_mm256_cvtepi32_pd(part), steps, _mm256_loadu_pd(to)));
    }
  }
}

void GramInt16(const GramInt16Call& call) {
  for (int p = 0; p < call.num_panels; ++p) {
    for (int i = 0; i < kGramRows; i += kTileRows) {
      TileInt16(call.a + i, call.b + p * call.b_stride, call.pairs,
                call.c + i * call.c_stride + p * kGramPanel, call.c_stride);
    }
  }
}

void PackInt16(const GramPackInt16Call& call) {
  for (int half = 0; half < 2; ++half) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(call.columns - 8 * half), lane);
    const auto load = [&](std::int64_t row) __attribute__((always_inline)) {
      const std::int64_t at = row * call.stride + std::int64_t{8} * half;
      const __m256 x = _mm256_maskload_ps(call.x + at, mask);
      return call.minus == nullptr ? x
                                   : _mm256_sub_ps(x, _mm256_maskload_ps(call.minus + at, mask));
    };
    __m256 energy = _mm256_setzero_ps();
    for (std::int64_t row = 0; row < call.rows; ++row) {
      const __m256 x = load(row);
      energy = _mm256_fmadd_ps(x, x, energy);
    }
    // Room for the rounding; NaN may have any sign.
    const __m256i bits =
        _mm256_and_si256(_mm256_castps_si256(_mm256_mul_ps(energy, _mm256_set1_ps(1.00390625F))),
                         _mm256_set1_epi32(0x7fffffff));
    const auto at_least = [&](std::uint32_t bound) __attribute__((always_inline)) {
      return _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(static_cast<int>(bound) - 1));
    };
    const __m256i overflows = at_least(kGramInfinityBits);
    const __m256i counts = _mm256_andnot_si256(overflows, at_least(kGramTinyBits));
    // 29 - e, with the exponent's bias of 127.
    const __m256i k = _mm256_srai_epi32(
        _mm256_sub_epi32(_mm256_set1_epi32(29 + 127), _mm256_srli_epi32(bits, 23)), 1);
    const auto power = [&](__m256i exponent) __attribute__((always_inline)) {
      return _mm256_and_si256(
          counts, _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    };
    const __m256 scale = _mm256_castsi256_ps(power(k));
    const __m256i steps = _mm256_blendv_epi8(power(_mm256_sub_epi32(_mm256_setzero_si256(), k)),
                                             _mm256_set1_epi32(0x7fc00000), overflows);
    std::uint32_t* panel = call.panel + std::int64_t{8} * half;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel), steps);
    const auto round = [&](std::int64_t row) __attribute__((always_inline)) {
      return _mm256_and_si256(counts, _mm256_cvtps_epi32(_mm256_mul_ps(load(row), scale)));
    };
    for (std::int64_t row = 0; row < call.rows; row += 2) {
      const __m256i odd = row + 1 < call.rows ? round(row + 1) : _mm256_setzero_si256();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + (1 + row / 2) * kGramPanel),
                          _mm256_blend_epi16(round(row), _mm256_slli_epi32(odd, 16), 0xaa));
    }
  }
}

}  // namespace

const GramKernels kAvx2Gram = {.name = "avx2",
                               .gram = Gram,
                               .downdate = Downdate,
                               .gram_int16 = GramInt16,
                               .pack_int16 = PackInt16};

}  // namespace nibble
