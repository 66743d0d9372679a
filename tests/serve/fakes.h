#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/text.h"
#include "engine/engine.h"
#include "tests/serve/fake_text.h"

namespace nibble::testing {

inline float FakeLogprob(TokenId id) { return -0.1F * static_cast<float>(1 + Raw(id) % 5); }

inline TokenLogprob FakeScore(TokenId id, int top) {
  TokenLogprob score{.token = id, .logprob = FakeLogprob(id), .rank = 2, .top = {}};
  for (int k = 0; k < top; ++k) {
    score.top.emplace_back(static_cast<TokenId>('A' + k), -0.05F - 0.01F * static_cast<float>(k));
  }
  return score;
}

/// An engine that says what its script says, one token a step and choice, then its end token. Its
/// own thread plays the engine thread.
class FakeEngine final : public Engine {
 public:
  using Script = std::function<std::string(const GenerationRequest&)>;

  explicit FakeEngine(Script script = [](const GenerationRequest&) { return "hello"; })
      : script_(std::move(script)) {
    config_.vocab_size = kFakeVocab;
    config_.max_model_len = 256;
    config_.eos_token_ids = {kEnd};
    thread_ = std::jthread([this](std::stop_token stop) { RunLoop(stop); });
  }
  ~FakeEngine() override {
    thread_.request_stop();
    thread_.join();
  }

  Result<RequestId> Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) override {
    const std::lock_guard lock(mutex_);
    if (draining_) {
      return Fail(ErrorCode::kUnavailable, "draining");
    }
    if (static_cast<int>(active_.size()) >= max_requests) {
      return Fail(ErrorCode::kLimitExceeded, "the queue is full");
    }
    const auto id = static_cast<RequestId>(++last_id_);
    last_request = request;
    Active active{.request = std::move(request), .sink = std::move(sink), .choices = {}};
    const std::string text = script_(active.request);
    for (int i = 0; i < active.request.n; ++i) {
      active.choices.push_back({.left = text});
    }
    active_.emplace(id, std::move(active));
    ++num_submitted;
    return id;
  }
  void Cancel(RequestId request) override {
    const std::lock_guard lock(mutex_);
    const auto found = active_.find(request);
    if (found != active_.end()) {
      active_.erase(found);
      ++num_cancelled;
    }
  }
  bool Step() override {
    const std::lock_guard lock(mutex_);
    if (paused) {
      return false;
    }
    for (auto it = active_.begin(); it != active_.end();) {
      bool open = false;
      for (std::size_t c = 0; c < it->second.choices.size(); ++c) {
        open = StepChoice(it->first, it->second, static_cast<std::int32_t>(c)) || open;
      }
      it = open ? std::next(it) : active_.erase(it);
    }
    ++num_steps_;
    return true;
  }
  void RunLoop(std::stop_token stop) override {
    while (!stop.stop_requested()) {
      Step();
      std::this_thread::sleep_for(step_time.load());
    }
  }
  void StartDraining() override { draining_ = true; }
  bool idle() const override {
    const std::lock_guard lock(mutex_);
    return active_.empty();
  }
  EngineStats Stats() const override {
    const std::lock_guard lock(mutex_);
    EngineStats stats;
    stats.num_requests_running = static_cast<std::int32_t>(active_.size());
    stats.num_steps = num_steps_;
    stats.num_preemptions = 7;
    stats.device_failure = device_failure;
    stats.num_host_blocks_total = 8;
    stats.num_host_blocks_used = 2;
    stats.bytes_spilled = 4096;
    stats.bytes_restored = 1024;
    stats.host_cache_hits = 48;
    stats.time_to_first_token_s = {
        .bounds = {0.1, 1.0}, .counts = {2, 1, 1}, .sum = 5.5, .count = 4};
    return stats;
  }
  const EngineConfig& config() const override { return config_; }

  std::atomic<std::chrono::microseconds> step_time{std::chrono::microseconds(500)};
  std::atomic<bool> paused{false};
  std::atomic<int> num_cancelled{0};
  std::atomic<int> num_submitted{0};
  std::atomic<int> max_requests{10'000};
  GenerationRequest last_request;
  std::string device_failure;
  std::string fail_with;  // if set: the first token is kError with this text

 private:
  struct Choice {
    std::string left;
    std::string undecoded{};
    std::int32_t num_output = 0;
    bool done = false;
  };
  struct Active {
    GenerationRequest request;
    std::shared_ptr<OutputSink> sink;
    std::vector<Choice> choices;
  };

  // One token of one choice; false once it has ended.
  bool StepChoice(RequestId id, Active& active, std::int32_t index) {
    Choice& choice = active.choices[static_cast<std::size_t>(index)];
    if (choice.done) {
      return false;
    }
    const SamplingParams& sampling = active.request.sampling;
    OutputEvent event;
    event.request = id;
    event.choice = index;
    event.num_prompt_tokens = static_cast<std::int32_t>(active.request.prompt.size());
    if (choice.num_output == 0 && index == 0 && sampling.num_prompt_logprobs >= 0) {
      for (const TokenId token : active.request.prompt) {
        event.prompt_logprobs.push_back(FakeScore(token, sampling.num_prompt_logprobs));
      }
    }
    if (!fail_with.empty()) {
      event.finish = FinishReason::kError;
      event.error = fail_with;
    } else if (sampling.max_tokens == 0) {
      event.finish = FinishReason::kLength;
    } else {
      TokenId token = kEnd;
      if (choice.left.empty()) {
        event.finish = FinishReason::kStop;
      } else {
        token = static_cast<TokenId>(static_cast<unsigned char>(choice.left.front()));
        choice.undecoded += choice.left.front();
        choice.left.erase(0, 1);
        if (IsUtf8(choice.undecoded)) {
          event.text = std::exchange(choice.undecoded, {});
        }
      }
      event.tokens = {token};
      event.num_output_tokens = ++choice.num_output;
      if (sampling.num_logprobs >= 0) {
        event.logprobs = {FakeScore(token, sampling.num_logprobs)};
      }
      if (!event.finish && choice.num_output >= sampling.max_tokens) {
        event.finish = FinishReason::kLength;
      }
    }
    choice.done = event.finish.has_value();
    active.sink->OnOutput(std::move(event));
    return !choice.done;
  }

  EngineConfig config_;
  Script script_;
  mutable std::mutex mutex_;
  std::map<RequestId, Active> active_;
  std::uint64_t last_id_ = 0;
  std::uint64_t num_steps_ = 0;
  std::atomic<bool> draining_{false};
  std::jthread thread_;
};

}  // namespace nibble::testing
