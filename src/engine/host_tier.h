#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "engine/content_index.h"
#include "engine/lru_order.h"
#include "engine/step.h"

namespace nibble {

/// The part of the prefix cache that lies in host memory (docs/kv_spill.md): a fixed number of
/// slots, each for the content of one full block. Plans the copies; a step's executor makes them.
///
/// A slot is free, or stored (its content is in the index and it may be reused, least recently used
/// first), or pinned: stored, with a restore in the plan under construction.
class HostTier {
 public:
  HostTier(std::int32_t num_slots, std::int32_t block_size_tokens);

  std::int32_t num_slots() const { return static_cast<std::int32_t>(slots_.size()); }
  std::int32_t num_used() const { return num_slots() - static_cast<std::int32_t>(free_.size()); }
  std::uint64_t num_spilled() const { return num_spilled_; }    // blocks copied out
  std::uint64_t num_restored() const { return num_restored_; }  // blocks copied back

  /// The slot that holds exactly this content.
  std::optional<HostSlot> Find(const BlockContent& content) const;
  ChainId ChainAt(HostSlot slot) const { return index_.ChainAt(Raw(slot)); }

  /// The pool evicts `block`: its content is kept if a slot can be had for it. Without a copy if it
  /// is here already.
  void Spill(BlockId block, const BlockContent& content, ChainId chain);

  /// Keeps a slot's content until the plan is complete.
  void Pin(HostSlot slot);
  /// Plans the copy of a pinned slot to a fresh block. The content is borrowed until the next call.
  BlockContent Restore(HostSlot slot, BlockId block);

  /// The plan is complete: its copies, no slot in two of the same kind, spills to be made first.
  void TakeCopies(std::vector<BlockCopy>& spills, std::vector<BlockCopy>& restores);
  /// These spills were not made.
  void Forget(const std::vector<BlockCopy>& spills);

  /// Recounts the slots between two plans, and compares with the pool's index: what is in both has
  /// one place in its chain.
  Result<void> Audit(const ContentIndex& pool) const;

 private:
  struct Slot {
    bool pinned = false;
    bool spill_planned = false;  // the copy that fills it is in the plan under construction
  };
  Slot& At(std::int32_t slot) { return slots_[static_cast<std::size_t>(slot)]; }
  std::optional<std::int32_t> ChooseSlot(std::uint64_t hash);

  std::vector<Slot> slots_;
  ContentIndex index_;
  std::vector<std::int32_t> free_;
  LruOrder stored_;  // slots that may be reused
  std::vector<BlockCopy> spills_, restores_;
  std::uint64_t num_spilled_ = 0, num_restored_ = 0;
};

}  // namespace nibble
