#pragma once

#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

/// A whole matrix as floats, read on all workers; its pages are given back.
Result<std::vector<float>> ReadWeights(const Checkpoint& source, const WeightInfo& stored,
                                       ThreadPool& pool);

}  // namespace nibble
