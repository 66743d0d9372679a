#include "solve/rtn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>

#include "codec/encode.h"
#include "tests/solve/problem.h"

namespace nibble {
namespace {

std::vector<float> RandomNormal(std::size_t count, std::uint32_t seed, float stddev = 0.02F) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(rng);
  }
  return values;
}

double SquaredError(const QuantizedTensor& tensor, std::span<const float> weights) {
  const auto back = Dequantize(tensor);
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double d = static_cast<double>(back[i]) - static_cast<double>(weights[i]);
    sum += d * d;
  }
  return sum;
}

// What the search minimizes, summed over the groups of a tensor.
double WeightedError(const QuantizedTensor& tensor, std::span<const float> weights) {
  const auto back = Dequantize(tensor);
  const auto size = static_cast<std::size_t>(tensor.spec.group_size);
  double sum = 0;
  for (std::size_t begin = 0; begin < weights.size(); begin += size) {
    double squares = 0;
    for (const float w : weights.subspan(begin, size)) {
      squares += static_cast<double>(w) * static_cast<double>(w);
    }
    for (std::size_t i = begin; i < begin + size; ++i) {
      const double w = static_cast<double>(weights[i]);
      const double d = static_cast<double>(back[i]) - w;
      sum += (squares / static_cast<double>(size) + w * w) * d * d;
    }
  }
  return sum;
}

class RtnProperty : public testing::TestWithParam<std::tuple<int, int, bool>> {};

TEST_P(RtnProperty, WithoutSearchTheErrorIsAtMostAStepAndHalfAStepInside) {
  const auto [bits, group, symmetric] = GetParam();
  const auto weights = RandomNormal(static_cast<std::size_t>(8 * 256), 20261123);
  const RtnOptions options{
      .bits = bits, .group_size = group, .symmetric = symmetric, .search_scale = false};
  const auto quantized = QuantizeRtn(weights, 8, 256, options);
  ASSERT_TRUE(quantized) << quantized.error().message;
  ASSERT_TRUE(Validate(*quantized));
  const auto back = Dequantize(*quantized);
  const std::int64_t size = group == 0 ? 256 : group;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const float step = quantized->scales[i / static_cast<std::size_t>(size)];
    // The symmetric grid has no code for +absmax, and a zero point may round an edge away by half a
    // step.
    ASSERT_LE(std::fabs(back[i] - weights[i]), 1.01F * step) << i;
  }
}

TEST_P(RtnProperty, SearchNeverRaisesTheWeightedError) {
  const auto [bits, group, symmetric] = GetParam();
  const auto weights = RandomNormal(static_cast<std::size_t>(16 * 256), 5);
  RtnOptions options{
      .bits = bits, .group_size = group, .symmetric = symmetric, .search_scale = false};
  const auto plain = QuantizeRtn(weights, 16, 256, options);
  options.search_scale = true;
  const auto searched = QuantizeRtn(weights, 16, 256, options);
  ASSERT_TRUE(plain && searched);
  EXPECT_LE(WeightedError(*searched, weights), WeightedError(*plain, weights) * (1.0 + 1e-6));
}

TEST_P(RtnProperty, RowsMayBeQuantizedApart) {
  const auto [bits, group, symmetric] = GetParam();
  const auto weights = RandomNormal(static_cast<std::size_t>(4 * 256), 6);
  const RtnOptions options{.bits = bits, .group_size = group, .symmetric = symmetric};
  const auto whole = QuantizeRtn(weights, 4, 256, options);
  const auto half = QuantizeRtn(std::span(weights).subspan(512), 2, 256, options);
  ASSERT_TRUE(whole && half);
  EXPECT_TRUE(std::equal(half->codes.begin(), half->codes.end(), whole->codes.begin() + 512));
}

INSTANTIATE_TEST_SUITE_P(Schemes, RtnProperty,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(32, 64, 128, 0), testing::Bool()));

