// Weights in host memory (docs/cpu_offload.md): the same bits as with all weights on the card.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/model_runner.h"
#include "kernels/weight_stream.h"
#include "tests/engine/service.h"
#include "tests/io/temp_folder.h"
#include "tests/model/deep_gguf.h"

namespace nibble {
namespace {

constexpr std::uint32_t kF32 = DeepGguf::kF32;
constexpr std::uint32_t kQ4 = DeepGguf::kQ4_1;

struct Shape {
  const char* name;
  DeepGguf model;
  std::int64_t num_streamed;  // of the last blocks
};

std::vector<Shape> Shapes() {
  return {
      {"seven_of_seven", {{kQ4, kQ4, kQ4, kQ4, kQ4, kQ4, kQ4}}, 7},  // two of a step's ends meet
      {"four_of_seven", {{kQ4, kQ4, kQ4, kQ4, kQ4, kQ4, kQ4}}, 4},
      {"three_of_four", {{kF32, kF32, kF32, kF32}}, 3},  // one is alone in its slot
      {"uneven", {{kQ4, kF32, kQ4, kQ4, kF32, kQ4}}, 5},
      // Copies of 7 MB: longer than a block of a short step, shorter than one of a long step.
      {"wide", {{kQ4, kQ4, kQ4, kQ4, kQ4, kQ4}, 1024, 2816, 16, 4}, 5},
  };
}

class CudaOffload : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (const auto device = MakeCudaDevice(0, 2); !device) {
      GTEST_SKIP() << device.error().message;
    }
    path_ = folder_.Write("model.gguf", GetParam().model.Build());
    auto checkpoint = Checkpoint::Open(path_.string());
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    const auto device = NewDevice();
    const auto plan = PlanWeights(*checkpoint_, *device, TableFormat::kAuto);
    ASSERT_TRUE(plan) << plan.error().message;
    block_bytes_ = StreamableBytes(*plan, checkpoint_->config());
    offload_bytes_ = MemoryOfBlocks(block_bytes_, GetParam().num_streamed).host_bytes;
  }
  static std::unique_ptr<Device> NewDevice() { return std::move(*MakeCudaDevice(0, 2)); }

  static RunnerConfig Config() {
    return {.max_num_sequences = 4,
            .max_batched_tokens = 256,
            .max_model_len = 512,
            .kv_dtype = KvDType::kF16,
            .num_blocks_override = 8};
  }
  std::unique_ptr<ModelRunner> NewRunner(Device& device, std::uint64_t offload_bytes) const {
    RunnerConfig config = Config();
    config.cpu_offload_bytes = offload_bytes;
    auto runner = ModelRunner::Create(*checkpoint_, config, device);
    EXPECT_TRUE(runner) << runner.error().message;
    return std::move(*runner);
  }

  /// Logits of all positions, the sequence cut in chunks of this size.
  static std::vector<float> Logits(ModelRunner& runner, std::int64_t chunk) {
    std::vector<TokenId> ids(300);
    for (std::int32_t i = 0; i < 300; ++i) {
      ids[static_cast<std::size_t>(i)] = TokenId{2 + (i * i * 7 + i * 11) % 300};
    }
    std::vector<float> out;
    for (std::int64_t first = 0; first < std::ssize(ids); first += chunk) {
      const std::int64_t rows = std::min(chunk, std::ssize(ids) - first);
      const auto ran = runner.RunChunk(ids, first, rows);
      EXPECT_TRUE(ran) << ran.error().message;
      for (std::int64_t row = 0; row < rows; row += runner.max_logit_rows()) {
        const std::int64_t count = std::min(rows - row, runner.max_logit_rows());
        const auto logits = runner.ChunkLogits(row, count);
        EXPECT_TRUE(logits) << logits.error().message;
        out.insert(out.end(), *logits, *logits + count * runner.vocab_size());
      }
    }
    return out;
  }

  Service::Options ServiceOptions(std::uint64_t offload_bytes) const {
    return {.model = path_, .cpu_offload_bytes = offload_bytes};
  }

  testing::TempFolder folder_;
  std::filesystem::path path_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::size_t> block_bytes_;
  std::uint64_t offload_bytes_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Shapes, CudaOffload, ::testing::ValuesIn(Shapes()),
                         [](const auto& param) { return std::string(param.param.name); });

TEST_P(CudaOffload, LogitsAreTheSameBitsInEveryChunking) {
  const auto device = NewDevice();
  const auto plain = NewRunner(*device, 0);
  const std::vector<float> expected = Logits(*plain, 256);
  ASSERT_TRUE(std::ranges::all_of(expected, [](float logit) { return std::isfinite(logit); }));
  ASSERT_GT(*std::ranges::max_element(expected), 0.5F);
  const auto offload_device = NewDevice();
  const auto offloaded = NewRunner(*offload_device, offload_bytes_);
  for (const std::int64_t chunk : {256, 64, 7, 2, 1, 256}) {
    EXPECT_EQ(Logits(*offloaded, chunk), expected) << "chunks of " << chunk;
  }
  // Steps without logits end with the last block; the next one begins in the middle of nothing.
  const std::vector<TokenId> ids(64, TokenId{5});
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(offloaded->RunChunk(ids, 0, 64));
  }
  EXPECT_EQ(Logits(*offloaded, 256), expected);
  EXPECT_TRUE(offload_device->Health());
}

