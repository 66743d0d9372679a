#include "model/weight_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/sha256.h"
#include "base/text.h"
#include "codec/encode.h"
#include "io/file.h"
#include "kernels/weight_stream.h"

namespace nibble {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kPartAlignment = 256;  // of parts and slots
constexpr std::int64_t kChunkRows = 128;     // a multiple of the packing panel
constexpr std::int64_t kTableGroup = 32;

constexpr std::size_t RoundUp(std::size_t bytes, std::size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

bool IsVector(const WeightInfo& weight) { return weight.spec.rows == 1; }

constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

bool IsTable(std::string_view name) { return name == kEmbedding || name == "lm_head.weight"; }

// The decoder block that a weight belongs to; -1: none.
std::int64_t BlockOf(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  std::int64_t block = -1;
  if (name.starts_with(kPrefix)) {
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), block);
  }
  return block;
}

// One unit of loading work: the hash of a whole weight, or a range of its rows to pack.
struct LoadTask {
  const PlannedWeight* weight = nullptr;
  bool hash = false;
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
};

Result<void> CheckHash(const Checkpoint& checkpoint, const WeightInfo& weight,
                       const std::string& expected) {
  NIBBLE_TRY(parts, checkpoint.RawParts(weight));
  Sha256 hash;
  NIBBLE_TRY_VOID(GuardMappedReads(weight.file, [&]() -> Result<void> {
    for (const auto part : parts) {
      hash.Update(part);
    }
    return {};
  }));
  if (hash.Hex() != expected) {
    return Fail(
        ErrorCode::kCorruptFile,
        fmt::format("{}: tensor {} differs from its certificate: the file was damaged or changed; "
                    "quantize the model again or restore the file",
                    weight.file, weight.name));
  }
  return {};
}

// No layout of a card stores a table of rows by a codebook: it runs as its values.
bool RunsAsValues(const WeightInfo& weight, const Device& device) {
  return device.kind() == DeviceKind::kCuda && weight.name == kEmbedding &&
         weight.spec.kind == CodecKind::kCodebook;
}

Result<void> LoadRows(const Checkpoint& checkpoint, const LoadTask& task, Device& device,
                      std::byte* place) {
  const PlannedWeight& planned = *task.weight;
  NIBBLE_TRY(rows, checkpoint.ReadRows(*planned.stored, task.row_begin, task.row_end));
  if (planned.is_vector) {
    std::vector<float> values = Dequantize(rows);
    if (checkpoint.config().norm_plus_one && planned.stored->name.ends_with("norm.weight")) {
      for (float& value : values) {
        value += 1.0F;
      }
    }
    WriteBytes(device, place, std::as_bytes(std::span(values)));
    return {};
  }
  if (planned.packed.kind == CodecKind::kFloat && rows.spec.kind != CodecKind::kFloat) {
    WeightSpec spec = planned.packed;
    spec.rows = rows.spec.rows;
    rows = {.spec = spec, .values = Dequantize(rows)};
  } else if (planned.packed != planned.stored->spec) {
    rows = EncodeAbsmax(Dequantize(rows), rows.spec.rows, rows.spec.cols, planned.packed.bits,
                        planned.packed.group_size);
  }
  PackedWeight packed{.spec = planned.packed, .data = place, .size_bytes = planned.size_bytes};
  return PackRows(device, rows, task.row_begin, packed);
}

}  // namespace

const PlannedWeight* WeightPlan::Find(std::string_view name) const {
  const auto found = std::ranges::find_if(
      weights, [&](const PlannedWeight& weight) { return weight.stored->name == name; });
  return found == weights.end() ? nullptr : &*found;
}

Result<WeightPlan> PlanWeights(const Checkpoint& checkpoint, const Device& device,
                               TableFormat tables) {
  const std::vector<ExpectedWeight> expected = ExpectedWeights(checkpoint.config());
  const bool quantized = std::ranges::any_of(expected, [&](const ExpectedWeight& weight) {
    const WeightInfo* stored = weight.is_linear ? checkpoint.Find(weight.name) : nullptr;
    return stored != nullptr && stored->spec.kind != CodecKind::kFloat;
  });
  WeightPlan plan;
  for (const ExpectedWeight& wanted : expected) {
    const WeightInfo* stored = checkpoint.Find(wanted.name);
    if (stored == nullptr) {
      return Fail(ErrorCode::kNotFound,
                  fmt::format("{}: tensor {} is missing", checkpoint.path().string(), wanted.name));
    }
    PlannedWeight planned{.stored = stored, .packed = stored->spec, .is_vector = IsVector(*stored)};
    if (planned.is_vector) {
      planned.size_bytes = static_cast<std::size_t>(stored->spec.cols) * sizeof(float);
    } else {
      // Groups that no kernel has (Q6_K's 16 columns) would run as F32 values.
      const bool as_values =
          stored->spec.kind == CodecKind::kFloat || (stored->spec.group_size < stored->spec.cols &&
                                                     stored->spec.group_size % kTableGroup != 0);
      const bool repack = tables == TableFormat::kAuto && quantized && IsTable(wanted.name) &&
                          as_values && stored->spec.cols % kTableGroup == 0;
      if (repack) {
        planned.packed = {.rows = stored->spec.rows,
                          .cols = stored->spec.cols,
                          .kind = CodecKind::kUniform,
                          .bits = 8,
                          .group_size = kTableGroup};
      } else if (RunsAsValues(*stored, device)) {
        planned.packed = {.rows = stored->spec.rows, .cols = stored->spec.cols};
      }
      auto size = PackedSizeBytes(device, planned.packed);
      if (!size) {
        return Fail(size.error(), fmt::format("tensor {}: ", wanted.name));
      }
      planned.size_bytes = *size;
    }
    planned.offset = plan.arena_bytes;
    plan.arena_bytes += RoundUp(planned.size_bytes, kAlignment);
    plan.weights.push_back(planned);
  }
  return plan;
}

