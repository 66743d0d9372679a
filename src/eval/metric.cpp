#include "eval/metric.h"

#include <cmath>
#include <limits>
#include <map>
#include <utility>
#include <vector>

namespace nibble {
namespace {

double Mean(std::span<const double> values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value;
  }
  return sum / static_cast<double>(values.size());
}

// Of the mean.
double StandardError(std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  if (values.size() < 2) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const double mean = Mean(values);
  double squares = 0.0;
  for (const double value : values) {
    squares += (value - mean) * (value - mean);
  }
  return std::sqrt(squares / (count - 1.0)) / std::sqrt(count);
}

std::vector<double> Column(std::span<const ItemScore> items, std::size_t index) {
  std::vector<double> values;
  values.reserve(items.size());
  for (const ItemScore& item : items) {
    values.push_back(item.values[index]);
  }
  return values;
}

}  // namespace

Estimate MeanOf(std::span<const ItemScore> items, std::size_t index) {
  const std::vector<double> values = Column(items, index);
  return {.value = Mean(values), .standard_error = StandardError(values)};
}

Estimate PerplexityOf(std::span<const ItemScore> items, std::size_t index) {
  const Estimate mean = MeanOf(items, index);
  const double perplexity = std::exp(-mean.value);
  return {.value = perplexity, .standard_error = perplexity * mean.standard_error};
}

Estimate PooledMeanOf(std::span<const ItemScore> items, std::size_t index) {
  std::map<std::string_view, std::vector<double>> groups;
  for (const ItemScore& item : items) {
    groups[item.group].push_back(item.values[index]);
  }
  double variance = 0.0;
  for (const auto& [name, values] : groups) {
    const auto size = static_cast<double>(values.size());
    const double error = values.size() < 2 ? 0.0 : StandardError(values);
    variance += (size - 1.0) * error * error * size;
  }
  const auto count = static_cast<double>(items.size());
  const double freedom = count - static_cast<double>(groups.size());
  return {.value = Mean(Column(items, index)),
          .standard_error = freedom > 0.0 ? std::sqrt(variance / freedom / count)
                                          : std::numeric_limits<double>::quiet_NaN()};
}

Metric MeanMetric(std::string name, std::size_t index) {
  return {.name = std::move(name),
          .aggregate = [index](std::span<const ItemScore> items) { return MeanOf(items, index); }};
}

}  // namespace nibble
