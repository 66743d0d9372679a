#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "engine/engine.h"
#include "engine/model_runner.h"

namespace nibble {

constexpr std::int32_t kNumPrompts = 6;
constexpr std::int32_t kPromptTokens = 150;
constexpr std::int32_t kOutputTokens = 12;

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::int32_t num_cached = 0;
  bool operator==(const Answer&) const = default;
};

class Collector final : public OutputSink {
 public:
  explicit Collector(Answer& answer) : answer_(answer) {}
  void OnOutput(OutputEvent event) override {
    for (std::size_t i = 0; i < event.tokens.size(); ++i) {
      answer_.tokens.push_back(event.tokens[i]);
      answer_.logprobs.push_back(event.logprobs[i].logprob);
    }
    answer_.num_cached = event.num_cached_tokens;
    EXPECT_EQ(event.error, "");
  }

 private:
  Answer& answer_;
};

/// A model behind an engine, and prompts of its own.
class Service {
 public:
  struct Options {
    std::filesystem::path model =
        std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3";
    std::int32_t num_blocks = 200;  // of the pool: as many as the prompts need twice over
    std::uint64_t spill_bytes = 0;
    std::uint64_t cpu_offload_bytes = 0;
  };
  Service(std::unique_ptr<Device> device, const Options& options) : device_(std::move(device)) {
    checkpoint_ = std::move(*Checkpoint::Open(options.model.string()));
    auto runner = ModelRunner::Create(
        *checkpoint_,
        {.max_num_sequences = kNumPrompts,
         .max_batched_tokens = 64,
         .max_model_len = 256,
         .kv_dtype = device_->kind() == DeviceKind::kCpu ? KvDType::kBF16 : KvDType::kF16,
         .num_blocks_override = options.num_blocks,
         .kv_spill_bytes = options.spill_bytes,
         .cpu_offload_bytes = options.cpu_offload_bytes},
        *device_);
    EXPECT_TRUE(runner) << runner.error().message;
    runner_ = std::move(*runner);
    auto engine =
        Engine::Create({.max_num_sequences = kNumPrompts,
                        .max_batched_tokens = 64,
                        .max_model_len = 256,
                        .block_size_tokens = runner_->block_size_tokens(),
                        .num_blocks = static_cast<std::int32_t>(runner_->num_blocks()),
                        .num_host_blocks = static_cast<std::int32_t>(runner_->num_host_blocks()),
                        .block_bytes = runner_->block_bytes(),
                        .vocab_size = runner_->vocab_size()},
                       *runner_, static_cast<const Tokenizer*>(nullptr), SystemClock());
    EXPECT_TRUE(engine) << engine.error().message;
    engine_ = std::move(*engine);
    device_->ledger().Seal();
  }

  void Submit(std::int32_t prompt, std::int32_t num_output, Answer& answer) {
    GenerationRequest request;
    for (std::int32_t i = 0; i < kPromptTokens; ++i) {
      request.prompt.push_back(TokenId{4 + (i * i * 7 + i * prompt * 11 + prompt) % 250});
    }
    request.sampling.max_tokens = num_output;
    request.sampling.temperature = 0.0F;
    request.sampling.num_logprobs = 1;
    request.sampling.ignore_eos = true;
    const auto id = engine_->Submit(request, std::make_shared<Collector>(answer));
    EXPECT_TRUE(id) << id.error().message;
  }
  void RunDry() {
    while (engine_->Step()) {
      const auto audit = engine_->Audit();
      ASSERT_TRUE(audit) << audit.error().message;
    }
  }

  /// Every prompt, `rounds` times over, one after the other.
  std::vector<Answer> OneByOne(int rounds) {
    std::vector<Answer> answers(static_cast<std::size_t>(rounds * kNumPrompts));
    for (std::size_t i = 0; i < answers.size(); ++i) {
      Submit(static_cast<std::int32_t>(i) % kNumPrompts, kOutputTokens, answers[i]);
      RunDry();
    }
    return answers;
  }
  std::vector<Answer> Together(std::int32_t num_output) {
    std::vector<Answer> answers(kNumPrompts);
    for (std::int32_t i = 0; i < kNumPrompts; ++i) {
      Submit(i, num_output, answers[static_cast<std::size_t>(i)]);
    }
    RunDry();
    return answers;
  }

  EngineStats stats() const { return engine_->Stats(); }
  std::int32_t BlocksFor(std::int32_t num_tokens) const {
    return (num_tokens + runner_->block_size_tokens() - 1) / runner_->block_size_tokens();
  }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace nibble
