// KV blocks in host memory, with a real model: what comes back is what left.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "engine/engine.h"
#include "engine/model_runner.h"

namespace nibble {
namespace {

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

/// The tiny llama3 behind an engine.
class Service {
 public:
  /// num_blocks: of the pool; 0: as many as the prompts need twice over.
  Service(std::unique_ptr<Device> device, std::int32_t num_blocks, std::uint64_t spill_bytes)
      : device_(std::move(device)) {
    const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3";
    checkpoint_ = std::move(*Checkpoint::Open(path.string()));
    auto runner = ModelRunner::Create(
        *checkpoint_,
        {.max_num_sequences = kNumPrompts,
         .max_batched_tokens = 64,
         .max_model_len = 256,
         .kv_dtype = device_->kind() == DeviceKind::kCpu ? KvDType::kBF16 : KvDType::kF16,
         .num_blocks_override = num_blocks > 0 ? num_blocks : 200,
         .kv_spill_bytes = spill_bytes},
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

/// A CPU device always; a CUDA device where there is one.
class KvSpill : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::kCuda) {
      if (const auto device = MakeCudaDevice(0, 2); !device) {
        GTEST_SKIP() << device.error().message;
      }
    }
  }
  static std::unique_ptr<Device> MakeDevice() {
    return GetParam() == DeviceKind::kCpu ? MakeCpuDevice(2) : std::move(*MakeCudaDevice(0, 2));
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, KvSpill, testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& which) {
                           return which.param == DeviceKind::kCpu ? "Cpu" : "Cuda";
                         });

TEST_P(KvSpill, WhatComesBackFromHostMemoryIsAsGoodAsWhatStayed) {
  Service large(MakeDevice(), 0, 0);
  const std::vector<Answer> expected = large.OneByOne(3);
  ASSERT_EQ(large.stats().bytes_spilled, 0U);
  EXPECT_GT(expected.back().num_cached, kPromptTokens / 2);

  // A pool for one sequence: every prompt evicts the one before.
  const std::int32_t one = large.BlocksFor(kPromptTokens + kOutputTokens);
  Service small(MakeDevice(), one, std::uint64_t{4} << 20);
  EXPECT_EQ(small.OneByOne(3), expected);
  const EngineStats stats = small.stats();
  EXPECT_GT(stats.bytes_restored, 0U);
  EXPECT_GT(stats.host_cache_hits, 0U);
  EXPECT_GT(stats.num_host_blocks_used, 0);
  EXPECT_EQ(stats.num_blocks_held, 0);
  // What left once stays in host memory: later rounds copy only what is new, their outputs' blocks.
  EXPECT_GT(stats.bytes_restored, stats.bytes_spilled);

  Service forgetful(MakeDevice(), one, 0);
  EXPECT_EQ(forgetful.OneByOne(2).back().num_cached, 0);
}

TEST_P(KvSpill, CompanyChangesNothing) {
  Service service(MakeDevice(), 0, 0);
  const std::vector<Answer> alone = service.OneByOne(1);
  const std::vector<Answer> together = service.Together(kOutputTokens);
  for (std::size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].tokens, together[i].tokens);
    EXPECT_EQ(alone[i].logprobs, together[i].logprobs);
  }
}

TEST_P(KvSpill, PreemptedSequencesComeBackFromHostMemory) {
  Service large(MakeDevice(), 0, 0);
  const std::vector<Answer> expected = large.Together(100);
  // Room for two sequences at their beginning but not at their end.
  const std::int32_t one = large.BlocksFor(kPromptTokens + 100);
  const std::int32_t two = 2 * one - one / 4;
  Service small(MakeDevice(), two, std::uint64_t{4} << 20);
  const std::vector<Answer> answers = small.Together(100);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i].tokens, expected[i].tokens);
    EXPECT_EQ(answers[i].logprobs, expected[i].logprobs);
  }
  EXPECT_GT(small.stats().num_preemptions, 0U);
  if (GetParam() == DeviceKind::kCpu) {  // of blocks of 64 tokens, none is evicted meanwhile
    EXPECT_GT(small.stats().bytes_restored, 0U);
  }
}

}  // namespace
}  // namespace nibble
