#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "engine/block_manager.h"
#include "engine/mistake.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/stats.h"
#include "engine/text_out.h"

namespace nibble {
namespace {

double Seconds(Clock::Duration duration) { return std::chrono::duration<double>(duration).count(); }

TokenLogprob ToLogprob(const SampleResult& result) {
  TokenLogprob logprob{
      .token = result.token, .logprob = result.logprob, .rank = result.rank, .top = {}};
  logprob.top.reserve(result.top.size());
  for (const TokenScore& score : result.top) {
    logprob.top.emplace_back(score.token, score.logprob);
  }
  return logprob;
}

/// A launched step whose result has not been fetched.
struct InFlight {
  Ticket ticket{0};
  StepPlan plan;
  std::vector<Sequence*> members;  // of the plan, in its order
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineConfig& config, StepExecutor& executor,
             std::unique_ptr<TextDecoderFactory> text, const Clock& clock)
      : config_(config),
        executor_(executor),
        text_(std::move(text)),
        clock_(clock),
        blocks_({.num_blocks = config.num_blocks,
                 .num_host_slots = config.num_host_blocks,
                 .block_size_tokens = config.block_size_tokens,
                 .enable_prefix_caching = config.enable_prefix_caching,
                 .prefix_hash_bits = config.prefix_hash_bits}),
        scheduler_({.max_num_sequences = config.max_num_sequences,
                    .max_batched_tokens = config.max_batched_tokens,
                    .enable_prefix_caching = config.enable_prefix_caching},
                   blocks_),
        stats_(MakeStats(config)) {
    stats_.last_step = clock_.Now();
    Publish();
  }

  ~EngineImpl() override {
    while (!in_flight_.empty()) {  // the device may still write into what is about to go
      static_cast<void>(executor_.Retire(in_flight_.front().ticket));
      in_flight_.pop_front();
    }
  }

  Result<RequestId> Submit(GenerationRequest params, std::shared_ptr<OutputSink> sink) override;
  void Cancel(RequestId request) override;
  bool Step() override;
  void RunLoop(std::stop_token stop) override;
  void StartDraining() override;
  bool idle() const override;
  EngineStats Stats() const override;
  const EngineConfig& config() const override { return config_; }
  Result<void> Audit() const override;

 private:
  bool TakeInbox();
  void Start(const std::shared_ptr<Request>& request);
  bool IsQueued(RequestId request) const;
  bool ExpireDeadlines(Clock::TimePoint now);
  void ForgetDeadline(std::optional<Clock::TimePoint> deadline, RequestId request);
  void AwaitPlanning(const std::stop_token& stop);
  bool LaunchNext(Clock::TimePoint now);
  void RetireOldest();
  void TakeOutput(Sequence& sequence, const StepSequence& step, StepOutput& output);
  void TakePromptScores(Sequence& sequence, std::vector<SampleResult>& scores);
  void TakeToken(Sequence& sequence, const SampleResult& sample);
  void EndChoice(Sequence& sequence, FinishReason reason, std::string error = {});
  void EndRequest(RequestId request, FinishReason reason, const std::string& error = {});
  void FailStep(std::span<Sequence* const> members, const std::string& why);
  OutputEvent& EventOf(Sequence& sequence);
  void ObserveEnd(const Sequence& sequence, FinishReason reason);
  void LeaveQueue(Request& request);
  void SendEvents();
  void ForgetEnded();
  void Publish();
  void ShutDown();

  const EngineConfig config_;
  StepExecutor& executor_;
  const std::unique_ptr<TextDecoderFactory> text_;
  const Clock& clock_;

  // Engine thread only.
  BlockManager blocks_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  Scheduler scheduler_;
  std::deque<InFlight> in_flight_;
  std::vector<InFlight> spare_;  // storage of steps gone by
  struct Deadline {
    RequestId request{0};
    bool of_queue = false;  // only while no choice has begun
  };
  std::multimap<Clock::TimePoint, Deadline> deadlines_;
  std::vector<std::pair<OutputSink*, OutputEvent>> events_;  // of this step, one a choice
  std::vector<Sequence*> event_owners_;
  std::vector<std::shared_ptr<Request>> finished_requests_;  // until their last events are sent
  std::vector<SequenceId> ended_;  // may be destroyed once no step in flight knows them
  std::uint64_t next_step_ = 1;
  std::int32_t num_live_ = 0;  // sequences not ended
  EngineStats stats_;

