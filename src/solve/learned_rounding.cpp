#include "solve/learned_rounding.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/round.h"
#include "codec/encode.h"

namespace nibble {
namespace {

constexpr std::int64_t kGroupsAtOnce = 64;
// Of a position from its code at the start: the code stays.
constexpr float kMostOffset = 0.49F;
constexpr float kLeastFactor = 0.5F;
constexpr float kLargestFactor = 1.5F;

float SignOf(float x) { return static_cast<float>(x > 0.0F) - static_cast<float>(x < 0.0F); }

}  // namespace

LearnedRounding::LearnedRounding(ThreadPool& pool, const QuantizedTensor& start,
                                 std::span<const float> weights, DType scale_dtype)
    : start_(start),
      scale_dtype_(scale_dtype),
      positions_(start.codes.size()),
      factors_(start.scales.size(), 1.0F),
      top_(static_cast<float>((1 << start.spec.bits) - 1)) {
  NIBBLE_CHECK(weights.size() == start.codes.size(), "the weights of this matrix");
  OrderLevels();
  std::vector<float> rank_of(static_cast<std::size_t>(top_) + 1);
  for (std::size_t rank = 0; rank < rank_of.size(); ++rank) {
    rank_of[code_of_.empty() ? rank : code_of_[rank]] = static_cast<float>(rank);
  }
  ForGroups(pool, [&](std::int64_t group, std::int64_t begin, std::int64_t end) {
    const float scale = start_.scales[static_cast<std::size_t>(group)];
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      positions_[i] = StartOf(rank_of[start_.codes[i]], weights[i], scale, ZeroOf(group));
    }
  });
}

// The codes of a codebook by the values that they stand for.
void LearnedRounding::OrderLevels() {
  if (start_.spec.kind != CodecKind::kCodebook) {
    return;
  }
  const std::span<const float> table = ValuesOf(start_.spec.codebook);
  code_of_.resize(table.size());
  std::iota(code_of_.begin(), code_of_.end(), std::uint8_t{0});
  std::ranges::stable_sort(code_of_, {}, [&](std::uint8_t code) { return table[code]; });
  for (const std::uint8_t code : code_of_) {
    levels_.push_back(table[code]);
  }
}

// From the level that was chosen towards the weight, as a share of the way to the next level.
float LearnedRounding::StartOf(float rank, float weight, float scale, float zero) const {
  const float level = LevelOf(rank, zero);
  const float wanted = scale == 0.0F ? level : weight / scale;
  const float next = std::clamp(rank + (wanted > level ? 1.0F : -1.0F), 0.0F, top_);
  const float step = std::fabs(LevelOf(next, zero) - level);
  const float offset =
      step == 0.0F ? 0.0F : std::clamp((wanted - level) / step, -kMostOffset, kMostOffset);
  return std::clamp(rank + offset, 0.0F, top_);
}

// body(group, its first weight, the one behind its last).
template <typename Body>
void LearnedRounding::ForGroups(ThreadPool& pool, Body&& body) const {
  const WeightSpec& spec = start_.spec;
  pool.For(spec.rows * NumGroups(), kGroupsAtOnce, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t group = first; group < last; ++group) {
      const std::int64_t column = group % NumGroups() * spec.group_size;
      const std::int64_t begin = group / NumGroups() * spec.cols + column;
      body(group, begin, begin + std::min(spec.group_size, spec.cols - column));
    }
  });
}

float LearnedRounding::ScaleOf(std::int64_t group) const {
  const auto i = static_cast<std::size_t>(group);
  const float scale = start_.scales[i] * factors_[i];
  return start_.spec.has_f32_scales ? scale : RoundToDType(scale, scale_dtype_);
}

float LearnedRounding::ZeroOf(std::int64_t group) const {
  if (start_.spec.has_zero_points) {
    return static_cast<float>(start_.zero_points[static_cast<std::size_t>(group)]);
  }
  return static_cast<float>(1 << (start_.spec.bits - 1));
}

float LearnedRounding::LevelOf(float rank, float zero) const {
  return levels_.empty() ? rank - zero : levels_[static_cast<std::size_t>(rank)];
}

void LearnedRounding::Dequantize(ThreadPool& pool, float* weights) const {
  ForGroups(pool, [&](std::int64_t group, std::int64_t begin, std::int64_t end) {
    const float* position = positions_.data();
    const float scale = ScaleOf(group);
    if (levels_.empty()) {
      const float zero = ZeroOf(group);
      for (std::int64_t i = begin; i < end; ++i) {
        weights[i] = (RoundNearest(position[i]) - zero) * scale;
      }
    } else {
      for (std::int64_t i = begin; i < end; ++i) {
        weights[i] = levels_[static_cast<std::size_t>(RoundNearest(position[i]))] * scale;
      }
    }
  });
}

void LearnedRounding::Step(ThreadPool& pool, const float* gradients, float position_rate,
                           float factor_rate) {
  ForGroups(pool, [&](std::int64_t group, std::int64_t begin, std::int64_t end) {
    // Copies: positions could be what they are copied from, for all the compiler knows.
    float* const position = positions_.data();
    const float* const gradient = gradients;
    const float top = top_;
    const float zero = ZeroOf(group);
    const float sign = SignOf(start_.scales[static_cast<std::size_t>(group)]);
    float slope = 0.0F;
    if (levels_.empty()) {
      for (std::int64_t i = begin; i < end; ++i) {
        slope += gradient[i] * (RoundNearest(position[i]) - zero);
      }
    } else {
      for (std::int64_t i = begin; i < end; ++i) {
        slope += gradient[i] * levels_[static_cast<std::size_t>(RoundNearest(position[i]))];
      }
    }
    const float rate = sign * position_rate;
    for (std::int64_t i = begin; i < end; ++i) {
      // Not std::clamp, which checks its bounds: that is control flow.
      position[i] = std::min(std::max(position[i] - rate * SignOf(gradient[i]), 0.0F), top);
    }
    if (start_.spec.scale_grid != ScaleGrid::kAny) {
      return;  // steps between its numbers are too large to learn by
    }
    float& factor = factors_[static_cast<std::size_t>(group)];
    factor = std::clamp(factor - factor_rate * sign * SignOf(slope), kLeastFactor, kLargestFactor);
  });
}

QuantizedTensor LearnedRounding::Result() const {
  QuantizedTensor out = start_;
  for (std::size_t i = 0; i < out.codes.size(); ++i) {
    const auto rank = static_cast<std::uint8_t>(RoundNearest(positions_[i]));
    out.codes[i] = code_of_.empty() ? rank : code_of_[rank];
  }
  for (std::size_t i = 0; i < out.scales.size(); ++i) {
    out.scales[i] = ScaleOf(static_cast<std::int64_t>(i));
  }
  return out;
}

std::int64_t LearnedRounding::NumMoved() const {
  const QuantizedTensor now = Result();
  std::int64_t moved = 0;
  for (std::size_t i = 0; i < now.codes.size(); ++i) {
    moved += now.codes[i] != start_.codes[i] ? 1 : 0;
  }
  return moved;
}

}  // namespace nibble