// checkpoint-independent golden vector: x[i] = ((37 i) mod 101 - 50) / 16 on the llm-compressor
// grid.
TEST(Rtn, MatchesTheGoldenVectorOfCompressedTensors) {
  std::vector<float> x(128);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = (static_cast<float>(37 * i % 101) - 50.0F) / 16.0F;
  }
  const auto quantized = QuantizeRtn(
      x, 1, 128, {.bits = 4, .group_size = 128, .search_scale = false, .scale_dtype = DType::kF32});
  ASSERT_TRUE(quantized);
  EXPECT_FLOAT_EQ(quantized->scales[0], 0.416666657F);
  const std::vector<int> expected = {-8, -2, 4, -6, 0, 5, -4, 1};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(static_cast<int>(quantized->codes[i]) - 8, expected[i]) << i;
  }
}

// The same vector on GPTQ's and AWQ's grids, moved by 3/8 so that zero is not in the middle.
TEST(Rtn, MatchesTheGoldenVectorsOfGptqAndAwq) {
  std::vector<float> y(256);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = (static_cast<float>(37 * i % 101) - 50.0F) / 16.0F + 0.375F;
  }
  const auto codes = [](const QuantizedTensor& tensor, std::ptrdiff_t begin) {
    return std::vector<std::uint8_t>(tensor.codes.begin() + begin,
                                     tensor.codes.begin() + begin + 8);
  };
  RtnOptions options{.bits = 4, .group_size = 128, .search_scale = false};
  options.scale_dtype = DType::kF32;
  const auto gptq = QuantizeRtn(y, 1, 256, options);
  ASSERT_TRUE(gptq);
  EXPECT_FLOAT_EQ(gptq->scales[0], 0.466666669F);
  EXPECT_EQ(codes(*gptq, 0), (std::vector<std::uint8_t>{2, 7, 12, 3, 8, 13, 5, 10}));
  options.scale_dtype = DType::kF16;
  options.symmetric = false;
  const auto awq = QuantizeRtn(y, 1, 256, options);
  ASSERT_TRUE(awq);
  EXPECT_FLOAT_EQ(awq->scales[0], 0.416748047F);
  EXPECT_EQ(awq->zero_points, (std::vector<std::uint8_t>{7, 7}));
  EXPECT_EQ(codes(*awq, 0), (std::vector<std::uint8_t>{0, 6, 11, 2, 7, 13, 3, 9}));
  EXPECT_EQ(codes(*awq, 128), (std::vector<std::uint8_t>{14, 4, 10, 15, 6, 11, 2, 7}));
}

// Anchors measured over 4.2 million normal samples, 2 % bands.
TEST(Rtn, GaussianErrorMatchesTheKnownFigures) {
  const auto weights = RandomNormal(1 << 20, 11, 1.0F);
  double energy = 0;
  for (const float w : weights) {
    energy += static_cast<double>(w) * static_cast<double>(w);
  }
  const struct {
    int bits;
    std::int64_t group_size;
    double symmetric, asymmetric;
  } kAnchors[] = {
      {2, 32, 0.2225, 0.1651},   {2, 64, 0.2612, 0.2090},   {2, 128, 0.3023, 0.2533},
      {3, 32, 0.04125, 0.02997}, {3, 64, 0.04851, 0.03812}, {3, 128, 0.05630, 0.04645},
      {4, 32, 8.99e-3, 6.53e-3}, {4, 64, 1.06e-2, 8.30e-3}, {4, 128, 1.23e-2, 1.01e-2},
      {8, 32, 3.12e-5, 2.26e-5}, {8, 64, 3.66e-5, 2.87e-5}, {8, 128, 4.25e-5, 3.50e-5},
  };
  for (const auto& anchor : kAnchors) {
    for (const bool symmetric : {true, false}) {
      const auto quantized = QuantizeRtn(weights, 1 << 10, 1 << 10,
                                         {.bits = anchor.bits,
                                          .group_size = anchor.group_size,
                                          .symmetric = symmetric,
                                          .search_scale = false,
                                          .scale_dtype = DType::kF32});
      ASSERT_TRUE(quantized);
      const double known = symmetric ? anchor.symmetric : anchor.asymmetric;
      EXPECT_NEAR(SquaredError(*quantized, weights) / energy, known, 0.02 * known)
          << anchor.bits << " bits, groups of " << anchor.group_size << ", " << symmetric;
    }
  }
}