  // Shared: everything below under mutex_.
  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  std::vector<std::shared_ptr<Request>> submitted_;
  std::vector<RequestId> cancelled_;
  std::int32_t num_queued_requests_ = 0;  // accepted, no choice admitted yet
  std::uint64_t next_request_ = 1;
  bool draining_ = false;
  bool engine_idle_ = true;  // nothing beyond the inbox
  EngineStats published_;
};

Result<RequestId> EngineImpl::Submit(GenerationRequest params, std::shared_ptr<OutputSink> sink) {
  NIBBLE_TRY_VOID(Validate(params, config_));
  if (text_ == nullptr && !params.sampling.stop.empty()) {
    return Fail(ErrorCode::kInvalidArgument,
                "stop: stop strings need a tokenizer, and none is loaded");
  }
  auto request = std::make_shared<Request>();
  request->params = std::move(params);
  request->sink = std::move(sink);
  const SamplingParams& sampling = request->params.sampling;
  const auto prompt_size = static_cast<std::int32_t>(request->params.prompt.size());
  request->max_output = std::min(sampling.max_tokens, config_.max_model_len - prompt_size);
  if (!sampling.ignore_eos) {
    request->end_tokens = config_.eos_token_ids;
  }
  request->end_tokens.insert(request->end_tokens.end(), sampling.stop_token_ids.begin(),
                             sampling.stop_token_ids.end());
  const std::int32_t worst_tokens = prompt_size + std::max(request->max_output - 1, 0);
  const std::int32_t worst_blocks = blocks_.BlocksFor(worst_tokens);  // reads constants only
  if (worst_blocks > config_.num_blocks) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("a prompt of {} tokens with max_tokens {} may need {} KV blocks of {} tokens, "
                    "but the cache has only {} ({} tokens)",
                    prompt_size, request->max_output, worst_blocks, config_.block_size_tokens,
                    config_.num_blocks, config_.num_blocks * config_.block_size_tokens));
  }
  request->arrival = clock_.Now();
  RequestId id{0};
  {
    const std::scoped_lock lock(mutex_);
    if (draining_) {
      return Fail(ErrorCode::kUnavailable, "the server is shutting down and takes no new requests");
    }
    if (!published_.device_failure.empty()) {
      return Fail(ErrorCode::kUnavailable, "the device is lost; the server must be started again");
    }
    if (num_queued_requests_ >= config_.max_queued_requests) {
      return Fail(
          ErrorCode::kLimitExceeded,
          fmt::format("{} requests are waiting already; try again later", num_queued_requests_));
    }
    ++num_queued_requests_;
    id = RequestId{next_request_++};
    request->id = id;
    submitted_.push_back(std::move(request));
  }
  wake_.notify_one();
  return id;
}

void EngineImpl::Cancel(RequestId request) {
  {
    const std::scoped_lock lock(mutex_);
    cancelled_.push_back(request);
  }
  wake_.notify_one();
}

bool EngineImpl::Step() {
  bool busy = TakeInbox();
  const Clock::TimePoint now = clock_.Now();
  busy |= ExpireDeadlines(now);
  const bool launched = LaunchNext(now);
  busy |= launched || !in_flight_.empty();
  // With nothing new to launch, what is in flight must finish before anything else can.
  if (launched) {
    while (std::ssize(in_flight_) > executor_.depth()) {
      RetireOldest();
    }
  } else if (!in_flight_.empty()) {
    RetireOldest();
  }
  if (busy) {
    stats_.last_step = clock_.Now();
    ForgetEnded();
    Publish();  // before the events: who has seen the end of a request finds it gone here too
    SendEvents();
  }
  return busy;
}

bool EngineImpl::TakeInbox() {
  std::vector<std::shared_ptr<Request>> submitted;
  std::vector<RequestId> cancelled;
  {
    const std::scoped_lock lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    engine_idle_ = engine_idle_ && submitted.empty();
  }
  for (const auto& request : submitted) {
    Start(request);
  }
  for (const RequestId request : cancelled) {
    EndRequest(request, FinishReason::kCancelled);
  }
  return !submitted.empty() || !cancelled.empty();
}

