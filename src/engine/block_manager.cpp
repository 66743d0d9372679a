#include "engine/block_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "engine/mistake.h"

namespace nibble {
namespace {

constexpr std::uint64_t Mix(std::uint64_t x) {  // the finalizer of splitmix64
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ULL;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

std::uint64_t HashSalt(std::string_view salt) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : salt) {
    hash = Mix(hash ^ static_cast<unsigned char>(c)) + 0x9E3779B97F4A7C15ULL;
  }
  return hash;
}

/// Token i of prompt and output seen as one sequence.
TokenId TokenAt(std::span<const TokenId> prompt, std::span<const TokenId> output, std::size_t i) {
  return i < prompt.size() ? prompt[i] : output[i - prompt.size()];
}

}  // namespace

void BlockLease::Return() {
  if (manager_ != nullptr) {
    std::exchange(manager_, nullptr)->Return(id_);
  }
}

void BlockTable::Clear() {
  while (!leases_.empty()) {
    leases_.pop_back();
  }
}

BlockManager::BlockManager(const BlockManagerConfig& config)
    : config_(config),
      blocks_(static_cast<std::size_t>(config.num_blocks)),
      index_(config.num_blocks, config.block_size_tokens),
      host_(config.enable_prefix_caching ? config.num_host_slots : 0, config.block_size_tokens),
      idle_(config.num_blocks) {
  NIBBLE_CHECK(config.num_blocks > 0 && config.block_size_tokens > 0, "an empty KV pool");
  free_.reserve(blocks_.size());
  for (std::int32_t i = config.num_blocks - 1; i >= 0; --i) {
    free_.push_back(BlockId{i});
  }
}

std::optional<BlockLease> BlockManager::Allocate() {
  BlockId id{-1};
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else if (idle_.oldest() >= 0) {
    id = BlockId{idle_.oldest()};
    host_.Spill(id, index_.ContentAt(Raw(id)), index_.ChainAt(Raw(id)));
    index_.Erase(Raw(id));
    idle_.Remove(Raw(id));
    --num_cached_;
  } else {
    return std::nullopt;
  }
  Block& block = At(id);
  block.state = State::kHeld;
  block.references = 1;
  ++num_held_;
  return BlockLease(this, id);
}

void BlockManager::ExtendHashes(std::vector<std::uint64_t>& hashes, std::span<const TokenId> prompt,
                                std::span<const TokenId> output, std::string_view salt) const {
  const auto block_size = static_cast<std::size_t>(config_.block_size_tokens);
  const std::size_t num_full = (prompt.size() + output.size()) / block_size;
  const std::uint64_t mask =
      config_.prefix_hash_bits >= 64 ? ~0ULL : (1ULL << config_.prefix_hash_bits) - 1;
  while (hashes.size() < num_full) {
    std::uint64_t hash = 0;
    if (!hashes.empty()) {
      hash = hashes.back();
    } else if (!MistakeIs(Mistake::kSaltIgnored)) {
      hash = HashSalt(salt);
    }
    const std::size_t begin = hashes.size() * block_size;
    for (std::size_t i = begin; i < begin + block_size; ++i) {
      const auto token = static_cast<std::uint32_t>(Raw(TokenAt(prompt, output, i)));
      hash = Mix(hash ^ token) + 0x9E3779B97F4A7C15ULL;
    }
    hashes.push_back(hash & mask);
  }
}

bool BlockManager::Holds(std::int32_t block, const BlockContent& content) const {
  return MistakeIs(Mistake::kSkippedTokenCompare) || index_.Holds(block, content);
}

