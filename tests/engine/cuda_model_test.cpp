// Whole models on a card, against the same references as on a CPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "io/safetensors.h"
#include "tests/io/temp_folder.h"
#include "tests/model/golden_runner.h"

namespace nibble {
namespace {

class CudaModel : public ::testing::TestWithParam<const char*> {
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

/// A golden model with k_scale and v_scale tensors beside its weights.
void AddKvScales(const fs::path& model, const fs::path& folder, const std::vector<float>& scales) {
  fs::copy(model, folder);
  fs::remove(folder / "model.safetensors");
  auto source = SafetensorsFile::Open(model / "model.safetensors");
  ASSERT_TRUE(source) << source.error().message;
  auto checkpoint = Checkpoint::Open(model.string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  std::vector<SafetensorsEntry> entries;
  std::string data;
  const auto heads = static_cast<std::size_t>((*checkpoint)->config().num_kv_heads);
  for (std::int64_t layer = 0; layer < (*checkpoint)->config().num_layers; ++layer) {
    for (const char* kind : {"k_scale", "v_scale"}) {
      entries.push_back({.name = fmt::format("model.layers.{}.self_attn.{}", layer, kind),
                         .dtype = DType::kF32,
                         .shape = Shape{static_cast<std::int64_t>(heads), 1, 1}});
      std::vector<float> of_heads;
      for (std::size_t head = 0; head < heads; ++head) {
        of_heads.push_back(scales[head % scales.size()]);
      }
      data.append(reinterpret_cast<const char*>(of_heads.data()), heads * sizeof(float));
    }
  }
  for (const SafetensorsEntry& entry : (*source)->entries()) {
    const TensorView view = (*source)->View(entry);
    entries.push_back({.name = entry.name, .dtype = entry.dtype, .shape = entry.shape});
    data.append(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
  }
  std::ofstream(folder / "model.safetensors", std::ios::binary)
      << BuildSafetensorsHeader(entries) << data;
}

class CudaKvScales : public ::testing::TestWithParam<const char*> {
 protected:
  static std::vector<float> Logits(const fs::path& folder, KvDType kv_dtype, std::int64_t chunk) {
    std::vector<float> out;
    auto device = MakeCudaDevice(0, 2);
    EXPECT_TRUE(device);
    auto checkpoint = Checkpoint::Open(folder.string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    auto runner = ModelRunner::Create(**checkpoint,
                                      {.max_num_sequences = 1,
                                       .max_batched_tokens = 64,
                                       .max_model_len = 128,
                                       .kv_dtype = kv_dtype,
                                       .tables = TableFormat::kAsStored,
                                       .num_blocks_override = 4},
                                      **device);
    EXPECT_TRUE(runner) << runner.error().message;
    const std::vector<TokenId> ids = ReadExpected(GetParam()).ids;
    const auto length = static_cast<std::int64_t>(ids.size());
    for (std::int64_t first = 0; first < length; first += chunk) {
      const std::int64_t rows = std::min(chunk, length - first);
      EXPECT_TRUE((*runner)->RunChunk(ids, first, rows));
      const auto logits = (*runner)->ChunkLogits(0, rows);
      EXPECT_TRUE(logits) << logits.error().message;
      out.insert(out.end(), *logits, *logits + rows * (*runner)->vocab_size());
    }
    return out;
  }
  static float Worst(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float worst = 0.0F;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      worst = std::max(worst, std::fabs(a[i] - b[i]));
    }
    return worst;
  }
};

// Powers of two move e4m3 numbers without rounding: sensible ones, different for each head, change
// next to nothing, and one that saturates every number leaves nothing of attention. If only the
// writer or only the reader took them, the first would not hold; if nobody did, the second.
TEST_P(CudaKvScales, OfTheCheckpointAreUsedByWritersAndReaders) {
  if (const auto device = MakeCudaDevice(0, 1); !device) {
    GTEST_SKIP() << device.error().message;
  }
  const testing::TempFolder temp;
  const fs::path plain = Golden() / GetParam();
  AddKvScales(plain, temp.path() / "sensible", {0.25F, 0.125F, 0.5F});
  AddKvScales(plain, temp.path() / "tiny", {0x1p-20F});
  const std::vector<float> truth = Logits(plain, KvDType::kF16, 64);
  const float largest = Worst(truth, std::vector<float>(truth.size()));
  const float none = Worst(Logits(plain, KvDType::kFp8, 64), truth);
  const std::vector<float> scaled = Logits(temp.path() / "sensible", KvDType::kFp8, 64);
  const float sensible = Worst(scaled, truth);
  const float tiny = Worst(Logits(temp.path() / "tiny", KvDType::kFp8, 64), truth);
  RecordProperty("none", fmt::format("{:.2e}", none / largest));
  RecordProperty("sensible", fmt::format("{:.2e}", sensible / largest));
  RecordProperty("tiny", fmt::format("{:.2e}", tiny / largest));
  EXPECT_GT(none, 0.0F);
  EXPECT_LT(sensible, 1.5F * none + 2e-3F * largest);
  EXPECT_GT(tiny, 4.0F * none);
  EXPECT_EQ(Logits(temp.path() / "sensible", KvDType::kFp8, 7), scaled);
  EXPECT_EQ(Logits(temp.path() / "sensible", KvDType::kFp8, 1), scaled);
  EXPECT_EQ(Logits(temp.path() / "tiny", KvDType::kF16, 64), truth);  // not its business
}

// qwen3 norms keys before they are rotated, so that decoding writes the cache by its own kernel.
INSTANTIATE_TEST_SUITE_P(Architectures, CudaKvScales,
                         ::testing::Values("llama2", "llama3", "mistral", "qwen3"),
                         [](const auto& param) { return std::string(param.param); });

INSTANTIATE_TEST_SUITE_P(Architectures, CudaModel,
                         ::testing::Values("llama2", "llama3", "mistral", "mistral_window", "qwen2",
                                           "qwen3", "llama_bias", "llama2_bf16", "rope_linear",
                                           "rope_yarn", "ct_int4_sym_g32", "ct_int4_asym_g32",
                                           "ct_int8_channel"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace nibble
