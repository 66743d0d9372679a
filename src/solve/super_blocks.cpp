#include "solve/super_blocks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "codec/encode.h"

namespace nibble {
namespace {

constexpr std::size_t kSuper = 256;

// What distinguishes the five grids.
struct SuperGrid {
  bool minima = false;
  int bits = 0;
  std::size_t group = 0;
  int lowest = 0, highest = 0;  // whole multiples that scales may be; minima: 0 to highest
  bool free_minima = false;     // minima may be above zero
};
constexpr SuperGrid kShapes[] = {{true, 2, 16, 0, 15},
                                 {false, 3, 16, -32, 31},
                                 {true, 4, 32, 0, 63},
                                 {true, 5, 32, 0, 63},
                                 {false, 6, 16, -128, 127}};

// A group's values and how much an error of each counts.
struct Group {
  std::span<const float> x, weight;
};

struct Fit {
  float scale = 0.0F, minimum = 0.0F;
  double error = 0.0;
};

int CodeOf(const SuperGrid& shape, float x, float scale, float minimum) {
  const int middle = shape.minima ? 0 : 1 << (shape.bits - 1);
  const int top = (1 << shape.bits) - 1;
  if (scale == 0.0F) {
    return middle;
  }
  const float steps = std::nearbyint((x - minimum) / scale) + static_cast<float>(middle);
  return static_cast<int>(std::clamp(steps, 0.0F, static_cast<float>(top)));
}

// The weighted error of a group on a scale and a minimum.
double ErrorOf(const SuperGrid& shape, const Group& group, float scale, float minimum) {
  const int middle = shape.minima ? 0 : 1 << (shape.bits - 1);
  double error = 0.0;
  for (std::size_t i = 0; i < group.x.size(); ++i) {
    const int code = CodeOf(shape, group.x[i], scale, minimum);
    const float back = static_cast<float>(code - middle) * scale + minimum;
    const auto difference = static_cast<double>(back - group.x[i]);
    error += static_cast<double>(group.weight[i]) * difference * difference;
  }
  return error;
}

// Scale and minimum (at most zero) of least error for the codes that a start gives.
Fit Refine(const SuperGrid& shape, const Group& group, float scale, float minimum) {
  const int middle = shape.minima ? 0 : 1 << (shape.bits - 1);
  double sw = 0.0, sc = 0.0, scc = 0.0, sx = 0.0, scx = 0.0;
  for (std::size_t i = 0; i < group.x.size(); ++i) {
    const auto w = static_cast<double>(group.weight[i]);
    const auto x = static_cast<double>(group.x[i]);
    const double c = CodeOf(shape, group.x[i], scale, minimum) - middle;
    sw += w;
    sc += w * c;
    scc += w * c * c;
    sx += w * x;
    scx += w * c * x;
  }
  Fit out{.scale = scale, .minimum = minimum};
  const double determinant = sw * scc - sc * sc;
  if (shape.minima && determinant > 0.0) {
    double best_scale = (sw * scx - sc * sx) / determinant;
    double best_minimum = (scc * sx - sc * scx) / determinant;
    if (best_minimum > 0.0 && !shape.free_minima) {
      best_minimum = 0.0;
      best_scale = scc > 0.0 ? scx / scc : 0.0;
    }
    out = {.scale = static_cast<float>(best_scale), .minimum = static_cast<float>(best_minimum)};
  } else if (!shape.minima && scc > 0.0) {
    out.scale = static_cast<float>(scx / scc);
  }
  out.error = ErrorOf(shape, group, out.scale, out.minimum);
  return out;
}

// Scale and minimum of one group, unrounded.
Fit FitGroup(const SuperGrid& shape, const Group& group) {
  constexpr int kSteps = 20;
  const auto [low, high] = std::ranges::minmax(group.x);
  const int top = (1 << shape.bits) - 1;
  Fit best;
  if (shape.minima) {
    const float minimum = shape.free_minima ? low : std::min(low, 0.0F);
    const float range = high - minimum;
    if (!(range > 0.0F)) {
      return {.scale = 0.0F, .minimum = minimum};
    }
    best = {.scale = range / static_cast<float>(top), .minimum = minimum};
    best.error = ErrorOf(shape, group, best.scale, best.minimum);
    for (int step = 0; step <= kSteps; ++step) {
      const float steps = static_cast<float>(top) - 1.0F + 0.1F * static_cast<float>(step);
      const Fit fit = Refine(shape, group, range / steps, minimum);
      best = fit.error < best.error && fit.scale > 0.0F ? fit : best;
    }
    return best;
  }
  const float largest = std::fabs(low) > std::fabs(high) ? low : high;
  if (largest == 0.0F) {
    return {};
  }
  const auto middle = static_cast<float>(1 << (shape.bits - 1));
  best = {.scale = -largest / middle};  // the largest on the side that has one code more
  best.error = ErrorOf(shape, group, best.scale, 0.0F);
  for (int step = -kSteps / 2; step <= kSteps / 2; ++step) {
    const float steps = middle + 0.1F * static_cast<float>(step);
    for (const float sign : {-1.0F, 1.0F}) {
      const Fit fit = Refine(shape, group, sign * largest / steps, 0.0F);
      best = fit.error < best.error ? fit : best;
    }
  }
  return best;
}

// How much an error of each value counts.
void Weigh(std::span<const float> x, std::span<const float> importance, std::span<float> weight) {
  double square = 0.0;
  for (const float value : x) {
    square += static_cast<double>(value) * static_cast<double>(value);
  }
  const auto mean = static_cast<float>(square / static_cast<double>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    weight[i] = importance.empty() ? std::sqrt(mean) + std::fabs(x[i])
                                   : importance[i] * std::sqrt(mean + x[i] * x[i]);
  }
}

Result<void> CheckFinite(std::span<const float> weights, std::int64_t cols) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i])) {
      const auto at = static_cast<std::int64_t>(i);
      return Fail(ErrorCode::kCorruptFile, fmt::format("the weight at row {}, column {} is {}",
                                                       at / cols, at % cols, weights[i]));
    }
  }
  return {};
}

