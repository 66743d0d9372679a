#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "codec/quantized_tensor.h"
#include "compress/output_plan.h"
#include "json/value.h"

namespace nibble {

/// Writes weights that no solver sees: rounded to what the plan says, or floats as they are.
class RoundedWriter {
 public:
  /// weights: what is rounded; plan: of the output. Both must outlive the writer. search_scale:
  /// off takes the range of the values.
  RoundedWriter(const Checkpoint& weights, const OutputPlan& plan, bool search_scale)
      : weights_(weights), plan_(plan), search_scale_(search_scale) {}

  /// One weight of the plan. Returns what the log says of it; null for floats. Memory: some rows a
  /// worker, or the matrix where its grid depends on all of it. Errors: what reading, rounding
  /// (naming the tensor) and writing give.
  Result<json::Value> Write(WeightWriter& writer, const WeightToWrite& weight,
                            ThreadPool& pool) const;

 private:
  Result<json::Value> WriteWhole(WeightWriter& writer, const WeightToWrite& weight,
                                 ThreadPool& pool) const;
  // A batch of row chunks at a time: rounded on all workers, written in order.
  Result<json::Value> WriteRows(WeightWriter& writer, const WeightToWrite& weight,
                                ThreadPool& pool) const;
  // The matrices of its input that share this weight's grid, which consumers multiply as one.
  std::vector<const WeightInfo*> SiblingsOf(const WeightToWrite& weight) const;
  Result<QuantizedTensor> Round(const WeightInfo& stored, const WeightSpec& spec,
                                std::int64_t begin, std::int64_t end,
                                std::vector<float>& weights) const;

  const Checkpoint& weights_;
  const OutputPlan& plan_;
  bool search_scale_;
};

}  // namespace nibble
