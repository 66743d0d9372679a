#include "compress/spend_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "compress/scheme.h"

namespace nibble {
namespace {

// What the budget leaves to the linears.
std::optional<std::uint64_t> BitsToSpend(const QuantizeOptions& options, const OutputPlan& plan,
                                         std::uint64_t elements) {
  const Budget& budget = *options.budget;
  if (budget.bits_per_weight) {
    return static_cast<std::uint64_t>(*budget.bits_per_weight * static_cast<double>(elements));
  }
  if (!budget.bytes) {
    return std::nullopt;
  }
  const std::uint64_t others = SizeBytes(plan, options.shard_bytes) - BitsOfLinears(plan) / 8;
  return *budget.bytes > others ? (*budget.bytes - others) * 8 : 0;
}

}  // namespace

Result<std::string> SpendBudget(const Checkpoint& source, const QuantizeOptions& options,
                                const OutputPlan& plan, std::span<const GroupSensitivity> groups,
                                std::string_view method) {
  const std::vector<ExpectedWeight> expected = ExpectedWeights(source.config());
  std::vector<BudgetItem> items;
  std::uint64_t elements = 0;
  for (const GroupSensitivity& group : groups) {
    BudgetItem& item = items.emplace_back(BudgetItem{.kl = group.kl});
    item.bits.resize(options.candidates.size());
    for (const std::string_view linear : LinearsOf(group.group)) {
      const auto weight =
          std::ranges::find(expected, WeightName(group.block, linear), &ExpectedWeight::name);
      elements += static_cast<std::uint64_t>(weight->rows * weight->cols);
      for (std::size_t c = 0; c < options.candidates.size(); ++c) {
        NIBBLE_TRY(spec, SpecOf(options.candidates[c], *weight, source.config(), plan.float_dtype));
        item.bits[c] += StoredBits(plan, spec);
      }
    }
  }
  NIBBLE_TRY(choice,
             ChooseWithin(items, BitsToSpend(options, plan, elements), options.budget->max_kl));
  std::uint64_t bits = 0;
  double kl = 0.0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    bits += items[i].bits[choice[i]];
    kl += items[i].kl[choice[i]];
  }
  const std::string spent =
      fmt::format("{:.4f} bits a weight of the linears; the groups' own KL add up to {:.5f}",
                  static_cast<double>(bits) / static_cast<double>(elements), kl);
  if (options.notice) {
    options.notice(fmt::format("{}: {}", kRecipeFile, spent));
  }
  return RecipeText(groups, options.candidates, choice, method,
                    fmt::format("# Chosen by nibble quantize for {}: {}.\n"
                                "# Numbers: KL of the model's output when the linears of one "
                                "input are quantized alone; < is what was chosen.\n",
                                options.budget->text, spent));
}

}  // namespace nibble