BlockManager::Prefix BlockManager::FindPrefix(std::span<const std::uint64_t> hashes,
                                              std::span<const TokenId> prompt,
                                              std::span<const TokenId> output,
                                              std::string_view salt,
                                              std::int32_t max_blocks) const {
  Prefix prefix;
  if (!config_.enable_prefix_caching) {
    return prefix;
  }
  const auto block_size = static_cast<std::size_t>(config_.block_size_tokens);
  const std::size_t limit = std::min(hashes.size(), static_cast<std::size_t>(max_blocks));
  std::vector<TokenId> border;  // the one block that may lie across prompt and output
  for (std::size_t i = 0; i < limit; ++i) {
    const std::size_t begin = i * block_size;
    std::span<const TokenId> tokens;
    if (begin + block_size <= prompt.size()) {
      tokens = prompt.subspan(begin, block_size);
    } else if (begin >= prompt.size()) {
      tokens = output.subspan(begin - prompt.size(), block_size);
    } else {
      border.clear();
      for (std::size_t k = begin; k < begin + block_size; ++k) {
        border.push_back(TokenAt(prompt, output, k));
      }
      tokens = border;
    }
    const BlockContent content{hashes[i], prefix.last, tokens, salt};
    if (const auto found = index_.Find(content.hash)) {
      if (!Holds(*found, content)) {
        break;
      }
      const BlockId id{*found};
      prefix.blocks.push_back({.block = id});
      prefix.last = index_.ChainAt(*found);
      ++prefix.num_in_pool;
      prefix.num_idle += At(id).state == State::kCached ? 1 : 0;
    } else if (const auto slot = host_.Find(content)) {
      prefix.blocks.push_back({.slot = *slot});
      prefix.last = host_.ChainAt(*slot);
    } else {
      break;
    }
  }
  return prefix;
}

void BlockManager::Claim(const Prefix& prefix, BlockTable& table) {
  // All that was found is held or pinned before the first Allocate, which evicts.
  std::vector<BlockLease> held;
  for (const Cached& cached : prefix.blocks) {
    if (cached.in_pool()) {
      held.push_back(Hold(cached.block));
    } else {
      host_.Pin(cached.slot);
    }
  }
  auto next_held = held.begin();
  for (const Cached& cached : prefix.blocks) {
    if (cached.in_pool()) {
      table.Append(std::move(*next_held++));
      continue;
    }
    auto lease = Allocate();
    NIBBLE_CHECK(lease, "no block for what comes back from host memory");
    const ChainId chain = host_.ChainAt(cached.slot);
    index_.Put(Raw(lease->id()), host_.Restore(cached.slot, lease->id()), chain);
    table.Append(*std::move(lease));
  }
}

BlockLease BlockManager::Hold(BlockId id) {
  Block& block = At(id);
  NIBBLE_CHECK(index_.Has(Raw(id)), "a block outside the prefix index cannot be shared");
  switch (block.state) {
    case State::kHeld:
      break;
    case State::kCached:
      if (!MistakeIs(Mistake::kEvictsHeldBlock)) {
        idle_.Remove(Raw(id));
      }
      --num_cached_;
      ++num_held_;
      break;
    case State::kFenced:  // its steps in flight only read it, and so will the new holder
      --num_fenced_;
      ++num_held_;
      break;
    case State::kFree:
      NIBBLE_CHECK(false, "a free block is in the prefix index");
  }
  block.state = State::kHeld;
  ++block.references;
  return BlockLease(this, id);
}

std::optional<ChainId> BlockManager::Register(BlockId id, std::uint64_t hash, ChainId parent,
                                              std::span<const TokenId> tokens,
                                              std::string_view salt) {
  if (!config_.enable_prefix_caching) {
    return std::nullopt;
  }
  NIBBLE_CHECK(std::ssize(tokens) == config_.block_size_tokens ||
                   MistakeIs(Mistake::kPartialBlockRegistered),
               "only full blocks enter the prefix index");
  const BlockContent content{hash, parent, tokens, salt};
  if (const auto found = index_.Find(hash)) {
    return Holds(*found, content) ? std::optional(index_.ChainAt(*found)) : std::nullopt;
  }
  // If host memory has it, its children there are this one's, too.
  const auto slot = host_.Find(content);
  const ChainId chain = slot ? host_.ChainAt(*slot) : ChainId{next_chain_++};
  index_.Put(Raw(id), content, chain);
  return chain;
}

void BlockManager::TakeCopies(StepPlan& plan) { host_.TakeCopies(plan.spills, plan.restores); }

