#include <immintrin.h>

#include <cstdint>

#include "kernels/gram_kernel.h"

// c[i][j] += sum over t of a[t][i] * b[t][j], chains of fp32 added up in double; the order is that
// of ref/gram_ref.cpp.
//   a, b: panels [t][16] f32    c [8][16 p] f64
// A tile of 8 x 48 in 24 accumulators: 24 fma for 11 loads a row of x; judge by fp32 FMA. Of whole
// numbers the same tile takes two rows with each vpdpwssd, and a block of them is added to c once;
// judge by int16 products.

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

template <int kPanels>
__attribute__((always_inline)) inline void TileInt16(const GramInt16Call& call) {
  __m512i acc[kGramRows][kPanels];
  NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) acc[i][p] = _mm512_setzero_si512();
  }
  const std::uint32_t* a = call.a;
  const std::uint32_t* b = call.b;
  for (std::int64_t t = 0; t < call.pairs; ++t) {
    a += kGramPanel;
    b += kGramPanel;
    __m512i row[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      row[p] = _mm512_loadu_si512(b + p * call.b_stride);
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512i one = _mm512_set1_epi32(static_cast<int>(a[i]));
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        // Not the intrinsic, around which GCC copies the accumulators.
        __asm__("vpdpwssd %2, %1, %0" : "+v"(acc[i][p]) : "v"(row[p]), "v"(one));
      }
    }
  }
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    const __m512 steps =
        _mm512_loadu_ps(reinterpret_cast<const float*>(call.b + p * call.b_stride));
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(steps));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(steps, 1));
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512d step =
          _mm512_set1_pd(static_cast<double>(reinterpret_cast<const float*>(call.a)[i]));
      double* c = call.c + i * call.c_stride + p * kGramPanel;
      // The products are exact: fma rounds what an addition would.
      const __m512d sum_low = _mm512_cvtepi32_pd(_mm512_castsi512_si256(acc[i][p]));
      const __m512d sum_high = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(acc[i][p], 1));
      _mm512_storeu_pd(c, _mm512_fmadd_pd(sum_low, _mm512_mul_pd(step, low), _mm512_loadu_pd(c)));
      _mm512_storeu_pd(
          c + 8, _mm512_fmadd_pd(sum_high, _mm512_mul_pd(step, high), _mm512_loadu_pd(c + 8)));
    }
  }
}

void GramInt16(const GramInt16Call& call) {
  switch (call.num_panels) {
    case 1:
      TileInt16<1>(call);
      break;
    case 2:
      TileInt16<2>(call);
      break;
    default:
      TileInt16<3>(call);
      break;
  }
}

void PackInt16(const GramPackInt16Call& call) {
  const auto mask = static_cast<__mmask16>((1U << call.columns) - 1U);
  const auto load = [&](std::int64_t row) __attribute__((always_inline)) {
    const __m512 x = _mm512_maskz_loadu_ps(mask, call.x + row * call.stride);
    return call.minus == nullptr
               ? x
               : _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, call.minus + row * call.stride));
  };
  __m512 energy = _mm512_setzero_ps();
  for (std::int64_t row = 0; row < call.rows; ++row) {
    const __m512 x = load(row);
    energy = _mm512_fmadd_ps(x, x, energy);
  }
  // Room for the rounding; NaN may have any sign.
  const __m512i bits =
      _mm512_and_si512(_mm512_castps_si512(_mm512_mul_ps(energy, _mm512_set1_ps(1.00390625F))),
                       _mm512_set1_epi32(0x7fffffff));
  const auto at_least = [&](std::uint32_t bound) __attribute__((always_inline)) {
    return _mm512_cmpge_epi32_mask(bits, _mm512_set1_epi32(static_cast<int>(bound)));
  };
  const __mmask16 overflows = at_least(kGramInfinityBits);
  const auto counts = static_cast<__mmask16>(at_least(kGramTinyBits) & ~overflows);
  // 29 - e, with the exponent's bias of 127.
  const __m512i k = _mm512_srai_epi32(
      _mm512_sub_epi32(_mm512_set1_epi32(29 + 127), _mm512_srli_epi32(bits, 23)), 1);
  const auto power = [&](__m512i exponent) __attribute__((always_inline)) {
    return _mm512_maskz_slli_epi32(counts, _mm512_add_epi32(exponent, _mm512_set1_epi32(127)), 23);
  };
  const __m512 scale = _mm512_castsi512_ps(power(k));
  const __m512i steps = _mm512_mask_mov_epi32(power(_mm512_sub_epi32(_mm512_setzero_si512(), k)),
                                              overflows, _mm512_set1_epi32(0x7fc00000));
  _mm512_storeu_si512(call.panel, steps);
  const auto round = [&](std::int64_t row) __attribute__((always_inline)) {
    return _mm512_maskz_cvtps_epi32(counts, _mm512_mul_ps(load(row), scale));
  };
  for (std::int64_t row = 0; row < call.rows; row += 2) {
    const __m512i odd = row + 1 < call.rows ? round(row + 1) : _mm512_setzero_si512();
    _mm512_storeu_si512(call.panel + (1 + row / 2) * kGramPanel,
                        _mm512_or_si512(_mm512_and_si512(round(row), _mm512_set1_epi32(0xffff)),
                                        _mm512_slli_epi32(odd, 16)));
  }
}

}  // namespace

const GramKernels kAvx512Gram = {.name = "avx512",
                                 .gram = Gram,
                                 .downdate = Downdate,
                                 .gram_int16 = GramInt16,
                                 .pack_int16 = PackInt16};

}  // namespace nibble
