#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "kernels/linear.h"

namespace nibble {

/// Where one weight of a checkpoint will lie, decided before any weight is read: in the device's
/// weight arena, or in host memory from where it is streamed (kernels/weight_stream.h).
struct PlannedWeight {
  const WeightInfo* stored = nullptr;
  WeightSpec packed;       // may differ from stored->spec: embedding and head at 8 bit
  bool is_vector = false;  // norms and biases: fp32
  std::size_t offset = 0;  // in the arena, 64-byte aligned; with a part: in that part
  std::size_t size_bytes = 0;
  int part = -1;  // >= 0: of the streamed weights
};

struct WeightPlan {
  struct Part {
    std::size_t host_offset = 0;  // in host memory
    std::size_t bytes = 0;
  };
  std::vector<PlannedWeight> weights;
  std::size_t arena_bytes = 0;
  std::vector<Part> parts;     // what is streamed, in the order of use; empty: nothing is
  std::size_t host_bytes = 0;  // all parts
  std::size_t slot_bytes = 0;  // of one slot on the device
  const PlannedWeight* Find(std::string_view name) const;
};

/// How the embedding and the head are held. kAuto: at 8 bit in groups of 32 if the blocks' linears
/// are quantized and the file holds them as floats (consumers of compressed-tensors cannot read
/// them at 8 bit, so files store 16) or in groups that no kernel has, else as stored.
enum class TableFormat : std::uint8_t { kAuto, kAsStored };

/// Errors: kNotFound for a weight that the config asks for; kUnsupported for a format no kernel
/// runs.
Result<WeightPlan> PlanWeights(const Checkpoint& checkpoint, const Device& device,
                               TableFormat tables);

/// Bytes of each decoder block's matrices: what can be streamed. Its norms and biases are small,
/// and read by kernels that do not wait; they stay on the device.
std::vector<std::size_t> StreamableBytes(const WeightPlan& plan, const ModelConfig& config);

/// Memory of the matrices of all decoder blocks, the last `num_streamed` of which are streamed.
struct BlockMemory {
  std::uint64_t device_bytes = 0;  // of those that stay, and the slots
  std::uint64_t host_bytes = 0;
};
BlockMemory MemoryOfBlocks(std::span<const std::size_t> block_bytes, std::int64_t num_streamed);

/// The value of --cpu-offload-gb that holds so many bytes: GiB, rounded up to hundredths.
double CpuOffloadGib(std::uint64_t bytes);

/// The same weights, the matrices of the last blocks streamed: as many blocks as `host_bytes` hold.
/// Errors: kInvalidArgument if those are too few to gain anything, with the least that does.
Result<WeightPlan> StreamLastBlocks(const WeightPlan& plan, const ModelConfig& config,
                                    std::uint64_t host_bytes);

/// The same weights for a model that holds one part at a time: the embedding, a decoder block, or
/// the final norm and the head. Parts lie over each other, so the arena is as large as the largest.
WeightPlan OverlapParts(const WeightPlan& plan, const ModelConfig& config);
/// The same for a model of which only decoder blocks are run: what is outside them has no memory
/// and must not be loaded.
WeightPlan OverlapBlocks(const WeightPlan& plan, const ModelConfig& config);

enum class ModelPart : std::int64_t { kEmbedding = -2, kHead = -1 };  // 0 and up: that block
/// What of an overlapping plan one part needs, for LoadWeights.
WeightPlan PartOf(const WeightPlan& overlapping, const ModelConfig& config, ModelPart part);

/// Told about packed bytes so far, for progress lines and for cancelling (return false).
using LoadProgress = std::function<bool(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// Expected SHA-256 by weight name; checked over Checkpoint::RawParts while packing.
using ExpectedHashes = std::function<const std::string*(std::string_view name)>;

/// The memory that a plan speaks of.
struct WeightPlaces {
  std::byte* arena = nullptr;
  std::byte* host = nullptr;  // of the parts; null if there are none
};

/// Reads, checks and packs every weight into its place, row chunks spread over the device's
/// workers. Memory beyond the places: one chunk of rows a worker. Errors: kCorruptFile naming the
/// tensor whose hash differs; what reading gives.
Result<void> LoadWeights(const Checkpoint& checkpoint, const WeightPlan& plan, Device& device,
                         const WeightPlaces& places, const ExpectedHashes& hashes,
                         const LoadProgress& progress);

}  // namespace nibble
