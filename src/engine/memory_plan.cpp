#include "engine/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/text.h"
#include "model/weight_plan.h"

namespace nibble {
namespace {

// What the KV pool of a CPU takes when nobody says: enough for a busy laptop, little enough to
// start at once.
constexpr std::uint64_t kDefaultCpuBytes = std::uint64_t{512} << 20;
// A card of a small model: more blocks than that cost memory of the host and hold nothing useful.
constexpr std::int64_t kMostBlocks = std::int64_t{1} << 18;
// What a CUDA context takes at most. More than that in use on the card belongs to others.
constexpr std::uint64_t kContextBytes = std::uint64_t{640} << 20;

std::string Human(std::uint64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

std::uint64_t Less(std::uint64_t a, std::uint64_t b) { return a > b ? a - b : 0; }

std::uint64_t ContextBytes(const MemoryBudget& budget) {
  return std::min(Less(budget.total_bytes, budget.free_bytes), kContextBytes);
}

std::uint64_t ShareBytes(const MemoryBudget& budget) {
  return static_cast<std::uint64_t>(budget.utilization * static_cast<double>(budget.total_bytes));
}

// Bytes that the plan may come to, and how to call them in a message.
struct Limit {
  std::uint64_t bytes = 0;
  std::string text;
};

Limit LimitOf(const MemoryBudget& budget, bool by_share) {
  if (!budget.is_card) {
    return {budget.free_bytes,
            fmt::format("{} of the machine's memory are free", Human(budget.free_bytes))};
  }
  const std::uint64_t most = Less(budget.free_bytes, kUnplannedBytes);
  if (!by_share) {
    return {most, fmt::format("{} of the card's {} are free, of which {} stay so",
                              Human(budget.free_bytes), Human(budget.total_bytes),
                              Human(std::min(budget.free_bytes, kUnplannedBytes)))};
  }
  const std::uint64_t bytes = std::min(Less(ShareBytes(budget), ContextBytes(budget)), most);
  return {bytes, fmt::format("{} of the card's {} may be used (--gpu-memory-utilization {})",
                             Human(bytes), Human(budget.total_bytes), budget.utilization)};
}

// The share of the card that would hold `bytes` of plan, as the flag takes it; nothing if even the
// free memory does not.
std::optional<std::string> ShareThatHolds(const MemoryBudget& budget, std::uint64_t bytes) {
  if (!budget.is_card || bytes > Less(budget.free_bytes, kUnplannedBytes)) {
    return std::nullopt;
  }
  const double share =
      static_cast<double>(bytes + ContextBytes(budget)) / static_cast<double>(budget.total_bytes);
  const double rounded = std::ceil(share * 100.0) / 100.0;
  if (rounded > 1.0 || rounded <= budget.utilization) {
    return std::nullopt;
  }
  return fmt::format("{:.2f}", rounded);
}

// The least --cpu-offload-gb that leaves `pool_bytes` of the limit for the KV pool.
std::optional<std::string> OffloadThatHelps(const KvPoolRequest& request, const Limit& limit,
                                            std::uint64_t pool_bytes) {
  const auto helps = std::ranges::find_if(request.offloads, [&](const OffloadChoice& choice) {
    return choice.device_bytes <= limit.bytes && pool_bytes <= limit.bytes - choice.device_bytes;
  });
  if (helps == request.offloads.end()) {
    return std::nullopt;
  }
  return fmt::format(
      "keep {} of it in host memory with --cpu-offload-gb {:.2f} (slower: they are "
      "copied to the card each step)",
      Human(helps->host_bytes), CpuOffloadGib(helps->host_bytes));
}

std::string Join(const std::vector<std::string>& hints) {
  std::string text;
  for (std::size_t i = 0; i < hints.size(); ++i) {
    text += i == 0 ? "" : i + 1 == hints.size() ? ", or " : ", ";
    text += hints[i];
  }
  return text;
}

Result<void> CheckShareIsFree(const MemoryBudget& budget) {
  const std::uint64_t held = ContextBytes(budget);
  if (budget.free_bytes + held >= ShareBytes(budget)) {
    return {};
  }
  const double free_share =
      static_cast<double>(budget.free_bytes + held) / static_cast<double>(budget.total_bytes);
  return Fail(
      ErrorCode::kOutOfMemory,
      fmt::format("--gpu-memory-utilization {} asks for {} of the card's {} and {} are free: other "
                  "processes hold the rest; use --gpu-memory-utilization {:.2f} or less, give a "
                  "--kv-cache-memory-bytes, or end them (nvidia-smi lists them)",
                  budget.utilization, Human(ShareBytes(budget)), Human(budget.total_bytes),
                  Human(budget.free_bytes + held), std::floor(free_share * 100.0) / 100.0));
}

}  // namespace

MemoryBudget BudgetOf(const Device& device, double utilization) {
  return {.is_card = device.kind() == DeviceKind::kCuda,
          .total_bytes = device.TotalBytes(),
          .free_bytes = device.AvailableBytes(),
          .utilization = utilization};
}

std::string DescribeLines(const MemoryLedger& ledger) {
  std::string text;
  for (const MemoryLedger::Line& line : ledger.lines()) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", line.name, Human(line.planned_bytes));
  }
  return text;
}

Result<std::int64_t> PlanKvPool(const MemoryBudget& budget, const KvPoolRequest& request,
                                std::uint64_t other_bytes, const std::string& others) {
  // Tokens of the pool are numbered in 32 bits.
  const std::int64_t most_blocks =
      std::numeric_limits<std::int32_t>::max() / request.block_size_tokens - request.extra_blocks;
  if (request.num_blocks && *request.num_blocks > most_blocks) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--num-gpu-blocks-override {}: a KV cache has at most {} blocks of {} "
                            "tokens",
                            *request.num_blocks, most_blocks, request.block_size_tokens));
  }
  const bool exact = request.num_blocks.has_value() || request.kv_cache_bytes.has_value();
  const bool by_share = budget.is_card && !exact;
  if (by_share) {
    NIBBLE_TRY_VOID(CheckShareIsFree(budget));
  }
  const Limit limit = LimitOf(budget, by_share);
  const std::uint64_t block_bytes = request.block_bytes;
  const auto bytes_of = [&](std::int64_t blocks) {
    return static_cast<std::uint64_t>(blocks + request.extra_blocks) * block_bytes;
  };
  const std::int64_t one_sequence =
      (request.max_model_len + request.block_size_tokens - 1) / request.block_size_tokens;
  const std::uint64_t least = other_bytes + bytes_of(one_sequence);
  const std::uint64_t room = Less(limit.bytes, other_bytes);

  if (other_bytes > limit.bytes) {
    std::vector<std::string> hints{"quantize the model (nibble quantize)"};
    if (const auto share = ShareThatHolds(budget, least); share && by_share) {
      hints.push_back(fmt::format("use --gpu-memory-utilization {}", *share));
    }
    if (const auto offload = OffloadThatHelps(request, limit, bytes_of(one_sequence))) {
      hints.push_back(*offload);
    }
    hints.emplace_back("lower --max-num-batched-tokens and --max-num-seqs");
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("the model needs {} ({}) and the KV cache of one sequence {} more, but "
                            "{}; {}",
                            Human(other_bytes), others, Human(bytes_of(one_sequence)), limit.text,
                            Join(hints)));
  }

  std::int64_t blocks = 0;
  if (request.num_blocks) {
    blocks = *request.num_blocks;
  } else if (request.kv_cache_bytes) {
    blocks = static_cast<std::int64_t>(*request.kv_cache_bytes / block_bytes);
  } else if (budget.is_card) {
    const std::int64_t all = one_sequence * request.max_num_sequences;
    blocks = static_cast<std::int64_t>(room / block_bytes) - request.extra_blocks;
    blocks = std::min(blocks, std::max(all, kMostBlocks));
  } else {
    const std::int64_t all = one_sequence * request.max_num_sequences;
    const auto wanted = static_cast<std::int64_t>(kDefaultCpuBytes / block_bytes);
    blocks = std::min(all, std::max(wanted, one_sequence));
    // A machine short of memory gets a smaller pool, as long as one sequence fits.
    blocks = std::clamp(static_cast<std::int64_t>(room / block_bytes),
                        std::min(one_sequence, blocks), blocks);
  }
  const std::uint64_t bytes = bytes_of(std::max<std::int64_t>(blocks, 0));
  if (exact && bytes > room) {
    const auto offload = OffloadThatHelps(request, limit, bytes);
    return Fail(
        ErrorCode::kOutOfMemory,
        fmt::format("{} asks for a KV cache of {}: with {} for the rest ({}) the plan needs "
                    "{}, but {}; at most --kv-cache-memory-bytes {} fits{}",
                    request.num_blocks ? "--num-gpu-blocks-override" : "--kv-cache-memory-bytes",
                    Human(bytes), Human(other_bytes), others, Human(other_bytes + bytes),
                    limit.text, room, offload ? ", or " + *offload : ""));
  }
  blocks = std::min(blocks, most_blocks);
  if (blocks >= one_sequence && bytes <= room) {
    return blocks;
  }
  if (request.num_blocks) {
    return blocks;  // the number of blocks is the user's own; longer requests are refused one by
                    // one
  }

  // Too small for a single sequence.
  const std::int64_t fitting =
      std::max<std::int64_t>(0, std::min(blocks, static_cast<std::int64_t>(room / block_bytes) -
                                                     request.extra_blocks)) *
      request.block_size_tokens;
  std::vector<std::string> hints;
  if (fitting > 0) {
    hints.push_back(fmt::format("use --max-model-len {}", fitting));
  }
  if (request.kv_cache_bytes) {
    hints.push_back(fmt::format("use --kv-cache-memory-bytes {}", bytes_of(one_sequence)));
  } else if (const auto share = ShareThatHolds(budget, least)) {
    hints.push_back(fmt::format("use --gpu-memory-utilization {}", *share));
    hints.push_back(fmt::format("use --kv-cache-memory-bytes {}", bytes_of(one_sequence)));
  }
  hints.emplace_back(budget.is_card ? "use --kv-cache-dtype fp8" : "use --kv-cache-dtype int8");
  if (!request.kv_cache_bytes) {
    hints.emplace_back("quantize the model (nibble quantize)");
    if (const auto offload = OffloadThatHelps(request, limit, bytes_of(one_sequence))) {
      hints.push_back(*offload);
    }
  }
  return Fail(
      ErrorCode::kOutOfMemory,
      fmt::format("the KV cache of one sequence of {} tokens takes {} and {} are left for "
                  "it beside {} ({}): {}; {}",
                  request.max_model_len, Human(bytes_of(one_sequence)),
                  Human(request.kv_cache_bytes ? std::min(*request.kv_cache_bytes, room) : room),
                  Human(other_bytes), others, limit.text, Join(hints)));
}

}  // namespace nibble
