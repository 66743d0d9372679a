#pragma once

#include <cstddef>
#include <span>

#include "eval/task.h"

/// How values of items become a task's numbers; formulas as in lm-evaluation-harness 0.4.13
/// (api/metrics.py), so that value and error agree to the last digits.
namespace nibble {

/// Mean of the items' value `index`; standard error from the sample variance (n - 1).
Estimate MeanOf(std::span<const ItemScore> items, std::size_t index);

/// exp(-mean) of log-likelihoods. The standard error is the mean's times the value (delta method);
/// lm-eval draws it by bootstrap, which tends to the same.
Estimate PerplexityOf(std::span<const ItemScore> items, std::size_t index);

/// Mean over all items; the standard error pools the variances inside the groups.
Estimate PooledMeanOf(std::span<const ItemScore> items, std::size_t index);

/// A Metric that is MeanOf its items' value `index`.
Metric MeanMetric(std::string name, std::size_t index);

}  // namespace nibble
