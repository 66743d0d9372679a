#include "solve/rtn.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/round.h"
#include "codec/encode.h"
#include "solve/grid.h"

namespace nibble {
namespace {

struct Grid {
  float scale = 0.0F;
  float zero = 0.0F;  // code of w = 0
};

// The sum of term(w) over a group: over lanes, so that it vectorizes and yet has one order on every
// machine.
template <typename Term>
float SumOver(std::span<const float> group, Term term) {
  std::array<float, kLanes> lanes{};
  std::size_t i = 0;
  for (; i + kLanes <= group.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += term(group[i + lane]);
    }
  }
  for (std::size_t lane = 0; i < group.size(); ++i, ++lane) {
    lanes[lane] += term(group[i]);
  }
  float sum = 0.0F;
  for (const float lane : lanes) {
    sum += lane;
  }
  return sum;
}

// Sum of squared errors of a group on a grid, each weighted by (mean_square + w^2).
float WeightedError(std::span<const float> group, float mean_square, Grid grid, float top) {
  const float inverse = 1.0F / grid.scale;
  const float low = -grid.zero;
  const float high = top - grid.zero;
  return SumOver(group, [=](float w) {
    // Clamped before rounding, so that the magic number stays valid; the bounds are integers, so
    // the order is free.
    const float code = RoundNearest(std::min(std::max(w * inverse, low), high));
    const float error = code * grid.scale - w;
    return (mean_square + w * w) * (error * error);
  });
}

// The grid whose range is `factor` times that of the group.
Grid GridAt(float minimum, float maximum, float factor, float top, const RtnOptions& options) {
  if (options.symmetric) {
    const float absmax = std::max(-minimum, maximum);
    return {.scale = RoundToDType(absmax * 2.0F * factor / top, options.scale_dtype),
            .zero = (top + 1.0F) / 2.0F};
  }
  Grid grid{.scale = RoundToDType((maximum - minimum) * factor / top, options.scale_dtype)};
  if (grid.scale > 0.0F) {
    grid.zero = std::clamp(RoundNearest(-minimum * factor / grid.scale), 0.0F, top);
  }
  return grid;
}

Grid BestGrid(std::span<const float> group, const RtnOptions& options) {
  const float top = static_cast<float>((1 << options.bits) - 1);
  float minimum = 0.0F;
  float maximum = 0.0F;
  for (const float w : group) {
    minimum = std::min(minimum, w);
    maximum = std::max(maximum, w);
  }
  Grid best = GridAt(minimum, maximum, 1.0F, top, options);
  if (best.scale == 0.0F || !options.search_scale) {
    return best;
  }
  const float mean_square =
      SumOver(group, [](float w) { return w * w; }) / static_cast<float>(group.size());
  constexpr int kSteps = 32;
  float best_error = WeightedError(group, mean_square, best, top);
  for (int i = 0; i <= kSteps; ++i) {
    const float factor = 1.10F - 0.0125F * static_cast<float>(i);
    const Grid grid = GridAt(minimum, maximum, factor, top, options);
    if (grid.scale == 0.0F) {
      break;
    }
    const float error = WeightedError(group, mean_square, grid, top);
    if (error < best_error) {
      best = grid;
      best_error = error;
    }
  }
  return best;
}

Result<void> CheckGroup(std::int64_t cols, std::int64_t group_size) {
  if (group_size <= 0 || cols % group_size != 0) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("group size {} does not divide the width {}", group_size, cols));
  }
  return {};
}

Result<void> CheckWeights(std::span<const float> weights, std::int64_t rows, std::int64_t cols) {
  NIBBLE_CHECK(weights.size() == static_cast<std::size_t>(rows * cols),
               "weights must be rows * cols");
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i])) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("the weight at row {}, column {} is not finite",
                      i / static_cast<std::size_t>(cols), i % static_cast<std::size_t>(cols)));
    }
  }
  return {};
}

}  // namespace

