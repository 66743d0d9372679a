#include "model/weight_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <mutex>
#include <optional>

#include "base/sha256.h"
#include "codec/encode.h"
#include "io/file.h"

namespace nibble {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kChunkRows = 128;  // a multiple of the packing panel
constexpr std::int64_t kTableGroup = 32;

bool IsVector(const WeightInfo& weight) { return weight.spec.rows == 1; }

bool IsTable(std::string_view name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

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

Result<void> LoadRows(const Checkpoint& checkpoint, const LoadTask& task, Device& device,
                      std::byte* arena) {
  const PlannedWeight& planned = *task.weight;
  NIBBLE_TRY(rows, checkpoint.ReadRows(*planned.stored, task.row_begin, task.row_end));
  if (planned.is_vector) {
    const std::vector<float> values = Dequantize(rows);
    const DeviceWrite write = device.Write(arena + planned.offset, values.size() * sizeof(float));
    std::memcpy(write.data(), values.data(), values.size() * sizeof(float));
    return {};
  }
  if (rows.spec.kind == CodecKind::kFloat && planned.packed.kind != CodecKind::kFloat) {
    rows = EncodeAbsmax(rows.values, rows.spec.rows, rows.spec.cols, planned.packed.bits,
                        planned.packed.group_size);
  }
  PackedWeight packed{
      .spec = planned.packed, .data = arena + planned.offset, .size_bytes = planned.size_bytes};
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
      const bool repack = tables == TableFormat::kAuto && quantized && IsTable(wanted.name) &&
                          stored->spec.kind == CodecKind::kFloat &&
                          stored->spec.cols % kTableGroup == 0;
      if (repack) {
        planned.packed = {.rows = stored->spec.rows,
                          .cols = stored->spec.cols,
                          .kind = CodecKind::kUniform,
                          .bits = 8,
                          .group_size = kTableGroup};
      }
      auto size = PackedSizeBytes(device, planned.packed);
      if (!size) {
        return Fail(size.error(), fmt::format("tensor {}: ", wanted.name));
      }
      planned.size_bytes = *size;
    }
    planned.offset = plan.arena_bytes;
    plan.arena_bytes += (planned.size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    plan.weights.push_back(planned);
  }
  return plan;
}

WeightPlan OverlapParts(const WeightPlan& plan, const ModelConfig& config) {
  const auto padded = [](std::size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
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

WeightPlan PartOf(const WeightPlan& overlapping, const ModelConfig& config, ModelPart part) {
  const std::string_view head =
      config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  const auto belongs = [&](std::string_view name) {
    switch (part) {
      case ModelPart::kEmbedding:
        return name == "model.embed_tokens.weight";
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
                         std::byte* arena, const ExpectedHashes& hashes,
                         const LoadProgress& progress) {
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
          const Result<void> done = task.hash ? CheckHash(checkpoint, stored, *hashes(stored.name))
                                              : LoadRows(checkpoint, task, device, arena);
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
            if (progress && !progress(done_bytes, plan.arena_bytes) && !first_error) {
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
