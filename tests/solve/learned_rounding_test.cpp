#include "solve/learned_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "solve/rtn.h"

namespace nibble {
namespace {

constexpr std::int64_t kRows = 11, kCols = 96;

struct Case {
  const char* name;
  WeightSpec spec;
};
WeightSpec Uniform(int bits, std::int64_t group, bool zero_points) {
  return {.rows = kRows,
          .cols = kCols,
          .kind = CodecKind::kUniform,
          .bits = bits,
          .group_size = group,
          .has_zero_points = zero_points};
}
WeightSpec Table(Codebook codebook) {
  return {.rows = kRows,
          .cols = kCols,
          .kind = CodecKind::kCodebook,
          .bits = 4,
          .group_size = 32,
          .has_f32_scales = true,
          .codebook = codebook};
}

std::vector<float> Normal(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(kRows * kCols);
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

// What a matrix makes of a few inputs, and how far that is from what another makes of them.
class Outputs {
 public:
  explicit Outputs(const std::vector<float>& goal) : x_(kInputs * kCols), goal_(goal) {
    const std::vector<float> random = Normal(2);
    std::copy_n(random.begin(), x_.size(), x_.begin());
  }
  // sum of (x (w - goal)^T)^2; gradient: its derivative by w.
  double Error(const std::vector<float>& w, std::vector<float>& gradient) const {
    std::ranges::fill(gradient, 0.0F);
    double sum = 0.0;
    for (std::size_t row = 0; row < kRows; ++row) {
      for (std::size_t t = 0; t < kInputs; ++t) {
        float y = 0.0F;
        for (std::size_t i = 0; i < kCols; ++i) {
          y += x_[t * kCols + i] * (w[row * kCols + i] - goal_[row * kCols + i]);
        }
        sum += static_cast<double>(y) * static_cast<double>(y);
        for (std::size_t i = 0; i < kCols; ++i) {
          gradient[row * kCols + i] += 2.0F * y * x_[t * kCols + i];
        }
      }
    }
    return sum;
  }

 private:
  static constexpr std::size_t kInputs = 8;
  std::vector<float> x_, goal_;
};

class LearnedRoundingOf : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    weights_ = Normal(1);
    auto start = QuantizeWeighted(pool_, weights_, GetParam().spec, std::vector<float>(kCols, 1.0F),
                                  DType::kF16);
    ASSERT_TRUE(start) << start.error().message;
    start_ = std::move(*start);
  }
  ThreadPool pool_{2};
  std::vector<float> weights_;
  QuantizedTensor start_;
};

TEST_P(LearnedRoundingOf, StartsWhereItWasPut) {
  const LearnedRounding rounding(pool_, start_, weights_, DType::kF16);
  std::vector<float> now(weights_.size());
  rounding.Dequantize(pool_, now.data());
  EXPECT_EQ(now, Dequantize(start_));
  EXPECT_EQ(rounding.Result().codes, start_.codes);
  EXPECT_EQ(rounding.Result().scales, start_.scales);
  EXPECT_EQ(rounding.NumMoved(), 0);
}

TEST_P(LearnedRoundingOf, LearnsWhatRoundingLostAndSaysWhatItStandsFor) {
  const Outputs outputs(weights_);
  LearnedRounding rounding(pool_, start_, weights_, DType::kF16);
  std::vector<float> now(weights_.size()), gradient(weights_.size());
  rounding.Dequantize(pool_, now.data());
  const double before = outputs.Error(now, gradient);
  constexpr int kSteps = 200;
  for (int step = 0; step < kSteps; ++step) {
    const float rate = (1.0F - static_cast<float>(step) / kSteps) / kSteps;
    rounding.Step(pool_, gradient.data(), rate, rate);
    rounding.Dequantize(pool_, now.data());
    outputs.Error(now, gradient);
  }
  EXPECT_LT(outputs.Error(now, gradient), 0.5 * before);
  EXPECT_GT(rounding.NumMoved(), 0);
  const QuantizedTensor result = rounding.Result();
  ASSERT_TRUE(Validate(result));
  EXPECT_EQ(Dequantize(result), now);
  EXPECT_EQ(result.zero_points, start_.zero_points);
}

TEST_P(LearnedRoundingOf, DoesNotDependOnTheNumberOfThreads) {
  const auto run = [&](int num_threads) {
    ThreadPool pool(num_threads);
    LearnedRounding rounding(pool, start_, weights_, DType::kF16);
    const std::vector<float> gradient = Normal(3);
    for (int step = 0; step < 9; ++step) {
      rounding.Step(pool, gradient.data(), 0.05F, 0.01F);
    }
    std::vector<float> now(weights_.size());
    rounding.Dequantize(pool, now.data());
    return now;
  };
  EXPECT_EQ(run(1), run(3));
}

INSTANTIATE_TEST_SUITE_P(
    Grids, LearnedRoundingOf,
    testing::Values(Case{"sym2", Uniform(2, 32, false)}, Case{"sym3_row", Uniform(3, kCols, false)},
                    Case{"asym2", Uniform(2, 32, true)}, Case{"asym4", Uniform(4, 32, true)},
                    Case{"nf4", Table(Codebook::kNf4)}, Case{"fp4", Table(Codebook::kFp4)}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(LearnedRounding, AScaleOnAGridStaysThere) {
  ThreadPool pool(2);
  WeightSpec spec = Table(Codebook::kE2M1);
  spec.scale_grid = ScaleGrid::kPowersOfTwo;
  const auto weights = Normal(1);
  const auto start =
      QuantizeWeighted(pool, weights, spec, std::vector<float>(kCols, 1.0F), DType::kF16);
  ASSERT_TRUE(start) << start.error().message;
  LearnedRounding rounding(pool, *start, weights, DType::kF16);
  const auto gradient = Normal(2);
  for (int i = 0; i < 20; ++i) {
    rounding.Step(pool, gradient.data(), 0.1F, 0.1F);
  }
  const QuantizedTensor learned = rounding.Result();
  EXPECT_TRUE(Validate(learned));
  EXPECT_EQ(learned.scales, start->scales);
  EXPECT_GT(rounding.NumMoved(), 0);
}

}  // namespace
}  // namespace nibble
