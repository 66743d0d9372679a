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

BlockManager::BlockManager(const BlockManagerConfig& config) : config_(config) {
  NIBBLE_CHECK(config.num_blocks > 0 && config.block_size_tokens > 0, "an empty KV pool");
  const auto count = static_cast<std::size_t>(config.num_blocks);
  blocks_.resize(count);
  if (config.enable_prefix_caching) {
    tokens_.resize(count * static_cast<std::size_t>(config.block_size_tokens));
    index_.reserve(count);
  }
  free_.reserve(count);
  for (std::int32_t i = config.num_blocks - 1; i >= 0; --i) {
    free_.push_back(BlockId{i});
  }
}

std::optional<BlockLease> BlockManager::Allocate() {
  BlockId id{-1};
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    id = BlockId{oldest_};
    DropFromIndex(id);
    Unlink(id);
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

std::span<const TokenId> BlockManager::TokensOf(BlockId id) const {
  const auto block_size = static_cast<std::size_t>(config_.block_size_tokens);
  return std::span(tokens_).subspan(static_cast<std::size_t>(Raw(id)) * block_size, block_size);
}

bool BlockManager::Holds(BlockId id, ChainId parent, std::span<const TokenId> tokens,
                         std::string_view salt) const {
  const Block& block = At(id);
  if (MistakeIs(Mistake::kSkippedTokenCompare)) {
    return true;
  }
  return block.parent == parent && std::ranges::equal(TokensOf(id), tokens) &&
         (parent != kChainRoot || block.salt == salt || MistakeIs(Mistake::kSaltIgnored));
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
    const auto found = index_.find(hashes[i]);
    if (found == index_.end()) {
      break;
    }
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
    if (!Holds(found->second, prefix.last, tokens, salt)) {
      break;
    }
    const Block& block = At(found->second);
    prefix.blocks.push_back(found->second);
    prefix.last = block.chain;
    prefix.num_idle += block.state == State::kCached ? 1 : 0;
  }
  return prefix;
}

BlockLease BlockManager::Hold(BlockId id) {
  Block& block = At(id);
  NIBBLE_CHECK(block.indexed, "a block outside the prefix index cannot be shared");
  switch (block.state) {
    case State::kHeld:
      break;
    case State::kCached:
      if (!MistakeIs(Mistake::kEvictsHeldBlock)) {
        Unlink(id);
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
  const auto [place, inserted] = index_.try_emplace(hash, id);
  if (!inserted) {
    if (Holds(place->second, parent, tokens, salt)) {
      return At(place->second).chain;
    }
    return std::nullopt;
  }
  Block& block = At(id);
  block.indexed = true;
  block.hash = hash;
  block.parent = parent;
  block.chain = ChainId{next_chain_++};
  block.salt = parent == kChainRoot ? std::string(salt) : std::string();
  std::ranges::copy(
      tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(Raw(id)) * config_.block_size_tokens);
  return block.chain;
}

bool BlockManager::IsWritable(BlockId id) const {
  const Block& block = At(id);
  return block.state == State::kHeld && block.references == 1 && !block.indexed;
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
  if (!block.indexed) {
    block.state = State::kFree;
    free_.push_back(id);
    return;
  }
  block.state = State::kCached;
  PushNewest(id);
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

void BlockManager::PushNewest(BlockId id) {
  Block& block = At(id);
  block.older = newest_;
  block.newer = -1;
  if (newest_ >= 0) {
    At(BlockId{newest_}).newer = Raw(id);
  } else {
    oldest_ = Raw(id);
  }
  newest_ = Raw(id);
}

void BlockManager::Unlink(BlockId id) {
  Block& block = At(id);
  (block.older >= 0 ? At(BlockId{block.older}).newer : oldest_) = block.newer;
  (block.newer >= 0 ? At(BlockId{block.newer}).older : newest_) = block.older;
  block.older = block.newer = -1;
}

void BlockManager::DropFromIndex(BlockId id) {
  Block& block = At(id);
  if (block.indexed) {
    index_.erase(block.hash);
    block.indexed = false;
    block.salt.clear();
  }
}

Result<void> BlockManager::Audit(std::span<const std::int32_t> references) const {
  const auto broken = [](std::size_t b, const char* what) {
    return Fail(ErrorCode::kInternal, fmt::format("block {}: {}", b, what));
  };
  std::array<std::int32_t, 4> by_state{};
  std::size_t num_indexed = 0;
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    ++by_state[static_cast<std::size_t>(block.state)];
    num_indexed += block.indexed ? 1 : 0;
    if (block.references != references[b]) {
      return broken(b, "its count differs from the table entries that name it");
    }
    if ((block.state == State::kHeld) != (block.references > 0)) {
      return broken(b, "held without a holder, or the reverse");
    }
    if (block.state == State::kCached && !block.indexed) {
      return broken(b, "cached-idle outside the index");
    }
    if (block.state == State::kFree && block.indexed) {
      return broken(b, "free but in the index");
    }
    if (block.references > 1 && !block.indexed) {
      return broken(b, "shared outside the index");
    }
    if (block.state == State::kFenced && block.fence <= last_retired_) {
      return broken(b, "fenced by a step that has retired");
    }
    if (block.indexed) {
      const auto found = index_.find(block.hash);
      if (found == index_.end() || static_cast<std::size_t>(Raw(found->second)) != b) {
        return broken(b, "the index does not name it");
      }
    }
  }
  if (num_indexed != index_.size()) {
    return Fail(ErrorCode::kInternal, "the prefix index names blocks that are not in it");
  }
  if (by_state[0] != num_free() || by_state[1] != num_held_ || by_state[2] != num_cached_ ||
      by_state[3] != num_fenced_) {
    return Fail(ErrorCode::kInternal, "the four counts of blocks are wrong");
  }
  std::int32_t in_order = 0;
  for (std::int32_t b = oldest_; b >= 0; b = At(BlockId{b}).newer) {
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
