#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// How the number is found that answers a GSM8K question; lm-eval's two filters.
enum class AnswerRule {
  kStrict,    // the first "#### NUMBER"
  kFlexible,  // the last thing that looks like a number
};

/// The answer in a generated text, as it stands there; nothing if there is none.
std::optional<std::string> ExtractGsm8kAnswer(std::string_view text, AnswerRule rule);

/// Are the two the same answer to lm-eval's exact match? `reference` may be a whole worked
/// solution. Commas, dollar signs, what stands before "#### ", a last full stop and case do not
/// count.
bool SameGsm8kAnswer(std::string_view answer, std::string_view reference);

/// The unbiased estimate of pass@k (Chen et al. 2021, "Evaluating Large Language Models Trained on
/// Code", equation 1) of n samples of which c passed: 1 - C(n-c, k) / C(n, k).
/// 0 <= c <= n, 1 <= k <= n.
double PassAtK(std::int64_t n, std::int64_t c, std::int64_t k);

}  // namespace nibble
