#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm_kernel.h"

// The formula of gemm_avx2.cpp; one tile of 12 x 32 in 24 accumulators: 24 fma for 2 loads and 12
// broadcasts.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

__attribute__((always_inline)) inline void Store(float* c, __m512 chain, bool add) {
  const __m512 before = add ? _mm512_loadu_ps(c) : _mm512_setzero_ps();
  _mm512_storeu_ps(c, _mm512_add_ps(before, chain));
}

void Tile(const GemmCall& call) {
  const float* a = call.a;
  const float* b = call.b;
  __m512 acc[kGemmRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kGemmRows; ++i) {
    acc[i][0] = _mm512_setzero_ps();
    acc[i][1] = _mm512_setzero_ps();
  }
  for (std::int64_t t = 0; t < call.depth; ++t) {
    const __m512 low = _mm512_loadu_ps(b);
    const __m512 high = _mm512_loadu_ps(b + 16);
    NIBBLE_UNROLL for (int i = 0; i < kGemmRows; ++i) {
      const __m512 one = _mm512_set1_ps(a[i]);
      acc[i][0] = _mm512_fmadd_ps(one, low, acc[i][0]);
      acc[i][1] = _mm512_fmadd_ps(one, high, acc[i][1]);
    }
    a += kGemmRows;
    b += kGemmCols;
  }
  NIBBLE_UNROLL for (int i = 0; i < kGemmRows; ++i) {
    Store(call.c + i * call.c_stride, acc[i][0], call.add);
    Store(call.c + i * call.c_stride + 16, acc[i][1], call.add);
  }
}

}  // namespace

const GemmKernels kAvx512Gemm = {.name = "avx512", .tile = Tile};

}  // namespace nibble