// The f16 number whose multiples up to `highest` reach the largest magnitude.
float UnitOf(std::span<const float> values, int highest) {
  float largest = 0.0F;
  for (const float value : values) {
    largest = std::max(largest, std::fabs(value));
  }
  return RoundToDType(largest / static_cast<float>(highest), DType::kF16);
}

int MultipleOf(float value, float unit, int lowest, int highest) {
  return unit == 0.0F
             ? 0
             : static_cast<int>(std::clamp(std::nearbyint(value / unit), static_cast<float>(lowest),
                                           static_cast<float>(highest)));
}

// One block: codes, scales and minima at their places.
void QuantizeBlock(const SuperGrid& shape, std::span<const float> x,
                   std::span<const float> importance, std::uint8_t* codes, float* scales,
                   float* minima) {
  const std::size_t groups = kSuper / shape.group;
  std::array<float, kSuper> weight{};
  std::array<Fit, 16> fits{};
  std::array<float, 16> fit_scales{}, fit_minima{};
  const auto part = [&](std::size_t g) {
    return Group{x.subspan(g * shape.group, shape.group),
                 std::span<const float>(weight).subspan(g * shape.group, shape.group)};
  };
  for (std::size_t g = 0; g < groups; ++g) {
    const std::size_t at = g * shape.group;
    Weigh(x.subspan(at, shape.group),
          importance.empty() ? importance : importance.subspan(at, shape.group),
          std::span(weight).subspan(at, shape.group));
    fits[g] = FitGroup(shape, part(g));
    fit_scales[g] = fits[g].scale;
    fit_minima[g] = fits[g].minimum;
  }
  const float d = UnitOf(std::span(fit_scales).first(groups), shape.highest);
  const float dmin =
      shape.minima ? UnitOf(std::span(fit_minima).first(groups), shape.highest) : 0.0F;
  for (std::size_t g = 0; g < groups; ++g) {
    const Group group = part(g);
    const int s0 = MultipleOf(fits[g].scale, d, shape.lowest, shape.highest);
    const int m0 = MultipleOf(-fits[g].minimum, dmin, 0, shape.highest);
    Fit best{.error = -1.0};
    for (int s = std::max(shape.lowest, s0 - 1); s <= std::min(shape.highest, s0 + 1); ++s) {
      for (int m = std::max(0, m0 - 1); m <= (shape.minima ? std::min(shape.highest, m0 + 1) : 0);
           ++m) {
        const float scale = d * static_cast<float>(s);
        const float minimum = -(dmin * static_cast<float>(m));
        const double error = ErrorOf(shape, group, scale, minimum);
        // The middle of the search goes before its neighbours.
        const bool middle = s == s0 && m == m0;
        if (best.error < 0.0 || error < best.error || (middle && error == best.error)) {
          best = {.scale = scale, .minimum = minimum, .error = error};
        }
      }
    }
    scales[g] = best.scale;
    if (minima != nullptr) {
      minima[g] = best.minimum;
    }
    for (std::size_t i = 0; i < shape.group; ++i) {
      codes[g * shape.group + i] =
          static_cast<std::uint8_t>(CodeOf(shape, group.x[i], best.scale, best.minimum));
    }
  }
}

}  // namespace