// By how much the largest weight of a group loses: plain absmax 1.2 %, least squares 7.0 %, this
// search 2.2 %.
TEST(Rtn, TheSearchDoesNotClipTheLargestWeightsAsLeastSquaresWould) {
  constexpr std::size_t kGroup = 64;
  const auto weights = RandomNormal(1 << 18, 12, 1.0F);
  const auto quantized = QuantizeRtn(weights, 1, 1 << 18,
                                     {.bits = 4, .group_size = kGroup, .scale_dtype = DType::kF32});
  ASSERT_TRUE(quantized);
  const auto back = Dequantize(*quantized);
  double lost = 0;
  for (std::size_t begin = 0; begin < weights.size(); begin += kGroup) {
    std::size_t largest = begin;
    for (std::size_t i = begin; i < begin + kGroup; ++i) {
      largest = std::fabs(weights[i]) > std::fabs(weights[largest]) ? i : largest;
    }
    lost += 1.0 - static_cast<double>(back[largest] / weights[largest]);
  }
  EXPECT_NEAR(lost / static_cast<double>(weights.size() / kGroup), 0.022, 0.01);
}

// e4m3 has 3 bits behind the leading one, and steps of 2^-9 below 2^-6.
TEST(Rtn, AnFp8CodeIsWithinHalfAStepAndItsScaleIsStoredAsItIs) {
  constexpr std::int64_t kRows = 130, kCols = 192;
  const auto weights = RandomNormal(kRows * kCols, 5);
  for (const std::int64_t group : {std::int64_t{128}, kCols}) {
    const auto quantized = QuantizeFp8(weights, kRows, kCols, group, DType::kBF16);
    ASSERT_TRUE(quantized) << quantized.error().message;
    ASSERT_TRUE(Validate(*quantized));
    const auto back = Dequantize(*quantized);
    const std::int64_t groups = quantized->spec.num_groups();
    ASSERT_EQ(groups, group == kCols ? 1 : 2);
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t col = 0; col < kCols; ++col) {
        const auto at = static_cast<std::size_t>(row * kCols + col);
        const float scale = quantized->scales[static_cast<std::size_t>(row * groups + col / group)];
        // The scale's own rounding to 8 bits may take 448 below the largest weight.
        const float step = std::max(std::fabs(weights[at]) / 16.0F, scale * 0x1p-10F);
        ASSERT_LE(std::fabs(back[at] - weights[at]), step * 1.001F) << row << ", " << col;
      }
    }
    for (const float scale : quantized->scales) {
      EXPECT_EQ(scale, RoundToDType(scale, DType::kBF16));
    }
    if (group < kCols) {  // rows 0 to 127 share, 128 and 129 share others
      EXPECT_EQ(quantized->scales[0], quantized->scales[127 * 2]);
      EXPECT_EQ(quantized->scales[128 * 2 + 1], quantized->scales[129 * 2 + 1]);
      EXPECT_NE(quantized->scales[0], quantized->scales[128 * 2]);
    }
  }
}

TEST(Rtn, Fp8LosesAsMuchOfAGaussianAsIsKnown) {
  constexpr std::int64_t kRows = 64, kCols = 4096;
  const auto weights = RandomNormal(kRows * kCols, 11, 1.0F);
  const auto quantized = QuantizeFp8(weights, kRows, kCols, kCols, DType::kF32);
  ASSERT_TRUE(quantized);
  EXPECT_NEAR(SquaredError(*quantized, weights) / (kRows * kCols), 6.97e-4, 0.03 * 6.97e-4);
}

