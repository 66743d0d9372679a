#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace nibble {

/// In which order prompts are computed, so that what several begin with is computed once and found
/// in the prefix cache by the others.
struct PrefixPlan {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  struct Step {
    std::size_t prompt = 0;
    std::size_t parent = kNone;      // the prompt that must be done before
    std::int64_t shared_tokens = 0;  // with it, in full blocks
  };
  std::vector<Step> steps;  // parents before their children, equal beginnings side by side
};

/// The parent of a prompt is the first, in the order of their tokens, of those that share the
/// longest beginning with it, counted in full blocks of the KV cache.
PrefixPlan PlanPrefixes(std::span<const std::span<const TokenId>> prompts,
                        std::int64_t block_size_tokens);

}  // namespace nibble
