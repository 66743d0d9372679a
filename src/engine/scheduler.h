#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/block_manager.h"
#include "engine/sequence.h"
#include "engine/step.h"

namespace nibble {

struct SchedulerConfig {
  std::int32_t max_num_sequences = 256;    // running at once
  std::int32_t max_batched_tokens = 2048;  // prefill + decode tokens in one step
  bool enable_prefix_caching = true;
};

/// Decides what each step computes.
///
/// Everything is served in the order of arrival. A step takes the decodes first, then prefill
/// chunks of running sequences, then admits waiting ones while tokens, slots and blocks last. What
/// prefills need several steps gets equal shares of them: nobody's next token waits for a full step
/// where the last one would be nearly empty.
/// Admission allocates blocks for all known tokens and leaves the oldest running sequence's worst
/// case untouched. When a decode finds no block, the newest sequence is preempted and computed
/// again later; the oldest can therefore always finish, and then the next is the oldest.
///
/// Plans from counts alone: the tokens of steps in flight are never read.
class Scheduler {
 public:
  Scheduler(const SchedulerConfig& config, BlockManager& blocks);

  /// A new sequence joins the queue. Not owned; it must be removed before it dies.
  void Add(Sequence& sequence);
  /// Ends a sequence in any state: it leaves queue or batch and its blocks come back.
  void End(Sequence& sequence);

  /// Fills `plan` with the next step and `members` with its sequences; nothing if none can run now.
  void Schedule(Clock::TimePoint now, StepPlan& plan, std::vector<Sequence*>& members);

  /// A step was retired in which `sequence` computed up to position `computed_end`: its full blocks
  /// enter the prefix index. For sequences that still hold their blocks.
  void Computed(Sequence& sequence, std::int32_t computed_end);

  /// A plan's storage may be used again.
  void Recycle(StepPlan& plan);

  std::int32_t num_running() const { return static_cast<std::int32_t>(running_.size()); }
  std::int32_t num_waiting() const { return static_cast<std::int32_t>(waiting_.size()); }
  std::uint64_t num_preemptions() const { return num_preemptions_; }
  std::uint64_t prefix_cache_queries() const { return prefix_cache_queries_; }
  std::uint64_t prefix_cache_hits() const { return prefix_cache_hits_; }
  /// Of the tokens that the pool did not have.
  std::uint64_t host_cache_queries() const { return host_cache_queries_; }
  std::uint64_t host_cache_hits() const { return host_cache_hits_; }
  std::int32_t num_free_slots() const { return static_cast<std::int32_t>(free_slots_.size()); }
  const std::vector<Sequence*>& running() const { return running_; }
  const std::map<SequenceId, Sequence*>& waiting() const { return waiting_; }

  /// Recounts what this class promises about queue, batch, slots and block tables.
  Result<void> Audit() const;

 private:
  enum class Room { kYes, kWait, kPreempted };

  void ScheduleDecodes(std::int32_t& budget);
  std::int32_t ShareOfPrefills(std::int32_t budget) const;
  void SchedulePrefills(std::int32_t& budget);
  void Admit(Clock::TimePoint now, std::int32_t& budget);
  bool TryAdmit(Clock::TimePoint now, Sequence& sequence);
  void PlanChunk(Sequence& sequence, std::int32_t num_tokens);
  Room MakeRoom(Sequence& sequence);
  void Preempt(Sequence& victim);
  void LeaveBatch(Sequence& sequence);

  SchedulerConfig config_;
  BlockManager& blocks_;
  std::map<SequenceId, Sequence*> waiting_;  // oldest first
  std::vector<Sequence*> running_;           // oldest first
  std::vector<std::int32_t> free_slots_;
  std::vector<StepSequence> spare_;  // storage of old plans
  std::uint64_t num_preemptions_ = 0, prefix_cache_queries_ = 0, prefix_cache_hits_ = 0,
                host_cache_queries_ = 0, host_cache_hits_ = 0;

  // Of the Schedule call under way.
  StepPlan* plan_ = nullptr;
  std::vector<Sequence*>* members_ = nullptr;
  bool waits_for_fence_ = false;  // an older sequence waits for blocks that are coming
  bool preempted_ = false;
};

}  // namespace nibble
