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

}  // namespace

const GramKernels kAvx2Gram = {.name = "avx2", .gram = Gram, .downdate = Downdate};

}  // namespace nibble
