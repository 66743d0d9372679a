#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// y[o] = sum over blocks of 64 k, in order, of (sum over k in the block, fma in order from zero)
//   weight [panel][k][16] f32, f16 or bf16    x [block][row][64] f32
// Moves out*in*sizeof(weight) bytes for 2*out*in flops a row; one row: judge by GB/s, many: by fp32
// FMA.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

template <LinearFormat kFormat>
constexpr std::int64_t kValueBytes = kFormat == LinearFormat::kF32 ? 4 : 2;

template <LinearFormat kFormat>
__attribute__((always_inline)) inline __m512 LoadWeights(const std::uint8_t* at) {
  if (kFormat == LinearFormat::kF32) {
    return _mm512_loadu_ps(at);
  }
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  if (kFormat == LinearFormat::kF16) {
    return _mm512_cvtph_ps(half);
  }
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

template <LinearFormat kFormat, int kPanels, int kRows>
__attribute__((always_inline)) inline void Tile(const LinearCall& call, std::int64_t panel,
                                                std::int64_t row) {
  const PackedLayout& layout = call.layout;
  const std::int64_t rows = call.x.block_rows;
  __m512 acc[kRows][kPanels];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_ps();
  }
  for (std::int64_t block = 0; block < call.x.num_blocks; ++block) {
    const std::int64_t k0 = block * kActivationBlock;
    const std::int64_t count =
        layout.cols - k0 < kActivationBlock ? layout.cols - k0 : kActivationBlock;
    const std::uint8_t* w =
        call.weight + panel * layout.panel_bytes + k0 * kPanelOutputs * kValueBytes<kFormat>;
    const float* x = call.x.values + (block * rows + row) * kActivationBlock;
    __m512 sum[kRows][kPanels];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = _mm512_setzero_ps();
    }
    for (std::int64_t k = 0; k < count; ++k) {
      __m512 v[kPanels];
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        const std::uint8_t* at =
            w + p * layout.panel_bytes + k * kPanelOutputs * kValueBytes<kFormat>;
        v[p] = LoadWeights<kFormat>(at);
        _mm_prefetch(reinterpret_cast<const char*>(at) + 2048, _MM_HINT_T0);
      }
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m512 four = _mm512_set1_ps(x[r * kActivationBlock + k]);
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          sum[r][p] = _mm512_fmadd_ps(v[p], four, sum[r][p]);
        }
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        acc[r][p] = _mm512_add_ps(acc[r][p], sum[r][p]);
      }
    }
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      float* out = call.y + (row + r) * call.y_stride + (panel + p) * kPanelOutputs;
      const std::int64_t left = layout.rows - (panel + p) * kPanelOutputs;
      const auto mask = static_cast<__mmask16>(left >= kPanelOutputs ? 0xffffU : (1U << left) - 1U);
      _mm512_mask_storeu_ps(out, mask, acc[r][p]);
    }
  }
}

template <LinearFormat kFormat, int kPanels>
void Panels(const LinearCall& call, std::int64_t panel) {
  std::int64_t row = 0;
  for (; row + 4 <= call.x.num_rows; row += 4) {
    Tile<kFormat, kPanels, 4>(call, panel, row);
  }
  for (; row < call.x.num_rows; ++row) {
    Tile<kFormat, kPanels, 1>(call, panel, row);
  }
}

template <LinearFormat kFormat>
void Run(const LinearCall& call) {
  std::int64_t p = call.panel_begin;
  for (; p + 2 <= call.panel_end; p += 2) {
    Panels<kFormat, 2>(call, p);
  }
  for (; p < call.panel_end; ++p) {
    Panels<kFormat, 1>(call, p);
  }
}

constexpr std::int64_t kAnyRows = INT64_MAX;

constexpr LinearKernel kKernels[] = {
    {"linear.f32.avx512", LinearFormat::kF32, LinearActivation::kF32, Isa::kAvx512, 1, kAnyRows,
     Run<LinearFormat::kF32>},
    {"linear.f16.avx512", LinearFormat::kF16, LinearActivation::kF32, Isa::kAvx512, 1, kAnyRows,
     Run<LinearFormat::kF16>},
    {"linear.bf16.avx512", LinearFormat::kBF16, LinearActivation::kF32, Isa::kAvx512, 1, kAnyRows,
     Run<LinearFormat::kBF16>},
};

}  // namespace

LinearKernelList Avx512LinearFloatKernels() { return {kKernels, 3}; }

}  // namespace nibble
