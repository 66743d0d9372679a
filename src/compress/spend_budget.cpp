#include "compress/spend_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "compress/scheme.h"

namespace nibble {
namespace {

// What there is to choose from.
struct Choices {
  std::vector<BudgetItem> items;
  std::uint64_t elements = 0;         // weights of all items
  std::vector<std::size_t> smallest;  // candidates
  std::uint64_t least = 0, most = 0;  // bits of the smallest and of the largest
};

Result<Choices> ChoicesOf(const Checkpoint& source, const QuantizeOptions& options,
                          const OutputPlan& plan, std::span<const GroupSensitivity> groups) {
  const std::vector<ExpectedWeight> expected = ExpectedWeights(source.config());
  Choices out;
  for (const GroupSensitivity& group : groups) {
    BudgetItem& item = out.items.emplace_back(BudgetItem{.kl = group.kl});
    item.bits.resize(options.candidates.size());
    for (const std::string_view linear : LinearsOf(group.group)) {
      const auto weight =
          std::ranges::find(expected, WeightName(group.block, linear), &ExpectedWeight::name);
      out.elements += static_cast<std::uint64_t>(weight->rows * weight->cols);
      for (std::size_t c = 0; c < options.candidates.size(); ++c) {
        NIBBLE_TRY(spec, SpecOf(options.candidates[c], *weight, source.config(), plan.float_dtype));
        item.bits[c] += StoredBits(plan, spec);
      }
    }
    const auto [low, high] = std::ranges::minmax_element(item.bits);
    out.smallest.push_back(static_cast<std::size_t>(low - item.bits.begin()));
    out.least += *low;
    out.most += *high;
  }
  return out;
}

// Weight files with a candidate for each group.
Result<std::uint64_t> BytesOf(const Checkpoint& source, const QuantizeOptions& options,
                              OutputPlan plan, std::span<const GroupSensitivity> groups,
                              std::span<const std::size_t> choice) {
  const std::vector<ExpectedWeight> expected = ExpectedWeights(source.config());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (const std::string_view linear : LinearsOf(groups[i].group)) {
      const std::string name = WeightName(groups[i].block, linear);
      const auto weight = std::ranges::find(expected, name, &ExpectedWeight::name);
      NIBBLE_TRY(spec,
                 SpecOf(options.candidates[choice[i]], *weight, source.config(), plan.float_dtype));
      std::ranges::find(plan.weights, name, &WeightToWrite::name)->spec = spec;
    }
  }
  return SizeBytes(plan, options.shard_bytes);
}

// What the budget leaves to the linears.
Result<std::optional<std::uint64_t>> BitsToSpend(const Checkpoint& source,
                                                 const QuantizeOptions& options,
                                                 const OutputPlan& plan,
                                                 std::span<const GroupSensitivity> groups,
                                                 const Choices& choices) {
  const Budget& budget = *options.budget;
  if (budget.bits_per_weight) {
    return std::optional(static_cast<std::uint64_t>(*budget.bits_per_weight *
                                                    static_cast<double>(choices.elements)));
  }
  if (!budget.bytes) {
    return std::optional<std::uint64_t>();
  }
  NIBBLE_TRY(bytes, BytesOf(source, options, plan, groups, choices.smallest));
  return std::optional(*budget.bytes < bytes ? std::uint64_t{0}
                                             : choices.least + 8 * (*budget.bytes - bytes));
}

}  // namespace

Result<void> CheckBudget(const Checkpoint& source, const QuantizeOptions& options,
                         const OutputPlan& plan) {
  std::vector<GroupSensitivity> groups;
  for (std::int64_t block = 0; block < source.config().num_layers; ++block) {
    for (const LinearGroup group : kLinearGroups) {
      groups.push_back({.block = block, .group = group});
    }
  }
  NIBBLE_TRY(choices, ChoicesOf(source, options, plan, groups));
  const auto a_weight = [&](std::uint64_t bits) {
    return static_cast<double>(bits) / static_cast<double>(choices.elements);
  };
  const auto refuse = [&](const std::string& at_least) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--budget {}: the smallest candidates take more; give {} at least, or "
                            "--candidates with fewer bits",
                            options.budget->text, at_least));
  };
  NIBBLE_TRY(room, BitsToSpend(source, options, plan, groups, choices));
  if (room && *room > choices.most && options.notice) {
    options.notice(
        fmt::format("--budget {} leaves room: the largest candidates take {:.4f} bits a weight of "
                    "the linears; --candidates with more bits, or float, would use it",
                    options.budget->text, a_weight(choices.most)));
  }
  if (!room || *room >= choices.least) {
    return {};
  }
  if (options.budget->bytes) {
    NIBBLE_TRY(bytes, BytesOf(source, options, plan, groups, choices.smallest));
    return refuse(fmt::format("{}B", bytes));
  }
  constexpr double kShown = 1e4;  // rounded up, so that it is enough
  return refuse(fmt::format("{}bpw", std::ceil(a_weight(choices.least) * kShown) / kShown));
}

Result<std::string> SpendBudget(const Checkpoint& source, const QuantizeOptions& options,
                                const OutputPlan& plan, std::span<const GroupSensitivity> groups,
                                std::string_view method) {
  NIBBLE_TRY(choices, ChoicesOf(source, options, plan, groups));
  const std::vector<BudgetItem>& items = choices.items;
  NIBBLE_TRY(room, BitsToSpend(source, options, plan, groups, choices));
  NIBBLE_TRY(choice, ChooseWithin(items, room, options.budget->max_kl));
  while (options.budget->bytes) {  // words that are not full come on top of the bits
    NIBBLE_TRY(bytes, BytesOf(source, options, plan, groups, choice));
    if (bytes <= *options.budget->bytes) {
      break;
    }
    if (*room == choices.least) {  // CheckBudget has found that these fit
      choice = choices.smallest;
      break;
    }
    const std::uint64_t excess = 8 * (bytes - *options.budget->bytes);
    room = *room - std::min(excess, *room - choices.least);
    NIBBLE_TRY(less, ChooseWithin(items, room, options.budget->max_kl));
    choice = std::move(less);
  }
  std::uint64_t bits = 0;
  double kl = 0.0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    bits += items[i].bits[choice[i]];
    kl += items[i].kl[choice[i]];
  }
  const std::string spent =
      fmt::format("{:.4f} bits a weight of the linears; the groups' own KL add up to {:.5f}",
                  static_cast<double>(bits) / static_cast<double>(choices.elements), kl);
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
