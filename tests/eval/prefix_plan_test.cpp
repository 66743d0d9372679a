#include "eval/prefix_plan.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace nibble {
namespace {

// A token a letter.
std::vector<std::vector<TokenId>> Prompts(const std::vector<std::string>& words) {
  std::vector<std::vector<TokenId>> prompts;
  for (const std::string& word : words) {
    std::vector<TokenId>& prompt = prompts.emplace_back();
    for (const char letter : word) {
      prompt.push_back(TokenId{letter});
    }
  }
  return prompts;
}

PrefixPlan Plan(const std::vector<std::string>& words, std::int64_t block) {
  const auto prompts = Prompts(words);
  const std::vector<std::span<const TokenId>> views(prompts.begin(), prompts.end());
  return PlanPrefixes(views, block);
}

const PrefixPlan::Step& StepOf(const PrefixPlan& plan, std::size_t prompt) {
  for (const PrefixPlan::Step& step : plan.steps) {
    if (step.prompt == prompt) {
      return step;
    }
  }
  static const PrefixPlan::Step none;
  ADD_FAILURE() << "no step for prompt " << prompt;
  return none;
}

TEST(PrefixPlan, TheFirstOfThoseThatBeginAlikeGoesBeforeTheOthers) {
  // Two questions of one subject ("aabb"), two answers each, and one of another subject.
  const PrefixPlan plan = Plan({"aabbQQ1y", "aabbQQ1x", "zz", "aabbPP1x", "aabbPP1y"}, 2);
  ASSERT_EQ(plan.steps.size(), 5U);
  EXPECT_EQ(StepOf(plan, 3).parent, PrefixPlan::kNone);
  EXPECT_EQ(StepOf(plan, 4).parent, 3U);  // the same question
  EXPECT_EQ(StepOf(plan, 4).shared_tokens, 6);
  EXPECT_EQ(StepOf(plan, 1).parent, 3U);  // the same subject
  EXPECT_EQ(StepOf(plan, 1).shared_tokens, 4);
  EXPECT_EQ(StepOf(plan, 0).parent, 1U);
  EXPECT_EQ(StepOf(plan, 0).shared_tokens, 6);
  EXPECT_EQ(StepOf(plan, 2).parent, PrefixPlan::kNone);
}

TEST(PrefixPlan, OnlyFullBlocksCount) {
  const PrefixPlan plan = Plan({"abcd", "abce"}, 4);
  EXPECT_EQ(StepOf(plan, 1).parent, PrefixPlan::kNone);
  EXPECT_EQ(StepOf(plan, 1).shared_tokens, 0);
}

TEST(PrefixPlan, ParentsComeFirstAndShareWhatIsClaimed) {
  // Words over two letters: beginnings of every length nest in every way.
  std::vector<std::string> words;
  for (unsigned bits = 0; bits < 300; ++bits) {
    std::string& word = words.emplace_back();
    for (unsigned at = 0; at < 3 + bits % 7; ++at) {
      word += ((bits * 2654435761U) >> (8 + at)) % 2 == 0 ? 'a' : 'b';
    }
  }
  const PrefixPlan plan = Plan(words, 2);
  std::set<std::size_t> seen;
  for (const PrefixPlan::Step& step : plan.steps) {
    if (step.parent != PrefixPlan::kNone) {
      EXPECT_TRUE(seen.contains(step.parent));
      const auto shared = static_cast<std::size_t>(step.shared_tokens);
      EXPECT_GT(shared, 0U);
      EXPECT_EQ(words[step.prompt].substr(0, shared), words[step.parent].substr(0, shared));
      EXPECT_GE(words[step.prompt].size(), shared);
    }
    EXPECT_TRUE(seen.insert(step.prompt).second);
  }
  EXPECT_EQ(seen.size(), words.size());
}

}  // namespace
}  // namespace nibble
