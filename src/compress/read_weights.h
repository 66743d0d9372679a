#pragma once

#include <span>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

/// A whole matrix as floats, read on all workers; its pages are given back.
Result<std::vector<float>> ReadWeights(const Checkpoint& source, const WeightInfo& stored,
                                       ThreadPool& pool);
/// The same into memory that is there: [rows, cols].
Result<void> ReadWeights(const Checkpoint& source, const WeightInfo& stored, ThreadPool& pool,
                         std::span<float> weights);

/// The largest magnitude among several matrices, a part of them in memory at a time.
Result<float> ReadAbsMax(const Checkpoint& source, std::span<const WeightInfo* const> stored,
                         ThreadPool& pool);

}  // namespace nibble
