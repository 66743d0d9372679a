#include "compress/fold.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>

namespace nibble {
namespace {

std::unique_ptr<Checkpoint> OpenGolden(const char* name) {
  auto checkpoint = Checkpoint::Open(
      (std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name).string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  return std::move(*checkpoint);
}

FoldedScales RandomScales(const ModelConfig& config, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  FoldedScales scales;
  for (std::int64_t block = 0; block < config.num_layers; ++block) {
    auto& groups = scales.blocks.emplace_back();
    for (const LinearGroup group : kLinearGroups) {
      std::vector<float>& s = groups[static_cast<std::size_t>(group)];
      s.resize(static_cast<std::size_t>(InputWidth(config, group)));
      for (float& scale : s) {
        scale = std::exp(0.5F * normal(random));
      }
      if (group == LinearGroup::kOutput) {
        ShareAcrossHeads(config, s);
      }
    }
  }
  return scales;
}

// The inputs of every group of linears, divided by `scales`.
std::vector<float> InputsOf(const Checkpoint& checkpoint, const FoldedScales& scales,
                            Device& device) {
  const ModelConfig& config = checkpoint.config();
  std::vector<TokenId> tokens;
  for (std::int32_t i = 0; i < 32; ++i) {
    tokens.push_back(TokenId{(i * 37 + 11) % static_cast<std::int32_t>(config.vocab_size)});
  }
  const auto walk = BlockWalk::Create(checkpoint, tokens, 16, device);
  EXPECT_TRUE(walk) << walk.error().message;
  EXPECT_TRUE((*walk)->Embed());
  std::vector<float> out;
  for (std::int64_t block = 0; block < config.num_layers; ++block) {
    EXPECT_TRUE((*walk)->Begin(block));
    for (const LinearGroup group : kLinearGroups) {
      const auto width = static_cast<std::size_t>(InputWidth(config, group));
      for (std::int64_t chunk = 0; chunk < 2; ++chunk) {
        const BlockWalk::Inputs inputs = (*walk)->Advance(group, chunk);
        for (std::size_t i = 0; i < width * static_cast<std::size_t>(inputs.num_rows); ++i) {
          const float scale = scales.blocks.empty()
                                  ? 1.0F
                                  : scales.blocks[static_cast<std::size_t>(block)]
                                                 [static_cast<std::size_t>(group)][i % width];
          out.push_back(inputs.floats()[i] / scale);
        }
      }
      EXPECT_TRUE((*walk)->Load(group));
    }
    (*walk)->End(0);
    (*walk)->End(1);
  }
  return out;
}

TEST(FoldedCheckpoint, IsTheSameModelWithScaledInputs) {
  const auto device = MakeCpuDevice(1);
  for (const char* name : {"llama3", "llama_bias", "qwen2", "qwen3", "mistral", "gemma3"}) {
    const auto source = OpenGolden(name);
    const FoldedScales scales = RandomScales(source->config(), 3);
    const FoldedCheckpoint folded(*source, scales);
    const auto expected = InputsOf(*source, scales, *device);
    const auto got = InputsOf(folded, {}, *device);
    ASSERT_EQ(got.size(), expected.size());
    double error = 0.0, energy = 0.0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double d = static_cast<double>(got[i]) - static_cast<double>(expected[i]);
      error += d * d;
      energy += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    EXPECT_LT(std::sqrt(error / energy), 1e-2) << name;  // the cache rounds to BF16
  }
}

TEST(FoldedScales, SurviveAJournalToTheBit) {
  const auto source = OpenGolden("llama3");
  FoldedScales scales = RandomScales(source->config(), 4);
  scales.blocks[1][2].clear();
  const auto text = json::Dump(scales.ToJson());
  const auto value = json::Parse(text);
  ASSERT_TRUE(value);
  const auto back = FoldedScales::FromJson(*value, source->config());
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(back->blocks, scales.blocks);
  EXPECT_FALSE(FoldedScales::FromJson(json::Array{}, source->config()));
}

}  // namespace
}  // namespace nibble
