#pragma once

#include <cstdint>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "engine/request.h"

namespace nibble::cli {

/// Sampling flags of `run` and `chat`. Greedy unless a temperature is given.
struct SamplingFlags {
  std::int64_t max_tokens = 256;
  double temperature = 0.0;
  double top_p = 1.0;
  double min_p = 0.0;
  std::int64_t top_k = 0;
  double repetition_penalty = 1.0;
  std::int64_t seed = 0;
  std::vector<std::string> stop;

  void Declare(OptionSet& options);
  SamplingParams ToParams() const;
};

}  // namespace nibble::cli
