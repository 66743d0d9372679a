#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// The formula and the order of sums are those of linear_float_avx512.cpp, a panel in two halves of
// 8 outputs.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

template <LinearFormat kFormat>
constexpr std::int64_t kValueBytes = kFormat == LinearFormat::kF32 ? 4 : 2;

template <LinearFormat kFormat>
__attribute__((always_inline)) inline __m256 LoadWeights(const std::uint8_t* at) {
  if (kFormat == LinearFormat::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  }
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  if (kFormat == LinearFormat::kF16) {
    return _mm256_cvtph_ps(half);
  }
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

template <LinearFormat kFormat, int kRows>
__attribute__((always_inline)) inline void Tile(const LinearCall& call, std::int64_t panel,
                                                std::int64_t row) {
  const PackedLayout& layout = call.layout;
  const std::int64_t rows = call.x.block_rows;
  __m256 acc[kRows][2];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) acc[r][half] = _mm256_setzero_ps();
  }
  for (std::int64_t block = 0; block < call.x.num_blocks; ++block) {
    const std::int64_t k0 = block * kActivationBlock;
    const std::int64_t left = layout.cols - k0;
    const std::int64_t count = left < kActivationBlock ? left : kActivationBlock;
    const std::uint8_t* w =
        call.weight + panel * layout.panel_bytes + k0 * kPanelOutputs * kValueBytes<kFormat>;
    const float* x = call.x.values + (block * rows + row) * kActivationBlock;
    __m256 sum[kRows][2];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) sum[r][half] = _mm256_setzero_ps();
    }
    for (std::int64_t k = 0; k < count; ++k) {
      const std::uint8_t* at = w + k * kPanelOutputs * kValueBytes<kFormat>;
      const __m256 low = LoadWeights<kFormat>(at);
      const __m256 high = LoadWeights<kFormat>(at + 8 * kValueBytes<kFormat>);
      _mm_prefetch(reinterpret_cast<const char*>(at) + 2048, _MM_HINT_T0);
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256 one = _mm256_set1_ps(x[r * kActivationBlock + k]);
        sum[r][0] = _mm256_fmadd_ps(low, one, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(high, one, sum[r][1]);
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
        acc[r][half] = _mm256_add_ps(acc[r][half], sum[r][half]);
      }
    }
  }
  const std::int64_t left = layout.rows - panel * kPanelOutputs;
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    float* out = call.y + (row + r) * call.y_stride + panel * kPanelOutputs;
    if (left >= kPanelOutputs) {
      _mm256_storeu_ps(out, acc[r][0]);
      _mm256_storeu_ps(out + 8, acc[r][1]);
    } else {
      float whole[kPanelOutputs];
      _mm256_storeu_ps(whole, acc[r][0]);
      _mm256_storeu_ps(whole + 8, acc[r][1]);
      for (std::int64_t c = 0; c < left; ++c) {
        out[c] = whole[c];
      }
    }
  }
}

template <LinearFormat kFormat>
void Run(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    std::int64_t row = 0;
    for (; row + 3 <= call.x.num_rows; row += 3) {
      Tile<kFormat, 3>(call, p, row);
    }
    for (; row < call.x.num_rows; ++row) {
      Tile<kFormat, 1>(call, p, row);
    }
  }
}

constexpr LinearKernel kKernels[] = {
    {"linear.f32.avx2", LinearFormat::kF32, LinearActivation::kF32, Isa::kAvx2, 1, INT64_MAX,
     Run<LinearFormat::kF32>},
    {"linear.f16.avx2", LinearFormat::kF16, LinearActivation::kF32, Isa::kAvx2, 1, INT64_MAX,
     Run<LinearFormat::kF16>},
    {"linear.bf16.avx2", LinearFormat::kBF16, LinearActivation::kF32, Isa::kAvx2, 1, INT64_MAX,
     Run<LinearFormat::kBF16>},
};

}  // namespace

LinearKernelList Avx2LinearFloatKernels() { return {kKernels, 3}; }

}  // namespace nibble
