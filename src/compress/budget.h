#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "compress/scheme.h"
#include "compress/sensitivity.h"

namespace nibble {

/// What a mixed model may take or lose; one of the three.
struct Budget {
  std::optional<double> bits_per_weight;  // of the linears, scales included
  std::optional<std::uint64_t> bytes;     // of the weight files
  std::optional<double> max_kl;           // sum of what each group of linears costs alone
  std::string text;                       // as the user wrote it
};
/// "4.25bpw", "2.1GiB", "900MB". Errors: kInvalidArgument.
Result<Budget> ParseBudget(std::string_view text);

/// "int4", or "int4-g32" with its own size of groups. Errors: kInvalidArgument.
Result<Scheme> ParseCandidate(std::string_view word);
std::string CandidateName(const Scheme& scheme);
/// 3, 4, 5, 6 and 8 bits in the model's groups, and 4 bits in groups of 32 where those are larger.
std::vector<Scheme> UsualCandidates(const ModelConfig& config);

/// What a knapsack chooses from: by candidate, bits and cost of one item.
struct BudgetItem {
  std::vector<std::uint64_t> bits;
  std::vector<double> kl;
};
/// A candidate of each item: starting with the smallest, always the step that saves most KL a bit
/// among those that fit, until none does, or (max_kl) until the sum is low enough. This is the
/// Lagrangian relaxation's solution, and what is left over filled greedily. Errors:
/// kInvalidArgument if the smallest candidates exceed max_bits, or the largest max_kl; says what
/// would do.
Result<std::vector<std::size_t>> ChooseWithin(std::span<const BudgetItem> items,
                                              std::optional<std::uint64_t> max_bits,
                                              std::optional<double> max_kl);

/// The choice as a recipe, with what was measured as comments.
std::string RecipeText(std::span<const GroupSensitivity> groups, std::span<const Scheme> candidates,
                       std::span<const std::size_t> choice, std::string_view method,
                       std::string_view heading);

}  // namespace nibble
