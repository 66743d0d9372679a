#include "model/llama.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "kernels/isa.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path Golden() { return fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models"; }

struct Expected {
  std::vector<TokenId> ids;
  std::vector<float> logits;  // [ids.size(), vocab]
  std::int64_t vocab = 0;
};

Expected ReadExpected(const std::string& name) {
  Expected out;
  auto file = SafetensorsFile::Open(Golden() / (name + ".expected.safetensors"));
  EXPECT_TRUE(file) << file.error().message;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const TensorView view = (*file)->View(entry);
    if (entry.name == "logits_kv_bf16") {
      out.vocab = entry.shape[entry.shape.rank() - 1];
      out.logits.resize(view.bytes.size() / sizeof(float));
      std::memcpy(out.logits.data(), view.bytes.data(), view.bytes.size());
    } else if (entry.name == "input_ids") {
      const auto count = static_cast<std::size_t>(entry.shape.num_elements());
      for (std::size_t i = 0; i < count; ++i) {
        std::int64_t wide = 0;
        std::int32_t narrow = 0;
        if (view.dtype == DType::kI64) {
          std::memcpy(&wide, view.bytes.data() + 8 * i, 8);
        } else {
          std::memcpy(&narrow, view.bytes.data() + 4 * i, 4);
          wide = narrow;
        }
        out.ids.push_back(TokenId{static_cast<std::int32_t>(wide)});
      }
    }
  }
  return out;
}

// A loaded model with a pool of its own, run over one sequence.
class Runner {
 public:
  Runner(const std::string& name, int threads, ActivationMode mode)
      : device_(MakeCpuDevice(threads)) {
    auto checkpoint = Checkpoint::Open((Golden() / name).string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    const ModelLimits limits{
        .max_tokens = 64, .max_sequences = 4, .max_positions = 128, .max_logit_rows = 64};
    auto plan = PlanWeights(*checkpoint_, *device_, TableFormat::kAsStored);
    EXPECT_TRUE(plan) << plan.error().message;
    auto model = LlamaModel::Load(*checkpoint_, *plan, limits, mode, *device_);
    EXPECT_TRUE(model) << model.error().message;
    model_ = std::move(*model);
    cache_.spec = model_->kv_spec(KvDType::kBF16);
    cache_.num_blocks = 16;
    auto memory = device_->Allocate("kv_cache", cache_.spec.BlockBytes() * 16);
    EXPECT_TRUE(memory);
    memory_ = std::move(*memory);
    cache_.data = memory_.data();
    for (int i = 0; i < 16; ++i) {
      table_.push_back(BlockId{15 - i});  // not in order, as in real life
    }
  }

  // Logits of all positions, the sequence cut in chunks of these sizes.
  std::vector<float> Logits(const std::vector<TokenId>& ids, std::int64_t chunk) {
    std::vector<float> out;
    const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
    for (std::size_t begin = 0; begin < ids.size(); begin += static_cast<std::size_t>(chunk)) {
      const std::size_t count = std::min(ids.size() - begin, static_cast<std::size_t>(chunk));
      const AttentionSequence sequence{.first_row = 0,
                                       .num_rows = static_cast<std::int32_t>(count),
                                       .first_position = static_cast<std::int32_t>(begin),
                                       .block_table = table_.data()};
      model_->Forward(
          {.token_ids = std::span(ids).subspan(begin, count), .sequences = {&sequence, 1}}, cache_);
      std::vector<std::int32_t> rows(count);
      for (std::size_t i = 0; i < count; ++i) {
        rows[i] = static_cast<std::int32_t>(i);
      }
      std::vector<float> logits(count * vocab);
      model_->Logits(rows, logits.data());
      out.insert(out.end(), logits.begin(), logits.end());
    }
    return out;
  }
  LlamaModel& model() { return *model_; }
  KvCache& cache() { return cache_; }
  const std::vector<BlockId>& table() const { return table_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<LlamaModel> model_;
  DeviceBuffer memory_;
  KvCache cache_;
  std::vector<BlockId> table_;
};

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

// Everything the KV cache rounds to bf16 is in these bounds, too: the reference keeps fp32 keys and
// values.
class GoldenModel : public testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, LogitsEqualTheReferenceImplementations) {
  const Expected expected = ReadExpected(GetParam());
  ASSERT_GT(expected.ids.size(), 10U);
  Runner runner(GetParam(), 2, ActivationMode::kInt16);
  const std::vector<float> found = runner.Logits(expected.ids, 64);
  ASSERT_EQ(found.size(), expected.logits.size());
  float scale = 0.0F;
  float worst = 0.0F;
  for (std::size_t i = 0; i < found.size(); ++i) {
    scale = std::max(scale, std::fabs(expected.logits[i]));
    worst = std::max(worst, std::fabs(found[i] - expected.logits[i]));
  }
  const double kl = MeanKl(expected.logits, found, expected.vocab);
  RecordProperty("kl", std::to_string(kl));
  RecordProperty("worst", std::to_string(worst / scale));
  // The quantized goldens have fp32 scales, which packing rounds to 11 bits
  // (docs/formats/packed_weight.md).
  const bool exact_scales = std::string_view(GetParam()).substr(0, 3) != "ct_";
  EXPECT_LE(kl, exact_scales ? 1e-5 : 5e-4) << GetParam();
  EXPECT_LE(worst, (exact_scales ? 1e-4F : 0.02F) * scale) << GetParam();
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
                                         "ct_int4_asym_g32", "ct_int8_channel"),
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

TEST(LlamaModel, BlocksRunAloneGiveTheWholeForward) {
  Runner runner("qwen3", 2, ActivationMode::kInt16);
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

}  // namespace
}  // namespace nibble