Result<QuantizedTensor> QuantizeRtn(std::span<const float> weights, std::int64_t rows,
                                    std::int64_t cols, const RtnOptions& options) {
  if (options.bits < 2 || options.bits > 8) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{} bits: use 2 to 8", options.bits));
  }
  const std::int64_t group_size = options.group_size == 0 ? cols : options.group_size;
  NIBBLE_TRY_VOID(CheckGroup(cols, group_size));
  NIBBLE_TRY_VOID(CheckWeights(weights, rows, cols));
  QuantizedTensor out;
  out.spec = {.rows = rows,
              .cols = cols,
              .kind = CodecKind::kUniform,
              .bits = options.bits,
              .group_size = group_size,
              .has_zero_points = !options.symmetric};
  const auto groups = static_cast<std::size_t>(rows * out.spec.num_groups());
  const float top = static_cast<float>((1 << options.bits) - 1);
  out.codes.resize(weights.size());
  out.scales.resize(groups);
  out.zero_points.resize(options.symmetric ? 0 : groups);
  for (std::size_t g = 0; g < groups; ++g) {
    const auto begin = g * static_cast<std::size_t>(group_size);
    const auto group = weights.subspan(begin, static_cast<std::size_t>(group_size));
    const Grid grid = BestGrid(group, options);
    out.scales[g] = grid.scale;
    if (!options.symmetric) {
      out.zero_points[g] = static_cast<std::uint8_t>(grid.zero);
    }
    const float inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
    for (std::size_t i = 0; i < group.size(); ++i) {
      const float code =
          RoundNearest(std::clamp(group[i] * inverse, -grid.zero, top - grid.zero)) + grid.zero;
      out.codes[begin + i] = static_cast<std::uint8_t>(code);
    }
  }
  return out;
}

Result<QuantizedTensor> QuantizeWeighted(ThreadPool& pool, std::span<const float> weights,
                                         const WeightSpec& spec, std::span<const float> importance,
                                         DType scale_dtype, bool search_scale,
                                         float scale_divisor) {
  NIBBLE_CHECK(static_cast<std::int64_t>(importance.size()) == spec.cols, "a weight a column");
  NIBBLE_TRY_VOID(CheckGroup(spec.cols, spec.group_size));
  const auto rows = static_cast<std::int64_t>(weights.size()) / spec.cols;
  NIBBLE_TRY_VOID(CheckWeights(weights, rows, spec.cols));
  QuantizedTensor out{.spec = spec};
  out.spec.rows = rows;
  const std::int64_t groups = spec.num_groups();
  out.codes.resize(weights.size());
  out.scales.resize(static_cast<std::size_t>(rows * groups));
  out.zero_points.resize(spec.has_zero_points ? out.scales.size() : 0);
  const GridSearch::Options options = OptionsFor(
      spec, weights,
      {.scale_dtype = scale_dtype, .search = search_scale, .scale_divisor = scale_divisor});
  out.scale_divisor = options.scale_divisor;
  const GridSearch search(spec, options);
  constexpr auto kRows = static_cast<std::int64_t>(kLanes);
  pool.For((rows + kRows - 1) / kRows, 1, [&](std::int64_t first, std::int64_t last, int) {
    std::vector<float> values(static_cast<std::size_t>(spec.group_size) * kLanes);
    for (std::int64_t item = first * groups; item < last * groups; ++item) {
      const std::int64_t row = item / groups * kRows;
      const std::int64_t group = item % groups;
      const std::int64_t count = std::min(kRows, rows - row);
      const std::int64_t begin = group * spec.group_size;
      const auto at = [&](std::int64_t r, std::int64_t c) {
        return static_cast<std::size_t>((row + r) * spec.cols + begin + c);
      };
      for (std::int64_t c = 0; c < spec.group_size; ++c) {
        for (std::int64_t r = 0; r < kRows; ++r) {
          values[static_cast<std::size_t>(c * kRows + r)] = r < count ? weights[at(r, c)] : 0.0F;
        }
      }
      const LaneGrid grid =
          search.Best(values.data(), importance.subspan(static_cast<std::size_t>(begin),
                                                        static_cast<std::size_t>(spec.group_size)));
      for (std::int64_t c = 0; c < spec.group_size; ++c) {
        Lane x, codes, rounded;
        std::copy_n(values.begin() + c * kRows, kRows, x.begin());
        search.Round(grid, x, codes, rounded);
        for (std::int64_t r = 0; r < count; ++r) {
          out.codes[at(r, c)] = static_cast<std::uint8_t>(codes[static_cast<std::size_t>(r)]);
        }
      }
      for (std::int64_t r = 0; r < count; ++r) {
        const auto to = static_cast<std::size_t>((row + r) * groups + group);
        out.scales[to] = grid.scale[static_cast<std::size_t>(r)];
        if (spec.has_zero_points) {
          out.zero_points[to] = static_cast<std::uint8_t>(grid.zero[static_cast<std::size_t>(r)]);
        }
      }
    }
  });
  return out;
}