void EngineImpl::Start(const std::shared_ptr<Request>& request) {
  const GenerationRequest& params = request->params;
  if (params.deadline) {
    deadlines_.emplace(*params.deadline, Deadline{.request = request->id});
  }
  if (params.queue_deadline) {
    deadlines_.emplace(*params.queue_deadline, Deadline{.request = request->id, .of_queue = true});
  }
  request->num_live_choices = params.n;
  std::vector<Sequence*> without_work;
  for (std::int32_t choice = 0; choice < params.n; ++choice) {
    auto owned = std::make_unique<Sequence>(request, choice);
    Sequence& sequence = *owned;
    if (text_ != nullptr) {
      sequence.text = std::make_unique<TextOut>(params.sampling,
                                                text_->Start(params.sampling.skip_special_tokens));
    }
    if (sequence.WantsPromptLogprobs()) {
      sequence.num_scored = params.sampling.first_prompt_logprob;
      sequence.prompt_logprobs.resize(static_cast<std::size_t>(sequence.num_scored));
    }
    sequences_.emplace(sequence.id, std::move(owned));
    ++num_live_;
    scheduler_.Add(sequence);
    if (choice > 0 && request->max_output == 0) {
      without_work.push_back(&sequence);  // only choice 0 scores the prompt
    }
  }
  for (Sequence* sequence : without_work) {
    EndChoice(*sequence, FinishReason::kLength);
  }
}

bool EngineImpl::IsQueued(RequestId request) const {
  const auto first = sequences_.find(MakeSequenceId(request, 0));  // ends after others, if queued
  return first != sequences_.end() && first->second->request->queued;
}

bool EngineImpl::ExpireDeadlines(Clock::TimePoint now) {
  bool any = false;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto [request, of_queue] = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    if (of_queue && !IsQueued(request)) {
      continue;
    }
    EndRequest(request, of_queue ? FinishReason::kQueueTimeout : FinishReason::kDeadline);
    any = true;
  }
  return any;
}

bool EngineImpl::LaunchNext(Clock::TimePoint now) {
  if (spare_.empty()) {
    spare_.emplace_back();
  }
  InFlight step = std::move(spare_.back());
  spare_.pop_back();
  scheduler_.Schedule(now, step.plan, step.members);
  if (step.plan.sequences.empty()) {
    spare_.push_back(std::move(step));
    return false;
  }
  step.plan.step = next_step_++;
  std::int64_t num_tokens = 0;
  for (std::size_t i = 0; i < step.members.size(); ++i) {
    num_tokens += step.plan.sequences[i].num_tokens;
    LeaveQueue(*step.members[i]->request);
  }
  Observe(stats_.iteration_tokens, static_cast<double>(num_tokens));
  ++stats_.num_steps;
  Result<Ticket> ticket = executor_.Launch(step.plan);
  if (!ticket) {
    for (std::size_t i = 0; i < step.members.size(); ++i) {
      --step.members[i]->in_flight_steps;
      step.members[i]->in_flight_samples -= step.plan.sequences[i].sample ? 1 : 0;
    }
    blocks_.LaunchFailed(step.plan);
    FailStep(step.members, ticket.error().message);
    scheduler_.Recycle(step.plan);
    spare_.push_back(std::move(step));
    return true;
  }
  step.ticket = *ticket;
  blocks_.StepLaunched(step.plan.step);
  in_flight_.push_back(std::move(step));
  return true;
}

void EngineImpl::RetireOldest() {
  InFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  Result<StepResult> result = executor_.Retire(step.ticket);
  blocks_.StepRetired(step.plan.step);
  for (std::size_t i = 0; i < step.members.size(); ++i) {
    --step.members[i]->in_flight_steps;
    step.members[i]->in_flight_samples -= step.plan.sequences[i].sample ? 1 : 0;
  }
  if (result && result->outputs.size() != step.members.size()) {
    result =
        Fail(ErrorCode::kInternal, "the device answered for other sequences than it was given");
  }
  if (result) {
    for (std::size_t i = 0; i < step.members.size(); ++i) {
      TakeOutput(*step.members[i], step.plan.sequences[i], result->outputs[i]);
    }
  } else {
    FailStep(step.members, result.error().message);
  }
  scheduler_.Recycle(step.plan);
  spare_.push_back(std::move(step));
}

