#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "engine/content_index.h"
#include "engine/host_tier.h"
#include "engine/lru_order.h"
#include "engine/step.h"

namespace nibble {

class BlockManager;

/// One reference to a block. Move-only: whatever path a sequence leaves by, its blocks come back.
class BlockLease {
 public:
  BlockLease() = default;
  BlockLease(BlockLease&& other) noexcept
      : manager_(std::exchange(other.manager_, nullptr)), id_(other.id_) {}
  BlockLease& operator=(BlockLease&& other) noexcept {
    if (this != &other) {
      Return();
      manager_ = std::exchange(other.manager_, nullptr);
      id_ = other.id_;
    }
    return *this;
  }
  BlockLease(const BlockLease&) = delete;
  BlockLease& operator=(const BlockLease&) = delete;
  ~BlockLease() { Return(); }

  BlockId id() const { return id_; }
  void Return();

 private:
  friend class BlockManager;
  BlockLease(BlockManager* manager, BlockId id) : manager_(manager), id_(id) {}

  BlockManager* manager_ = nullptr;
  BlockId id_{-1};
};

/// The blocks of one sequence, in the order of its tokens.
class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&&) = default;
  BlockTable& operator=(BlockTable&&) = default;
  ~BlockTable() { Clear(); }

  std::int32_t size() const { return static_cast<std::int32_t>(leases_.size()); }
  BlockId operator[](std::int32_t index) const {
    return leases_[static_cast<std::size_t>(index)].id();
  }
  void Append(BlockLease lease) { leases_.push_back(std::move(lease)); }
  /// Last block first, so that the cache evicts the end of a prefix before its beginning.
  void Clear();

 private:
  std::vector<BlockLease> leases_;
};

struct BlockManagerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t num_host_slots = 0;  // for blocks that the pool evicts; 0: they are forgotten
  std::int32_t block_size_tokens = 16;
  bool enable_prefix_caching = true;
  std::int32_t prefix_hash_bits = 64;  // tests lower it, so that collisions are common
};

/// The pool of KV blocks and the prefix cache over it.
///
/// Every block is in exactly one of four states:
///   free         its content is of no use
///   held         a lease names it
///   cached-idle  nobody holds it, but it is full and in the prefix index; evicted oldest first
///   fenced       nobody holds it, but a step in flight may still touch it
/// Nothing in the prefix index is ever written again and nothing partly full is ever shared, so
/// there is no copy-on-write: the partial last block of a shared prompt is computed again.
class BlockManager {
 public:
  explicit BlockManager(const BlockManagerConfig& config);
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  std::int32_t num_total() const { return config_.num_blocks; }
  std::int32_t num_free() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t num_held() const { return num_held_; }
  std::int32_t num_cached() const { return num_cached_; }
  std::int32_t num_fenced() const { return num_fenced_; }
  std::int32_t block_size_tokens() const { return config_.block_size_tokens; }
  /// What Allocate can give now.
  std::int32_t num_available() const { return num_free() + num_cached_; }
  std::int32_t BlocksFor(std::int32_t num_tokens) const {
    return (num_tokens + config_.block_size_tokens - 1) / config_.block_size_tokens;
  }

  /// A block for writing: a free one, else the least recently used cached-idle one, whose content
  /// moves to host memory where there is such a tier. Nothing if there is neither.
  std::optional<BlockLease> Allocate();

  /// Extends `hashes`, the chained content hashes of a sequence's full blocks, to cover `tokens`.
  void ExtendHashes(std::vector<std::uint64_t>& hashes, std::span<const TokenId> prompt,
                    std::span<const TokenId> output, std::string_view salt) const;

  /// The longest cached prefix: what holds exactly these tokens under this salt, at most max_blocks
  /// of it. Takes no reference; the answer is good until the next call that is not const.
  struct Cached {  // in the pool, else in host memory
    BlockId block{-1};
    HostSlot slot{-1};
    bool in_pool() const { return Raw(block) >= 0; }
  };
  struct Prefix {
    std::vector<Cached> blocks;
    ChainId last = kChainRoot;
    std::int32_t num_in_pool = 0;
    std::int32_t num_idle = 0;  // of them cached-idle: holding these makes num_available smaller
  };
  Prefix FindPrefix(std::span<const std::uint64_t> hashes, std::span<const TokenId> prompt,
                    std::span<const TokenId> output, std::string_view salt,
                    std::int32_t max_blocks) const;
  /// Holds what was found, for a table that is empty. What is in host memory is given a block,
  /// which must be available, and comes back before the kernels of the step under construction.
  void Claim(const Prefix& prefix, BlockTable& table);
  BlockLease Hold(BlockId id);

  /// Puts a held block that is full and written into the index, behind `parent`; returns its place
  /// in the chain. If the index already has the same content, that one's place. Nothing when
  /// another content has the same hash: the chain ends there.
  std::optional<ChainId> Register(BlockId id, std::uint64_t hash, ChainId parent,
                                  std::span<const TokenId> tokens, std::string_view salt);

  /// The copies of the step under construction go with it.
  void TakeCopies(StepPlan& plan);
  /// The step was not launched: what its copies would have filled is in no index any more. Its
  /// sequences still hold their blocks, and nobody else holds those that were to be restored.
  void LaunchFailed(const StepPlan& plan);
  const HostTier& host() const { return host_; }

  /// May this block be written: held once and not in the index.
  bool IsWritable(BlockId id) const;

  /// Fences: blocks returned while steps are in flight wait for the last of them.
  void StepLaunched(std::uint64_t step);
  void StepRetired(std::uint64_t step);

  /// Recounts everything. references[b]: how many table entries name block b.
  Result<void> Audit(std::span<const std::int32_t> references) const;

 private:
  friend class BlockLease;
  enum class State : std::uint8_t { kFree, kHeld, kCached, kFenced };
  struct Block {
    State state = State::kFree;
    std::int32_t references = 0;
    std::uint64_t fence = 0;  // step that must retire first
  };

  Block& At(BlockId id) { return blocks_[static_cast<std::size_t>(Raw(id))]; }
  const Block& At(BlockId id) const { return blocks_[static_cast<std::size_t>(Raw(id))]; }
  bool Holds(std::int32_t block, const BlockContent& content) const;
  void Return(BlockId id);
  void ToIdle(BlockId id);

  BlockManagerConfig config_;
  std::vector<Block> blocks_;
  ContentIndex index_;  // the prefix cache
  HostTier host_;       // and what it had to let go
  std::vector<BlockId> free_;
  LruOrder idle_;  // cached-idle blocks
  std::deque<std::pair<std::uint64_t, BlockId>>
      fences_;  // by step; stale where a block was revived
  std::int32_t num_held_ = 0, num_cached_ = 0, num_fenced_ = 0;
  std::uint64_t last_launched_ = 0, last_retired_ = 0;
  std::uint64_t next_chain_ = 1;
};

}  // namespace nibble
