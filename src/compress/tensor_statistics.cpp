#include "compress/tensor_statistics.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace nibble {

void TensorStatistics::Add(const QuantizedTensor& rows, std::span<const float> weights) {
  for (const float scale : rows.scales) {
    scale_min_ = num_groups_ == 0 ? scale : std::min(scale_min_, scale);
    scale_max_ = num_groups_ == 0 ? scale : std::max(scale_max_, scale);
    scale_sum_ += static_cast<double>(scale);
    ++num_groups_;
  }
  for (const std::uint8_t zero : rows.zero_points) {
    zero_min_ = has_zero_points_ ? std::min<std::int64_t>(zero_min_, zero) : zero;
    zero_max_ = has_zero_points_ ? std::max<std::int64_t>(zero_max_, zero) : zero;
    zero_sum_ += static_cast<double>(zero);
    has_zero_points_ = true;
  }
  const std::vector<float> back = Dequantize(rows);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const float error = back[i] - weights[i];
    max_error_ = std::max(max_error_, std::fabs(error));
    squared_error_ += static_cast<double>(error) * static_cast<double>(error);
    squared_weight_ += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
  }
}

void TensorStatistics::Add(const TensorStatistics& next) {
  if (next.num_groups_ > 0) {
    scale_min_ = num_groups_ == 0 ? next.scale_min_ : std::min(scale_min_, next.scale_min_);
    scale_max_ = num_groups_ == 0 ? next.scale_max_ : std::max(scale_max_, next.scale_max_);
    scale_sum_ += next.scale_sum_;
    num_groups_ += next.num_groups_;
  }
  if (next.has_zero_points_) {
    zero_min_ = has_zero_points_ ? std::min(zero_min_, next.zero_min_) : next.zero_min_;
    zero_max_ = has_zero_points_ ? std::max(zero_max_, next.zero_max_) : next.zero_max_;
    zero_sum_ += next.zero_sum_;
    has_zero_points_ = true;
  }
  squared_error_ += next.squared_error_;
  squared_weight_ += next.squared_weight_;
  max_error_ = std::max(max_error_, next.max_error_);
}

json::Object TensorStatistics::ToJson(const WeightSpec& spec) const {
  json::Object out;
  out.Set("format", spec.ToString());
  out.Set("rows", spec.rows);
  out.Set("cols", spec.cols);
  json::Object scales;
  scales.Set("min", static_cast<double>(scale_min_));
  scales.Set("max", static_cast<double>(scale_max_));
  scales.Set("mean", scale_sum_ / static_cast<double>(num_groups_));
  out.Set("scale", std::move(scales));
  if (has_zero_points_) {
    json::Object zeros;
    zeros.Set("min", zero_min_);
    zeros.Set("max", zero_max_);
    zeros.Set("mean", zero_sum_ / static_cast<double>(num_groups_));
    out.Set("zero_point", std::move(zeros));
  }
  out.Set("relative_rms_error",
          squared_weight_ > 0.0 ? std::sqrt(squared_error_ / squared_weight_) : 0.0);
  out.Set("max_error", static_cast<double>(max_error_));
  return out;
}

TensorStatistics StatisticsOf(const QuantizedTensor& tensor, std::span<const float> weights,
                              ThreadPool& pool) {
  constexpr std::int64_t kRows = 64;  // that a worker looks at
  const std::int64_t rows = tensor.spec.rows, cols = tensor.spec.cols;
  std::vector<TensorStatistics> parts(static_cast<std::size_t>((rows + kRows - 1) / kRows));
  pool.For(std::ssize(parts), 1, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t begin = i * kRows;
      const std::int64_t end = std::min(rows, begin + kRows);
      parts[static_cast<std::size_t>(i)].Add(
          SliceRows(tensor, begin, end),
          weights.subspan(static_cast<std::size_t>(begin * cols),
                          static_cast<std::size_t>((end - begin) * cols)));
    }
  });
  TensorStatistics all;
  for (const TensorStatistics& part : parts) {
    all.Add(part);
  }
  return all;
}

}  // namespace nibble
