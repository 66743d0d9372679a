#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint_base.h"
#include "checkpoint/weight_writer.h"
#include "codec/quantized_tensor.h"

namespace nibble {

/// A checkpoint as it will be once it is written: the source's floats rounded to what is stored,
/// and the linears that were solved so far. What a walk over half-quantized blocks reads. The
/// source must outlive it.
class OverlayCheckpoint final : public CheckpointBase {
 public:
  /// weights: names and formats of the result; every one is in the source.
  OverlayCheckpoint(const Checkpoint& source, std::span<const WeightToWrite> weights);

  /// The content of a weight from now on; its spec is that of the weight to write. It stays where
  /// it is until it is replaced again or forgotten.
  const QuantizedTensor& Replace(std::string_view name, QuantizedTensor tensor);
  /// Gives its memory back.
  void Forget(std::string_view name);

  CheckpointFormat format() const override { return source_.format(); }
  /// Errors: kInternal for a quantized weight that nobody has replaced.
  Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                   std::int64_t row_end) const override;
  /// kUnsupported: nothing is on disk yet.
  Result<std::vector<std::span<const std::byte>>> RawParts(const WeightInfo& weight) const override;
  void Release(const WeightInfo& weight) const override;

 private:
  const Checkpoint& source_;
  std::map<std::string, QuantizedTensor, std::less<>> replaced_;
};

}  // namespace nibble
