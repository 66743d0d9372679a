#include "codec/quantized_tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/encode.h"

namespace nibble {
namespace {

std::vector<float> RandomNormal(std::size_t count, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(rng);
  }
  return values;
}

class AbsmaxProperty : public testing::TestWithParam<int> {};

TEST_P(AbsmaxProperty, ErrorIsAtMostHalfAStepPlusTheScalesRounding) {
  const std::int64_t cols = 100;  // the last group is short
  const auto weights = RandomNormal(7 * cols, 20261124);
  const QuantizedTensor tensor = EncodeAbsmax(weights, 7, cols, GetParam(), 32);
  ASSERT_TRUE(Validate(tensor)) << Validate(tensor).error().message;
  const auto back = Dequantize(tensor);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::size_t group = i / cols * 4 + i % cols / 32;
    // absmax itself may fall beyond the top code by the fp16 rounding of the scale, 2^-11 of
    // absmax.
    const float bound = tensor.scales[group] * 0.5F + std::fabs(weights[i]) * 0x1p-10F;
    ASSERT_NEAR(back[i], weights[i], bound) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, AbsmaxProperty, testing::Values(2, 3, 4, 5, 6, 8));

TEST(EncodeAbsmax, ReproducesATableThatWasAlreadyOnTheGrid) {
  auto weights = RandomNormal(64, 7);
  const QuantizedTensor once = EncodeAbsmax(weights, 2, 32, 8, 32);
  const auto values = Dequantize(once);
  const QuantizedTensor twice = EncodeAbsmax(values, 2, 32, 8, 32);
  EXPECT_EQ(once.codes, twice.codes);
}

TEST(EncodeAbsmax, AZeroGroupStaysZero) {
  const std::vector<float> zeros(32, 0.0F);
  EXPECT_EQ(Dequantize(EncodeAbsmax(zeros, 1, 32, 4, 32)), zeros);
}

TEST(Validate, NamesWhatIsMissing) {
  QuantizedTensor tensor = EncodeAbsmax(RandomNormal(64, 1), 1, 64, 4, 32);
  tensor.scales.pop_back();
  ASSERT_FALSE(Validate(tensor));
  EXPECT_NE(Validate(tensor).error().message.find("1 scales, expected 2"), std::string::npos);
  tensor = EncodeAbsmax(RandomNormal(64, 1), 1, 64, 4, 32);
  tensor.codes[3] = 16;
  ASSERT_FALSE(Validate(tensor));
}

TEST(Dequantize, FollowsTheFormulaOfEachKind) {
  QuantizedTensor tensor;
  tensor.spec = {.rows = 1,
                 .cols = 2,
                 .kind = CodecKind::kUniform,
                 .bits = 4,
                 .group_size = 2,
                 .has_zero_points = true};
  tensor.codes = {0, 15};
  tensor.scales = {0.5F};
  tensor.zero_points = {3};
  EXPECT_EQ(Dequantize(tensor), (std::vector<float>{-1.5F, 6.0F}));
  tensor.spec.kind = CodecKind::kMinimum;
  tensor.spec.has_zero_points = false;
  tensor.zero_points.clear();
  tensor.minima = {-1.0F};
  EXPECT_EQ(Dequantize(tensor), (std::vector<float>{-1.0F, 6.5F}));
}

}  // namespace
}  // namespace nibble
