// Calibration on a card, beside the CPU's.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "compress/block_walk.h"
#include "tensor/float16.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Of the rms of a group's inputs. fp16 rounds activations and weights to 2^-12 of themselves, and
// an element of the BF16 cache that rounds the other way moves by 2^-8 (adr/0007).
constexpr double kBound = 0.01;

std::vector<float> OnHost(Device& device, const ActivationRows& rows) {
  if (rows.dtype == DType::kF32) {
    return {rows.floats(), rows.floats() + rows.num_rows * rows.width};
  }
  std::vector<std::uint16_t> raw(static_cast<std::size_t>(rows.num_rows * rows.stride));
  const auto read = device.Read(reinterpret_cast<std::byte*>(raw.data()),
                                static_cast<const std::byte*>(rows.data), raw.size() * 2);
  EXPECT_TRUE(read) << read.error().message;
  std::vector<float> values;
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    for (std::int64_t i = 0; i < rows.width; ++i) {
      values.push_back(F16ToFloat(raw[static_cast<std::size_t>(row * rows.stride + i)]) *
                       rows.scale);
    }
  }
  return values;
}

// All inputs of each group, block after block, as the source's weights make them.
std::vector<std::vector<float>> Walk(const Checkpoint& model, std::span<const TokenId> tokens,
                                     std::int64_t length, Device& device) {
  std::vector<std::vector<float>> inputs;
  const auto walk = BlockWalk::Create(model, tokens, length, device);
  EXPECT_TRUE(walk) << walk.error().message;
  EXPECT_TRUE((*walk)->Embed());
  for (std::int64_t block = 0; block < model.config().num_layers; ++block) {
    EXPECT_TRUE((*walk)->Begin(block));
    for (const LinearGroup group : kLinearGroups) {
      std::vector<float>& all = inputs.emplace_back();
      for (std::int64_t chunk = 0; chunk < (*walk)->num_chunks(); ++chunk) {
        const std::vector<float> part = OnHost(device, (*walk)->Advance(group, chunk));
        all.insert(all.end(), part.begin(), part.end());
      }
      EXPECT_TRUE((*walk)->Load(group));
    }
    for (std::int64_t chunk = 0; chunk < (*walk)->num_chunks(); ++chunk) {
      (*walk)->End(chunk);
    }
  }
  const auto health = device.Health();
  EXPECT_TRUE(health) << health.error().message;
  return inputs;
}

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, energy = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    energy += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / energy);
}

struct Windows {
  const char* model;
  std::int64_t length, count;
};

class CudaBlockWalk : public ::testing::TestWithParam<Windows> {};

// Many windows a chunk and a last chunk of fewer, a window alone, and one in two chunks. The memory
// of the inner rows holds attention and, times 1/32, gated products in turn: a scale that stayed
// with an address would show from the second block on.
TEST_P(CudaBlockWalk, ItsInputsAreThoseOfTheCpuWithinABound) {
  const auto card = MakeCudaDevice(0, 2);
  if (!card) {
    GTEST_SKIP() << card.error().message;
  }
  const auto model = Checkpoint::Open(testing::Golden(GetParam().model).string());
  ASSERT_TRUE(model) << model.error().message;
  const std::int64_t length = GetParam().length;
  std::vector<TokenId> tokens;
  for (std::int64_t i = 0; i < length * GetParam().count; ++i) {
    tokens.push_back(TokenId{
        static_cast<std::int32_t>((i * 37 + i / length + 11) % (*model)->config().vocab_size)});
  }
  const auto cpu = MakeCpuDevice(2);
  const auto expected = Walk(**model, tokens, length, *cpu);
  const auto found = Walk(**model, tokens, length, **card);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(found[i].size(), expected[i].size());
    const double distance = Distance(found[i], expected[i]);
    EXPECT_LT(distance, kBound) << "block " << i / 4 << ", group " << i % 4;
    RecordProperty("distance_" + std::to_string(i), std::to_string(distance));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaBlockWalk,
                         ::testing::Values(Windows{"llama3", 24, 200}, Windows{"llama3", 4100, 1},
                                           Windows{"qwen3", 24, 3},
                                           Windows{"mistral_window", 24, 3},
                                           Windows{"llama_bias", 24, 3}, Windows{"llama3", 17, 1}),
                         [](const auto& windows) {
                           return std::string(windows.param.model) + "_" +
                                  std::to_string(windows.param.length);
                         });

