// What is decided for a card before weights are read: no card is needed.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "device/cuda_start.h"
#include "engine/model_runner.h"
#include "kernels/step.h"
#include "tests/device/host_card.h"

namespace nibble {
namespace {

using testing::HostCard;

class CardPlan : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!BuiltWithCuda()) {
      GTEST_SKIP() << "this build has no CUDA backend";
    }
  }
  /// How far it comes: the plan, and then at most to the first weight.
  Error Create(const std::string& model, HostCard& card, RunnerConfig config) {
    const auto checkpoint = Checkpoint::Open(
        (std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / model).string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    config.on_planned = [&](const MemoryBudget&) { planned_ = true; };
    const auto runner = ModelRunner::Create(**checkpoint, config, card, {},
                                            [](std::uint64_t, std::uint64_t) { return false; });
    EXPECT_FALSE(runner) << model;
    return runner ? Error{} : runner.error();
  }
  static RunnerConfig Small() {
    return {.max_num_sequences = 4,
            .max_batched_tokens = 64,
            .max_model_len = 128,
            .kv_dtype = KvDType::kF16,
            .num_blocks_override = 4};
  }

  bool planned_ = false;
};

TEST_F(CardPlan, ModelsOfTheLlamaFamilyArePlanned) {
  for (const char* model :
       {"llama2", "llama2_bf16", "llama3", "llama_bias", "mistral", "mistral_window", "qwen2",
        "qwen3", "rope_yarn", "ct_int4_asym_g32", "ct_int4_sym_g32", "ct_int8_channel"}) {
    HostCard card;
    planned_ = false;
    const Error error = Create(model, card, Small());
    EXPECT_TRUE(planned_) << model << ": " << error.message;
  }
}

TEST_F(CardPlan, WhatNoKernelTakesIsRefusedBeforeWithAWayOut) {
  for (const char* model : {"gemma3", "gemma3_legacy"}) {
    HostCard card;
    const Error error = Create(model, card, Small());
    EXPECT_FALSE(planned_) << model;
    EXPECT_EQ(error.code, ErrorCode::kUnsupported) << error.message;
    EXPECT_NE(error.message.find("--device cpu"), std::string::npos) << error.message;
  }
  HostCard card;
  RunnerConfig f32 = Small();
  f32.kv_dtype = KvDType::kF32;
  EXPECT_EQ(Create("llama3", card, f32).code, ErrorCode::kUnsupported);
  EXPECT_FALSE(planned_);
  for (const std::int64_t head_dim : {8, 48, 80, 96, 256}) {
    const auto valid = Validate(KvCacheSpec{.num_layers = 1,
                                            .num_kv_heads = 1,
                                            .head_dim = head_dim,
                                            .dtype = KvDType::kF16,
                                            .block_size_tokens = BlockSizeTokens(card)});
    ASSERT_FALSE(valid) << head_dim;
    EXPECT_NE(valid.error().message.find("--device cpu"), std::string::npos)
        << valid.error().message;
  }
}

TEST_F(CardPlan, MoreHeadsThanATileHasRowsForAreRefused) {
  StepLimits limits{.max_tokens = 65536,
                    .max_sequences = 4096,
                    .max_positions = 1 << 20,
                    .num_heads = 64,
                    .num_kv_heads = 1,
                    .head_dim = 128,
                    .vocab_size = 32000};
  HostCard card;
  EXPECT_TRUE(PlanSteps(card, limits));
  for (const std::int64_t heads : {65, 129, 1024}) {
    limits.num_heads = heads;
    const auto plan = PlanSteps(card, limits);
    ASSERT_FALSE(plan) << heads;
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
  }
}

TEST_F(CardPlan, AModelThatDoesNotFitIsRefusedWithBytesAndAWayOut) {
  HostCard card(std::uint64_t{1} << 20);
  const Error error = Create("llama3", card, Small());
  EXPECT_FALSE(planned_);
  EXPECT_EQ(error.code, ErrorCode::kOutOfMemory) << error.message;
  EXPECT_NE(error.message.find("the model needs "), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("quantize the model"), std::string::npos) << error.message;
}

}  // namespace
}  // namespace nibble
