#include "eval/prefix_plan.h"

#include <algorithm>
#include <numeric>

namespace nibble {
namespace {

std::int64_t CommonTokens(std::span<const TokenId> a, std::span<const TokenId> b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

// From step `first` on, all prompts share so many tokens with the latest one.
struct Run {
  std::size_t first = 0;
  std::int64_t shared_tokens = 0;
};

}  // namespace

PrefixPlan PlanPrefixes(std::span<const std::span<const TokenId>> prompts,
                        std::int64_t block_size_tokens) {
  std::vector<std::size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    return std::ranges::lexicographical_compare(prompts[a], prompts[b]);
  });
  PrefixPlan plan;
  std::vector<Run> runs;  // longer and longer beginnings, of fewer and fewer prompts
  for (std::size_t i = 0; i < order.size(); ++i) {
    PrefixPlan::Step step{.prompt = order[i]};
    std::int64_t shared = i == 0 ? 0 : CommonTokens(prompts[order[i - 1]], prompts[order[i]]);
    shared -= shared % block_size_tokens;
    std::size_t first = i == 0 ? 0 : i - 1;
    while (!runs.empty() && runs.back().shared_tokens >= shared) {
      first = runs.back().first;
      runs.pop_back();
    }
    if (shared > 0) {
      runs.push_back({.first = first, .shared_tokens = shared});
      step.parent = order[first];
      step.shared_tokens = shared;
    }
    plan.steps.push_back(step);
  }
  return plan;
}

}  // namespace nibble