std::vector<std::size_t> StreamableBytes(const WeightPlan& plan, const ModelConfig& config) {
  std::vector<std::size_t> bytes(static_cast<std::size_t>(config.num_layers), 0);
  for (const PlannedWeight& weight : plan.weights) {
    const std::int64_t block = BlockOf(weight.stored->name);
    if (block >= 0 && !weight.is_vector) {
      bytes[static_cast<std::size_t>(block)] += RoundUp(weight.size_bytes, kAlignment);
    }
  }
  return bytes;
}

BlockMemory MemoryOfBlocks(std::span<const std::size_t> block_bytes, std::int64_t num_streamed) {
  const auto streamed = block_bytes.last(static_cast<std::size_t>(num_streamed));
  BlockMemory memory;
  std::size_t largest = 0;
  for (const std::size_t bytes : streamed) {
    memory.host_bytes += RoundUp(bytes, kPartAlignment);
    largest = std::max(largest, bytes);
  }
  const auto resident = block_bytes.first(block_bytes.size() - streamed.size());
  memory.device_bytes = std::accumulate(resident.begin(), resident.end(), std::uint64_t{0}) +
                        kWeightSlots * RoundUp(largest, kPartAlignment);
  return memory;
}

double CpuOffloadGib(std::uint64_t bytes) {
  const double hundredths = std::ceil(std::ldexp(static_cast<double>(bytes), -30) * 100.0);
  const double gib = hundredths / 100.0;
  return std::ldexp(gib, 30) < static_cast<double>(bytes) ? (hundredths + 1.0) / 100.0 : gib;
}

Result<WeightPlan> StreamLastBlocks(const WeightPlan& plan, const ModelConfig& config,
                                    std::uint64_t host_bytes) {
  const std::vector<std::size_t> block_bytes = StreamableBytes(plan, config);
  const auto num_blocks = static_cast<std::int64_t>(block_bytes.size());
  std::int64_t count = 0;
  while (count < num_blocks && MemoryOfBlocks(block_bytes, count + 1).host_bytes <= host_bytes) {
    ++count;
  }
  if (count <= kWeightSlots) {
    constexpr std::int64_t kLeast = kWeightSlots + 1;
    const std::string helps =
        num_blocks < kLeast
            ? fmt::format("this model has no more than {} blocks: leave the flag out", num_blocks)
            : fmt::format("give {:.2f} or more ({} blocks), or leave the flag out",
                          CpuOffloadGib(MemoryOfBlocks(block_bytes, kLeast).host_bytes), kLeast);
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("--cpu-offload-gb: {} of host memory hold the weights of {} of the "
                    "last decoder blocks, and the places on the card that they are copied "
                    "to hold {}, so nothing is gained; {}",
                    HumanBytes(static_cast<double>(host_bytes)), count, kWeightSlots, helps));
  }
  WeightPlan out = plan;
  out.arena_bytes = 0;
  out.parts.assign(static_cast<std::size_t>(count), {});
  for (PlannedWeight& weight : out.weights) {
    const std::int64_t part = BlockOf(weight.stored->name) - (num_blocks - count);
    std::size_t* end = &out.arena_bytes;
    if (part >= 0 && !weight.is_vector) {
      weight.part = static_cast<int>(part);
      end = &out.parts[static_cast<std::size_t>(part)].bytes;
    }
    weight.offset = *end;
    *end += RoundUp(weight.size_bytes, kAlignment);
  }
  for (WeightPlan::Part& part : out.parts) {
    part.host_offset = out.host_bytes;
    out.host_bytes += RoundUp(part.bytes, kPartAlignment);
    out.slot_bytes = std::max(out.slot_bytes, RoundUp(part.bytes, kPartAlignment));
  }
  return out;
}

