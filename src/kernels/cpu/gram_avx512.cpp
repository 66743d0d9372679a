#include <immintrin.h>

#include <cstdint>

#include "kernels/gram_kernel.h"

// c[i][j] += sum over t of a[t][i] * b[t][j], chains of fp32 added up in double; the order is that
// of ref/gram_ref.cpp.
//   a, b: panels [t][16] f32    c [8][16 p] f64
// A tile of 8 x 48 in 24 accumulators: 24 fma for 11 loads a row of x; judge by fp32 FMA. From bf16
// the same tile takes two rows with each vdpbf16ps; judge by those. Where these are slower than two
// fma (isa.h), a chain's columns of a become floats once, and those of b as they are read: 48 fma
// for 6 other operations on vectors and 19 loads a pair of rows; judge by fp32 FMA.

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

// The halves of words of two bf16 as floats.
__attribute__((always_inline)) inline __m512 Even(__m512i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
__attribute__((always_inline)) inline __m512 Odd(__m512i words) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
}

// One chain of at most kGramBf16Chain rows.
struct Bf16Chain {
  const std::uint32_t* a;  // [count][16]; 8 columns from here count
  const std::uint32_t* b;  // [panels][count][16]
  std::int64_t b_stride;
  std::int64_t count;  // pairs of rows
};

template <int kPanels>
struct Sums {
  __m512 at[kGramRows][kPanels];
};

// chain = fma(odd, odd, chain), then fma(even, even, chain).
template <int kPanels>
__attribute__((always_inline)) inline void AddNative(const Bf16Chain& chain, Sums<kPanels>& sums) {
  for (std::int64_t t = 0; t < chain.count; ++t) {
    __m512i row[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      row[p] = _mm512_loadu_si512(chain.b + p * chain.b_stride + t * kGramPanel);
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512i one = _mm512_set1_epi32(static_cast<int>(chain.a[t * kGramPanel + i]));
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums.at[i][p]) : "v"(row[p]), "v"(one));
      }
    }
  }
}

template <int kPanels>
__attribute__((always_inline)) inline void AddByFma(const Bf16Chain& chain, Sums<kPanels>& sums) {
  static_assert(kGramRows == 8);
  alignas(64) float a[kGramBf16Chain][kGramRows];  // odd rows before their even ones
  for (std::int64_t t = 0; t < chain.count; ++t) {
    const __m256i words =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chain.a + t * kGramPanel));
    const __m256i odd = _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000U)));
    _mm256_store_ps(a[2 * t], _mm256_castsi256_ps(odd));
    _mm256_store_ps(a[2 * t + 1], _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
  }
  for (std::int64_t t = 0; t < chain.count; ++t) {
    __m512 odd[kPanels];
    __m512 even[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      const __m512i words = _mm512_loadu_si512(chain.b + p * chain.b_stride + t * kGramPanel);
      odd[p] = Odd(words);
      even[p] = Even(words);
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512 one = _mm512_set1_ps(a[2 * t][i]);
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        sums.at[i][p] = _mm512_fmadd_ps(one, odd[p], sums.at[i][p]);
      }
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      const __m512 one = _mm512_set1_ps(a[2 * t + 1][i]);
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        sums.at[i][p] = _mm512_fmadd_ps(one, even[p], sums.at[i][p]);
      }
    }
  }
}

template <bool kNative, int kPanels>
__attribute__((always_inline)) inline void TileBf16(const GramBf16Call& call) {
  constexpr std::int64_t kPairs = kGramBf16Chain / 2;
  for (std::int64_t begin = 0; begin < call.pairs; begin += kPairs) {
    const std::int64_t left = call.pairs - begin;
    const Bf16Chain chain{.a = call.a + begin * kGramPanel,
                          .b = call.b + begin * kGramPanel,
                          .b_stride = call.b_stride,
                          .count = left < kPairs ? left : kPairs};
    Sums<kPanels> sums;
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sums.at[i][p] = _mm512_setzero_ps();
    }
    if constexpr (kNative) {
      AddNative<kPanels>(chain, sums);
    } else {
      AddByFma<kPanels>(chain, sums);
    }
    NIBBLE_UNROLL for (int i = 0; i < kGramRows; ++i) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        AddWidened(call.c + i * call.c_stride + p * kGramPanel, sums.at[i][p]);
      }
    }
  }
}

template <bool kNative>
void GramBf16(const GramBf16Call& call) {
  switch (call.num_panels) {
    case 1:
      TileBf16<kNative, 1>(call);
      break;
    case 2:
      TileBf16<kNative, 2>(call);
      break;
    default:
      TileBf16<kNative, 3>(call);
      break;
  }
}

// Sixteen values rounded to bf16, in the upper halves.
__attribute__((always_inline)) inline __m512i RoundToBf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  const __mmask16 counts =
      _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(static_cast<int>(kGramTinyBits)));
  return _mm512_maskz_mov_epi32(
      counts, _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000)));
}

void PackBf16(const GramPackBf16Call& call) {
  const auto mask = static_cast<__mmask16>((1U << call.columns) - 1U);
  const auto load = [&](std::int64_t row) __attribute__((always_inline)) {
    __m512 x = _mm512_maskz_loadu_ps(mask, call.x + row * call.stride);
    if (call.minus != nullptr) {
      x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, call.minus + row * call.stride));
    }
    return RoundToBf16(x);
  };
  for (std::int64_t row = 0; row < call.rows; row += 2) {
    const __m512i even = _mm512_srli_epi32(load(row), 16);
    const __m512i odd =
        row + 1 < call.rows
            ? _mm512_and_si512(load(row + 1), _mm512_set1_epi32(static_cast<int>(0xffff0000U)))
            : _mm512_setzero_si512();
    _mm512_storeu_si512(call.panel + row / 2 * kGramPanel, _mm512_or_si512(even, odd));
  }
}

}  // namespace

const GramKernels kAvx512Gram = {.name = "avx512",
                                 .gram = Gram,
                                 .downdate = Downdate,
                                 .gram_bf16 = GramBf16<false>,
                                 .pack_bf16 = PackBf16};
const GramKernels kAvx512Bf16Gram = {.name = "avx512bf16",
                                     .gram = Gram,
                                     .downdate = Downdate,
                                     .gram_bf16 = GramBf16<true>,
                                     .pack_bf16 = PackBf16};

}  // namespace nibble
