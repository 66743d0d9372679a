#include "engine/host_tier.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/mistake.h"

namespace nibble {

HostTier::HostTier(std::int32_t num_slots, std::int32_t block_size_tokens)
    : slots_(static_cast<std::size_t>(num_slots)),
      index_(num_slots, block_size_tokens),
      stored_(num_slots) {
  free_.reserve(slots_.size());
  for (std::int32_t slot = num_slots - 1; slot >= 0; --slot) {
    free_.push_back(slot);
  }
}

std::optional<HostSlot> HostTier::Find(const BlockContent& content) const {
  const auto found = index_.Find(content.hash);
  if (found && (index_.Holds(*found, content) || MistakeIs(Mistake::kHostCompareSkipped))) {
    return HostSlot{*found};
  }
  return std::nullopt;
}

// A slot for another content with this hash: the one that has the hash now, a free one, else the
// least recently used. Nothing if it is pinned, or all are.
std::optional<std::int32_t> HostTier::ChooseSlot(std::uint64_t hash) {
  std::int32_t slot = stored_.oldest();
  if (const auto same_hash = index_.Find(hash)) {
    if (At(*same_hash).pinned) {
      return std::nullopt;
    }
    slot = *same_hash;
  } else if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
    return slot;
  } else if (slot < 0) {
    return std::nullopt;
  }
  stored_.Remove(slot);
  index_.Erase(slot);
  if (std::exchange(At(slot).spill_planned, false)) {
    std::erase_if(spills_, [&](const BlockCopy& copy) { return Raw(copy.slot) == slot; });
  }
  return slot;
}

void HostTier::Spill(BlockId block, const BlockContent& content, ChainId chain) {
  if (const auto found = Find(content)) {
    if (!At(Raw(*found)).pinned) {
      stored_.Remove(Raw(*found));
      stored_.PushNewest(Raw(*found));
    }
    return;
  }
  const auto slot = ChooseSlot(content.hash);
  if (!slot) {
    return;
  }
  index_.Put(*slot, content, chain);
  stored_.PushNewest(*slot);
  if (!MistakeIs(Mistake::kSpillForgotten)) {
    At(*slot).spill_planned = true;
    spills_.push_back({block, HostSlot{*slot}});
  }
}

void HostTier::Pin(HostSlot slot) {
  NIBBLE_CHECK(!At(Raw(slot)).pinned, "a slot restored twice in a plan");
  if (!MistakeIs(Mistake::kSlotNotPinned)) {
    At(Raw(slot)).pinned = true;
    stored_.Remove(Raw(slot));
  }
}

BlockContent HostTier::Restore(HostSlot slot, BlockId block) {
  restores_.push_back({block, slot});
  return index_.ContentAt(Raw(slot));
}

void HostTier::TakeCopies(std::vector<BlockCopy>& spills, std::vector<BlockCopy>& restores) {
  for (const BlockCopy& copy : spills_) {
    At(Raw(copy.slot)).spill_planned = false;
  }
  // The beginning of a prefix last, so that its end is reused first.
  for (auto copy = restores_.rbegin(); copy != restores_.rend(); ++copy) {
    if (std::exchange(At(Raw(copy->slot)).pinned, false)) {
      stored_.PushNewest(Raw(copy->slot));
    }
  }
  num_spilled_ += spills_.size();
  num_restored_ += restores_.size();
  spills.assign(spills_.begin(), spills_.end());
  restores.assign(restores_.begin(), restores_.end());
  spills_.clear();
  restores_.clear();
}

void HostTier::Forget(const std::vector<BlockCopy>& spills) {
  for (const BlockCopy& copy : spills) {
    stored_.Remove(Raw(copy.slot));
    index_.Erase(Raw(copy.slot));
    free_.push_back(Raw(copy.slot));
  }
}

Result<void> HostTier::Audit(const ContentIndex& pool) const {
  const auto broken = [](std::int32_t slot, const char* what) {
    return Fail(ErrorCode::kInternal, fmt::format("host slot {}: {}", slot, what));
  };
  if (!spills_.empty() || !restores_.empty()) {
    return Fail(ErrorCode::kInternal, "copies are planned that no step took");
  }
  NIBBLE_TRY_VOID(index_.Audit());
  std::vector<int> places(slots_.size());  // in the free list or in the order
  for (const std::int32_t slot : free_) {
    ++places[static_cast<std::size_t>(slot)];
    if (index_.Has(slot)) {
      return broken(slot, "free but in the index");
    }
  }
  std::int32_t num_stored = 0;
  for (std::int32_t slot = stored_.oldest(); slot >= 0; slot = stored_.newer(slot)) {
    if (++num_stored > num_slots()) {
      return Fail(ErrorCode::kInternal, "the order of host slots has a loop");
    }
    ++places[static_cast<std::size_t>(slot)];
    if (!index_.Has(slot)) {
      return broken(slot, "stored but not in the index");
    }
    const BlockContent content = index_.ContentAt(slot);
    const auto block = pool.Find(content.hash);
    if (block && pool.Holds(*block, content) && pool.ChainAt(*block) != index_.ChainAt(slot)) {
      return broken(slot, "its content has another place in the pool's chains");
    }
  }
  for (std::int32_t slot = 0; slot < num_slots(); ++slot) {
    const auto at = static_cast<std::size_t>(slot);
    if (places[at] != 1 || slots_[at].pinned || slots_[at].spill_planned) {
      return broken(slot, "neither free nor stored, or both, or still part of a plan");
    }
  }
  return {};
}

}  // namespace nibble
