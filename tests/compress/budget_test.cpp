#include "compress/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/random.h"
#include "compress/recipe.h"

namespace nibble {
namespace {

TEST(ParseBudget, TakesBitsAWeightAndBytes) {
  EXPECT_DOUBLE_EQ(*ParseBudget("4.25bpw")->bits_per_weight, 4.25);
  EXPECT_EQ(ParseBudget("1.5GiB")->bytes, std::uint64_t{3} << 29);
  EXPECT_EQ(ParseBudget("900MB")->bytes, 900'000'000U);
  // A plain number could be either.
  for (const char* wrong :
       {"", "4.25", "4", "bpw", "-1bpw", "4 bpw", "0GiB", "xGiB", "nanbpw", "infbpw", "1e30bpw"}) {
    const auto budget = ParseBudget(wrong);
    ASSERT_FALSE(budget) << wrong;
    EXPECT_NE(budget.error().message.find("4.25bpw"), std::string::npos);
  }
}

TEST(ParseCandidate, AWordAndItsGroups) {
  EXPECT_EQ(*ParseCandidate("int4-g32"), (Scheme{.bits = 4, .group_size = 32}));
  EXPECT_EQ(*ParseCandidate("int8"), (Scheme{.bits = 8}));
  EXPECT_EQ(CandidateName(*ParseCandidate("int3-g0")), "int3-g0");
  EXPECT_EQ(ParseCandidate("nf4")->codebook, Codebook::kNf4);
  for (const char* wrong : {"int4-g", "int4-gx", "int4-32", "nf4-g32", "-g32", "int9"}) {
    const auto candidate = ParseCandidate(wrong);
    ASSERT_FALSE(candidate) << wrong;
    EXPECT_NE(candidate.error().message.find("int4-g32"), std::string::npos);
  }
}

// Items as they are in models: more bits cost less KL, at rates that differ by item.
std::vector<BudgetItem> RandomItems(std::size_t count, std::size_t candidates, std::uint64_t seed) {
  std::uint64_t position = 0;
  const auto uniform = [&] { return static_cast<double>(UniformAt(seed, 0, position++)); };
  std::vector<BudgetItem> items;
  for (std::size_t i = 0; i < count; ++i) {
    BudgetItem& item = items.emplace_back();
    const double sensitivity = 0.01 + uniform();
    const auto size = 1 + static_cast<std::uint64_t>(uniform() * 3.0);
    for (std::size_t c = 0; c < candidates; ++c) {
      item.bits.push_back(size * (3 + c));
      item.kl.push_back(sensitivity / static_cast<double>(std::uint64_t{1} << (2 * c)));
    }
  }
  return items;
}

double KlOf(const std::vector<BudgetItem>& items, const std::vector<std::size_t>& choice) {
  double sum = 0.0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    sum += items[i].kl[choice[i]];
  }
  return sum;
}

std::uint64_t BitsOf(const std::vector<BudgetItem>& items, const std::vector<std::size_t>& choice) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    sum += items[i].bits[choice[i]];
  }
  return sum;
}

TEST(ChooseWithin, IsCloseToTheBestOfAllChoicesAndNeverAboveTheBudget) {
  constexpr std::size_t kItems = 6, kCandidates = 4;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const auto items = RandomItems(kItems, kCandidates, seed);
    const std::vector<std::size_t> least(kItems, 0), most(kItems, kCandidates - 1);
    const std::uint64_t low = BitsOf(items, least), high = BitsOf(items, most);
    for (std::uint64_t limit = low; limit <= high; limit += 3) {
      const auto choice = ChooseWithin(items, limit, std::nullopt);
      ASSERT_TRUE(choice) << choice.error().message;
      EXPECT_LE(BitsOf(items, *choice), limit);
      double best = std::numeric_limits<double>::max();
      std::vector<std::size_t> all(kItems, 0);
      for (std::size_t number = 0; number < 4096; ++number) {
        for (std::size_t i = 0; i < kItems; ++i) {
          all[i] = number >> (2 * i) & 3U;
        }
        best = BitsOf(items, all) <= limit ? std::min(best, KlOf(items, all)) : best;
      }
      // A step that does not fit is worth at most what the relaxation gains over it: here the
      // largest of few items. With a hundred of them the gap is below a percent.
      EXPECT_LE(KlOf(items, *choice), 2.0 * best + 1e-12) << "seed " << seed << " limit " << limit;
    }
    EXPECT_EQ(*ChooseWithin(items, high, std::nullopt), most);
    EXPECT_FALSE(ChooseWithin(items, low - 1, std::nullopt));
  }
}

TEST(ChooseWithin, AManyItemsBudgetIsSpentToItsEnd) {
  const auto items = RandomItems(200, 5, 7);
  const std::uint64_t limit = 200 * 2 * 4;
  const auto choice = ChooseWithin(items, limit, std::nullopt);
  ASSERT_TRUE(choice);
  EXPECT_LE(BitsOf(items, *choice), limit);
  EXPECT_GT(BitsOf(items, *choice) + 8, limit);
}

TEST(ChooseWithin, AKlIsReachedWithNoStepTooMany) {
  const auto items = RandomItems(50, 4, 3);
  const auto choice = ChooseWithin(items, std::nullopt, 2.0);
  ASSERT_TRUE(choice);
  EXPECT_LE(KlOf(items, *choice), 2.0);
  // The same bits as a budget give the same.
  EXPECT_LE(KlOf(items, *ChooseWithin(items, BitsOf(items, *choice), std::nullopt)), 2.0);
  const auto impossible = ChooseWithin(items, std::nullopt, 1e-9);
  ASSERT_FALSE(impossible);
  EXPECT_NE(impossible.error().message.find("--candidates"), std::string::npos);
}

TEST(RecipeText, IsARecipeThatResolvesToTheChoice) {
  const std::vector<Scheme> candidates = {{.bits = 3, .group_size = 64},
                                          {.bits = 4, .group_size = 32}};
  std::vector<GroupSensitivity> groups;
  std::vector<std::size_t> choice;
  std::vector<ExpectedWeight> weights;
  for (const LinearGroup group : kLinearGroups) {
    groups.push_back({.block = 0, .group = group, .kl = {0.5, 0.25}});
    choice.push_back(choice.size() % 2);
    for (const std::string_view linear : LinearsOf(group)) {
      weights.push_back({WeightName(0, linear), 64, 64, true});
    }
  }
  const std::string text = RecipeText(groups, candidates, choice, "auto", "# why\n");
  const auto recipe = ParseRecipe(text, "recipe.yaml");
  ASSERT_TRUE(recipe) << recipe.error().message << "\n" << text;
  const auto plans = Resolve(*recipe, weights);
  ASSERT_TRUE(plans) << plans.error().message;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    for (const std::string_view linear : LinearsOf(groups[i].group)) {
      EXPECT_EQ(plans->at(WeightName(0, linear)).scheme, candidates[choice[i]]) << linear;
    }
  }
  EXPECT_NE(text.find("int4-g32 0.250000 <"), std::string::npos) << text;
}

}  // namespace
}  // namespace nibble
