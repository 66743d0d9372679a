#pragma once

#include <cstdint>
#include <span>

#include "base/thread_pool.h"
#include "codec/quantized_tensor.h"
#include "json/value.h"

namespace nibble {

/// What the log says about one quantized tensor, gathered over chunks of its rows in order.
class TensorStatistics {
 public:
  /// weights: what the rows were before.
  void Add(const QuantizedTensor& rows, std::span<const float> weights);
  /// What was gathered over the rows that follow.
  void Add(const TensorStatistics& next);
  /// spec: of the whole tensor.
  json::Object ToJson(const WeightSpec& spec) const;

 private:
  float scale_min_ = 0.0F, scale_max_ = 0.0F;
  double scale_sum_ = 0.0;
  std::int64_t num_groups_ = 0;
  std::int64_t zero_min_ = 0, zero_max_ = 0;
  double zero_sum_ = 0.0;
  bool has_zero_points_ = false;
  double squared_error_ = 0.0, squared_weight_ = 0.0;
  float max_error_ = 0.0F;
};

/// Of a whole tensor, over pieces of its rows, on all workers.
TensorStatistics StatisticsOf(const QuantizedTensor& tensor, std::span<const float> weights,
                              ThreadPool& pool);

}  // namespace nibble
