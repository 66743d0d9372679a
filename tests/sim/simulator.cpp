#include "tests/sim/simulator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <stop_token>
#include <vector>

#include "base/limits.h"
#include "base/log.h"
#include "engine/engine.h"
#include "tests/sim/fake_model.h"

namespace nibble::sim {
namespace {

using std::chrono::microseconds;

/// Random numbers of the world outside the engine.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}
  std::int32_t Int(std::int32_t low, std::int32_t high) {
    const auto span = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<std::int32_t>(engine_() % span);
  }
  double Unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  bool Chance(double p) { return Unit() < p; }
  double Exponential(double mean) { return -mean * std::log(1.0 - Unit()); }
  /// 0 .. count-1, item k with weight 1 / (k + 1).
  std::int32_t Zipf(std::int32_t count) {
    double total = 0.0;
    for (std::int32_t k = 0; k < count; ++k) {
      total += 1.0 / (k + 1);
    }
    double x = Unit() * total;
    for (std::int32_t k = 0; k < count; ++k) {
      x -= 1.0 / (k + 1);
      if (x < 0.0) {
        return k;
      }
    }
    return count - 1;
  }
  std::uint64_t Bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

/// One client: its request, what it must get, and what it got so far.
struct Client {
  GenerationRequest request;
  RequestId id{0};
  Clock::TimePoint arrival;
  std::int32_t cancel_at_token = -1;            // after so many tokens of any choice
  std::optional<Clock::Duration> cancel_after;  // after the submission
  std::optional<Clock::TimePoint> cancel_time;
  bool submitted = false;
  bool cancel_sent = false;
  std::uint64_t cancel_step = 0;

  struct Choice {
    Expected expected;
    std::vector<TokenId> tokens;
    std::string text;
    bool scores_received = false;
    std::int32_t num_events = 0;
    std::optional<FinishReason> finish;
  };
  std::vector<Choice> choices;
  std::int32_t num_tokens = 0;

  bool Ended() const {
    return std::ranges::all_of(choices, [](const Choice& c) { return c.finish.has_value(); });
  }
};

bool Same(const TokenLogprob& got, const SampleResult& expected) {
  if (got.token != expected.token || got.logprob != expected.logprob || got.rank != expected.rank ||
      got.top.size() != expected.top.size()) {
    return false;
  }
  for (std::size_t k = 0; k < got.top.size(); ++k) {
    if (got.top[k].first != expected.top[k].token || got.top[k].second != expected.top[k].logprob) {
      return false;
    }
  }
  return true;
}

class World {
 public:
  explicit World(const Options& options) : options_(options), dice_(options.seed) {}

  Report Run() {
    Draw();
    auto engine = Engine::Create(config_, *executor_, MakeFakeText(), clock_);
    if (!engine) {
      Break(engine.error().message);
      return Finish();
    }
    engine_ = std::move(*engine);
    Live();
    if (report_.failure.empty()) {
      CheckIdle();
    }
    return Finish();
  }

 private:
  class Sink final : public OutputSink {
   public:
    Sink(World& world, Client& client) : world_(world), client_(client) {}
    void OnOutput(OutputEvent event) override { world_.OnOutput(client_, event); }

   private:
    World& world_;
    Client& client_;
  };

  void Break(const std::string& what) {
    if (report_.failure.empty()) {
      report_.failure = fmt::format("seed={} depth={} step={}: {}", options_.seed, options_.depth,
                                    num_turns_, what);
    }
  }

  Report Finish() {
    report_.virtual_seconds =
        std::chrono::duration<double>(clock_.Now().time_since_epoch()).count();
    report_.num_steps = executor_->num_launches();
    report_.num_lookaheads = executor_->num_lookaheads();
    report_.num_spills = executor_->num_spills();
    report_.num_restores = executor_->num_restores();
    return report_;
  }

