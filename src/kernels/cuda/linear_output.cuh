#pragma once

// From sums to outputs, and from a layout to an instantiation: what all linear kernels share.

#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

__device__ __forceinline__ float SiluTimes(float gate, float up) {
  return gate / (1.0F + __expf(-gate)) * up;
}

/// What a part's sum means: y[row]. `factor` includes OutputUnit.
__device__ __forceinline__ float Output(const LinearPart& part, int row, float sum, float factor,
                                        float x_scale) {
  const float y = sum * factor * x_scale;
  return part.bias == nullptr ? y : y + part.bias[row];
}

/// Where a warp's fragment of outputs goes: rows r and r + 8 of a tile, two tokens of every eight.
/// Element i of a side (row): token i / 2 * 8 + i % 2 behind the lane's first.
struct Place {
  float* y = nullptr;  // of the first row and token
  std::int64_t y_stride = 0;
  int row = 0;
  int token = 0;
  bool exists[2] = {};
  bool has_bias = false;
  float factor[2] = {};
  float bias[2] = {};

  Place() = default;
  /// Of `tile` of a part, for the tokens from `first_token` on.
  __device__ __forceinline__ Place(const LinearArgs& linear, int part_index, int tile,
                                   int first_token, int lane) {
    const LinearPart& part = linear.parts[part_index];
    row = tile * kTileRows + lane / 4;
    token = first_token + lane % 4 * 2;
    y_stride = part.y_stride;
    y = part.y + token * y_stride + row;
    has_bias = part.bias != nullptr;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      exists[side] = row + side * 8 < part.rows;
      factor[side] = exists[side] ? part.factor[row + side * 8] * linear.x_scale : 0.0F;
      bias[side] = exists[side] && has_bias ? part.bias[row + side * 8] : 0.0F;
    }
  }
  /// Sums of rows r and r + 8 are in these units.
  __device__ __forceinline__ void Multiply(float row_unit, float row8_unit) {
    factor[0] *= row_unit;
    factor[1] *= row8_unit;
  }
  /// On to tokens further behind.
  __device__ __forceinline__ void Skip(int tokens) {
    token += tokens;
    y += tokens * y_stride;
  }
  /// Calls visit(side, i, row, token) for each output that exists.
  template <int kCount, typename Visit>
  __device__ __forceinline__ void Each(const LinearArgs& linear, Visit visit) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (exists[side] && token + i / 2 * 8 + i % 2 < linear.num_tokens) {
          visit(side, i, side * 8, i / 2 * 8 + i % 2);
        }
      }
    }
  }
  template <int kCount>
  __device__ __forceinline__ void Read(const LinearArgs& linear, float (&before)[2][kCount]) const {
    Each<kCount>(linear,
                 [&](int side, int i, int r, int t) { before[side][i] = y[t * y_stride + r]; });
  }
  template <int kCount>
  __device__ __forceinline__ void Scale(float (&c)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int side = i / 2 % 2;
      c[i] = has_bias ? c[i] * factor[side] + bias[side] : c[i] * factor[side];
    }
  }
  template <int kCount>
  __device__ __forceinline__ void Write(const LinearArgs& linear, const float (&c)[2 * kCount],
                                        const float (&before)[2][kCount]) const {
    const bool adds = linear.epilogue == Epilogue::kAdd;
    Each<kCount>(linear, [&](int side, int i, int r, int t) {
      const float v = c[i / 2 * 4 + side * 2 + i % 2];
      y[t * y_stride + r] = adds ? before[side][i] + v : v;
    });
  }
  template <int kCount>
  __device__ __forceinline__ void WriteGated(const LinearArgs& linear, const float (&gate)[kCount],
                                             const float (&up)[kCount]) const {
    std::uint16_t* const product = linear.product + token * linear.product_stride + row;
    Each<kCount / 2>(linear, [&](int side, int i, int r, int t) {
      const int at = i / 2 * 4 + side * 2 + i % 2;
      product[t * linear.product_stride + r] =
          __half_as_ushort(__float2half_rn(SiluTimes(gate[at], up[at]) * linear.product_scale));
    });
  }
};

/// Calls launch<kGrid, kUnitCols, kSubCols>() for a layout of kFormat.
template <Format kFormat, typename Launch>
int ForLayout(const WeightLayout& layout, Launch launch) {
  const auto with_grid = [&]<Grid kGrid>() {
    if (layout.unit_cols == 64) {
      return layout.sub_cols == 64 ? launch.template operator()<kGrid, 64, 64>()
                                   : launch.template operator()<kGrid, 64, 32>();
    }
    switch (layout.sub_cols) {
      case 128:
        return launch.template operator()<kGrid, 128, 128>();
      case 64:
        return launch.template operator()<kGrid, 128, 64>();
      default:
        return launch.template operator()<kGrid, 128, 32>();
    }
  };
  if constexpr (kFormat == Format::kF16) {
    return layout.unit_cols == 128 ? launch.template operator()<Grid::kSymmetric, 128, 128>()
                                   : launch.template operator()<Grid::kSymmetric, 64, 64>();
  } else if constexpr (kFormat == Format::kNf4) {
    return layout.unit_cols == 128 ? launch.template operator()<Grid::kSymmetric, 128, 64>()
                                   : launch.template operator()<Grid::kSymmetric, 64, 64>();
  } else if constexpr (kFormat == Format::kFp8) {
    if (layout.grid == Grid::kSymmetric) {
      return layout.unit_cols == 128 ? launch.template operator()<Grid::kSymmetric, 128, 128>()
                                     : launch.template operator()<Grid::kSymmetric, 64, 64>();
    }
    return layout.unit_cols == 128 ? launch.template operator()<Grid::kRow, 128, 128>()
                                   : launch.template operator()<Grid::kRow, 64, 64>();
  } else {
    switch (layout.grid) {
      case Grid::kZeroPoints:
        return with_grid.template operator()<Grid::kZeroPoints>();
      case Grid::kMinima:
        return with_grid.template operator()<Grid::kMinima>();
      default:
        return with_grid.template operator()<Grid::kSymmetric>();
    }
  }
}

}  // namespace nibble::cuda