float ScaleDivisorOf(float absmax) {
  const float whole = LargestOf(Codebook::kFp8E4M3) * LargestOf(Codebook::kE2M1);
  return absmax > 0.0F ? whole / absmax : 1.0F;
}

float AbsMaxOf(std::span<const float> weights) {
  float absmax = 0.0F;
  for (const float weight : weights) {
    absmax = std::max(absmax, std::fabs(weight));
  }
  return absmax;
}

GridSearch::Options OptionsFor(const WeightSpec& spec, std::span<const float> weights,
                               GridSearch::Options options) {
  if (spec.scale_grid == ScaleGrid::kE4M3) {
    if (options.scale_divisor == 0.0F) {
      options.scale_divisor = ScaleDivisorOf(AbsMaxOf(weights));
    }
  } else {
    options.scale_divisor = 1.0F;
  }
  if (spec.has_one_scale && !options.fixed) {
    if (spec.kind == CodecKind::kCodebook) {
      options.fixed = {.scale = AbsMaxOf(weights) / LargestOf(spec.codebook)};
    } else {
      const Grid grid = BestGrid(weights, {.bits = spec.bits,
                                           .symmetric = !spec.has_zero_points,
                                           .search_scale = options.search,
                                           .scale_dtype = options.scale_dtype});
      options.fixed = {.scale = grid.scale, .zero = grid.zero};
    }
  }
  return options;
}

Result<QuantizedTensor> QuantizeFp8(std::span<const float> weights, std::int64_t rows,
                                    std::int64_t cols, std::int64_t group_size, DType scale_dtype,
                                    Codebook codebook) {
  NIBBLE_TRY_VOID(CheckWeights(weights, rows, cols));
  const float largest_value = LargestOf(codebook);
  QuantizedTensor out;
  out.spec = {.rows = rows,
              .cols = cols,
              .kind = CodecKind::kCodebook,
              .bits = 8,
              .group_size = std::min(group_size, cols),
              .has_f32_scales = scale_dtype == DType::kF32,
              .codebook = codebook};
  const std::int64_t groups = out.spec.num_groups();
  const std::int64_t block_rows = group_size >= cols ? 1 : group_size;
  std::vector<float> absmax(
      static_cast<std::size_t>((rows + block_rows - 1) / block_rows * groups));
  const auto block_of = [&](std::int64_t row, std::int64_t col) {
    return static_cast<std::size_t>(row / block_rows * groups + col / out.spec.group_size);
  };
  const auto weight_at = [&](std::int64_t row, std::int64_t col) {
    return weights[static_cast<std::size_t>(row * cols + col)];
  };
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      float& largest = absmax[block_of(row, col)];
      largest = std::max(largest, std::fabs(weight_at(row, col)));
    }
  }
  out.codes.reserve(weights.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const float scale = RoundToDType(absmax[block_of(row, col)] / largest_value, scale_dtype);
      if (col % out.spec.group_size == 0) {
        out.scales.push_back(scale);
      }
      out.codes.push_back(
          NearestCode(codebook, scale == 0.0F ? 0.0F : weight_at(row, col) / scale));
    }
  }
  return out;
}

Result<QuantizedTensor> QuantizeToCodebook(std::span<const float> weights, std::int64_t rows,
                                           std::int64_t cols, Codebook codebook,
                                           std::int64_t group_size) {
  NIBBLE_TRY_VOID(CheckGroup(cols, group_size));
  NIBBLE_TRY_VOID(CheckWeights(weights, rows, cols));
  return EncodeCodebook(weights, rows, cols, codebook, group_size);
}

}  // namespace nibble