// Reference, section 13.5: MXFP4 by the rule of compressed-tensors, NVFP4.
TEST(Rtn, Fp4LosesAsMuchOfAGaussianAsIsKnown) {
  constexpr std::int64_t kRows = 64, kCols = 4096;
  const auto weights = RandomNormal(kRows * kCols, 11, 1.0F);
  const std::vector<float> alike(kCols, 1.0F);
  ThreadPool pool(2);
  const struct {
    std::int64_t group;
    ScaleGrid grid;
    double loss;
  } kKnown[] = {{32, ScaleGrid::kPowersOfTwo, 1.25e-2}, {16, ScaleGrid::kE4M3, 9.04e-3}};
  for (const auto& [group, grid, loss] : kKnown) {
    const WeightSpec spec = CodebookSpec(kCols, Codebook::kE2M1, group, grid);
    const auto plain = QuantizeWeighted(pool, weights, spec, alike, DType::kF16, false);
    ASSERT_TRUE(plain) << plain.error().message;
    ASSERT_TRUE(Validate(*plain)) << Validate(*plain).error().message;
    EXPECT_NEAR(SquaredError(*plain, weights) / (kRows * kCols), loss, 0.02 * loss);
    const auto searched = QuantizeWeighted(pool, weights, spec, alike, DType::kF16);
    ASSERT_TRUE(searched);
    ASSERT_TRUE(Validate(*searched));
    EXPECT_LT(SquaredError(*searched, weights), SquaredError(*plain, weights));
  }
}

// Reference, sections 13.4 and 13.5: bitsandbytes' tables by absmax.
TEST(Rtn, Nf4AndFp4LoseAsMuchOfAGaussianAsIsKnown) {
  constexpr std::int64_t kRows = 256, kCols = 4096;
  const auto weights = RandomNormal(kRows * kCols, 11, 1.0F);
  const std::vector<float> alike(kCols, 1.0F);
  ThreadPool pool(2);
  const struct {
    Codebook codebook;
    std::int64_t group;
    double loss, mean;  // of squares; of magnitudes
  } kKnown[] = {{Codebook::kNf4, 32, 7.63e-3, 0.067746},  {Codebook::kNf4, 64, 8.46e-3, 0.072798},
                {Codebook::kNf4, 128, 9.14e-3, 0.076831}, {Codebook::kFp4, 32, 1.30e-2, 0.088925},
                {Codebook::kFp4, 64, 1.49e-2, 0.096543},  {Codebook::kFp4, 128, 1.66e-2, 0.102969}};
  for (const auto& [codebook, group, loss, mean] : kKnown) {
    const WeightSpec spec = CodebookSpec(kCols, codebook, group, ScaleGrid::kAny);
    const auto plain = QuantizeWeighted(pool, weights, spec, alike, DType::kF32, false);
    ASSERT_TRUE(plain) << plain.error().message;
    EXPECT_NEAR(SquaredError(*plain, weights) / (kRows * kCols), loss, 0.02 * loss);
    const std::vector<float> back = Dequantize(*plain);
    double sum = 0.0;
    for (std::size_t i = 0; i < back.size(); ++i) {
      sum += std::fabs(static_cast<double>(back[i]) - static_cast<double>(weights[i]));
    }
    EXPECT_NEAR(sum / (kRows * kCols), mean, 0.01 * mean) << Name(codebook) << " " << group;
  }
}

TEST(Rtn, TheScalesOfNvfp4UseAllOfE4m3OrWhatTheyAreTold) {
  const auto weights = RandomNormal(4 * 64, 3);
  const std::vector<float> alike(64, 1.0F);
  ThreadPool pool(1);
  const WeightSpec spec = CodebookSpec(64, Codebook::kE2M1, 16, ScaleGrid::kE4M3);
  const auto own = QuantizeWeighted(pool, weights, spec, alike, DType::kF16, false);
  ASSERT_TRUE(own);
  EXPECT_EQ(own->scale_divisor, 448.0F * 6.0F / AbsMaxOf(weights));
  // The block of the largest weight: 448, but for the rounding of the product.
  EXPECT_NEAR(*std::ranges::max_element(own->scales) * own->scale_divisor, 448.0F, 1e-2F);
  const auto told = QuantizeWeighted(pool, weights, spec, alike, DType::kF16, false, 8192.0F);
  ASSERT_TRUE(told);
  EXPECT_EQ(told->scale_divisor, 8192.0F);
  ASSERT_TRUE(Validate(*told));
}

