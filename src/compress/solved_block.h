#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/weight_writer.h"
#include "codec/quantized_tensor.h"
#include "io/atomic_writer.h"
#include "json/value.h"

namespace nibble {

/// A weight as a solver left it, and what the log says about it.
struct SolvedWeight {
  std::string name;
  QuantizedTensor tensor;
  json::Value facts;
};

/// Solved blocks between solving and writing: one journalled file each in the partial folder, so
/// that a killed run loses one block at most. Codes of 4 bits or less lie two a byte. One thread at
/// a time, as AtomicWriter.
class SolvedBlocks {
 public:
  /// weights: what the result will hold; both must outlive this.
  SolvedBlocks(AtomicWriter& out, std::span<const WeightToWrite> weights)
      : out_(out), weights_(weights) {}

  static std::uint64_t SizeBytes(std::span<const WeightToWrite> weights);
  bool Has(std::int64_t block) const;
  Result<void> Save(std::int64_t block, std::span<const SolvedWeight> weights);
  /// Errors: kNotFound; kCorruptFile if its size is not what its weights ask for.
  Result<std::vector<SolvedWeight>> Load(std::int64_t block) const;
  /// Takes all files away.
  Result<void> Clear(std::int64_t num_blocks);

 private:
  AtomicWriter& out_;
  std::span<const WeightToWrite> weights_;
};

/// The number in "model.layers.12.mlp.up_proj.weight"; nothing outside the blocks.
std::optional<std::int64_t> BlockOfWeight(std::string_view name);

}  // namespace nibble
