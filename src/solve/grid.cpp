#include "solve/grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/round.h"
#include "codec/code_cells.h"
#include "codec/encode.h"
#include "kernels/grid_error.h"

namespace nibble {
GridSearch::GridSearch(const WeightSpec& spec, const Options& options)
    : spec_(spec),
      options_(options),
      top_(static_cast<float>((1 << spec.bits) - 1)),
      middle_(static_cast<float>(1 << (spec.bits - 1))) {
  if (spec.kind == CodecKind::kCodebook && !IsFp8(spec.codebook)) {
    cells_ = FewCells(spec.codebook);
  }
}

GridSearch::Cells GridSearch::FewCells(Codebook codebook) {
  const std::vector<CodeCell> cells = CellsOf(codebook);
  NIBBLE_CHECK(cells.size() <= kLanes, "a codebook of 4 bits has 16 codes");
  Cells out;
  out.last_keys.fill(std::numeric_limits<std::int32_t>::max());
  out.ends.fill(std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (i + 1 < cells.size()) {
      out.last_keys[i] = cells[i].last_key;
      out.ends[i] = FloatOf(cells[i].last_key);
    }
    out.values[i] = cells[i].value;
    out.codes[i] = cells[i].code;
  }
  return out;
}

void GridSearch::SetScale(LaneGrid& grid, std::size_t lane, float scale) const {
  if (spec_.scale_grid != ScaleGrid::kAny) {
    scale = ScaleOnGrid(scale, spec_.scale_grid, options_.scale_divisor);
  }
  grid.scale[lane] = spec_.has_f32_scales ? scale : RoundToDType(scale, options_.scale_dtype);
  grid.inverse[lane] = grid.scale[lane] == 0.0F ? 0.0F : 1.0F / grid.scale[lane];
}

// The grid whose range is |factor| times the range given, upside down if factor is negative.
LaneGrid GridSearch::GridOf(const Range& range, float factor) const {
  LaneGrid grid;
  for (std::size_t l = 0; l < kLanes; ++l) {
    const float absmax = std::max(-range.minimum[l], range.maximum[l]);
    if (spec_.kind == CodecKind::kCodebook) {
      const float largest = LargestOf(spec_.codebook);
      SetScale(grid, l,
               spec_.scale_grid == ScaleGrid::kPowersOfTwo
                   ? PowerOfTwoScale(absmax * factor, largest)
                   : absmax * factor / largest);
    } else if (!spec_.has_zero_points) {
      SetScale(grid, l, absmax * 2.0F * factor / top_);
      grid.zero[l] = middle_;
    } else {
      SetScale(grid, l, (range.maximum[l] - range.minimum[l]) * factor / top_);
      if (grid.scale[l] != 0.0F) {
        grid.zero[l] =
            std::clamp(RoundNearest(-range.minimum[l] * factor / grid.scale[l]), 0.0F, top_);
      }
    }
  }
  return grid;
}

void GridSearch::Round(const LaneGrid& grid, const Lane& values, Lane& codes, Lane& rounded) const {
  if (cells_) {
    std::array<std::int32_t, kLanes> cells;
    for (std::size_t l = 0; l < kLanes; ++l) {
      const std::int32_t key = KeyOf(values[l] * grid.inverse[l]);
      std::int32_t cell = 0;
      // Else the lanes are in memory between two ends, and it takes four times as long.
#pragma GCC unroll 15
      for (std::size_t i = 0; i + 1 < kLanes; ++i) {
        cell += key > cells_->last_keys[i] ? 1 : 0;
      }
      cells[l] = cell;
    }
    for (std::size_t l = 0; l < kLanes; ++l) {
      const auto cell = static_cast<std::size_t>(cells[l]);
      codes[l] = cells_->codes[cell];
      rounded[l] = cells_->values[cell] * grid.scale[l];
    }
    return;
  }
  if (spec_.kind == CodecKind::kCodebook) {
    const std::span<const float> table = ValuesOf(spec_.codebook);
    for (std::size_t l = 0; l < kLanes; ++l) {
      const std::uint8_t code = NearestCode(spec_.codebook, values[l] * grid.inverse[l]);
      codes[l] = static_cast<float>(code);
      rounded[l] = table[code] * grid.scale[l];
    }
    return;
  }
  for (std::size_t l = 0; l < kLanes; ++l) {
    // Clamped before rounding, so that the magic number stays valid; the bounds are integers, so
    // the order is free.
    const float low = -grid.zero[l];
    const float high = top_ - grid.zero[l];
    const float code = RoundNearest(std::min(std::max(values[l] * grid.inverse[l], low), high));
    codes[l] = code + grid.zero[l];
    rounded[l] = code * grid.scale[l];
  }
}

Lane GridSearch::ErrorOf(const LaneGrid& grid, const float* values,
                         std::span<const float> weights) const {
  Lane sum{};
  if (spec_.kind == CodecKind::kUniform || cells_) {
    GridErrorCall call;
    call.values = values;
    call.weights = weights.data();
    call.count = std::ssize(weights);
    call.scale = grid.scale.data();
    call.inverse = grid.inverse.data();
    call.zero = grid.zero.data();
    call.top = top_;
    if (cells_) {
      call.ends = cells_->ends.data();
      call.cells = cells_->values.data();
    }
    call.error = sum.data();
    GridError(call);
    return sum;
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    Lane x, codes, rounded;
    std::copy_n(values + i * kLanes, kLanes, x.begin());
    Round(grid, x, codes, rounded);
    for (std::size_t l = 0; l < kLanes; ++l) {
      const float error = x[l] - rounded[l];
      sum[l] += weights[i] * (error * error);
    }
  }
  return sum;
}

LaneGrid GridSearch::Best(const float* values, std::span<const float> weights) const {
  if (options_.fixed) {
    LaneGrid grid;
    grid.zero.fill(options_.fixed->zero);
    for (std::size_t l = 0; l < kLanes; ++l) {
      SetScale(grid, l, options_.fixed->scale);
    }
    return grid;
  }
  Range range;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      const float x = values[i * kLanes + l];
      range.minimum[l] = std::min(range.minimum[l], x);
      range.maximum[l] = std::max(range.maximum[l], x);
    }
  }
  LaneGrid best = GridOf(range, 1.0F);
  if (!options_.search) {
    return best;
  }
  Lane least = ErrorOf(best, values, weights);
  const auto consider = [&](const LaneGrid& grid) {
    const Lane error = ErrorOf(grid, values, weights);
    for (std::size_t l = 0; l < kLanes; ++l) {
      if (error[l] < least[l] && grid.scale[l] != 0.0F) {
        least[l] = error[l];
        best.scale[l] = grid.scale[l];
        best.inverse[l] = grid.inverse[l];
        best.zero[l] = grid.zero[l];
      }
    }
  };
  const bool both = options_.both_signs && !spec_.has_zero_points && !IsSymmetric(spec_.codebook);
  for (int i = 0; i < kGridSteps; ++i) {
    const float factor = kGridWidest - kGridStep * static_cast<float>(i);
    consider(GridOf(range, factor));
    if (both) {
      consider(GridOf(range, -factor));
    }
  }
  for (int round = 0; round < kGridRefinements; ++round) {
    Lane product{}, square{};
    for (std::size_t i = 0; i < weights.size(); ++i) {
      Lane x, codes, rounded;
      std::copy_n(values + i * kLanes, kLanes, x.begin());
      Round(best, x, codes, rounded);
      for (std::size_t l = 0; l < kLanes; ++l) {
        const float unit = rounded[l] * best.inverse[l];
        product[l] += weights[i] * x[l] * unit;
        square[l] += weights[i] * unit * unit;
      }
    }
    LaneGrid grid = best;
    for (std::size_t l = 0; l < kLanes; ++l) {
      if (square[l] > 0.0F) {
        SetScale(grid, l, product[l] / square[l]);
      }
    }
    consider(grid);
  }
  return best;
}

}  // namespace nibble
