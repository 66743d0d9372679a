#include <immintrin.h>

#include <cstdint>

#include "kernels/gram_kernel.h"

// c[i][j] += sum over t of a[t][i] * b[t][j], chains of fp32 added up in double; the order is that
// of ref/gram_ref.cpp.
//   a, b: panels [t][16] f32    c [8][16 p] f64
// A tile of 8 x 48 in 24 accumulators: 24 fma for 11 loads a row of x; judge by fp32 FMA.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

__attribute__((always_inline)) inline void AddWidened(double* c, __m512 chain) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(chain));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(chain, 1));
  _mm512_storeu_pd(c, _mm512_add_pd(_mm512_loadu_pd(c), low));
  _mm512_storeu_pd(c + 8, _mm512_add_pd(_mm512_loadu_pd(c + 8), high));
}

template <int kPanels>
__attribute__((always_inline)) inline void Tile(const GramCall& call) {
  for (std::int64_t begin = 0; begin < call.rows; begin += kGramChain) {
    const std::int64_t left = call.rows - begin;
    const std::int64_t count = left < kGramChain ? left : kGramChain;
    const float* a = call.a + begin * kGramPanel;
    const float* b = call.b + begin * kGramPanel;
    __m512 acc[kGramRows][kPanels];
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) acc[i][p] = _mm512_setzero_ps();
    }
    for (std::int64_t t = 0; t < count; ++t) {
      __m512 row[kPanels];
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        row[p] = _mm512_loadu_ps(b + p * call.b_stride);
      }
      NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
        const __m512 one = _mm512_set1_ps(a[i]);
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          acc[i][p] = _mm512_fmadd_ps(one, row[p], acc[i][p]);
        }
      }
      a += kGramPanel;
      b += kGramPanel;
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        AddWidened(call.c + i * call.c_stride + p * kGramPanel, acc[i][p]);
      }
    }
  }
}

void Gram(const GramCall& call) {
  switch (call.num_panels) {
    case 1:
      Tile<1>(call);
      break;
    case 2:
      Tile<2>(call);
      break;
    default:
      Tile<3>(call);
      break;
  }
}

void Downdate(const DowndateCall& call) {
  __m512d acc[kGramRows][2];
  NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
    NIBBLE_UNROLL for (int p = 0; p < 2; ++p) {
      acc[i][p] = _mm512_loadu_pd(call.c + i * call.c_stride + p * 8);
    }
  }
  const double* a = call.a;
  const double* b = call.b;
  for (std::int64_t t = 0; t < call.rows; ++t) {
    const __m512d low = _mm512_loadu_pd(b);
    const __m512d high = _mm512_loadu_pd(b + 8);
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512d one = _mm512_set1_pd(a[i]);
      acc[i][0] = _mm512_fnmadd_pd(one, low, acc[i][0]);
      acc[i][1] = _mm512_fnmadd_pd(one, high, acc[i][1]);
    }
    a += kGramPanel;
    b += kGramPanel;
  }
  NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
    NIBBLE_UNROLL for (int p = 0; p < 2; ++p) {
      _mm512_storeu_pd(call.c + i * call.c_stride + p * 8, acc[i][p]);
    }
  }
}

}  // namespace

const GramKernels kAvx512Gram = {.name = "avx512", .gram = Gram, .downdate = Downdate};

}  // namespace nibble
