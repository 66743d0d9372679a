// Whole models on a card, against the same references as on a CPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "tests/model/golden_runner.h"

namespace nibble {
namespace {

class CudaModel : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto device = MakeCudaDevice(0, 2);
    if (!device) {
      GTEST_SKIP() << device.error().message;
    }
    device_ = std::move(*device);
    auto checkpoint = Checkpoint::Open((Golden() / GetParam()).string());
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    auto runner = ModelRunner::Create(*checkpoint_,
                                      {.max_num_sequences = 4,
                                       .max_batched_tokens = 64,
                                       .max_model_len = 128,
                                       .kv_dtype = KvDType::kF16,
                                       .tables = TableFormat::kAsStored,
                                       .num_blocks_override = 4},
                                      *device_);
    ASSERT_TRUE(runner) << runner.error().message;
    runner_ = std::move(*runner);
  }

  /// Logits of all positions, the sequence cut in chunks of this size.
  std::vector<float> Logits(std::span<const TokenId> ids, std::int64_t chunk) {
    std::vector<float> out;
    const auto length = static_cast<std::int64_t>(ids.size());
    for (std::int64_t first = 0; first < length; first += chunk) {
      const std::int64_t rows = std::min(chunk, length - first);
      const auto ran = runner_->RunChunk(ids, first, rows);
      EXPECT_TRUE(ran) << ran.error().message;
      const auto logits = runner_->ChunkLogits(0, rows);
      EXPECT_TRUE(logits) << logits.error().message;
      out.insert(out.end(), *logits, *logits + rows * runner_->vocab_size());
    }
    return out;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ModelRunner> runner_;
};

// Operands and the cache are fp16 (11 bits), sums fp32.
TEST_P(CudaModel, LogitsAreTheReferencesAndDoNotDependOnChunks) {
  const Expected expected = ReadExpected(GetParam());
  const std::vector<float> found = Logits(expected.ids, 64);
  ASSERT_EQ(found.size(), expected.logits.size());
  const auto width = static_cast<std::size_t>(expected.vocab);
  double kl = 0.0;
  float scale = 0.0F;
  float worst = 0.0F;
  for (std::size_t row = 0; row < found.size(); row += width) {
    double p_sum = 0.0;
    double q_sum = 0.0;
    for (std::size_t i = row; i < row + width; ++i) {
      scale = std::max(scale, std::fabs(expected.logits[i]));
      worst = std::max(worst, std::fabs(found[i] - expected.logits[i]));
      p_sum += std::exp(static_cast<double>(expected.logits[i]));
      q_sum += std::exp(static_cast<double>(found[i]));
    }
    for (std::size_t i = row; i < row + width; ++i) {
      const double p = static_cast<double>(expected.logits[i]) - std::log(p_sum);
      kl += std::exp(p) * (p - static_cast<double>(found[i]) + std::log(q_sum));
    }
  }
  kl /= static_cast<double>(found.size()) / static_cast<double>(width);
  RecordProperty("kl", fmt::format("{:.2e}", kl));
  RecordProperty("worst", fmt::format("{:.2e}", worst / scale));
  EXPECT_LE(kl, 5e-5);
  EXPECT_LE(worst, 1e-2F * scale);
  EXPECT_EQ(Logits(expected.ids, 7), found);
  EXPECT_EQ(Logits(expected.ids, 2), found);
  EXPECT_EQ(Logits(expected.ids, 1), found);
}

INSTANTIATE_TEST_SUITE_P(Architectures, CudaModel,
                         testing::Values("llama2", "llama3", "mistral", "mistral_window", "qwen2",
                                         "qwen3", "llama_bias", "llama2_bf16", "rope_linear",
                                         "rope_yarn", "ct_int4_sym_g32", "ct_int4_asym_g32",
                                         "ct_int8_channel"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace nibble