void EngineImpl::TakeOutput(Sequence& sequence, const StepSequence& step, StepOutput& output) {
  if (sequence.state() == SequenceState::kEnded) {
    if (MistakeIs(Mistake::kLookaheadNotDiscarded) && output.sampled) {
      EventOf(sequence).tokens.push_back(output.sample.token);
    }
    return;  // it ended while this step was in flight
  }
  const std::int32_t computed_end = step.first_position + step.num_tokens;
  Request& request = *sequence.request;
  if (output.sampled != step.sample) {
    EndRequest(request.id, FinishReason::kError, "the device sampled where it should not, or not");
    return;
  }
  if (sequence.slot >= 0) {  // else it was preempted since, and its blocks are gone
    scheduler_.Computed(sequence, computed_end);
  }
  TakePromptScores(sequence, output.prompt_scores);
  if (output.sampled) {
    TakeToken(sequence, output.sample);
  } else if (request.max_output == 0 && computed_end >= sequence.prompt_size()) {
    EndChoice(sequence, FinishReason::kLength);  // it was only to be scored
  }
  if (sequence.choice == 0 && computed_end >= sequence.prompt_size()) {
    request.prompt_computed = true;
  }
}

void EngineImpl::TakePromptScores(Sequence& sequence, std::vector<SampleResult>& scores) {
  for (const SampleResult& score : scores) {
    sequence.prompt_logprobs.push_back(ToLogprob(score));
    ++sequence.num_scored;
  }
}

void EngineImpl::TakeToken(Sequence& sequence, const SampleResult& sample) {
  Request& request = *sequence.request;
  const SamplingParams& params = request.params.sampling;
  if (Raw(sample.token) < 0 || Raw(sample.token) >= config_.vocab_size) {
    EndRequest(request.id, FinishReason::kError,
               fmt::format("the device sampled token {}, which does not exist", Raw(sample.token)));
    return;
  }
  const Clock::TimePoint now = clock_.Now();
  if (!sequence.first_token) {
    sequence.first_token = now;
    Observe(stats_.time_to_first_token_s, Seconds(now - request.arrival));
    stats_.prompt_tokens += static_cast<std::uint64_t>(sequence.prompt_size());
    stats_.prompt_tokens_cached += static_cast<std::uint64_t>(sequence.num_cached_tokens);
  } else {
    Observe(stats_.inter_token_latency_s, Seconds(now - *sequence.last_token));
  }
  sequence.last_token = now;
  ++stats_.generation_tokens;

  sequence.output.push_back(sample.token);
  const auto num_output = static_cast<std::int32_t>(sequence.output.size());
  OutputEvent& event = EventOf(sequence);
  event.tokens.push_back(sample.token);
  if (params.num_logprobs >= 0) {
    event.logprobs.push_back(ToLogprob(sample));
  }
  const bool is_end_token =
      num_output >= params.min_tokens &&
      std::ranges::find(request.end_tokens, sample.token) != request.end_tokens.end();
  if (sequence.text != nullptr && (!is_end_token || params.include_stop_str_in_output)) {
    TextOut::Piece piece = sequence.text->Push(sample.token, num_output > params.min_tokens);
    event.text += piece.text;
    if (piece.stop) {
      event.stop_reason = *std::move(piece.stop);
      sequence.text.reset();  // nothing that is held back belongs to the answer
      EndChoice(sequence, FinishReason::kStop);
      return;
    }
  }
  if (is_end_token) {
    const bool is_eos =
        !params.ignore_eos &&
        std::ranges::find(config_.eos_token_ids, sample.token) != config_.eos_token_ids.end();
    if (!is_eos) {
      event.stop_reason = sample.token;
    }
    EndChoice(sequence, FinishReason::kStop);
  } else if (num_output >= request.max_output) {
    EndChoice(sequence, FinishReason::kLength);
  }
}

OutputEvent& EngineImpl::EventOf(Sequence& sequence) {
  if (sequence.event < 0) {
    sequence.event = static_cast<std::int32_t>(events_.size());
    OutputEvent event;
    event.request = sequence.request->id;
    event.choice = sequence.choice;
    event.num_prompt_tokens = sequence.prompt_size();
    events_.emplace_back(sequence.request->sink.get(), std::move(event));
    event_owners_.push_back(&sequence);
  }
  return events_[static_cast<std::size_t>(sequence.event)].second;
}

void EngineImpl::EndChoice(Sequence& sequence, FinishReason reason, std::string error) {
  OutputEvent& event = EventOf(sequence);
  if (sequence.text != nullptr) {
    event.text += sequence.text->Finish().text;
  }
  event.finish = reason;
  event.error = std::move(error);
  scheduler_.End(sequence);
  --num_live_;
  ended_.push_back(sequence.id);
  ObserveEnd(sequence, reason);

  Request& request = *sequence.request;
  request.prompt_computed = request.prompt_computed || sequence.choice == 0;
  if (--request.num_live_choices == 0) {
    LeaveQueue(request);
    ForgetDeadline(request.params.deadline, request.id);
    ForgetDeadline(request.params.queue_deadline, request.id);
  }
}

