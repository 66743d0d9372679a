#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/device.h"

namespace nibble {

/// The memory that a plan is made for.
struct MemoryBudget {
  bool is_card = false;  // a card is there to be filled; a machine's memory has other uses
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;  // now; on a card the CUDA context of this process is gone already
  double utilization = 0.9;      // a card's: vLLM's gpu_memory_utilization
};
MemoryBudget BudgetOf(const Device& device, double utilization);

/// What a plan leaves of a card, however much it is asked to fill: kernels are loaded when they are
/// first launched (14 MB in all), and allocations are rounded up to 2 MiB.
inline constexpr std::uint64_t kUnplannedBytes = std::uint64_t{64} << 20;

/// What --cpu-offload-gb could make of a plan.
struct OffloadChoice {
  std::uint64_t host_bytes = 0;
  std::uint64_t device_bytes = 0;  // everything but the KV pool
};

/// What the KV pool is asked to be.
struct KvPoolRequest {
  std::uint64_t block_bytes = 0;       // of one block, all layers
  std::int64_t block_size_tokens = 0;  // of one block
  std::int64_t extra_blocks = 0;       // allocated beside the pool, for padding
  std::int64_t max_model_len = 0;
  std::int64_t max_num_sequences = 0;
  std::optional<std::int64_t> num_blocks = {};       // --num-gpu-blocks-override: exactly these
  std::optional<std::uint64_t> kv_cache_bytes = {};  // --kv-cache-memory-bytes: so many bytes
  std::vector<OffloadChoice> offloads = {};          // to advise, smallest first; none on a CPU
};

/// Blocks of the KV pool beside `other_bytes` of everything else (`others` names them in messages).
///
/// On a card, as vLLM has it: this process may use `utilization` of the whole card, its CUDA
/// context included, and what the rest of the plan leaves of that is the pool. So much must be
/// free: a second process on the card needs a smaller share. A number of bytes or of blocks goes
/// beside the share; it only has to be free. On a CPU the pool is 512 MiB, or what one sequence of
/// max_model_len takes if that is more, or the number of bytes or blocks.
/// Errors: kOutOfMemory with the bytes needed, the bytes there are, and the options that help.
Result<std::int64_t> PlanKvPool(const MemoryBudget& budget, const KvPoolRequest& request,
                                std::uint64_t other_bytes, const std::string& others);

/// "weights 80.2 MB, logits 12.6 MB": the planned lines of a ledger.
std::string DescribeLines(const MemoryLedger& ledger);

}  // namespace nibble