TEST(Rtn, OneScaleOfAMatrixIsThatOfAllItsWeightsTogether) {
  const auto weights = RandomNormal(24 * 96, 5);
  const std::vector<float> alike(96, 1.0F);
  ThreadPool pool(2);
  for (const bool symmetric : {true, false}) {
    const WeightSpec spec{.cols = 96,
                          .kind = CodecKind::kUniform,
                          .bits = 4,
                          .group_size = 96,
                          .has_zero_points = !symmetric,
                          .has_one_scale = true};
    const auto one = QuantizeWeighted(pool, weights, spec, alike, DType::kF16);
    ASSERT_TRUE(one) << one.error().message;
    ASSERT_TRUE(Validate(*one)) << Validate(*one).error().message;
    const auto row =
        QuantizeRtn(weights, 1, 24 * 96, {.bits = 4, .group_size = 0, .symmetric = symmetric});
    ASSERT_TRUE(row);
    EXPECT_EQ(one->scales.front(), row->scales.front());
    EXPECT_EQ(one->codes, row->codes);
  }
  WeightSpec fp8 = CodebookSpec(96, Codebook::kFp8E4M3, 96);
  fp8.has_one_scale = true;
  const auto one = QuantizeWeighted(pool, weights, fp8, alike, DType::kF16);
  ASSERT_TRUE(one && Validate(*one));
  EXPECT_EQ(one->scales.back(), AbsMaxOf(weights) / 448.0F);
}

TEST(Rtn, RefusesWhatItCannotDoByName) {
  const std::vector<float> weights(576, 0.1F);
  const auto group = QuantizeRtn(weights, 1, 576, {.group_size = 128});
  ASSERT_FALSE(group);
  EXPECT_NE(group.error().message.find("128 does not divide the width 576"), std::string::npos);
  EXPECT_FALSE(QuantizeRtn(weights, 1, 576, {.bits = 9}));
  auto broken = weights;
  broken[70] = std::numeric_limits<float>::quiet_NaN();
  const auto nan = QuantizeRtn(broken, 9, 64, {.group_size = 64});
  ASSERT_FALSE(nan);
  EXPECT_NE(nan.error().message.find("row 1, column 6"), std::string::npos);
}

TEST(Rtn, AConstantGroupIsKeptExactlyEnough) {
  const std::vector<float> weights(64, -0.5F);
  const auto quantized = QuantizeRtn(weights, 1, 64, {.symmetric = false});
  ASSERT_TRUE(quantized);
  for (const float w : Dequantize(*quantized)) {
    EXPECT_NEAR(w, -0.5F, 0.5F / 30.0F);
  }
}

TEST(Rtn, WeightedRoundingLosesLeastWhereTheInputIsLoud) {
  const auto weights = RandomNormal(static_cast<std::size_t>(20 * 256), 21);
  std::vector<float> importance(256);
  for (std::size_t i = 0; i < importance.size(); ++i) {
    importance[i] = i % 7 == 0 ? 100.0F : 1.0F;
  }
  const auto error = [&](const QuantizedTensor& tensor) {
    const auto back = Dequantize(tensor);
    double sum = 0.0;
    for (std::size_t i = 0; i < back.size(); ++i) {
      const auto d = static_cast<double>(back[i] - weights[i]);
      sum += static_cast<double>(importance[i % 256]) * d * d;
    }
    return sum;
  };
  for (const bool symmetric : {true, false}) {
    for (const std::int64_t group : {32, 64, 256}) {
      const WeightSpec spec{.cols = 256,
                            .kind = CodecKind::kUniform,
                            .bits = 4,
                            .group_size = group,
                            .has_zero_points = !symmetric};
      ThreadPool pool(2);
      ThreadPool alone(1);
      const auto weighted = QuantizeWeighted(pool, weights, spec, importance, DType::kF16);
      const auto again = QuantizeWeighted(alone, weights, spec, importance, DType::kF16);
      const auto plain =
          QuantizeRtn(weights, 20, 256, {.bits = 4, .group_size = group, .symmetric = symmetric});
      ASSERT_TRUE(weighted && again && plain);
      ASSERT_TRUE(Validate(*weighted));
      EXPECT_LT(error(*weighted), 0.9 * error(*plain));
      EXPECT_EQ(weighted->codes, again->codes);
      EXPECT_EQ(weighted->scales, again->scales);
    }
  }
}

}  // namespace
}  // namespace nibble
