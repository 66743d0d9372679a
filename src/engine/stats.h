#pragma once

#include "engine/engine.h"

namespace nibble {

/// Empty statistics with vLLM's buckets.
EngineStats MakeStats(const EngineConfig& config);

void Observe(Histogram& histogram, double value);

}  // namespace nibble
