#include "compress/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>

#include "base/check.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr std::int64_t kFineGroup = 32;
constexpr double kMostBits = 1000.0;  // a weight; a number of bytes is mistaken for it beyond

std::optional<double> NumberOf(std::string_view text) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value > 0.0
             ? std::optional(value)
             : std::nullopt;
}

// Bytes with a unit, fractions of binary ones included.
std::optional<std::uint64_t> BytesOf(std::string_view text) {
  constexpr std::pair<std::string_view, int> kBinary[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}};
  for (const auto& [unit, power] : kBinary) {
    if (text.ends_with(unit)) {
      const auto value = NumberOf(text.substr(0, text.size() - unit.size()));
      return value && *value < 1e9 ? std::optional(static_cast<std::uint64_t>(
                                         *value * static_cast<double>(1 << power)))
                                   : std::nullopt;
    }
  }
  return text.ends_with('B') ? ParseBytes(text) : std::nullopt;
}

// The step of one item that saves most KL a bit.
struct Step {
  std::size_t item = 0, candidate = 0;
  double rate = 0.0;
};

class Knapsack {
 public:
  explicit Knapsack(std::span<const BudgetItem> items) : items_(items) {
    for (const BudgetItem& item : items) {
      const auto least = std::ranges::min_element(item.bits);
      choice_.push_back(static_cast<std::size_t>(least - item.bits.begin()));
      bits_ += *least;
      kl_ += item.kl[choice_.back()];
    }
  }

  // The best step that `room` more bits allow.
  std::optional<Step> Best(std::uint64_t room) const {
    std::optional<Step> best;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const BudgetItem& item = items_[i];
      const std::size_t now = choice_[i];
      for (std::size_t c = 0; c < item.bits.size(); ++c) {
        const double saved = item.kl[now] - item.kl[c];
        if (saved <= 0.0 ||
            (item.bits[c] > item.bits[now] && item.bits[c] - item.bits[now] > room)) {
          continue;
        }
        const double bits = item.bits[c] > item.bits[now]
                                ? static_cast<double>(item.bits[c] - item.bits[now])
                                : 0.5;
        if (!best || saved / bits > best->rate) {
          best = Step{.item = i, .candidate = c, .rate = saved / bits};
        }
      }
    }
    return best;
  }
  void Take(const Step& step) {
    const BudgetItem& item = items_[step.item];
    std::size_t& now = choice_[step.item];
    bits_ = bits_ - item.bits[now] + item.bits[step.candidate];
    kl_ += item.kl[step.candidate] - item.kl[now];
    now = step.candidate;
  }

  std::uint64_t bits() const { return bits_; }
  double kl() const { return kl_; }
  std::vector<std::size_t> choice() && { return std::move(choice_); }

 private:
  std::span<const BudgetItem> items_;
  std::vector<std::size_t> choice_;
  std::uint64_t bits_ = 0;
  double kl_ = 0.0;
};

std::string_view LabelOf(LinearGroup group) {
  switch (group) {
    case LinearGroup::kQkv:
      return "q k v";
    case LinearGroup::kOutput:
      return "o";
    case LinearGroup::kGateUp:
      return "gate up";
    case LinearGroup::kDown:
      return "down";
  }
  return "";
}

}  // namespace

Result<Budget> ParseBudget(std::string_view text) {
  constexpr std::string_view kBits = "bpw";
  Budget budget{.text = std::string(text)};
  if (text.ends_with(kBits)) {
    budget.bits_per_weight = NumberOf(text.substr(0, text.size() - kBits.size()));
    if (budget.bits_per_weight && *budget.bits_per_weight > kMostBits) {
      budget.bits_per_weight.reset();
    }
  } else {
    budget.bytes = BytesOf(text);
  }
  if (!budget.bits_per_weight && !budget.bytes) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("\"{}\" is no budget: use bits a weight of the linears (4.25bpw) or the "
                    "size of the weight files (2.1GiB, 900MB)",
                    Quote(text)));
  }
  return budget;
}

Result<Scheme> ParseCandidate(std::string_view word) {
  constexpr std::string_view kGroup = "-g";
  const std::size_t at = word.rfind(kGroup);
  auto scheme = ParseScheme(word.substr(0, at));
  if (scheme && at != std::string_view::npos) {
    const std::string_view digits = word.substr(at + kGroup.size());
    std::int64_t group = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), group);
    if (error != std::errc{} || end != digits.data() + digits.size() || group < 0 ||
        scheme->has_own_groups()) {
      scheme.reset();
    } else {
      scheme->group_size = group;
    }
  }
  if (!scheme) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("\"{}\" is no candidate: use a word of --scheme, or a uniform one with "
                            "its groups, as int4-g32",
                            Quote(word)));
  }
  return *scheme;
}

std::string CandidateName(const Scheme& scheme) {
  return scheme.has_own_groups() || scheme.group_size < 0
             ? WordOf(scheme)
             : fmt::format("{}-g{}", WordOf(scheme), scheme.group_size);
}

std::vector<Scheme> UsualCandidates(const ModelConfig& config) {
  const std::int64_t group = DefaultGroupSize(config);
  std::vector<Scheme> out;
  for (const int bits : {3, 4, 5, 6, 8}) {
    out.push_back({.bits = bits, .group_size = group});
    if (bits == 4 && group > kFineGroup) {
      out.push_back({.bits = bits, .group_size = kFineGroup});
    }
  }
  return out;
}

Result<std::vector<std::size_t>> ChooseWithin(std::span<const BudgetItem> items,
                                              std::optional<std::uint64_t> max_bits,
                                              std::optional<double> max_kl) {
  constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 62;
  Knapsack sack(items);
  const std::uint64_t limit = max_bits.value_or(kUnlimited);
  if (sack.bits() > limit) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("the smallest candidates take {} bits where the budget leaves {}: give "
                            "more, or --candidates with fewer bits",
                            sack.bits(), limit));
  }
  while (!max_kl || sack.kl() > *max_kl) {
    const auto step = sack.Best(limit - sack.bits());
    if (!step) {
      break;
    }
    sack.Take(*step);
  }
  if (max_kl && sack.kl() > *max_kl) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("the largest candidates still cost a KL of {:.5f}: allow more, or add "
                            "--candidates with more bits",
                            sack.kl()));
  }
  return std::move(sack).choice();
}

std::string RecipeText(std::span<const GroupSensitivity> groups, std::span<const Scheme> candidates,
                       std::span<const std::size_t> choice, std::string_view method,
                       std::string_view heading) {
  NIBBLE_CHECK(groups.size() == choice.size(), "a choice a group");
  std::string out = fmt::format("{}method: {}\nmodules:\n", heading, method);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    std::string numbers, modules;
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      numbers += fmt::format("  {} {:.6f}{}", CandidateName(candidates[c]), groups[i].kl[c],
                             c == choice[i] ? " <" : "");
    }
    for (const std::string_view linear : LinearsOf(groups[i].group)) {
      modules +=
          fmt::format("{}model.layers.{}.{}", modules.empty() ? "" : ", ", groups[i].block, linear);
    }
    const Scheme& scheme = candidates[choice[i]];
    std::string settings = fmt::format("scheme: {}", WordOf(scheme));
    if (!scheme.has_own_groups() && scheme.group_size >= 0) {
      settings += fmt::format(", group_size: {}", scheme.group_size);
    }
    out += fmt::format("  # block {} {}:{}\n  - {{match: [{}], {}}}\n", groups[i].block,
                       LabelOf(groups[i].group), numbers, modules, settings);
  }
  return out;
}

}  // namespace nibble
