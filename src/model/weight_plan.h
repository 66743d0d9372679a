#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "kernels/linear.h"

namespace nibble {

/// Where one weight of a checkpoint will lie in the device's weight arena, decided before any
/// weight is read.
struct PlannedWeight {
  const WeightInfo* stored = nullptr;
  WeightSpec packed;       // may differ from stored->spec: embedding and head at 8 bit
  bool is_vector = false;  // norms and biases: fp32
  std::size_t offset = 0;  // in the arena, 64-byte aligned
  std::size_t size_bytes = 0;
};

struct WeightPlan {
  std::vector<PlannedWeight> weights;
  std::size_t arena_bytes = 0;
  const PlannedWeight* Find(std::string_view name) const;
};

/// How the embedding and the head are held. kAuto: at 8 bit in groups of 32 if the blocks' linears
/// are quantized and the file holds them as floats (consumers of compressed-tensors cannot read
/// them at 8 bit, so files store 16), else as stored.
enum class TableFormat : std::uint8_t { kAuto, kAsStored };

/// Errors: kNotFound for a weight that the config asks for; kUnsupported for a format no kernel
/// runs.
Result<WeightPlan> PlanWeights(const Checkpoint& checkpoint, const Device& device,
                               TableFormat tables);

/// The same weights for a model that holds one part at a time: the embedding, a decoder block, or
/// the final norm and the head. Parts lie over each other, so the arena is as large as the largest.
WeightPlan OverlapParts(const WeightPlan& plan, const ModelConfig& config);

enum class ModelPart : std::int64_t { kEmbedding = -2, kHead = -1 };  // 0 and up: that block
/// What of an overlapping plan one part needs, for LoadWeights.
WeightPlan PartOf(const WeightPlan& overlapping, const ModelConfig& config, ModelPart part);

/// Told about packed bytes so far, for progress lines and for cancelling (return false).
using LoadProgress = std::function<bool(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// Expected SHA-256 by weight name; checked over Checkpoint::RawParts while packing.
using ExpectedHashes = std::function<const std::string*(std::string_view name)>;

/// Reads, checks and packs every weight into the arena, row chunks spread over the device's
/// workers. Memory beyond the arena: one chunk of rows a worker. Errors: kCorruptFile naming the
/// tensor whose hash differs; what reading gives.
Result<void> LoadWeights(const Checkpoint& checkpoint, const WeightPlan& plan, Device& device,
                         std::byte* arena, const ExpectedHashes& hashes,
                         const LoadProgress& progress);

}  // namespace nibble
