#pragma once

// From sums to outputs, and from a layout to an instantiation: what all linear kernels share.

#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

__device__ __forceinline__ float SiluTimes(float gate, float up) {
  return gate / (1.0F + __expf(-gate)) * up;
}

/// What a part's sum means: y[row].
__device__ __forceinline__ float Output(const LinearPart& part, int row, float sum, float x_scale) {
  const float y = sum * part.factor[row] * x_scale;
  return part.bias == nullptr ? y : y + part.bias[row];
}

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
      return launch.template operator()<Grid::kSymmetric, 128, 128>();
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