WeightPlan OverlapParts(const WeightPlan& plan, const ModelConfig& config) {
  const auto padded = [](std::size_t bytes) { return RoundUp(bytes, kAlignment); };
  WeightPlan out = plan;
  // The tables come first and the final norm behind them, so that a tied embedding has one place.
  std::size_t tables = 0;
  for (const PlannedWeight& weight : out.weights) {
    tables = IsTable(weight.stored->name) ? std::max(tables, padded(weight.size_bytes)) : tables;
  }
  std::vector<std::size_t> used(static_cast<std::size_t>(config.num_layers), 0);
  out.arena_bytes = 0;
  for (PlannedWeight& weight : out.weights) {
    const std::int64_t block = BlockOf(weight.stored->name);
    if (block >= 0) {
      std::size_t& end = used[static_cast<std::size_t>(block)];
      weight.offset = end;
      end += padded(weight.size_bytes);
    } else {
      weight.offset = IsTable(weight.stored->name) ? 0 : tables;
    }
    out.arena_bytes = std::max(out.arena_bytes, weight.offset + padded(weight.size_bytes));
  }
  return out;
}

WeightPlan OverlapBlocks(const WeightPlan& plan, const ModelConfig& config) {
  WeightPlan blocks = plan;
  for (PlannedWeight& weight : blocks.weights) {
    if (BlockOf(weight.stored->name) < 0) {
      weight.size_bytes = 0;
    }
  }
  return OverlapParts(blocks, config);
}

WeightPlan PartOf(const WeightPlan& overlapping, const ModelConfig& config, ModelPart part) {
  const std::string_view head = config.tie_word_embeddings ? kEmbedding : "lm_head.weight";
  const auto belongs = [&](std::string_view name) {
    switch (part) {
      case ModelPart::kEmbedding:
        return name == kEmbedding;
      case ModelPart::kHead:
        return name == head || name == "model.norm.weight";
    }
    return BlockOf(name) == static_cast<std::int64_t>(part);
  };
  WeightPlan out;
  for (const PlannedWeight& weight : overlapping.weights) {
    if (belongs(weight.stored->name)) {
      out.weights.push_back(weight);
      out.arena_bytes += weight.size_bytes;
    }
  }
  return out;
}

Result<void> LoadWeights(const Checkpoint& checkpoint, const WeightPlan& plan, Device& device,
                         const WeightPlaces& places, const ExpectedHashes& hashes,
                         const LoadProgress& progress) {
  const auto place_of = [&](const PlannedWeight& weight) {
    return weight.part < 0
               ? places.arena + weight.offset
               : places.host + plan.parts[static_cast<std::size_t>(weight.part)].host_offset +
                     weight.offset;
  };
  std::vector<LoadTask> tasks;
  for (const PlannedWeight& weight : plan.weights) {
    if (hashes && hashes(weight.stored->name) != nullptr) {
      tasks.push_back({.weight = &weight, .hash = true});
    }
  }
  // The largest hashes first: each runs on one worker.
  std::ranges::stable_sort(tasks, std::ranges::greater{},
                           [](const LoadTask& task) { return task.weight->stored->size_bytes; });
  for (const PlannedWeight& weight : plan.weights) {
    for (std::int64_t row = 0; row < weight.stored->spec.rows; row += kChunkRows) {
      tasks.push_back({.weight = &weight,
                       .row_begin = row,
                       .row_end = std::min(weight.stored->spec.rows, row + kChunkRows)});
    }
  }
  std::mutex mutex;
  std::optional<Error> first_error;
  std::uint64_t done_bytes = 0;
  std::atomic<bool> stop{false};
  device.pool().For(
      static_cast<std::int64_t>(tasks.size()), 1, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end && !stop.load(std::memory_order_relaxed); ++i) {
          const LoadTask& task = tasks[static_cast<std::size_t>(i)];
          const WeightInfo& stored = *task.weight->stored;
          const Result<void> done =
              task.hash ? CheckHash(checkpoint, stored, *hashes(stored.name))
                        : LoadRows(checkpoint, task, device, place_of(*task.weight));
          const std::lock_guard lock(mutex);
          if (!done && !first_error) {
            first_error =
                Error{done.error().code, fmt::format("{}: {}", stored.name, done.error().message)};
            stop = true;
          }
          if (!task.hash) {
            done_bytes += task.weight->size_bytes *
                          static_cast<std::uint64_t>(task.row_end - task.row_begin) /
                          static_cast<std::uint64_t>(stored.spec.rows);
            if (progress && !progress(done_bytes, plan.arena_bytes + plan.host_bytes) &&
                !first_error) {
              first_error = Error{ErrorCode::kCancelled, "loading was interrupted"};
              stop = true;
            }
          }
        }
      });
  NIBBLE_TRY_VOID(device.FinishWrites());
  if (first_error) {
    return tl::unexpected<Error>(*first_error);
  }
  return {};
}

}  // namespace nibble
