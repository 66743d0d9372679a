#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "kernels/sampling.h"

namespace nibble {

/// One sequence's part of a step, as the scheduler decided it. Plain data: the same descriptor runs
/// on every rank.
struct StepSequence {
  SequenceId id{0};
  std::int32_t slot = 0;  // [0, max_num_sequences): the sequence's place in the device's state
  std::int32_t first_position = 0;  // tokens already computed
  std::int32_t num_tokens = 0;      // to compute now
  /// The tokens of positions [first_position, first_position + num_tokens). With token_from_device
  /// the last one is not known on the host yet (it is what an earlier step in flight samples for
  /// this slot) and the entry is ignored.
  std::vector<TokenId> tokens;
  bool token_from_device = false;
  std::vector<BlockId> block_table;  // covers [0, first_position + num_tokens)
  bool sample = false;               // draw the token of position first_position + num_tokens
  SampleRow sampling;                // if sample; logits_row is filled in by the runner
  /// Positions p of this chunk whose logits score the prompt token p + 1 (prompt logprobs):
  /// targets[i] belongs to position first_position + i; TokenId{-1} where none. Empty if not asked
  /// for.
  std::vector<TokenId> prompt_targets;
  std::int32_t num_prompt_logprobs = -1;
};

/// A block's content, all layers of it, between the pool and host memory.
struct BlockCopy {
  BlockId block{-1};
  HostSlot slot{-1};
};

struct StepPlan {
  std::uint64_t step = 0;  // grows by one
  /// Copies that come before the step's kernels: first blocks to slots, then slots to blocks. No
  /// block or slot is written twice by one list, and steps in flight touch none of the blocks.
  std::vector<BlockCopy> spills;
  std::vector<BlockCopy> restores;
  std::vector<StepSequence> sequences;
};

struct StepOutput {
  SequenceId id{0};
  bool sampled = false;
  SampleResult sample;
  std::vector<SampleResult> prompt_scores;  // one a target that was asked for, in order
};

struct StepResult {
  std::uint64_t step = 0;
  std::vector<StepOutput> outputs;  // one a sequence of the plan, in its order
};

enum class Ticket : std::uint64_t {};

/// The device side of the engine: ModelRunner, or the simulator's content-addressed fake.
/// Launch n+1 may come before Retire n, up to the executor's depth; Retire comes in launch order.
/// Planning step n+1 never reads the tokens of step n.
/// Copies of a launch that failed count as not made. Those of a step that was launched are made in
/// the order of steps even if its result is lost, or else every later step fails, too.
class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  virtual Result<Ticket> Launch(const StepPlan& plan) = 0;
  virtual Result<StepResult> Retire(Ticket ticket) = 0;
  /// Steps that may be in flight beyond the one being retired: 0 on a CPU.
  virtual int depth() const = 0;
  /// Whether steps can still succeed. Errors: kUnavailable where the device is lost, for good.
  virtual Result<void> Health() { return {}; }
  /// When the step after those in flight should be planned: late, so that it takes in whoever comes
  /// meanwhile, but before the device runs dry. Nothing: at once.
  virtual std::optional<Clock::TimePoint> PlanNextAt() const { return std::nullopt; }
};

}  // namespace nibble
