#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "checkpoint/checkpoint_base.h"

namespace nibble {

/// What a checkpoint is rounded to as it is read.
struct RoundedFormat {
  int bits = 16;                // 16: every matrix as bf16; 8 or 4: the linears of the blocks
  std::int64_t group_size = 0;  // columns that share a scale, for 8 and 4 bits; 0: the row
  bool only_floats = false;     // what has codes already keeps them
  bool search_scale = true;     // RtnOptions
};

/// A model at another precision without a file: each matrix is rounded while it is loaded, linears
/// to the nearest code (QuantizeRtn). What such a model costs to hold and to run is what a
/// carefully quantized one costs; its quality is only that of rounding. It has no certificate,
/// tokenizer or template.
class RoundedCheckpoint final : public CheckpointBase {
 public:
  RoundedCheckpoint(std::unique_ptr<Checkpoint> source, const RoundedFormat& format);
  /// The source must outlive it.
  RoundedCheckpoint(const Checkpoint& source, const RoundedFormat& format);

  CheckpointFormat format() const override { return source_->format(); }
  Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                   std::int64_t row_end) const override;
  /// kUnsupported: nothing is on disk.
  Result<std::vector<std::span<const std::byte>>> RawParts(const WeightInfo& weight) const override;
  void Release(const WeightInfo& weight) const override;

 private:
  std::unique_ptr<Checkpoint> owned_;  // or none
  const Checkpoint* source_;
  bool search_scale_;
};

}  // namespace nibble
