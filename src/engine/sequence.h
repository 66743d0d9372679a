#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/limits.h"
#include "engine/block_manager.h"
#include "engine/request.h"
#include "engine/text_out.h"

namespace nibble {

/// A sequence's id tells its request and choice, and grows in the order of arrival: it is the order
/// in which the scheduler serves.
constexpr SequenceId MakeSequenceId(RequestId request, std::int32_t choice) {
  return SequenceId{Raw(request) * limits::kChoices + static_cast<std::uint64_t>(choice)};
}

enum class SequenceState : std::uint8_t {
  kNew,
  kQueued,     // waits for admission; holds no blocks
  kPrefill,    // runs; tokens are known that no step has computed yet
  kDecode,     // runs; one token a step
  kPreempted,  // gave its blocks back; goes to the queue in the same step
  kEnded,
};
const char* Name(SequenceState state);
/// The table of legal transitions.
bool IsLegal(SequenceState from, SequenceState to);

/// What the choices of one client request share.
struct Request {
  RequestId id{0};
  GenerationRequest params;
  std::shared_ptr<OutputSink> sink;
  std::int32_t max_output = 0;      // max_tokens, cut to the context
  std::vector<TokenId> end_tokens;  // model's and client's; not sampled below min_tokens
  bool prompt_computed = false;     // choice 0 is past its prefill, or ended: others may start
  bool queued = true;               // no choice was ever admitted
  std::int32_t num_live_choices = 0;
  Clock::TimePoint arrival;
};

/// One choice of one request on its way through the engine.
///
/// Positions count prompt and output together. num_planned runs ahead of num_computed by the steps
/// in flight; tokens that those steps sample are counted by in_flight_samples but not yet in
/// output.
struct Sequence {
  Sequence(std::shared_ptr<Request> request_in, std::int32_t choice_in)
      : id(MakeSequenceId(request_in->id, choice_in)),
        choice(choice_in),
        request(std::move(request_in)) {}

  SequenceId id;
  std::int32_t choice;
  std::shared_ptr<Request> request;

  std::vector<TokenId> output;
  std::int32_t slot = -1;  // while running
  BlockTable blocks;
  std::int32_t num_planned = 0;   // tokens that launched steps compute
  std::int32_t num_computed = 0;  // tokens that retired steps have computed
  std::int32_t in_flight_steps = 0;
  std::int32_t in_flight_samples = 0;

  // Prefix cache.
  std::vector<std::uint64_t> block_hashes;  // of full blocks of known tokens
  std::int32_t num_registered = 0;          // blocks whose place in the chain is known
  ChainId last_chain = kChainRoot;
  bool chain_ended = false;            // a collision: later blocks cannot be registered
  std::int32_t num_cached_tokens = 0;  // of the prompt, at the first admission

  // Prompt logprobs, of choice 0 only: entry t scores prompt token t; unused before
  // first_prompt_logprob.
  std::vector<TokenLogprob> prompt_logprobs;  // until they are sent
  std::int32_t num_scored = 0;                // entries that have arrived
  std::int32_t num_targets_planned = 0;       // and those on their way

  // Output.
  std::unique_ptr<TextOut> text;  // none without a tokenizer
  std::int32_t event = -1;        // index among this step's events
  std::optional<Clock::TimePoint> first_scheduled, first_token, last_token;

  SequenceState state() const { return state_; }
  /// The one way to change state; checks the table.
  void Become(SequenceState next);

  std::int32_t prompt_size() const {
    return static_cast<std::int32_t>(request->params.prompt.size());
  }
  /// Tokens known on the host.
  std::int32_t num_tokens() const {
    return prompt_size() + static_cast<std::int32_t>(output.size());
  }
  /// Tokens known, or being sampled by a step in flight.
  std::int32_t num_tokens_ahead() const { return num_tokens() + in_flight_samples; }
  TokenId token(std::int32_t position) const {
    const auto p = static_cast<std::size_t>(position);
    const auto& prompt = request->params.prompt;
    return p < prompt.size() ? prompt[p] : output[p - prompt.size()];
  }
  /// May another token be sampled once all that is in flight has arrived?
  bool WantsMore() const { return num_tokens_ahead() - prompt_size() < request->max_output; }
  /// The most tokens whose keys and values it may ever hold: the last token sampled needs none.
  std::int32_t MaxComputed() const {
    return prompt_size() + (request->max_output > 0 ? request->max_output - 1 : 0);
  }
  /// Its sampling reads the tokens so far on the host, so it cannot run ahead of them.
  bool NeedsHostTokens() const {
    const SamplingParams& s = request->params.sampling;
    return s.presence_penalty != 0.0F || s.frequency_penalty != 0.0F ||
           s.repetition_penalty != 1.0F;
  }
  bool WantsPromptLogprobs() const {
    return choice == 0 && request->params.sampling.num_prompt_logprobs >= 0;
  }
  bool PromptScored() const { return !WantsPromptLogprobs() || num_scored >= prompt_size(); }
  /// A prompt that is scored from its beginning has all of its positions computed.
  bool MayReusePrefix() const { return PromptScored() || num_scored > 1; }

 private:
  SequenceState state_ = SequenceState::kNew;
};

}  // namespace nibble
