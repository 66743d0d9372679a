#include "compress/smoothquant.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace nibble {
namespace {

class SmoothQuant : public ::testing::Test {
 protected:
  void SetUp() override {
    auto source = Checkpoint::Open(
        (std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3").string());
    ASSERT_TRUE(source) << source.error().message;
    source_ = std::move(*source);
    calibration_.length = 16;
    for (std::int32_t i = 0; i < 64; ++i) {
      calibration_.tokens.push_back(TokenId{(i * 37) % 320});
    }
  }
  std::vector<float> Values(const std::string& name) const {
    const WeightInfo* info = source_->Find(name);
    return Dequantize(*source_->ReadRows(*info, 0, info->spec.rows));
  }
  FoldedScales Scales(double alpha) const {
    const auto device = MakeCpuDevice(1);
    auto scales = SmoothScales(*source_, calibration_, alpha, *device, {});
    EXPECT_TRUE(scales) << scales.error().message;
    return std::move(*scales);
  }
  // Of the columns of q, k and v of the first block.
  std::vector<double> LargestWeights() const {
    std::vector<double> largest(64, 0.0);
    for (const char* name : {"q", "k", "v"}) {
      const std::vector<float> w =
          Values(std::string("model.layers.0.self_attn.") + name + "_proj.weight");
      for (std::size_t i = 0; i < w.size(); ++i) {
        largest[i % 64] = std::max(largest[i % 64], std::fabs(static_cast<double>(w[i])));
      }
    }
    return largest;
  }
  // Of what flows into them: the normalized embedding.
  std::vector<double> LargestInputs() const {
    const std::vector<float> table = Values("model.embed_tokens.weight");
    const std::vector<float> norm = Values("model.layers.0.input_layernorm.weight");
    std::vector<double> largest(64, 0.0);
    for (const TokenId token : calibration_.tokens) {
      const float* row = table.data() + static_cast<std::size_t>(Raw(token)) * 64;
      double squares = 0.0;
      for (std::size_t j = 0; j < 64; ++j) {
        squares += static_cast<double>(row[j]) * static_cast<double>(row[j]);
      }
      const double factor = 1.0 / std::sqrt(squares / 64.0 + 1e-5);
      for (std::size_t j = 0; j < 64; ++j) {
        largest[j] = std::max(largest[j], std::fabs(static_cast<double>(row[j]) * factor *
                                                    static_cast<double>(norm[j])));
      }
    }
    return largest;
  }

  std::unique_ptr<Checkpoint> source_;
  CalibrationSet calibration_;
};

TEST_F(SmoothQuant, ScalesAreThoseOfThePaperUpToACommonFactor) {
  const std::vector<double> x = LargestInputs(), w = LargestWeights();
  for (const double alpha : {0.0, 0.5, 0.8, 1.0}) {
    const std::vector<float> scales = Scales(alpha).blocks.at(0)[0];
    ASSERT_EQ(scales.size(), 64U);
    const auto expected = [&](std::size_t j) {
      return std::pow(x[j], alpha) / std::pow(w[j], 1.0 - alpha);
    };
    for (std::size_t j = 0; j < 64; ++j) {
      // The served embedding has 8 bits, so its inputs differ a little from the stored ones.
      EXPECT_NEAR(scales[j] / scales[0], expected(j) / expected(0),
                  0.03 * expected(j) / expected(0))
          << "alpha " << alpha << ", channel " << j;
    }
  }
}

TEST_F(SmoothQuant, EveryGroupHasScalesAndHeadsThatShareAKeyShareThem) {
  const FoldedScales scales = Scales(0.5);
  ASSERT_EQ(scales.blocks.size(), 3U);
  for (const auto& block : scales.blocks) {
    for (const std::vector<float>& group : block) {
      EXPECT_EQ(group.size(), 64U);
      EXPECT_TRUE(std::ranges::all_of(group, [](float s) { return std::isfinite(s) && s > 0.0F; }));
    }
    const std::vector<float>& output = block[static_cast<std::size_t>(LinearGroup::kOutput)];
    for (std::size_t d = 0; d < 16; ++d) {  // two query heads of 16 to a head of values
      EXPECT_EQ(output[d], output[16 + d]);
      EXPECT_EQ(output[32 + d], output[48 + d]);
    }
  }
}

}  // namespace
}  // namespace nibble
