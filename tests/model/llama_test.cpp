#include "model/llama.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/isa.h"
#include "tests/model/golden_runner.h"

namespace nibble {
namespace {

double MeanKl(const std::vector<float>& truth, const std::vector<float>& found,
              std::int64_t vocab) {
  const auto width = static_cast<std::size_t>(vocab);
  double total = 0;
  for (std::size_t row = 0; row < truth.size(); row += width) {
    const auto norm = [&](const std::vector<float>& logits) {
      double sum = 0;
      for (std::size_t i = 0; i < width; ++i) {
        sum += std::exp(static_cast<double>(logits[row + i]));
      }
      return std::log(sum);
    };
    const double p_norm = norm(truth);
    const double q_norm = norm(found);
    for (std::size_t i = 0; i < width; ++i) {
      const double p = static_cast<double>(truth[row + i]) - p_norm;
      total += std::exp(p) * (p - static_cast<double>(found[row + i]) + q_norm);
    }
  }
  return total / (static_cast<double>(truth.size()) / static_cast<double>(width));
}

struct Bounds {
  double kl = 1e-5;     // mean over positions
  float worst = 1e-4F;  // of the largest magnitude of any logit
};

bool HasIntegerWeights(std::string_view model) { return model.starts_with("ct_"); }

void ExpectGolden(const std::string& name, KvDType kv_dtype, std::string_view logits,
                  const Bounds& bounds) {
  const Expected expected = ReadExpected(name, logits);
  ASSERT_GT(expected.ids.size(), 10U);
  Runner runner(name, 2, ActivationMode::kInt16, kv_dtype);
  const std::vector<float> found = runner.Logits(expected.ids, 64);
  ASSERT_EQ(found.size(), expected.logits.size());
  float scale = 0.0F;
  float worst = 0.0F;
  for (std::size_t i = 0; i < found.size(); ++i) {
    scale = std::max(scale, std::fabs(expected.logits[i]));
    worst = std::max(worst, std::fabs(found[i] - expected.logits[i]));
  }
  const double kl = MeanKl(expected.logits, found, expected.vocab);
  testing::Test::RecordProperty("kl", fmt::format("{:.2e}", kl));
  testing::Test::RecordProperty("worst", fmt::format("{:.2e}", worst / scale));
  EXPECT_LE(kl, bounds.kl) << name;
  EXPECT_LE(worst, bounds.worst * scale) << name;
}

class GoldenModel : public testing::TestWithParam<const char*> {};

// Through an fp32 cache nothing but the activations of integer weights is rounded: KL as with fp32
// products, single logits a little further off.
TEST_P(GoldenModel, LogitsEqualTheReferenceImplementations) {
  ExpectGolden(
      GetParam(), KvDType::kF32, "logits",
      HasIntegerWeights(GetParam()) ? Bounds{.worst = 5e-4F} : Bounds{.kl = 1e-10, .worst = 1e-5F});
}

// The default cache, and a reference that rounds keys and values as it does. Where int16
// activations move a key or value across the edge of a rounding, it lands a whole step (2^-8) away.
TEST_P(GoldenModel, LogitsThroughABF16CacheDifferByItsRoundingsAlone) {
  ExpectGolden(GetParam(), KvDType::kBF16, "logits_kv_bf16",
               HasIntegerWeights(GetParam()) ? Bounds{.kl = 1e-4, .worst = 1e-2F} : Bounds{});
}

TEST_P(GoldenModel, ChunksThreadsAndIsaDoNotChangeABit) {
  const Expected expected = ReadExpected(GetParam());
  Runner one(GetParam(), 1, ActivationMode::kInt8);
  const std::vector<float> whole = one.Logits(expected.ids, 64);
  EXPECT_EQ(one.Logits(expected.ids, 7), whole);
  EXPECT_EQ(one.Logits(expected.ids, 1), whole);
  Runner two(GetParam(), 2, ActivationMode::kInt8);
  EXPECT_EQ(two.Logits(expected.ids, 64), whole);
  Runner five(GetParam(), 5, ActivationMode::kInt8);
  EXPECT_EQ(five.Logits(expected.ids, 13), whole);
  const Isa best = CurrentIsa();
  for (const Isa isa : {Isa::kRef, Isa::kAvx2}) {
    if (ForceIsa(isa)) {
      EXPECT_EQ(one.Logits(expected.ids, 64), whole) << Name(isa);
      ForceIsa(best);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, GoldenModel,
                         testing::Values("llama2", "llama3", "mistral", "mistral_window", "qwen2",
                                         "qwen3", "llama_bias", "llama_bias_sharded", "llama2_bf16",
                                         "rope_linear", "rope_yarn", "ct_int4_sym_g32",
                                         "ct_int4_asym_g32", "ct_int8_channel", "gemma3",
                                         "gemma3_legacy"),
                         [](const auto& param) { return std::string(param.param); });

TEST(LlamaModel, ObserverSeesTheInputOfEveryLinearInOrder) {
  Runner runner("llama3", 1, ActivationMode::kInt16);
  const std::vector<TokenId> ids = {TokenId{1}, TokenId{2}, TokenId{3}};
  const AttentionSequence sequence{.num_rows = 3, .block_table = runner.table().data()};
  std::vector<std::string> seen;
  const LinearObserver observer = [&](std::string_view module, const float* x, std::int64_t stride,
                                      std::int64_t rows, std::int64_t width) {
    EXPECT_EQ(rows, 3);
    EXPECT_GE(stride, width);
    EXPECT_TRUE(std::isfinite(x[2 * stride + width - 1]));
    seen.emplace_back(module);
  };
  runner.model().Forward({.token_ids = ids, .sequences = {&sequence, 1}}, runner.cache(),
                         &observer);
  const auto layers = static_cast<std::size_t>(runner.model().config().num_layers);
  ASSERT_EQ(seen.size(), 7 * layers);
  EXPECT_EQ(seen[0], "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(seen[6], "model.layers.0.mlp.down_proj");
}

class LlamaModelBlocks : public testing::TestWithParam<const char*> {};

TEST_P(LlamaModelBlocks, RunAloneGiveTheWholeForward) {
  Runner runner(GetParam(), 2, ActivationMode::kInt16);
  const std::vector<TokenId> ids = {TokenId{5}, TokenId{6}, TokenId{7}, TokenId{8}};
  const AttentionSequence sequence{.num_rows = 4, .block_table = runner.table().data()};
  const ForwardBatch batch{.token_ids = ids, .sequences = {&sequence, 1}};
  // Inputs of every block's q projection before and after: equal if the residual stream is.
  const auto inputs = [&](auto&& run) {
    std::vector<std::vector<float>> out;
    const LinearObserver observer = [&](std::string_view module, const float* x,
                                        std::int64_t stride, std::int64_t rows,
                                        std::int64_t width) {
      if (module.ends_with("down_proj")) {
        for (std::int64_t row = 0; row < rows; ++row) {
          out.emplace_back(x + row * stride, x + row * stride + width);
        }
      }
    };
    run(&observer);
    return out;
  };
  std::vector<float> hidden;
  const auto whole = inputs([&](const LinearObserver* observer) {
    runner.model().Forward(batch, runner.cache(), observer);
  });
  // The embedding rows are what a block-wise walk starts from.
  hidden.resize(static_cast<std::size_t>(4 * runner.model().config().hidden_size));
  runner.model().Embed(ids, hidden.data());
  const auto apart = inputs([&](const LinearObserver* observer) {
    for (std::int64_t layer = 0; layer < runner.model().config().num_layers; ++layer) {
      runner.model().ForwardBlock(layer, hidden.data(), batch, runner.cache(), observer);
    }
  });
  EXPECT_EQ(whole, apart);
}

INSTANTIATE_TEST_SUITE_P(Models, LlamaModelBlocks, testing::Values("qwen3", "gemma3"));

TEST(LlamaModel, StepsOfABlockRunAloneGiveTheWholeBlock) {
  for (const char* name : {"qwen3", "llama_bias", "gemma3"}) {
    Runner runner(name, 2, ActivationMode::kInt16);
    LlamaModel& model = runner.model();
    const std::vector<TokenId> ids = {TokenId{5}, TokenId{6}, TokenId{7}, TokenId{8}};
    const AttentionSequence sequence{.num_rows = 4, .block_table = runner.table().data()};
    const ForwardBatch batch{.token_ids = ids, .sequences = {&sequence, 1}};
    const ModelConfig& config = model.config();
    const auto floats = [](std::int64_t width) {
      return std::vector<float>(static_cast<std::size_t>(4 * width));
    };
    auto whole = floats(config.hidden_size), steps = whole, x = whole;
    auto attention = floats(config.num_heads * config.head_dim);
    auto product = floats(config.intermediate_size);
    model.Embed(ids, whole.data());
    steps = whole;
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      model.ForwardBlock(layer, whole.data(), batch, runner.cache());
      model.AttentionInput(layer, steps.data(), 4, x.data());
      model.AttentionOutput(layer, x.data(), batch, runner.cache(), attention.data());
      model.AddAttention(layer, attention.data(), 4, steps.data());
      model.FeedForwardInput(layer, steps.data(), 4, x.data());
      model.FeedForwardProduct(layer, x.data(), 4, product.data());
      model.AddFeedForward(layer, product.data(), 4, steps.data());
      EXPECT_EQ(steps, whole) << name << ", layer " << layer;
    }
  }
}

}  // namespace
}  // namespace nibble