void BlockManager::LaunchFailed(const StepPlan& plan) {
  if (MistakeIs(Mistake::kFailedCopiesKept)) {
    return;
  }
  host_.Forget(plan.spills);
  for (const BlockCopy& copy : plan.restores) {
    index_.Erase(Raw(copy.block));
  }
}

bool BlockManager::IsWritable(BlockId id) const {
  const Block& block = At(id);
  return block.state == State::kHeld && block.references == 1 && !index_.Has(Raw(id));
}

void BlockManager::Return(BlockId id) {
  Block& block = At(id);
  NIBBLE_CHECK(block.state == State::kHeld && block.references > 0, "a block returned twice");
  if (MistakeIs(Mistake::kDroppedDecrement) && block.references > 1) {
    return;
  }
  if (--block.references > 0) {
    return;
  }
  --num_held_;
  if (last_launched_ > last_retired_ && !MistakeIs(Mistake::kFenceSkipped)) {
    block.state = State::kFenced;
    block.fence = last_launched_;
    fences_.emplace_back(last_launched_, id);
    ++num_fenced_;
    return;
  }
  ToIdle(id);
}

void BlockManager::ToIdle(BlockId id) {
  Block& block = At(id);
  if (!index_.Has(Raw(id))) {
    block.state = State::kFree;
    free_.push_back(id);
    return;
  }
  block.state = State::kCached;
  idle_.PushNewest(Raw(id));
  ++num_cached_;
}

void BlockManager::StepLaunched(std::uint64_t step) { last_launched_ = step; }

void BlockManager::StepRetired(std::uint64_t step) {
  last_retired_ = step;
  while (!fences_.empty() && fences_.front().first <= step) {
    const auto [fence, id] = fences_.front();
    fences_.pop_front();
    if (At(id).state == State::kFenced && At(id).fence == fence) {
      --num_fenced_;
      ToIdle(id);
    }
  }
}

Result<void> BlockManager::Audit(std::span<const std::int32_t> references) const {
  const auto broken = [](std::size_t b, const char* what) {
    return Fail(ErrorCode::kInternal, fmt::format("block {}: {}", b, what));
  };
  std::array<std::int32_t, 4> by_state{};
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    ++by_state[static_cast<std::size_t>(block.state)];
    const bool indexed = index_.Has(static_cast<std::int32_t>(b));
    if (block.references != references[b]) {
      return broken(b, "its count differs from the table entries that name it");
    }
    if ((block.state == State::kHeld) != (block.references > 0)) {
      return broken(b, "held without a holder, or the reverse");
    }
    if (block.state == State::kCached && !indexed) {
      return broken(b, "cached-idle outside the index");
    }
    if (block.state == State::kFree && indexed) {
      return broken(b, "free but in the index");
    }
    if (block.references > 1 && !indexed) {
      return broken(b, "shared outside the index");
    }
    if (block.state == State::kFenced && block.fence <= last_retired_) {
      return broken(b, "fenced by a step that has retired");
    }
  }
  NIBBLE_TRY_VOID(index_.Audit());
  NIBBLE_TRY_VOID(host_.Audit(index_));
  if (by_state[0] != num_free() || by_state[1] != num_held_ || by_state[2] != num_cached_ ||
      by_state[3] != num_fenced_) {
    return Fail(ErrorCode::kInternal, "the four counts of blocks are wrong");
  }
  std::int32_t in_order = 0;
  for (std::int32_t b = idle_.oldest(); b >= 0; b = idle_.newer(b)) {
    if (At(BlockId{b}).state != State::kCached || ++in_order > num_cached_) {
      return broken(static_cast<std::size_t>(b), "in the eviction order but not cached-idle");
    }
  }
  if (in_order != num_cached_) {
    return Fail(ErrorCode::kInternal, "a cached-idle block is not in the eviction order");
  }
  for (const BlockId id : free_) {
    if (At(id).state != State::kFree) {
      return broken(static_cast<std::size_t>(Raw(id)), "in the free list but not free");
    }
  }
  return {};
}

}  // namespace nibble