class CudaQuantize : public testing::QuantizeGptqModel {
 protected:
  void SetUp() override {
    if (const auto card = MakeCudaDevice(0, 2); !card) {
      GTEST_SKIP() << card.error().message;
    }
    QuantizeGptqModel::SetUp();
  }
  Result<QuantizeSummary> RunOnCard(const std::string& name,
                                    const QuantizeProgress& progress = {}) {
    options_.device = DeviceKind::kCuda;
    auto summary = Run(temp_.path() / name, progress);
    options_.device = DeviceKind::kCpu;
    return summary;
  }
};

// Of every matrix, this entry of the log.
std::vector<double> Logged(const QuantizeSummary& summary, const char* key) {
  std::vector<double> values;
  for (const auto& [name, entry] : *summary.log.AsObject()) {
    if (const json::Value* found = entry.Find(key)) {
      values.push_back(found->AsDouble().value_or(0.0));
    }
  }
  return values;
}

TEST_F(CudaQuantize, GptqIsAsGoodAsTheCpus) {
  // A hair of damping moves so small a model by 4 %, and by 8 % on the three windows of the others.
  options_.max_windows = 12;
  const auto on_cpu = Run(temp_.path() / "cpu");
  ASSERT_TRUE(on_cpu) << on_cpu.error().message;
  const auto on_card = RunOnCard("card");
  ASSERT_TRUE(on_card) << on_card.error().message;
  EXPECT_EQ(on_cpu->certificate.recipe.Find("device"), nullptr);
  EXPECT_EQ(*on_card->certificate.recipe.Find("device")->AsString(), "cuda");
  const auto expected = Logged(*on_cpu, "relative_output_error");
  const auto found = Logged(*on_card, "relative_output_error");
  ASSERT_EQ(expected.size(), 7U * static_cast<std::size_t>(source_->config().num_layers));
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], 0.05 * expected[i]) << i;
  }
  EXPECT_LT(on_card->certificate.int16.kl_mean, 1.15 * on_cpu->certificate.int16.kl_mean);
  EXPECT_TRUE(Serve(temp_.path() / "card", ActivationMode::kInt16));
}

TEST_F(CudaQuantize, RoundingFollowsTheInputs) {
  options_.method = QuantizeMethod::kRtn;
  const auto on_cpu = Run(temp_.path() / "cpu");
  ASSERT_TRUE(on_cpu) << on_cpu.error().message;
  const auto on_card = RunOnCard("card");
  ASSERT_TRUE(on_card) << on_card.error().message;
  EXPECT_NEAR(on_card->certificate.int16.kl_mean, on_cpu->certificate.int16.kl_mean,
              0.1 * on_cpu->certificate.int16.kl_mean);
}

TEST_F(CudaQuantize, AStoppedRunGoesOnToTheSameBytesAndOnTheSameDeviceOnly) {
  ASSERT_TRUE(RunOnCard("whole"));
  ASSERT_FALSE(RunOnCard(
      "stopped", [](std::string_view now, std::uint64_t done, std::uint64_t total,
                    const std::string&) { return now != "calibrating" || 4 * done < 3 * total; }));
  const auto on_cpu = Run(temp_.path() / "stopped");
  ASSERT_FALSE(on_cpu);
  EXPECT_EQ(on_cpu.error().code, ErrorCode::kInvalidArgument) << on_cpu.error().message;
  const auto resumed = RunOnCard("stopped");
  ASSERT_TRUE(resumed) << resumed.error().message;
  ExpectSameFolder(temp_.path() / "whole", temp_.path() / "stopped");
}

}  // namespace
}  // namespace nibble
