#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// The formula and the order of sums are those of linear_codebook_avx512.cpp, a panel in two halves
// of 8 outputs.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

// NF4 as two tables of eight values.
struct Table {
  __m256 low, high;
};

// The values of 8 codes, each in the lowest bits of its lane; what is above them counts for
// nothing.
template <LinearFormat kFormat>
__attribute__((always_inline)) inline __m256 ValuesOfCodes(__m256i codes, const Table& table) {
  if (kFormat == LinearFormat::kNf4) {  // bit 3 chooses the table, as the sign of its lane
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, codes),
                            _mm256_permutevar8x32_ps(table.high, codes),
                            _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
  }
  // e4m3: exponent and mantissa of binary32 after a change of bias; subnormals count 2^-9.
  const __m256i rest = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
  const __m256 normal = _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_slli_epi32(rest, 20), _mm256_set1_epi32(120 << 23)));
  const __m256 subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(rest), _mm256_set1_ps(0x1p-9F));
  const __m256 value = _mm256_blendv_ps(
      normal, subnormal, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(8), rest)));
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)), 24);
  return _mm256_or_ps(value, _mm256_castsi256_ps(sign));
}

template <LinearFormat kFormat, int kRows>
__attribute__((always_inline)) inline void Tile(const LinearCall& call, std::int64_t panel,
                                                std::int64_t row) {
  constexpr bool kFour = HasFourBits(kFormat);
  constexpr int kHalves = kFour ? 2 : 1;  // of a unit, in the low and the high nibbles
  const PackedLayout& layout = call.layout;
  const std::int64_t cols = layout.unit_cols;
  const std::int64_t rows_of_64 = cols / (4 * kHalves);
  Table table{_mm256_setzero_ps(), _mm256_setzero_ps()};
  if (kFour) {
    table = {_mm256_loadu_ps(layout.codebook), _mm256_loadu_ps(layout.codebook + 8)};
  }
  const std::int64_t left = layout.rows - panel * kPanelOutputs;
  for (int side = 0; side < 2; ++side) {
    const std::uint8_t* unit = call.weight + panel * layout.panel_bytes;
    __m256 acc[kRows];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
    for (std::int64_t u = 0; u < layout.num_units; ++u, unit += layout.unit_bytes) {
      const float* x = call.x.values +
                       (u * cols / kActivationBlock * call.x.block_rows + row) * kActivationBlock +
                       u * cols % kActivationBlock;
      _mm_prefetch(reinterpret_cast<const char*>(unit) + 2048, _MM_HINT_T0);
      __m256 sum[kRows];
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = _mm256_setzero_ps();
      for (int half = 0; half < kHalves; ++half) {
        for (std::int64_t j = 0; j < rows_of_64; ++j) {
          __m256i codes =
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit + 64 * j + 32 * side));
          codes = half == 0 ? codes : _mm256_srli_epi32(codes, 4);
          NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
            const __m256 w = ValuesOfCodes<kFormat>(codes, table);
            codes = _mm256_srli_epi32(codes, 8);
            const std::int64_t k = half * cols / 2 + 4 * j + i;
            NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
              sum[r] = _mm256_fmadd_ps(w, _mm256_set1_ps(x[r * kActivationBlock + k]), sum[r]);
            }
          }
        }
      }
      const std::uint8_t* scales = unit + rows_of_64 * 64;
      const __m256 scale = layout.wide_scales
                               ? _mm256_loadu_ps(reinterpret_cast<const float*>(scales) + 8 * side)
                               : _mm256_cvtph_ps(_mm_loadu_si128(
                                     reinterpret_cast<const __m128i*>(scales + 16 * side)));
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = _mm256_fmadd_ps(sum[r], scale, acc[r]);
      }
    }
    const __m256 factor = _mm256_loadu_ps(reinterpret_cast<const float*>(unit) + 8 * side);
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      float* out = call.y + (row + r) * call.y_stride + panel * kPanelOutputs + 8 * side;
      const __m256 y = _mm256_mul_ps(acc[r], factor);
      if (left >= 8 * side + 8) {
        _mm256_storeu_ps(out, y);
      } else {
        float whole[8];
        _mm256_storeu_ps(whole, y);
        for (std::int64_t c = 0; c < left - 8 * side; ++c) {
          out[c] = whole[c];
        }
      }
    }
  }
}

template <LinearFormat kFormat>
void Run(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    std::int64_t row = 0;
    for (; row + 4 <= call.x.num_rows; row += 4) {
      Tile<kFormat, 4>(call, p, row);
    }
    for (; row < call.x.num_rows; ++row) {
      Tile<kFormat, 1>(call, p, row);
    }
  }
}

constexpr LinearKernel kKernels[] = {
    {"linear.nf4.avx2", LinearFormat::kNf4, LinearActivation::kF32, Isa::kAvx2, 1, INT64_MAX,
     Run<LinearFormat::kNf4>},
    {"linear.fp8.avx2", LinearFormat::kFp8, LinearActivation::kF32, Isa::kAvx2, 1, INT64_MAX,
     Run<LinearFormat::kFp8>},
};

}  // namespace

LinearKernelList Avx2LinearCodebookKernels() { return {kKernels, 2}; }

}  // namespace nibble
