#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm_kernel.h"

// c[i][j] (+)= sum over t of a[t][i] b[t][j], chains of fma in order (gemm_kernel.h).
// Tiles of 6 x 16 in 12 accumulators: 12 fma for 2 loads and 6 broadcasts, all from L1; judge by
// the share of the machine's fp32 peak.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

constexpr int kTileRows = 6;
constexpr int kTileCols = 16;

__attribute__((always_inline)) inline void Store(float* c, __m256 chain, bool add) {
  const __m256 before = add ? _mm256_loadu_ps(c) : _mm256_setzero_ps();
  _mm256_storeu_ps(c, _mm256_add_ps(before, chain));
}

__attribute__((always_inline)) inline void Part(const float* a, const float* b, std::int64_t depth,
                                                float* c, std::int64_t c_stride, bool add) {
  __m256 acc[kTileRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    acc[i][0] = _mm256_setzero_ps();
    acc[i][1] = _mm256_setzero_ps();
  }
  for (std::int64_t t = 0; t < depth; ++t) {
    const __m256 low = _mm256_loadu_ps(b);
    const __m256 high = _mm256_loadu_ps(b + 8);
    NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
      const __m256 one = _mm256_broadcast_ss(a + i);
      acc[i][0] = _mm256_fmadd_ps(one, low, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(one, high, acc[i][1]);
    }
    a += kGemmRows;
    b += kGemmCols;
  }
  NIBBLE_UNROLL for (int i = 0; i < kTileRows; ++i) {
    Store(c + i * c_stride, acc[i][0], add);
    Store(c + i * c_stride + 8, acc[i][1], add);
  }
}

void Tile(const GemmCall& call) {
  for (std::int64_t j = 0; j < kGemmCols; j += kTileCols) {
    for (std::int64_t i = 0; i < kGemmRows; i += kTileRows) {
      Part(call.a + i, call.b + j, call.depth, call.c + i * call.c_stride + j, call.c_stride,
           call.add);
    }
  }
}

}  // namespace

const GemmKernels kAvx2Gemm = {.name = "avx2", .tile = Tile};

}  // namespace nibble