void EngineImpl::ForgetDeadline(std::optional<Clock::TimePoint> deadline, RequestId request) {
  if (!deadline) {
    return;
  }
  const auto [begin, end] = deadlines_.equal_range(*deadline);
  const auto own =
      std::find_if(begin, end, [&](const auto& d) { return d.second.request == request; });
  if (own != end) {
    deadlines_.erase(own);
  }
}

void EngineImpl::EndRequest(RequestId request, FinishReason reason, const std::string& error) {
  for (std::int32_t choice = 0; choice < limits::kChoices; ++choice) {
    const auto found = sequences_.find(MakeSequenceId(request, choice));
    if (found != sequences_.end() && found->second->state() != SequenceState::kEnded) {
      EndChoice(*found->second, reason, error);
    }
  }
}

void EngineImpl::FailStep(std::span<Sequence* const> members, const std::string& why) {
  Log(LogLevel::kWarning, fmt::format("a step of {} sequences failed: {}", members.size(), why));
  for (const Sequence* sequence : members) {
    EndRequest(sequence->request->id, FinishReason::kError, "the engine failed on this request");
  }
  if (const auto health = executor_.Health(); !health && stats_.device_failure.empty()) {
    stats_.device_failure = health.error().message;
    Log(LogLevel::kError, fmt::format("the device is lost ({}): every request fails until this "
                                      "process is started again",
                                      stats_.device_failure));
  }
}

void EngineImpl::LeaveQueue(Request& request) {
  if (std::exchange(request.queued, false)) {
    const std::scoped_lock lock(mutex_);
    --num_queued_requests_;
  }
}

void EngineImpl::ObserveEnd(const Sequence& sequence, FinishReason reason) {
  const Clock::TimePoint now = clock_.Now();
  const Request& request = *sequence.request;
  ++stats_.finished[static_cast<std::size_t>(reason)];
  Observe(stats_.e2e_request_latency_s, Seconds(now - request.arrival));
  Observe(stats_.request_prompt_tokens, sequence.prompt_size());
  Observe(stats_.request_generation_tokens, static_cast<double>(sequence.output.size()));
  Observe(stats_.request_params_n, request.params.n);
  Observe(stats_.request_params_max_tokens, request.params.sampling.max_tokens);
  if (sequence.first_scheduled) {
    const Clock::TimePoint scheduled = *sequence.first_scheduled;
    Observe(stats_.request_queue_time_s, Seconds(scheduled - request.arrival));
    if (sequence.first_token) {
      Observe(stats_.request_prefill_time_s, Seconds(*sequence.first_token - scheduled));
      Observe(stats_.request_decode_time_s, Seconds(*sequence.last_token - *sequence.first_token));
      Observe(stats_.request_inference_time_s, Seconds(*sequence.last_token - scheduled));
    }
  }
}

void EngineImpl::ForgetEnded() {
  // First complete the events: their owners are about to go.
  for (Sequence* sequence : event_owners_) {
    OutputEvent& event = events_[static_cast<std::size_t>(sequence->event)].second;
    event.num_cached_tokens = sequence->num_cached_tokens;
    event.num_output_tokens = static_cast<std::int32_t>(sequence->output.size());
    // A prompt without a token to score is scored from the start, but not before it has begun.
    if (sequence->WantsPromptLogprobs() && sequence->PromptScored() && sequence->first_scheduled) {
      event.prompt_logprobs = std::exchange(sequence->prompt_logprobs, {});
    }
    sequence->event = -1;
  }
  event_owners_.clear();
  std::erase_if(ended_, [&](SequenceId id) {
    const auto found = sequences_.find(id);
    if (found->second->in_flight_steps > 0) {
      return false;
    }
    finished_requests_.push_back(found->second->request);  // keeps the sinks until events are sent
    sequences_.erase(found);
    return true;
  });
}

void EngineImpl::SendEvents() {
  for (auto& [sink, event] : events_) {
    sink->OnOutput(std::move(event));
  }
  events_.clear();
  finished_requests_.clear();
}

