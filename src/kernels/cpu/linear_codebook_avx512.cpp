#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// y[o] = factor[o] * sum_u scale[u,o] * sum_{k in u} codebook[code[o,k]] * x[k]
//   code [panel][unit] nibbles (NF4) or bytes (FP8), docs/formats/packed_weight.md; x f32
//   Lanes are outputs: a row of 64 bytes gives one column of all 16 after the other by shifts.
// f32 inside a unit, a column at a time, and over units in order (ref/linear_ref.cpp). Moves
// out*in*(0.5 + 4/64) bytes (NF4) for one fma and, once for all rows of a tile, one shift and one
// permute a value.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

// The values of 16 codes, each in the lowest bits of its lane; what is above them counts for
// nothing.
template <LinearFormat kFormat>
__attribute__((always_inline)) inline __m512 ValuesOfCodes(__m512i codes, __m512 table) {
  if (kFormat == LinearFormat::kNf4) {
    return _mm512_permutexvar_ps(codes, table);
  }
  // e4m3 as binary16, whose exponent counts from 8 lower: all values are exact.
  const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(0x80)), 8);
  const __m512i rest = _mm512_slli_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(0x7f)), 7);
  const __m512 tiny = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_or_si512(sign, rest)));
  return _mm512_mul_ps(tiny, _mm512_set1_ps(256.0F));
}

template <LinearFormat kFormat, int kRows>
__attribute__((always_inline)) inline void Tile(const LinearCall& call, std::int64_t panel,
                                                std::int64_t row) {
  constexpr bool kFour = HasFourBits(kFormat);
  constexpr int kHalves = kFour ? 2 : 1;  // of a unit, in the low and the high nibbles
  const PackedLayout& layout = call.layout;
  const std::int64_t cols = layout.unit_cols;
  const std::int64_t rows_of_64 = cols / (4 * kHalves);
  const std::uint8_t* unit = call.weight + panel * layout.panel_bytes;
  __m512 table = _mm512_setzero_ps();
  if (kFour) {
    table = _mm512_loadu_ps(layout.codebook);
  }
  __m512 acc[kRows];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_ps();
  for (std::int64_t u = 0; u < layout.num_units; ++u, unit += layout.unit_bytes) {
    const float* x = call.x.values +
                     (u * cols / kActivationBlock * call.x.block_rows + row) * kActivationBlock +
                     u * cols % kActivationBlock;
    _mm_prefetch(reinterpret_cast<const char*>(unit) + 2048, _MM_HINT_T0);
    __m512 sum[kRows];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_ps();
    for (int half = 0; half < kHalves; ++half) {
      for (std::int64_t j = 0; j < rows_of_64; ++j) {
        __m512i codes = _mm512_loadu_si512(unit + 64 * j);
        codes = half == 0 ? codes : _mm512_srli_epi32(codes, 4);
        NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
          const __m512 w = ValuesOfCodes<kFormat>(codes, table);
          codes = _mm512_srli_epi32(codes, 8);
          const std::int64_t k = half * cols / 2 + 4 * j + i;
          NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
            sum[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[r * kActivationBlock + k]), sum[r]);
          }
        }
      }
    }
    const std::uint8_t* scales = unit + rows_of_64 * 64;
    const __m512 scale =
        layout.wide_scales
            ? _mm512_loadu_ps(scales)
            : _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm512_fmadd_ps(sum[r], scale, acc[r]);
  }
  const __m512 factor = _mm512_loadu_ps(unit);
  const std::int64_t left = layout.rows - panel * kPanelOutputs;
  const auto mask = static_cast<__mmask16>(left >= kPanelOutputs ? 0xffffU : (1U << left) - 1U);
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    _mm512_mask_storeu_ps(call.y + (row + r) * call.y_stride + panel * kPanelOutputs, mask,
                          _mm512_mul_ps(acc[r], factor));
  }
}

template <LinearFormat kFormat>
void Run(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    std::int64_t row = 0;
    for (; row + 8 <= call.x.num_rows; row += 8) {
      Tile<kFormat, 8>(call, p, row);
    }
    for (; row + 2 <= call.x.num_rows; row += 2) {
      Tile<kFormat, 2>(call, p, row);
    }
    for (; row < call.x.num_rows; ++row) {
      Tile<kFormat, 1>(call, p, row);
    }
  }
}

constexpr LinearKernel kKernels[] = {
    {"linear.nf4.avx512", LinearFormat::kNf4, LinearActivation::kF32, Isa::kAvx512, 1, INT64_MAX,
     Run<LinearFormat::kNf4>},
    {"linear.fp8.avx512", LinearFormat::kFp8, LinearActivation::kF32, Isa::kAvx512, 1, INT64_MAX,
     Run<LinearFormat::kFp8>},
};

}  // namespace

LinearKernelList Avx512LinearCodebookKernels() { return {kKernels, 2}; }

}  // namespace nibble