  /// The world of this seed: sizes, load and faults. Each kind of fault is left out half the time.
  void Draw() {
    constexpr std::int32_t kBlockSizes[] = {1, 2, 4, 4, 8, 16};
    constexpr std::int32_t kHashBits[] = {3, 6, 10, 64};
    config_.block_size_tokens = kBlockSizes[dice_.Int(0, 5)];
    config_.max_num_sequences = dice_.Int(1, 12);
    config_.max_batched_tokens = dice_.Chance(0.3) ? dice_.Int(1, 8) : dice_.Int(8, 96);
    config_.max_model_len = dice_.Int(8, 120);
    config_.vocab_size = dice_.Int(24, 60);
    config_.eos_token_ids = {TokenId{3}};
    config_.enable_prefix_caching = dice_.Chance(0.85);
    config_.prefix_hash_bits = kHashBits[dice_.Int(0, 3)];
    config_.max_queued_requests = dice_.Chance(0.2) ? dice_.Int(1, 6) : 1000;
    const std::int32_t fits_one =
        (config_.max_model_len + config_.block_size_tokens - 1) / config_.block_size_tokens;
    // From "fits one" up, and sometimes too small for the longest requests.
    const double scale = dice_.Chance(0.15) ? 0.5 : 1.0 + dice_.Exponential(1.2);
    config_.num_blocks = std::max(1, static_cast<std::int32_t>(fits_one * scale));
    // Host memory, often less than one sequence needs. Dice of its own: a seed's world was drawn
    // before there was such a thing.
    Dice host(options_.seed ^ 0x5B111);
    if (host.Chance(0.7)) {
      config_.num_host_blocks =
          host.Int(1, host.Chance(0.5) ? std::max(2, fits_one / 2) : 4 * config_.num_blocks);
      config_.block_bytes = host.Int(1, 1000);
    }

    ExecutorFaults faults;
    if (dice_.Chance(0.3)) {
      faults.launch_failure = 0.02 * dice_.Unit();
    }
    if (dice_.Chance(0.3)) {
      faults.retire_failure = 0.02 * dice_.Unit();
    }
    executor_ =
        std::make_unique<FakeExecutor>(config_, options_.depth, dice_.Bits(), clock_, faults);

    const double p_cancel = dice_.Chance(0.5) ? 0.4 * dice_.Unit() : 0.0;
    const double p_deadline = dice_.Chance(0.4) ? 0.3 * dice_.Unit() : 0.0;
    const double p_queue_deadline = dice_.Chance(0.4) ? 0.3 * dice_.Unit() : 0.0;
    const double p_many = dice_.Chance(0.5) ? 0.3 : 0.0;
    const double p_scores = dice_.Chance(0.5) ? 0.25 : 0.0;
    const double p_stop = dice_.Chance(0.6) ? 0.5 : 0.0;
    const double p_penalty = dice_.Chance(0.4) ? 0.3 : 0.0;
    const std::int32_t num_tenants = dice_.Int(1, 4);
    const double mean_gap_us = dice_.Exponential(200'000);
    std::vector<std::vector<TokenId>> prefixes(static_cast<std::size_t>(dice_.Int(1, 6)));
    for (auto& prefix : prefixes) {
      // Few different tokens: many prompts then share a beginning by accident, too.
      prefix = Tokens(dice_.Int(1, config_.max_model_len), dice_.Chance(0.5) ? 2 : 24);
    }
    Clock::TimePoint arrival{};
    const std::int32_t num_clients = dice_.Int(4, 40);
    for (std::int32_t i = 0; i < num_clients; ++i) {
      auto client = std::make_unique<Client>();
      if (!dice_.Chance(0.4)) {  // else it comes together with the one before
        arrival += microseconds(static_cast<std::int64_t>(dice_.Exponential(mean_gap_us)));
      }
      client->arrival = arrival;
      GenerationRequest& request = client->request;
      request.prompt = prefixes[static_cast<std::size_t>(
          dice_.Zipf(static_cast<std::int32_t>(prefixes.size())))];
      request.prompt.resize(
          static_cast<std::size_t>(dice_.Int(1, static_cast<std::int32_t>(request.prompt.size()))));
      for (const TokenId token : Tokens(dice_.Int(0, 8), 24)) {
        request.prompt.push_back(token);
      }
      request.cache_salt = std::string(1, static_cast<char>('A' + dice_.Zipf(num_tenants)));
      request.n = dice_.Chance(p_many) ? dice_.Int(2, 4) : 1;
      SamplingParams& s = request.sampling;
      s.temperature = dice_.Chance(0.3) ? 0.0F : 1.0F;
      s.seed = dice_.Bits();
      s.max_tokens = dice_.Int(1, dice_.Chance(0.3) ? 90 : 20);
      s.num_logprobs = dice_.Int(-1, 3);
      s.ignore_eos = dice_.Chance(0.2);
      if (dice_.Chance(p_scores)) {
        s.num_prompt_logprobs = dice_.Int(0, 2);
        s.first_prompt_logprob =
            dice_.Chance(0.5) ? 1 : dice_.Int(1, static_cast<std::int32_t>(request.prompt.size()));
        s.max_tokens = dice_.Chance(0.4) ? 0 : s.max_tokens;
      }
      if (dice_.Chance(p_stop)) {
        constexpr const char* kStops[] = {"ab",       "bba", "c c", "aaba",
                                          "\xC3\xA9", "ca",  "bb",  "abcab"};
        for (std::int32_t k = dice_.Int(1, 3); k > 0; --k) {
          s.stop.emplace_back(kStops[dice_.Int(0, 7)]);
        }
        s.include_stop_str_in_output = dice_.Chance(0.3);
      }
      if (dice_.Chance(p_stop)) {
        s.stop_token_ids = {TokenId{dice_.Int(0, 23)}};
      }
      if (s.max_tokens > 0 && dice_.Chance(0.3)) {
        s.min_tokens = dice_.Int(0, s.max_tokens);
      }
      if (dice_.Chance(p_penalty)) {
        (dice_.Chance(0.5) ? s.repetition_penalty : s.frequency_penalty) = 1.5F;
      }
      if (dice_.Chance(0.1)) {
        s.logit_bias = {{TokenId{5}, 1.0F}};
      }
      if (dice_.Chance(p_cancel)) {
        if (dice_.Chance(0.5)) {
          client->cancel_at_token = dice_.Int(0, 10);
        } else {
          client->cancel_after =
              microseconds(static_cast<std::int64_t>(dice_.Exponential(300'000)));
        }
      }
      if (dice_.Chance(p_deadline)) {
        request.deadline =
            arrival + microseconds(static_cast<std::int64_t>(dice_.Exponential(1'000'000)));
      }
      if (dice_.Chance(p_queue_deadline)) {
        request.queue_deadline =
            arrival + microseconds(static_cast<std::int64_t>(dice_.Exponential(300'000)));
      }
      clients_.push_back(std::move(client));
    }
    drain_at_ = dice_.Chance(0.15) ? dice_.Int(0, num_clients - 1) : num_clients;
    shut_down_at_ = dice_.Chance(0.1) ? static_cast<std::uint64_t>(dice_.Int(1, 150)) : 0;
  }

  std::vector<TokenId> Tokens(std::int32_t count, std::int32_t kinds) {
    std::vector<TokenId> tokens;
    for (std::int32_t i = 0; i < count; ++i) {
      tokens.push_back(TokenId{dice_.Int(0, kinds - 1)});
    }
    return tokens;
  }

  void Live() {
    std::size_t next = 0;
    std::uint64_t num_idle_turns = 0;
    while (report_.failure.empty()) {
      while (next < clients_.size() && clients_[next]->arrival <= clock_.Now()) {
        if (static_cast<std::int32_t>(next) == drain_at_) {
          engine_->StartDraining();
          draining_ = true;
        }
        Submit(*clients_[next++]);
      }
      SendCancels();
      if (shut_down_at_ != 0 && num_turns_ == shut_down_at_) {
        return ShutDown();
      }
      const std::uint64_t before = Progress();
      ++num_turns_;
      const bool busy = engine_->Step();
      Check();
      if (!report_.failure.empty()) {
        return;
      }
      if (Progress() == before && busy) {
        if (++num_idle_turns > 3) {
          Break("steps without progress");
        }
        continue;
      }
      num_idle_turns = 0;
      if (busy) {
        continue;
      }
      if (!engine_->idle()) {
        Break("nothing to do, yet not idle");
      }
      if (next == clients_.size()) {
        return;
      }
      clock_.AdvanceTo(clients_[next]->arrival);
    }
  }

  /// The service is told to stop at once, with steps in flight and work in queue and inbox.
  void ShutDown() {
    shutting_down_ = true;
    std::stop_source stop;
    stop.request_stop();
    engine_->RunLoop(stop.get_token());
    Check();
    GenerationRequest late;
    late.prompt = {TokenId{1}};
    if (!engine_->idle() || engine_->Submit(late, nullptr)) {
      Break("not idle after the shutdown, or still taking work");
    }
  }

  std::uint64_t Progress() const {
    return executor_->num_launches() + executor_->num_retires() + num_events_;
  }

  void Submit(Client& client) {
    const GenerationRequest& request = client.request;
    const auto prompt_size = static_cast<std::int32_t>(request.prompt.size());
    const std::int32_t room = config_.max_model_len - prompt_size;
    const std::int32_t max_output = std::min(request.sampling.max_tokens, room);
    const std::int32_t worst = prompt_size + std::max(max_output - 1, 0);
    const bool impossible =
        room < (request.sampling.max_tokens > 0 ? 1 : 0) ||
        (worst + config_.block_size_tokens - 1) / config_.block_size_tokens > config_.num_blocks;
    for (std::int32_t c = 0; !impossible && c < request.n; ++c) {
      client.choices.emplace_back().expected = Predict(request, c, config_);
    }
    const auto id = engine_->Submit(request, std::make_shared<Sink>(*this, client));
    if (id) {
      if (impossible || draining_) {
        Break("a request was taken that cannot run or came after the drain began");
      }
      client.id = *id;
      client.submitted = true;
      executor_->SetTenant(*id, TenantOf(request.cache_salt));
      if (client.cancel_after) {
        client.cancel_time = clock_.Now() + *client.cancel_after;
      }
      return;
    }
    client.choices.clear();
    ++report_.num_rejected;
    const ErrorCode expected = impossible  ? ErrorCode::kInvalidArgument
                               : draining_ ? ErrorCode::kUnavailable
                                           : ErrorCode::kLimitExceeded;
    if (id.error().code != expected) {
      Break("refused for the wrong reason: " + id.error().message);
    }
  }

  void SendCancels() {
    for (const auto& client : clients_) {
      if (!client->submitted || client->cancel_sent) {
        continue;
      }
      const bool due =
          (client->cancel_at_token >= 0 && client->num_tokens >= client->cancel_at_token) ||
          (client->cancel_time && *client->cancel_time <= clock_.Now());
      if (due) {
        client->cancel_sent = true;
        client->cancel_step = num_turns_;
        engine_->Cancel(client->id);  // perhaps ended by now: then a no-op
        if (dice_.Chance(0.2)) {
          engine_->Cancel(client->id);
          engine_->Cancel(RequestId{999'999});
        }
      }
    }
  }

  void OnOutput(Client& client, const OutputEvent& event) {
    ++num_events_;
    if (event.request != client.id || event.choice < 0 || event.choice >= client.request.n) {
      return Break("an event for another request");
    }
    Client::Choice& choice = client.choices[static_cast<std::size_t>(event.choice)];
    const SamplingParams& params = client.request.sampling;
    if (choice.finish) {
      return Break("an event after the terminal one");
    }
    ++choice.num_events;
    const std::vector<SampleResult>& expected = choice.expected.tokens;
    if (params.num_logprobs >= 0 ? event.logprobs.size() != event.tokens.size()
                                 : !event.logprobs.empty()) {
      return Break("logprobs do not match the tokens");
    }
    for (std::size_t i = 0; i < event.tokens.size(); ++i) {
      const std::size_t position = choice.tokens.size();
      if (position >= expected.size()) {
        return Break("more tokens than the reference has");
      }
      if (event.tokens[i] != expected[position].token) {
        return Break(fmt::format("request {} choice {} token {}: {} instead of {}",
                                 Raw(event.request), event.choice, position, Raw(event.tokens[i]),
                                 Raw(expected[position].token)));
      }
      if (params.num_logprobs >= 0 && !Same(event.logprobs[i], expected[position])) {
        return Break("a wrong logprob");
      }
      choice.tokens.push_back(event.tokens[i]);
      ++client.num_tokens;
    }
    choice.text += event.text;
    if (!event.prompt_logprobs.empty()) {
      CheckPromptLogprobs(choice, event, params.first_prompt_logprob);
    }
    if (event.num_output_tokens != std::ssize(choice.tokens)) {
      return Break("num_output_tokens is not what was sent");
    }
    if (event.num_cached_tokens < 0 || event.num_cached_tokens >= event.num_prompt_tokens ||
        (event.num_cached_tokens > 0 &&
         (!config_.enable_prefix_caching ||
          (params.num_prompt_logprobs >= 0 && event.choice == 0 &&
           params.first_prompt_logprob < event.num_prompt_tokens &&
           event.num_cached_tokens >= params.first_prompt_logprob)))) {
      return Break("num_cached_tokens is impossible");
    }
    if (event.finish) {
      choice.finish = event.finish;
      OnFinish(client, choice, event);
    }
  }

  void CheckPromptLogprobs(Client::Choice& choice, const OutputEvent& event, std::int32_t first) {
    ++report_.num_prompt_logprobs;
    if (choice.num_events != 1 || event.choice != 0) {
      return Break("prompt logprobs come once, with the first event of choice 0");
    }
    choice.scores_received = true;
    const std::vector<SampleResult>& expected = choice.expected.prompt_scores;
    if (event.prompt_logprobs.size() != expected.size() + 1) {
      return Break("not one logprob a prompt token");
    }
    for (auto t = static_cast<std::size_t>(first - 1); t < expected.size(); ++t) {
      if (!Same(event.prompt_logprobs[t + 1], expected[t])) {
        return Break(fmt::format("prompt logprob {} is wrong", t + 1));
      }
    }
  }

  void OnFinish(const Client& client, const Client::Choice& choice, const OutputEvent& event) {
    ++report_.num_choices;
    const Expected& expected = choice.expected;
    const bool complete = choice.tokens.size() == expected.tokens.size();
    const SamplingParams& params = client.request.sampling;
    switch (*event.finish) {
      case FinishReason::kStop:
      case FinishReason::kLength: {
        ++(*event.finish == FinishReason::kStop ? report_.num_stopped : report_.num_length);
        report_.num_stop_strings += event.stop_reason.index() == 2 ? 1 : 0;
        if (!complete || *event.finish != expected.finish ||
            event.stop_reason != expected.stop_reason) {
          return Break(fmt::format("ended by {} after {} tokens instead of {} after {}",
                                   Name(*event.finish), choice.tokens.size(), Name(expected.finish),
                                   expected.tokens.size()));
        }
        if (choice.text != expected.text) {
          return Break(fmt::format("text \"{}\" instead of \"{}\"", choice.text, expected.text));
        }
        if (params.num_prompt_logprobs >= 0 && event.choice == 0 && !choice.scores_received) {
          return Break("prompt logprobs are missing");
        }
        return;
      }
      case FinishReason::kCancelled:
        ++report_.num_cancelled;
        if (!client.cancel_sent) {
          return Break("cancelled, but the client is still there");
        }
        break;
      case FinishReason::kDeadline:
        ++report_.num_deadline;
        if (!client.request.deadline || *client.request.deadline > clock_.Now()) {
          return Break("ended before its deadline");
        }
        break;
      case FinishReason::kQueueTimeout:
        ++report_.num_queue_timeout;
        if (!client.request.queue_deadline || *client.request.queue_deadline > clock_.Now()) {
          return Break("ended before its queue deadline");
        }
        if (!choice.tokens.empty() || choice.scores_received) {
          return Break("ended by the queue deadline after it had begun");
        }
        break;
      case FinishReason::kError:
        ++report_.num_failed;
        if (!executor_->violation().empty()) {
          return Break(executor_->violation());
        }
        if (!executor_->failed_requests().contains(Raw(client.id))) {
          return Break("failed although none of its steps did: " + event.error);
        }
        break;
      case FinishReason::kShutdown:
        ++report_.num_shutdown;
        if (!shutting_down_) {
          return Break("shut down without being told");
        }
        break;
      default:
        return Break("an unexpected reason");
    }
    if (complete && params.max_tokens > 0) {
      return Break("all tokens were there, and yet it was aborted");
    }
    if (choice.text != TextOf(choice.tokens, params)) {
      return Break(fmt::format("aborted text \"{}\" instead of \"{}\"", choice.text,
                               TextOf(choice.tokens, params)));
    }
  }

  /// After every step: the engine's own recount, what each plan promised, and what clients may
  /// expect by now.
  void Check() {
    if (!executor_->violation().empty()) {
      return Break(executor_->violation());
    }
    const auto audit = engine_->Audit();
    if (!audit) {
      return Break(audit.error().message);
    }
    const EngineStats stats = engine_->Stats();
    if (stats.num_blocks_free + stats.num_blocks_held + stats.num_blocks_cached +
            stats.num_blocks_fenced !=
        config_.num_blocks) {
      return Break("blocks are lost");
    }
    const auto block_bytes = static_cast<std::uint64_t>(config_.block_bytes);
    if (stats.num_host_blocks_used > stats.num_host_blocks_total ||
        stats.bytes_spilled < executor_->num_spills() * block_bytes ||
        stats.bytes_restored < executor_->num_restores() * block_bytes ||
        stats.host_cache_hits > stats.host_cache_queries) {
      return Break("the use of host memory was counted wrong");
    }
    std::int64_t num_live = 0;
    for (const auto& client : clients_) {
      num_live += std::ranges::count_if(
          client->choices, [&](const Client::Choice& c) { return client->submitted && !c.finish; });
    }
    if (stats.num_requests_running + stats.num_requests_waiting != num_live) {
      return Break("running and waiting requests were counted wrong");
    }
    report_.num_fenced += stats.num_blocks_fenced > 0 ? 1 : 0;
    report_.num_preemptions = stats.num_preemptions;
    report_.num_prefix_hits = stats.prefix_cache_hits;
    for (const auto& client : clients_) {
      if (!client->submitted || client->Ended()) {
        continue;
      }
      if (client->cancel_sent && num_turns_ >= client->cancel_step + 2) {
        return Break("still alive two steps after its cancel");
      }
      if (executor_->failed_requests().contains(Raw(client->id))) {
        return Break("still alive after its step failed");
      }
    }
  }

  void CheckIdle() {
    std::uint64_t num_finished = 0;
    const EngineStats stats = engine_->Stats();
    for (const std::uint64_t count : stats.finished) {
      num_finished += count;
    }
    std::uint64_t num_choices = 0;
    for (const auto& client : clients_) {
      num_choices += client->choices.size();
      if (!client->Ended()) {
        return Break("a choice never ended");
      }
    }
    if (num_finished != num_choices) {
      return Break("finished requests were counted wrong");
    }
    if (stats.num_requests_running != 0 || stats.num_requests_waiting != 0 ||
        stats.num_blocks_held != 0 || stats.num_blocks_fenced != 0) {
      return Break("idle, but something is still held");
    }
  }

  const Options options_;
  Dice dice_;
  VirtualClock clock_;
  EngineConfig config_;
  std::unique_ptr<FakeExecutor> executor_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::unique_ptr<Engine> engine_;  // goes before what it uses
  std::int32_t drain_at_ = 0;
  std::uint64_t shut_down_at_ = 0;  // turn; 0: never
  bool draining_ = false;
  bool shutting_down_ = false;
  std::uint64_t num_turns_ = 0;
  std::uint64_t num_events_ = 0;
  Report report_;
};

}  // namespace

void Report::Add(const Report& other) {
  num_steps += other.num_steps;
  virtual_seconds += other.virtual_seconds;
  num_choices += other.num_choices;
  num_stopped += other.num_stopped;
  num_length += other.num_length;
  num_cancelled += other.num_cancelled;
  num_deadline += other.num_deadline;
  num_queue_timeout += other.num_queue_timeout;
  num_failed += other.num_failed;
  num_rejected += other.num_rejected;
  num_shutdown += other.num_shutdown;
  num_preemptions += other.num_preemptions;
  num_prefix_hits += other.num_prefix_hits;
  num_lookaheads += other.num_lookaheads;
  num_fenced += other.num_fenced;
  num_prompt_logprobs += other.num_prompt_logprobs;
  num_stop_strings += other.num_stop_strings;
  num_spills += other.num_spills;
  num_restores += other.num_restores;
}

Report Simulate(const Options& options) { return World(options).Run(); }

}  // namespace nibble::sim
