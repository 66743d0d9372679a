#include <gmock/gmock.h>

#include "eval/bleu.h"
#include "eval/capital_words.h"
#include "eval/chrf.h"
#include "eval/porter_stemmer.h"
#include "eval/rouge.h"
#include "tests/eval/golden_text.h"

namespace nibble {
namespace {

TEST(PorterStem, IsNltksOnEveryRule) {
  const json::Value golden = GoldenText("stems");
  ASSERT_GT(golden.AsObject()->size(), 1000U);
  for (const auto& [word, stem] : *golden.AsObject()) {
    EXPECT_EQ(PorterStem(word), *stem.AsString()) << word;
  }
}

TEST(CountCapitalWords, CountsNltksWords) {
  const json::Value golden = GoldenText("capitals");
  ASSERT_GE(golden.AsArray()->size(), 400U);
  for (const json::Value& item : *golden.AsArray()) {
    const std::string& text = *item.AsArray()->at(0).AsString();
    EXPECT_EQ(CountCapitalWords(text), item.AsArray()->at(1).AsInt()) << text;
  }
}

void ExpectScore(const RougeScore& score, const json::Value& golden) {
  const json::Array& expected = *golden.AsArray();
  EXPECT_DOUBLE_EQ(score.precision, *expected[0].AsDouble());
  EXPECT_DOUBLE_EQ(score.recall, *expected[1].AsDouble());
  EXPECT_DOUBLE_EQ(score.f1, *expected[2].AsDouble());
}

TEST(ScoreRouge, IsTheRougeScorePackages) {
  const json::Value golden = GoldenText("rouge");
  for (const json::Value& item : *golden.AsArray()) {
    const std::string& summary = *item.Find("summary")->AsString();
    const auto references = Strings(*item.Find("references"));
    for (const bool stem : {true, false}) {
      SCOPED_TRACE(summary + (stem ? " (stemmed)" : ""));
      const RougeScores scores = ScoreRouge(references, summary, stem);
      const json::Value& expected = *item.Find(stem ? "stemmed" : "plain");
      ExpectScore(scores.rouge1, *expected.Find("rouge1"));
      ExpectScore(scores.rouge2, *expected.Find("rouge2"));
      ExpectScore(scores.rouge_l, *expected.Find("rougeL"));
    }
  }
}

BleuTokenizer TokenizerNamed(const std::string& name) {
  return name == "zh"     ? BleuTokenizer::kZh
         : name == "char" ? BleuTokenizer::kChar
                          : BleuTokenizer::k13a;
}

TEST(Translation, BleuAndChrfAreSacrebleus) {
  const json::Value golden = GoldenText("translation");
  for (const json::Value& item : *golden.AsArray()) {
    const auto hypotheses = Strings(*item.Find("hypotheses"));
    const BleuTokenizer tokenizer = TokenizerNamed(*item.Find("tokenize")->AsString());
    BleuCounts bleu;
    ChrfCounts chrf;
    for (std::size_t i = 0; i < hypotheses.size(); ++i) {
      SCOPED_TRACE(hypotheses[i]);
      EXPECT_EQ(TokenizeForBleu(hypotheses[i], tokenizer),
                Strings(item.Find("tokens")->AsArray()->at(i)));
      std::vector<std::string> references;
      for (const json::Value& stream : *item.Find("references")->AsArray()) {
        references.push_back(*stream.AsArray()->at(i).AsString());
      }
      bleu += CountBleu(hypotheses[i], references, tokenizer);
      chrf += CountChrf(hypotheses[i], references);
    }
    EXPECT_NEAR(Bleu(bleu), *item.Find("bleu")->AsDouble(), 1e-9) << hypotheses[0];
    EXPECT_NEAR(Chrf(chrf), *item.Find("chrf")->AsDouble(), 1e-9) << hypotheses[0];
  }
}

TEST(Translation, NothingScoresNothing) {
  EXPECT_EQ(Bleu({}), 0.0);
  EXPECT_EQ(Chrf({}), 0.0);
}

}  // namespace
}  // namespace nibble
