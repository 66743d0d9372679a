#include "eval/metric.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

std::vector<ItemScore> Items(const std::vector<double>& values, const std::string& groups = {}) {
  std::vector<ItemScore> items;
  for (std::size_t i = 0; i < values.size(); ++i) {
    items.push_back({.group = groups.empty() ? "" : groups.substr(i, 1), .values = {0, values[i]}});
  }
  return items;
}

TEST(MeanOf, GivesTheStandardErrorOfTheSampleVariance) {
  const Estimate mean = MeanOf(Items({1, 0, 1, 1}), 1);
  EXPECT_DOUBLE_EQ(mean.value, 0.75);
  EXPECT_DOUBLE_EQ(mean.standard_error, 0.25);  // sqrt(0.75 / 3) / sqrt(4)
  EXPECT_TRUE(std::isnan(MeanOf(Items({1}), 1).standard_error));
}

TEST(PerplexityOf, IsTheExponentialOfTheMeanAndItsErrorScalesWithIt) {
  const Estimate perplexity = PerplexityOf(Items({-1, -3}), 1);
  EXPECT_DOUBLE_EQ(perplexity.value, std::exp(2.0));
  EXPECT_DOUBLE_EQ(perplexity.standard_error, std::exp(2.0));  // that of the mean is 1
}

TEST(PooledMeanOf, PoolsTheVariancesInsideGroups) {
  // lm_eval.api.metrics.pooled_sample_stderr([0.25, 0.5], [4, 2]) of the groups' standard errors.
  const Estimate mean = PooledMeanOf(Items({1, 0, 1, 1, 0, 1}, "aaaabb"), 1);
  EXPECT_DOUBLE_EQ(mean.value, 4.0 / 6.0);
  EXPECT_DOUBLE_EQ(mean.standard_error,
                   std::sqrt((3 * 0.0625 * 4 + 1 * 0.25 * 2) / (6.0 - 2.0) / 6.0));
}

}  // namespace
}  // namespace nibble