TEST_P(CudaOffload, MemoryIsWhatWasPlanned) {
  const auto device = NewDevice();
  const auto plain = NewRunner(*device, 0);
  const auto offload_device = NewDevice();
  const auto offloaded = NewRunner(*offload_device, offload_bytes_);
  const auto line = [](const Device& of, const std::string& name) {
    for (const MemoryLedger::Line& found : of.ledger().lines()) {
      if (found.name == name) {
        EXPECT_EQ(found.allocated_bytes, found.planned_bytes) << name;
        return found.planned_bytes;
      }
    }
    return std::uint64_t{0};
  };
  EXPECT_EQ(line(*device, "weight slots"), 0U);
  EXPECT_EQ(line(*device, "weights (host)"), 0U);
  EXPECT_EQ(line(*offload_device, "weights (host)"), offload_bytes_);
  const BlockMemory memory = MemoryOfBlocks(block_bytes_, GetParam().num_streamed);
  EXPECT_EQ(line(*device, "weights") - line(*offload_device, "weights") -
                line(*offload_device, "weight slots"),
            MemoryOfBlocks(block_bytes_, 0).device_bytes - memory.device_bytes);
  EXPECT_EQ(plain->streamed_bytes_per_step(), 0U);
  EXPECT_GT(offloaded->streamed_bytes_per_step(), 0U);
  EXPECT_LE(offloaded->streamed_bytes_per_step(), offload_bytes_);
}

// Recorded steps of every class, chunks of prefill between them, sequences alone and together.
TEST_P(CudaOffload, TokensAreTheSameAloneAndTogether) {
  Service plain(NewDevice(), ServiceOptions(0));
  Service offloaded(NewDevice(), ServiceOptions(offload_bytes_));
  EXPECT_EQ(offloaded.OneByOne(2), plain.OneByOne(2));
  EXPECT_EQ(offloaded.Together(kOutputTokens), plain.Together(kOutputTokens));
  EXPECT_EQ(offloaded.Together(60), plain.Together(60));
  EXPECT_EQ(offloaded.stats().num_blocks_held, 0);
}

TEST_P(CudaOffload, PreemptedSequencesGetTheSameTokens) {
  Service plain(NewDevice(), ServiceOptions(0));
  const std::vector<Answer> expected = plain.Together(100);
  Service::Options small = ServiceOptions(offload_bytes_);
  const std::int32_t one = plain.BlocksFor(kPromptTokens + 100);
  small.num_blocks = 2 * one - one / 4;  // two sequences at their beginning, not at their end
  small.spill_bytes = std::uint64_t{8} << 20;
  Service offloaded(NewDevice(), small);
  const std::vector<Answer> answers = offloaded.Together(100);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i].tokens, expected[i].tokens);
    EXPECT_EQ(answers[i].logprobs, expected[i].logprobs);
  }
  EXPECT_GT(offloaded.stats().num_preemptions, 0U);
}

TEST_P(CudaOffload, AModelThatDoesNotFitRunsWithTheAdvisedBytes) {
  // A card that is one block's saving too small for the model.
  const auto device = NewDevice();
  RunnerConfig config = Config();
  config.num_blocks_override.reset();
  config.kv_cache_bytes = 8 * NewRunner(*device, 0)->block_bytes();
  const auto measure = NewDevice();
  std::uint64_t planned = 0;
  config.on_planned = [&](const MemoryBudget&) {
    planned = measure->ledger().planned_bytes(MemoryPlace::kDevice);
  };
  ASSERT_TRUE(ModelRunner::Create(*checkpoint_, config, *measure));
  const std::uint64_t saved = MemoryOfBlocks(block_bytes_, 0).device_bytes -
                              MemoryOfBlocks(block_bytes_, std::ssize(block_bytes_)).device_bytes;
  config.on_planned = {};
  config.budget = MemoryBudget{.is_card = true,
                               .total_bytes = std::uint64_t{64} << 30,
                               .free_bytes = planned - saved / 2 + kUnplannedBytes};
  const auto refusing = NewDevice();
  const auto refused = ModelRunner::Create(*checkpoint_, config, *refusing);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  const std::string& text = refused.error().message;
  const std::string flag = "--cpu-offload-gb ";
  if (const std::size_t at = text.find(flag); at != std::string::npos) {
    const double gib = std::stod(text.substr(at + flag.size()));
    config.cpu_offload_bytes = static_cast<std::uint64_t>(std::ldexp(gib, 30));
    const auto fits = NewDevice();
    const auto runner = ModelRunner::Create(*checkpoint_, config, *fits);
    ASSERT_TRUE(runner) << runner.error().message;
    EXPECT_LE(fits->ledger().planned_bytes(MemoryPlace::kDevice),
              config.budget->free_bytes - kUnplannedBytes);
  } else {
    // Recorded steps in pieces take more than a tiny block saves; a wide one must be worth it.
    EXPECT_NE(std::string(GetParam().name), "wide") << text;
  }
}

}  // namespace
}  // namespace nibble
