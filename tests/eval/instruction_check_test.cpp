#include "eval/instruction_check.h"

#include "tests/eval/golden_text.h"

namespace nibble {
namespace {

TEST(InstructionCheck, JudgesAsTheOriginal) {
  const json::Value golden = GoldenText("instructions");
  const auto responses = Strings(*golden.Find("responses"));
  for (const json::Value& item : *golden.Find("instructions")->AsArray()) {
    const std::string& id = *item.Find("id")->AsString();
    const auto check = InstructionCheck::Create(id, *item.Find("kwargs")->AsObject());
    ASSERT_TRUE(check) << check.error().message;
    ASSERT_TRUE(check->judges()) << id << ": " << check->reason();
    for (std::size_t i = 0; i < responses.size(); ++i) {
      SCOPED_TRACE(id + " on " + responses[i]);
      EXPECT_EQ(check->FollowsStrictly(responses[i]),
                item.Find("strict")->AsString()->at(i) == '1');
      EXPECT_EQ(check->FollowsLoosely(responses[i]), item.Find("loose")->AsString()->at(i) == '1');
    }
  }
}

TEST(InstructionCheck, DoesNotGuessALanguageOrARandomArgument) {
  for (const char* id : {"language:response_language", "change_case:english_capital",
                         "change_case:english_lowercase", "length_constraints:number_sentences"}) {
    const auto check = InstructionCheck::Create(id, {});
    ASSERT_TRUE(check) << id;
    EXPECT_FALSE(check->judges()) << id;
    EXPECT_FALSE(check->reason().empty());
  }
  json::Object not_a_letter;
  not_a_letter.Set("letter", "!");
  not_a_letter.Set("let_frequency", 6);
  not_a_letter.Set("let_relation", "at least");
  const auto check = InstructionCheck::Create("keywords:letter_frequency", not_a_letter);
  ASSERT_TRUE(check);
  EXPECT_FALSE(check->judges());
}

TEST(InstructionCheck, NamesWhatIsWrong) {
  const auto unknown = InstructionCheck::Create("keywords:none", {});
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("keywords:none"), std::string::npos);
  json::Object arguments;
  arguments.Set("num_words", "many");
  arguments.Set("relation", "at least");
  const auto wrong = InstructionCheck::Create("length_constraints:number_words", arguments);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message,
            "length_constraints:number_words: kwargs.num_words: expected an integer, found string");
}

}  // namespace
}  // namespace nibble
