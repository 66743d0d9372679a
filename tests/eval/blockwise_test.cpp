#include "eval/blockwise.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "engine/model_runner.h"

namespace nibble {
namespace {

std::unique_ptr<Checkpoint> Open(const std::string& name) {
  const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
  auto checkpoint = Checkpoint::Open(path.string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  return checkpoint ? std::move(*checkpoint) : nullptr;
}

std::vector<TokenId> SomeTokens(int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(TokenId{(i * 37 + 11) % 97});
  }
  return tokens;
}

// What the walk must reproduce: whole models, one activation mode after the other.
struct Whole {
  QualityReport report;
  std::vector<float> prompt_logits;
};
Whole RunWhole(const Checkpoint& model, const Checkpoint& reference, ActivationMode mode,
               std::span<const TokenId> tokens, std::span<const TokenId> prompt,
               const WindowOptions& options) {
  const auto device = MakeCpuDevice(2);
  const auto reference_device = MakeCpuDevice(1);
  const RunnerConfig config{.max_num_sequences = 1, .max_batched_tokens = 64, .max_model_len = 64};
  auto runner = ModelRunner::Create(model, config, *device);
  auto reference_runner = ModelRunner::Create(reference, config, *reference_device);
  EXPECT_TRUE(runner && reference_runner);
  (*runner)->model().SetActivations(mode);
  const auto report = EvaluateText(**runner, reference_runner->get(), tokens, options);
  EXPECT_TRUE(report) << report.error().message;
  Whole out{.report = *report, .prompt_logits = {}};
  EXPECT_TRUE((*runner)->RunWindow(prompt, [&](std::int64_t, std::int64_t rows) -> Result<void> {
    NIBBLE_TRY(logits, (*runner)->ChunkLogits(rows - 1, 1));
    out.prompt_logits.assign(logits, logits + (*runner)->vocab_size());
    return {};
  }));
  return out;
}

class Blockwise : public testing::TestWithParam<const char*> {};

TEST_P(Blockwise, GivesTheNumbersOfWholeModelsToTheBit) {
  const auto checkpoint = Open(GetParam());
  ASSERT_NE(checkpoint, nullptr);
  const std::vector<TokenId> tokens = SomeTokens(250);
  const auto prompt = std::span(tokens).first(16);
  const WindowOptions options{.context = 48};
  const auto device = MakeCpuDevice(2);
  const auto quality =
      EvaluateBlockwise(*checkpoint, *checkpoint, *device, tokens, prompt, options);
  ASSERT_TRUE(quality) << quality.error().message;
  EXPECT_EQ(quality->int16.num_windows, 5);
  for (const ActivationMode mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
    const bool int8 = mode == ActivationMode::kInt8;
    const Whole whole = RunWhole(*checkpoint, *checkpoint, mode, tokens, prompt, options);
    const QualityReport& walked = int8 ? quality->int8 : quality->int16;
    EXPECT_EQ(walked.perplexity, whole.report.perplexity);
    EXPECT_EQ(walked.reference_perplexity, whole.report.reference_perplexity);
    EXPECT_EQ(walked.kl_mean, whole.report.kl_mean);
    EXPECT_EQ(walked.kl_p99, whole.report.kl_p99);
    EXPECT_EQ(walked.top1, whole.report.top1);
    EXPECT_EQ(int8 ? quality->prompt_logits_int8 : quality->prompt_logits_int16,
              whole.prompt_logits);
  }
  const auto alone = EvaluateAlone(*checkpoint, *device, tokens, options);
  ASSERT_TRUE(alone) << alone.error().message;
  EXPECT_EQ(alone->perplexity, quality->int16.perplexity);
  EXPECT_EQ(alone->kl_mean, 0.0);
}

INSTANTIATE_TEST_SUITE_P(Models, Blockwise,
                         testing::Values("llama3", "llama2", "qwen3", "ct_int4_sym_g32", "gemma3"));

TEST(Blockwise, StopsWhenAskedAndRefusesModelsOfDifferentShapes) {
  const auto checkpoint = Open("llama3");
  const auto other = Open("qwen3");
  ASSERT_TRUE(checkpoint != nullptr && other != nullptr);
  const std::vector<TokenId> tokens = SomeTokens(100);
  const auto device = MakeCpuDevice(1);
  const auto stopped =
      EvaluateBlockwise(*checkpoint, *checkpoint, *device, tokens, {}, {.context = 48},
                        [](std::uint64_t, std::uint64_t, const std::string&) { return false; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_FALSE(EvaluateBlockwise(*checkpoint, *other, *device, tokens, {}, {.context = 48}));
}

}  // namespace
}  // namespace nibble
