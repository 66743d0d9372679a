#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "engine/step.h"
#include "engine/text_out.h"

namespace nibble::sim {

/// Time that moves only when told.
class VirtualClock final : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  void Advance(Duration by) { now_ += by; }
  void AdvanceTo(TimePoint then) { now_ = std::max(now_, then); }

 private:
  TimePoint now_{};
};

/// One entry of the fake KV cache. A context is the fold of its entries, so any entry that is
/// wrong, stale, foreign or missing changes every token after it.
struct KvEntry {
  std::int32_t token = -1;
  std::int32_t position = -1;
  std::uint64_t tenant = 0;
};
std::uint64_t Fold(std::uint64_t context, const KvEntry& entry);
std::uint64_t TenantOf(const std::string& cache_salt);

/// The fake model's "logits" are a hash of the context; this draws a token from them. What
/// SampleRow says (seed, choice, position, penalties, bias, forbidden tokens) changes the outcome.
SampleResult SampleFrom(std::uint64_t context, const SampleRow& row, std::int64_t vocab_size);
SampleResult ScoreFrom(std::uint64_t context, TokenId target, std::int32_t num_top,
                       std::int64_t vocab_size);

/// A tokenizer of sorts: short pieces over a small alphabet, so that stop strings are hit across
/// token borders, and one piece whose bytes are complete only with the next token.
std::unique_ptr<TextDecoderFactory> MakeFakeText();

/// What one choice must give if nothing disturbs it: one sequence, no batch, no cache, no blocks.
struct Expected {
  std::vector<SampleResult> tokens;
  std::vector<SampleResult> prompt_scores;  // for prompt tokens 1..
  std::string text;
  FinishReason finish = FinishReason::kLength;
  std::variant<std::monostate, TokenId, std::string> stop_reason;
};
Expected Predict(const GenerationRequest& request, std::int32_t choice, const EngineConfig& config);
/// The text of the first tokens of an output that did not end by itself.
std::string TextOf(std::span<const TokenId> tokens, const SamplingParams& params);

struct ExecutorFaults {
  double launch_failure = 0.0;
  double retire_failure = 0.0;
  bool lasts = false;  // a failed step is the device's end
};

/// A device that takes liberties: within what the contract allows, work of different sequences runs
/// in any order between Launch and Retire, writes early and reads late; a step's copies come at
/// some time before its own work, perhaps before that of earlier steps. Checks every plan.
class FakeExecutor final : public StepExecutor {
 public:
  FakeExecutor(const EngineConfig& config, int depth, std::uint64_t seed, VirtualClock& clock,
               const ExecutorFaults& faults);

  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Retire(Ticket ticket) override;
  int depth() const override { return depth_; }
  Result<void> Health() override {
    return faults_.lasts && !failed_requests_.empty()
               ? Fail(ErrorCode::kUnavailable, "a kernel: an illegal memory access")
               : Result<void>{};
  }

  /// Whose tokens these are; must be told before a request's first step.
  void SetTenant(RequestId request, std::uint64_t tenant) { tenants_[Raw(request)] = tenant; }

  /// The first promise that a plan broke; empty: none.
  const std::string& violation() const { return violation_; }
  const std::set<std::uint64_t>& failed_requests() const { return failed_requests_; }
  std::uint64_t num_launches() const { return num_launches_; }
  std::uint64_t num_retires() const { return num_retires_; }
  std::uint64_t num_lookaheads() const { return num_lookaheads_; }
  std::uint64_t num_spills() const { return num_spills_; }
  std::uint64_t num_restores() const { return num_restores_; }

 private:
  struct Op {  // one sequence's part of a step
    std::uint64_t of_step = 0;
    StepSequence step;
    std::uint64_t tenant = 0;
    bool written = false, read = false;
    StepOutput output;
  };
  struct Launched {
    std::uint64_t step = 0;
    std::vector<BlockCopy> spills, restores;
    bool copied = false;
    std::vector<Op> ops;
  };

  void CheckPlan(const StepPlan& plan);
  void CheckCopies(const StepPlan& plan);
  void CopyUpTo(std::uint64_t step);
  void CheckRestored(std::span<const BlockCopy> restores, const Op& op);
  std::span<KvEntry> EntriesOf(BlockId block);
  std::span<KvEntry> EntriesOf(HostSlot slot);
  void Write(Op& op);
  void Read(Op& op);
  void FinishEarlierOpsOf(const StepSequence& step);
  void Violate(const std::string& what);
  KvEntry& EntryAt(const StepSequence& step, std::int32_t position);
  void MarkFailed(const StepPlan& plan);

  const EngineConfig config_;
  const int depth_;
  VirtualClock& clock_;
  const ExecutorFaults faults_;
  std::mt19937_64 random_;
  std::vector<KvEntry> cache_;
  std::vector<KvEntry> host_;              // of the slots of host memory
  std::vector<std::int32_t> slot_tokens_;  // last token sampled, by slot
  std::vector<Launched> in_flight_;
  std::unordered_map<std::uint64_t, std::uint64_t> tenants_;
  std::set<std::uint64_t> failed_requests_;
  std::uint64_t last_step_ = 0, num_launches_ = 0, num_retires_ = 0, num_lookaheads_ = 0,
                num_spills_ = 0, num_restores_ = 0;
  std::uint64_t newest_first_choice_ = 0;  // greatest id of a choice 0 that was ever launched
  std::set<std::uint64_t> seen_;
  std::string violation_;
};

}  // namespace nibble::sim