void EngineImpl::Publish() {
  stats_.num_requests_running = scheduler_.num_running();
  stats_.num_requests_waiting = scheduler_.num_waiting();
  stats_.num_blocks_total = blocks_.num_total();
  stats_.num_blocks_free = blocks_.num_free();
  stats_.num_blocks_held = blocks_.num_held();
  stats_.num_blocks_cached = blocks_.num_cached();
  stats_.num_blocks_fenced = blocks_.num_fenced();
  stats_.kv_cache_usage = static_cast<double>(blocks_.num_held()) / blocks_.num_total();
  stats_.num_preemptions = scheduler_.num_preemptions();
  stats_.prefix_cache_queries = scheduler_.prefix_cache_queries();
  stats_.prefix_cache_hits = scheduler_.prefix_cache_hits();
  stats_.host_cache_queries = scheduler_.host_cache_queries();
  stats_.host_cache_hits = scheduler_.host_cache_hits();
  stats_.num_host_blocks_total = blocks_.host().num_slots();
  stats_.num_host_blocks_used = blocks_.host().num_used();
  const auto block_bytes = static_cast<std::uint64_t>(config_.block_bytes);
  stats_.bytes_spilled = blocks_.host().num_spilled() * block_bytes;
  stats_.bytes_restored = blocks_.host().num_restored() * block_bytes;
  const std::scoped_lock lock(mutex_);
  published_ = stats_;
  engine_idle_ = num_live_ == 0 && in_flight_.empty();
}

void EngineImpl::RunLoop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    AwaitPlanning(stop);
    if (!Step()) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, stop, [&] { return !submitted_.empty() || !cancelled_.empty(); });
    }
  }
  ShutDown();
}

void EngineImpl::AwaitPlanning(const std::stop_token& stop) {
  // Where requests wait already, newcomers would gain nothing.
  if (!config_.plan_late || in_flight_.empty() || scheduler_.num_waiting() > 0) {
    return;
  }
  if (const auto when = executor_.PlanNextAt()) {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, stop, *when - clock_.Now(), [] { return false; });
  }
}

void EngineImpl::ShutDown() {
  StartDraining();
  TakeInbox();
  while (!in_flight_.empty()) {
    RetireOldest();
  }
  std::vector<RequestId> live;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state() != SequenceState::kEnded) {
      live.push_back(sequence->request->id);
    }
  }
  std::ranges::sort(live);
  for (const RequestId request : live) {
    EndRequest(request, FinishReason::kShutdown);
  }
  ForgetEnded();
  Publish();
  SendEvents();
}

void EngineImpl::StartDraining() {
  const std::scoped_lock lock(mutex_);
  draining_ = true;
}

bool EngineImpl::idle() const {
  const std::scoped_lock lock(mutex_);
  return submitted_.empty() && engine_idle_;
}

EngineStats EngineImpl::Stats() const {
  const std::scoped_lock lock(mutex_);
  EngineStats stats = published_;
  for (const auto& request : submitted_) {
    stats.num_requests_waiting += request->params.n;
  }
  return stats;
}

Result<void> EngineImpl::Audit() const {
  NIBBLE_TRY_VOID(scheduler_.Audit());
  std::int32_t num_live = 0;
  for (const auto& [id, sequence] : sequences_) {
    num_live += sequence->state() != SequenceState::kEnded ? 1 : 0;
    if (sequence->state() == SequenceState::kEnded && sequence->blocks.size() != 0) {
      return Fail(ErrorCode::kInternal, "an ended sequence holds blocks");
    }
  }
  if (num_live != num_live_ || num_live != scheduler_.num_running() + scheduler_.num_waiting()) {
    return Fail(ErrorCode::kInternal, "a live sequence is neither queued nor running");
  }
  if (num_live == 0 && in_flight_.empty()) {
    if (!sequences_.empty() || !deadlines_.empty() || blocks_.num_held() != 0 ||
        blocks_.num_fenced() != 0) {
      return Fail(ErrorCode::kInternal, "idle, but something is left");
    }
  }
  return {};
}

}  // namespace

const char* Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kQueueTimeout:
      return "queue_timeout";
    case FinishReason::kRejected:
      return "rejected";
    case FinishReason::kError:
      return "error";
    case FinishReason::kShutdown:
      return "shutdown";
  }
  return "?";
}

Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config, StepExecutor& executor,
                                               std::unique_ptr<TextDecoderFactory> text,
                                               const Clock& clock) {
  NIBBLE_TRY_VOID(Validate(config));
  return std::make_unique<EngineImpl>(config, executor, std::move(text), clock);
}

Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config, StepExecutor& executor,
                                               const Tokenizer* tokenizer, const Clock& clock) {
  return Create(config, executor,
                tokenizer != nullptr ? MakeTextDecoderFactory(*tokenizer) : nullptr, clock);
}

}  // namespace nibble
