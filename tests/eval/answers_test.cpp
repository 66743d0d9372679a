#include "eval/answers.h"

#include "tests/eval/golden_text.h"

namespace nibble {
namespace {

void ExpectAnswer(std::string_view text, AnswerRule rule, const json::Value& golden) {
  const auto found = ExtractGsm8kAnswer(text, rule);
  if (golden.IsNull()) {
    EXPECT_FALSE(found) << text << " gave " << *found;
  } else {
    ASSERT_TRUE(found) << text;
    EXPECT_EQ(*found, *golden.AsString()) << text;
  }
}

TEST(ExtractGsm8kAnswer, FindsWhatLmEvalsFiltersFind) {
  const json::Value golden = GoldenText("gsm8k");
  for (const json::Value& item : *golden.Find("cases")->AsArray()) {
    const std::string& text = *item.Find("text")->AsString();
    ExpectAnswer(text, AnswerRule::kStrict, *item.Find("strict"));
    ExpectAnswer(text, AnswerRule::kFlexible, *item.Find("flexible"));
  }
}

TEST(SameGsm8kAnswer, ComparesAsLmEvalDoes) {
  const json::Value golden = GoldenText("gsm8k");
  int same = 0;
  for (const json::Value& item : *golden.Find("same")->AsArray()) {
    const json::Array& row = *item.AsArray();
    const bool expected = *row[2].AsBool();
    EXPECT_EQ(SameGsm8kAnswer(*row[0].AsString(), *row[1].AsString()), expected)
        << *row[0].AsString() << " against " << *row[1].AsString();
    same += expected ? 1 : 0;
  }
  EXPECT_GT(same, 3);
}

TEST(PassAtK, IsTheShareOfSubsetsWithAPass) {
  EXPECT_DOUBLE_EQ(PassAtK(1, 1, 1), 1.0);
  EXPECT_DOUBLE_EQ(PassAtK(10, 3, 1), 0.3);
  EXPECT_DOUBLE_EQ(PassAtK(5, 2, 2), 1.0 - 3.0 / 10.0);  // C(3, 2) / C(5, 2)
  EXPECT_DOUBLE_EQ(PassAtK(5, 4, 2), 1.0);
  EXPECT_DOUBLE_EQ(PassAtK(200, 0, 100), 0.0);
}

}  // namespace
}  // namespace nibble
