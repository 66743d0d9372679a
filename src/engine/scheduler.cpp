#include "engine/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "engine/mistake.h"
#include "engine/sampler.h"

namespace nibble {

Scheduler::Scheduler(const SchedulerConfig& config, BlockManager& blocks)
    : config_(config), blocks_(blocks) {
  for (std::int32_t slot = config.max_num_sequences - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
  running_.reserve(static_cast<std::size_t>(config.max_num_sequences));
}

void Scheduler::Add(Sequence& sequence) {
  sequence.Become(SequenceState::kQueued);
  waiting_.emplace(sequence.id, &sequence);
}

void Scheduler::End(Sequence& sequence) {
  if (MistakeIs(Mistake::kReferenceLeakOnEnd) && sequence.state() == SequenceState::kDecode) {
    new BlockTable(std::move(sequence.blocks));
  }
  if (sequence.slot >= 0) {
    LeaveBatch(sequence);
  } else {
    waiting_.erase(sequence.id);
  }
  sequence.Become(SequenceState::kEnded);
}

void Scheduler::LeaveBatch(Sequence& sequence) {
  sequence.blocks.Clear();
  free_slots_.push_back(std::exchange(sequence.slot, -1));
  running_.erase(std::ranges::find(running_, &sequence));
}

void Scheduler::Schedule(Clock::TimePoint now, StepPlan& plan, std::vector<Sequence*>& members) {
  plan.sequences.clear();
  members.clear();
  plan_ = &plan;
  members_ = &members;
  waits_for_fence_ = false;
  preempted_ = false;
  std::int32_t budget = config_.max_batched_tokens;
  ScheduleDecodes(budget);
  budget = ShareOfPrefills(budget);
  SchedulePrefills(budget);
  // What was just preempted is next in line, and would come back too early.
  if (!preempted_ && !waits_for_fence_) {
    Admit(now, budget);
  }
  blocks_.TakeCopies(plan);
  NIBBLE_CHECK(!plan.sequences.empty() || plan.spills.empty(), "a block evicted for nobody");
}

void Scheduler::ScheduleDecodes(std::int32_t& budget) {
  // The oldest always gets a token, also while it is in its prefill: then someone always finishes.
  const bool oldest_prefills =
      !running_.empty() && running_.front()->state() == SequenceState::kPrefill;
  const std::int32_t reserved = oldest_prefills ? 1 : 0;
  for (std::size_t i = 0; i < running_.size() && budget > reserved;) {
    Sequence& sequence = *running_[i];
    const bool ready = sequence.state() == SequenceState::kDecode && sequence.WantsMore() &&
                       (sequence.in_flight_samples == 0 || !sequence.NeedsHostTokens());
    if (!ready) {
      ++i;
      continue;
    }
    switch (MakeRoom(sequence)) {
      case Room::kYes:
        PlanChunk(sequence, 1);
        --budget;
        ++i;
        break;
      case Room::kWait:
        ++i;
        break;
      case Room::kPreempted:  // it was the newest: the loop ends here
        break;
    }
  }
}

// Tokens of prefill for this step: as few as keep the number of steps that the known prompts take.
std::int32_t Scheduler::ShareOfPrefills(std::int32_t budget) const {
  if (budget <= 0) {
    return budget;
  }
  constexpr std::int64_t kManySteps = 16;  // from here on shares are full steps
  const std::int64_t enough = kManySteps * budget;
  std::int64_t tokens = 0;
  for (const Sequence* sequence : running_) {
    if (sequence->state() == SequenceState::kPrefill) {
      tokens += sequence->num_tokens() - sequence->num_planned;
    }
  }
  for (auto next = waiting_.begin(); next != waiting_.end() && tokens < enough; ++next) {
    tokens += next->second->num_tokens();
  }
  if (tokens <= budget || tokens >= enough) {
    return budget;
  }
  const std::int64_t steps = (tokens + budget - 1) / budget;
  return static_cast<std::int32_t>((tokens + steps - 1) / steps);
}

void Scheduler::SchedulePrefills(std::int32_t& budget) {
  for (Sequence* sequence : running_) {
    if (budget == 0) {
      break;
    }
    if (sequence->state() == SequenceState::kPrefill) {
      const std::int32_t chunk = std::min(budget, sequence->num_tokens() - sequence->num_planned);
      PlanChunk(*sequence, chunk);
      budget -= chunk;
    }
  }
}

void Scheduler::Admit(Clock::TimePoint now, std::int32_t& budget) {
  for (auto next = waiting_.begin(); next != waiting_.end() && budget > 0;) {
    if (num_running() >= config_.max_num_sequences) {
      break;
    }
    Sequence& sequence = *next->second;
    if (sequence.choice > 0 && !sequence.request->prompt_computed &&
        config_.enable_prefix_caching) {
      ++next;  // waits for choice 0 to fill the prefix cache; others need not wait for that
      continue;
    }
    if (!TryAdmit(now, sequence)) {
      break;  // nobody overtakes
    }
    next = waiting_.erase(next);
    const std::int32_t chunk = std::min(budget, sequence.num_tokens() - sequence.num_planned);
    PlanChunk(sequence, chunk);
    budget -= chunk;
  }
}

bool Scheduler::TryAdmit(Clock::TimePoint now, Sequence& sequence) {
  if (sequence.in_flight_steps > 0) {
    return false;  // preempted with tokens on their way: they arrive within depth steps
  }
  const GenerationRequest& params = sequence.request->params;
  const std::int32_t num_tokens = sequence.num_tokens();
  const std::int32_t num_blocks = blocks_.BlocksFor(num_tokens);
  BlockManager::Prefix prefix;
  if (config_.enable_prefix_caching) {
    blocks_.ExtendHashes(sequence.block_hashes, params.prompt, sequence.output, params.cache_salt);
    // At least the last token is computed, for its logits, or else the one before the first that
    // is still to be scored.
    const std::int32_t end = sequence.PromptScored() ? num_tokens : sequence.num_scored;
    const std::int32_t max_blocks = blocks_.BlocksFor(end) - 1;
    if (max_blocks > 0) {
      prefix = blocks_.FindPrefix(sequence.block_hashes, params.prompt, sequence.output,
                                  params.cache_salt, max_blocks);
    }
  }
  const auto num_hits = static_cast<std::int32_t>(prefix.blocks.size());
  const std::int32_t needed = num_blocks - prefix.num_in_pool;
  const std::int32_t left = blocks_.num_available() - prefix.num_idle - needed;
  const bool becomes_oldest = running_.empty() || sequence.id < running_.front()->id;
  const Sequence& oldest = becomes_oldest ? sequence : *running_.front();
  const std::int32_t oldest_holds = becomes_oldest ? num_blocks : oldest.blocks.size();
  const std::int32_t reserve = blocks_.BlocksFor(oldest.MaxComputed()) - oldest_holds;
  if (left < std::max(reserve, 0)) {
    return false;
  }

  blocks_.Claim(prefix, sequence.blocks);
  for (std::int32_t i = num_hits; i < num_blocks; ++i) {
    auto lease = blocks_.Allocate();
    NIBBLE_CHECK(lease, "fewer blocks than were counted");
    sequence.blocks.Append(*std::move(lease));
  }
  sequence.num_planned = sequence.num_computed = num_hits * blocks_.block_size_tokens();
  sequence.num_registered = num_hits;
  sequence.last_chain = prefix.last;
  sequence.chain_ended = false;
  sequence.num_targets_planned = sequence.num_scored;
  if (!sequence.first_scheduled) {
    sequence.first_scheduled = now;
    sequence.num_cached_tokens = std::min(sequence.num_planned, sequence.prompt_size());
    if (config_.enable_prefix_caching && sequence.MayReusePrefix()) {
      const std::int32_t in_pool = prefix.num_in_pool * blocks_.block_size_tokens();
      prefix_cache_queries_ += static_cast<std::uint64_t>(num_tokens);
      prefix_cache_hits_ += static_cast<std::uint64_t>(in_pool);
      if (blocks_.host().num_slots() > 0) {
        host_cache_queries_ += static_cast<std::uint64_t>(num_tokens - in_pool);
        host_cache_hits_ += static_cast<std::uint64_t>(sequence.num_planned - in_pool);
      }
    }
  }
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  sequence.Become(SequenceState::kPrefill);
  running_.insert(std::ranges::upper_bound(running_, sequence.id, {}, &Sequence::id), &sequence);
  return true;
}

Scheduler::Room Scheduler::MakeRoom(Sequence& sequence) {
  std::int32_t end = sequence.num_planned + 1;
  if (MistakeIs(Mistake::kBlockCountOffByOne)) {
    end = std::max(end - 1, 1);
  }
  if (blocks_.BlocksFor(end) <= sequence.blocks.size()) {
    return Room::kYes;
  }
  if (waits_for_fence_) {
    return Room::kWait;  // what comes free belongs to an older sequence first
  }
  while (blocks_.num_available() == 0) {
    if (blocks_.num_fenced() > 0) {
      waits_for_fence_ = true;  // blocks are coming: preempting more would not bring them sooner
      return Room::kWait;
    }
    Sequence& victim = MistakeIs(Mistake::kOldestPreempted) ? *running_.front() : *running_.back();
    NIBBLE_CHECK(&victim != running_.front() || MistakeIs(Mistake::kOldestPreempted),
                 "the oldest sequence has no room although its worst case fits");
    Preempt(victim);
    if (&victim == &sequence) {
      return Room::kPreempted;
    }
  }
  sequence.blocks.Append(*blocks_.Allocate());
  return Room::kYes;
}

void Scheduler::Preempt(Sequence& victim) {
  ++num_preemptions_;
  preempted_ = true;
  if (MistakeIs(Mistake::kWrongBlocksOnPreempt)) {
    std::swap(victim.blocks, running_.front()->blocks);
  }
  LeaveBatch(victim);
  victim.Become(SequenceState::kPreempted);
  victim.num_planned = victim.num_computed = 0;
  victim.Become(SequenceState::kQueued);
  waiting_.emplace(victim.id, &victim);
}

void Scheduler::PlanChunk(Sequence& sequence, std::int32_t num_tokens) {
  const std::int32_t begin = sequence.num_planned;
  const std::int32_t end = begin + num_tokens;
  if (spare_.empty()) {
    spare_.emplace_back();
  }
  StepSequence step = std::move(spare_.back());
  spare_.pop_back();
  step.id = sequence.id;
  step.slot = sequence.slot;
  step.first_position = begin;
  step.num_tokens = num_tokens;
  step.tokens.clear();
  for (std::int32_t p = begin; p < std::min(end, sequence.num_tokens()); ++p) {
    step.tokens.push_back(sequence.token(p));
  }
  step.token_from_device =
      end > sequence.num_tokens() && !MistakeIs(Mistake::kDeviceTokenForgotten);
  if (end > sequence.num_tokens()) {
    step.tokens.push_back(TokenId{0});
  }
  const std::int32_t num_blocks = blocks_.BlocksFor(end);
  const std::int32_t first_written = begin / blocks_.block_size_tokens();
  NIBBLE_CHECK(num_blocks <= sequence.blocks.size(), "a chunk beyond its sequence's blocks");
  step.block_table.clear();
  for (std::int32_t b = 0; b < num_blocks; ++b) {
    const BlockId id = sequence.blocks[b];
    NIBBLE_CHECK(b < first_written || blocks_.IsWritable(id), "a write to a shared block");
    step.block_table.push_back(id);
  }
  step.sample = end == sequence.num_tokens_ahead() && sequence.WantsMore();
  step.sampling = step.sample ? BuildSampleRow(sequence, end) : SampleRow{};

  step.prompt_targets.clear();
  step.num_prompt_logprobs = -1;
  if (!sequence.PromptScored()) {
    const std::int32_t first_target = sequence.num_targets_planned;
    bool any = false;
    for (std::int32_t p = begin; p < end; ++p) {
      const bool wanted = p + 1 >= first_target && p + 1 < sequence.prompt_size();
      step.prompt_targets.push_back(wanted ? sequence.token(p + 1) : TokenId{-1});
      any = any || wanted;
    }
    if (any) {
      step.num_prompt_logprobs = sequence.request->params.sampling.num_prompt_logprobs;
      sequence.num_targets_planned = std::min(end + 1, sequence.prompt_size());
    } else {
      step.prompt_targets.clear();
    }
  }

  sequence.num_planned = end;
  ++sequence.in_flight_steps;
  sequence.in_flight_samples += step.sample ? 1 : 0;
  if (sequence.state() == SequenceState::kPrefill && end >= sequence.num_tokens()) {
    sequence.Become(SequenceState::kDecode);
  }
  if (MistakeIs(Mistake::kEarlyRegistration)) {
    Computed(sequence, std::min(end, sequence.num_tokens()));
  }
  plan_->sequences.push_back(std::move(step));
  members_->push_back(&sequence);
}

void Scheduler::Computed(Sequence& sequence, std::int32_t computed_end) {
  sequence.num_computed = std::max(sequence.num_computed, computed_end);
  if (!config_.enable_prefix_caching) {
    return;
  }
  const GenerationRequest& params = sequence.request->params;
  const std::int32_t block_size = blocks_.block_size_tokens();
  blocks_.ExtendHashes(sequence.block_hashes, params.prompt, sequence.output, params.cache_salt);
  const std::int32_t full_end =
      MistakeIs(Mistake::kPartialBlockRegistered) ? sequence.num_tokens() : sequence.num_computed;
  std::vector<TokenId> tokens;
  while (!sequence.chain_ended && (sequence.num_registered + 1) * block_size <= full_end) {
    const std::int32_t b = sequence.num_registered;
    tokens.clear();
    for (std::int32_t p = b * block_size; p < (b + 1) * block_size; ++p) {
      tokens.push_back(sequence.token(p));
    }
    const auto chain =
        blocks_.Register(sequence.blocks[b], sequence.block_hashes[static_cast<std::size_t>(b)],
                         sequence.last_chain, tokens, params.cache_salt);
    if (!chain) {
      sequence.chain_ended = true;
      break;
    }
    sequence.last_chain = *chain;
    ++sequence.num_registered;
  }
}

void Scheduler::Recycle(StepPlan& plan) {
  for (StepSequence& step : plan.sequences) {
    spare_.push_back(std::move(step));
  }
  plan.sequences.clear();
  plan.spills.clear();
  plan.restores.clear();
}

Result<void> Scheduler::Audit() const {
  const auto broken = [](const Sequence& sequence, const char* what) {
    return Fail(ErrorCode::kInternal, fmt::format("sequence {} ({}): {}", Raw(sequence.id),
                                                  Name(sequence.state()), what));
  };
  std::vector<std::int32_t> references(static_cast<std::size_t>(blocks_.num_total()));
  std::vector<bool> slots(static_cast<std::size_t>(config_.max_num_sequences));
  const Sequence* previous = nullptr;
  for (const Sequence* sequence : running_) {
    if (sequence->state() != SequenceState::kPrefill &&
        sequence->state() != SequenceState::kDecode) {
      return broken(*sequence, "in the batch");
    }
    if (previous != nullptr && previous->id >= sequence->id) {
      return broken(*sequence, "out of order in the batch");
    }
    previous = sequence;
    if (sequence->slot < 0 || slots[static_cast<std::size_t>(sequence->slot)]) {
      return broken(*sequence, "shares its slot or has none");
    }
    slots[static_cast<std::size_t>(sequence->slot)] = true;
    // Blocks for all tokens known at admission, or for all that are planned.
    const std::int32_t expected =
        blocks_.BlocksFor(sequence->state() == SequenceState::kPrefill ? sequence->num_tokens()
                                                                       : sequence->num_planned);
    if (sequence->blocks.size() != expected) {
      return broken(*sequence, "its number of blocks does not follow from its length");
    }
    for (std::int32_t b = 0; b < sequence->blocks.size(); ++b) {
      ++references[static_cast<std::size_t>(Raw(sequence->blocks[b]))];
    }
    if (sequence->num_computed > sequence->num_planned ||
        sequence->num_planned > sequence->num_tokens_ahead()) {
      return broken(*sequence, "its counts of tokens are out of order");
    }
    if (sequence->num_tokens_ahead() - sequence->prompt_size() > sequence->request->max_output) {
      return broken(*sequence, "ran past its length limit");
    }
  }
  for (const auto& [id, sequence] : waiting_) {
    if (sequence->state() != SequenceState::kQueued || sequence->blocks.size() != 0 ||
        sequence->slot >= 0) {
      return broken(*sequence, "in the queue");
    }
  }
  if (num_running() + num_free_slots() != config_.max_num_sequences) {
    return Fail(ErrorCode::kInternal, "a slot is lost");
  }
  if (!running_.empty()) {
    // The oldest can finish: everything that it does not hold itself can be taken from the newer.
    const Sequence& oldest = *running_.front();
    if (blocks_.BlocksFor(oldest.MaxComputed()) > blocks_.num_total()) {
      return broken(oldest, "the oldest cannot finish");
    }
  }
  return blocks_.Audit(references);
}

}  // namespace nibble
