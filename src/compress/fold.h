#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint_base.h"
#include "compress/block_walk.h"
#include "json/value.h"

namespace nibble {

/// Scales of the input channels of each group of linears, block by block: their weights' columns
/// are multiplied by them, and what makes the input is divided, so that the model stays the same.
/// What makes it, in the llama family:
///   q, k, v     input_layernorm            o      the rows of v (a scale serves all query heads
///   gate, up    the norm before them              that share a key-value head)
///                                          down   the rows of up
struct FoldedScales {
  std::vector<std::array<std::vector<float>, 4>> blocks;  // by LinearGroup; [InputWidth], or empty

  json::Value ToJson() const;
  /// Errors: kCorruptFile if it is not of this model.
  static Result<FoldedScales> FromJson(const json::Value& value, const ModelConfig& config);
};

/// Makes equal what must be: scales of the inputs of o by the geometric mean over the query heads
/// of a key-value head.
void ShareAcrossHeads(const ModelConfig& config, std::vector<float>& output_scales);

/// The source with scales folded in, computed as rows are read. Scaled weights are F32. The source
/// must outlive it.
class FoldedCheckpoint final : public CheckpointBase {
 public:
  FoldedCheckpoint(const Checkpoint& source, const FoldedScales& scales);

  CheckpointFormat format() const override { return source_.format(); }
  Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                   std::int64_t row_end) const override;
  /// kUnsupported for a weight that was scaled.
  Result<std::vector<std::span<const std::byte>>> RawParts(const WeightInfo& weight) const override;
  void Release(const WeightInfo& weight) const override;

 private:
  // What happens to a weight: its columns are multiplied, its rows divided. Empty: nothing.
  struct Change {
    std::vector<float> columns, rows;
    bool plus_one = false;  // 1 + w is multiplied, w is kept
  };
  Change& ChangeOf(const std::string& name);
  void DivideNorm(const std::string& name, const std::vector<float>& scales);

  const Checkpoint& source_;
  std::map<std::string, Change, std::less<>> changes_;
};

}  // namespace nibble