Result<QuantizedTensor> QuantizeSuperBlocks(std::span<const float> weights, std::int64_t rows,
                                            std::int64_t cols, const WeightSpec& grid,
                                            std::span<const float> importance) {
  const auto* shape = std::ranges::find_if(kShapes, [&](const SuperGrid& one) {
    return one.bits == grid.bits && static_cast<std::int64_t>(one.group) == grid.group_size &&
           one.minima == (grid.kind == CodecKind::kMinimum) && grid.has_f32_scales &&
           !grid.has_zero_points;
  });
  const auto width = static_cast<std::int64_t>(kSuper);
  if (shape == std::end(kShapes) || cols < 1 || cols % width != 0 || rows < 0 ||
      weights.size() != static_cast<std::size_t>(rows * cols) ||
      (!importance.empty() && importance.size() != static_cast<std::size_t>(cols))) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} in rows of {} is no grid of blocks of 256", grid.ToString(), cols));
  }
  NIBBLE_TRY_VOID(CheckFinite(weights, cols));
  QuantizedTensor out;
  out.spec = grid;
  out.spec.rows = rows;
  out.spec.cols = cols;
  const auto groups = static_cast<std::size_t>(rows * out.spec.num_groups());
  out.codes.resize(weights.size());
  out.scales.resize(groups);
  out.minima.resize(shape->minima ? groups : 0);
  for (std::size_t at = 0; at < weights.size(); at += kSuper) {
    const std::size_t group = at / shape->group;
    const std::size_t col = at % static_cast<std::size_t>(cols);
    QuantizeBlock(*shape, weights.subspan(at, kSuper),
                  importance.empty() ? importance : importance.subspan(col, kSuper),
                  out.codes.data() + at, out.scales.data() + group,
                  shape->minima ? out.minima.data() + group : nullptr);
  }
  return out;
}

Result<QuantizedTensor> QuantizeMinima(std::span<const float> weights, std::int64_t rows,
                                       std::int64_t cols, int bits, std::int64_t group_size) {
  if (bits < 2 || bits > 8 || group_size < 1 || cols % group_size != 0 ||
      weights.size() != static_cast<std::size_t>(rows * cols)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} bits in groups of {} and rows of {}", bits, group_size, cols));
  }
  NIBBLE_TRY_VOID(CheckFinite(weights, cols));
  const SuperGrid shape{.minima = true,
                        .bits = bits,
                        .group = static_cast<std::size_t>(group_size),
                        .free_minima = true};
  QuantizedTensor out;
  out.spec = {.rows = rows,
              .cols = cols,
              .kind = CodecKind::kMinimum,
              .bits = bits,
              .group_size = group_size};
  std::vector<float> weight(shape.group);
  for (std::size_t at = 0; at < weights.size(); at += shape.group) {
    const auto x = weights.subspan(at, shape.group);
    Weigh(x, {}, weight);
    const Fit fit = FitGroup(shape, {x, weight});
    const float scale = RoundToDType(fit.scale, DType::kF16);
    const float minimum = RoundToDType(fit.minimum, DType::kF16);
    out.scales.push_back(scale);
    out.minima.push_back(minimum);
    for (const float value : x) {
      out.codes.push_back(static_cast<std::uint8_t>(CodeOf(shape, value, scale, minimum)));
    }
  }
  return out;
}

}  // namespace nibble
