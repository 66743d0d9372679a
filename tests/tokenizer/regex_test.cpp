#include "tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble::text {
namespace {

using ::testing::HasSubstr;

/// All matches, joined by '|'.
std::string Matches(std::string_view pattern, const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex) << regex.error().message;
  if (!regex) {
    return "refused";
  }
  std::vector<Span> matches;
  regex->FindAll(text, matches);
  std::string joined;
  for (const Span& match : matches) {
    joined += text.substr(match.begin, match.end - match.begin) + "|";
  }
  return joined;
}

TEST(Regex, WhiteSpaceIsUnicodesNotPcres) {
  EXPECT_EQ(Matches(R"(\s+)", "a\u00a0b\u180ec\u3000d"), "\u00a0|\u3000|");
  EXPECT_EQ(Matches(R"(\S+)", "a\u00a0b\u180ec"), "a|b\u180ec|");
  EXPECT_EQ(Matches(R"([^\sx]+)", "a\u180ex\u2028b"), "a\u180e|b|");
  EXPECT_EQ(Matches(R"([\S]+)", "a\u180e b"), "a\u180e|b|");
}

TEST(Regex, ClassesIntersect) {
  EXPECT_EQ(Matches(R"([\p{L}&&[^\p{Han}]]+)", "ab日本cd"), "ab|cd|");
  EXPECT_EQ(Matches(R"([\p{L}&&[^\p{Han}]&&[^b]]+)", "ab日本cd"), "a|cd|");
  EXPECT_EQ(Matches(R"([^a-z&&[^x]]+)", "abxcd"), "x|");
  EXPECT_EQ(Matches(R"([a[bc]]+)", "abcd"), "abc|");
  EXPECT_EQ(Matches(R"([^a[bc]]+)", "abcd"), "d|");
}

TEST(Regex, OtherWordsForTheSame) {
  EXPECT_EQ(Matches(R"(\h+)", "12afg"), "12af|");
  EXPECT_EQ(Matches(R"([\hx]+)", "12xg"), "12x|");
  EXPECT_EQ(Matches(R"(a{,2}b)", "aaab"), "aab|");
  EXPECT_EQ(Matches(R"(a{b)", "a{b"), "a{b|");
  EXPECT_EQ(Matches(R"(\u0041)", "BAB"), "A|");
  EXPECT_EQ(Matches(R"([\u0041\]])", "BA]"), "A|]|");
  EXPECT_EQ(Matches(R"([]a]+)", "b]a"), "]a|");
  EXPECT_EQ(Matches(R"([[:digit:]x]+)", "a1x"), "1x|");
  EXPECT_EQ(Matches(R"(\bthe\b)", "the then the."), "the|the|");
  EXPECT_EQ(Matches(R"(\Bhe)", "the he"), "he|");
  EXPECT_EQ(Matches(R"(a$)", "a\nba\n"), "a|a|");
  EXPECT_EQ(Matches(R"(\w+)", "a_1² b\u0301 ⅧⒶ ③"), "a_1²|b\u0301|ⅧⒶ|");
  EXPECT_EQ(Matches(R"(x*+)", "axx"), "|xx|");  // no empty match directly after one
}

TEST(Regex, WhatCannotBeTranslatedIsRefused) {
  for (const std::string_view pattern :
       {R"(\)", R"([a)", R"([a\)", R"(\Ka)", R"(a{1,2}+)", R"([\W])", R"([a&&])", R"(\u00)",
        R"([[:a)", R"((?<n>a)\k<n>)", R"(\Qa\E)", R"((()", R"(\p{Nonsense})"}) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_FALSE(regex) << pattern;
    EXPECT_EQ(regex.error().code, ErrorCode::kUnsupported) << pattern;
  }
  EXPECT_FALSE(Regex::Compile(std::string(1 << 20, 'a')));
  EXPECT_FALSE(Regex::Compile(std::string(1000, '(')));
  EXPECT_FALSE(Regex::Compile(std::string(1000, '[')));
}

TEST(Regex, LongRunsDoNotExhaustTheStack) {
  // A nested group a character: PCRE2's JIT needs stack for each.
  const std::string text(200'000, 'a');
  EXPECT_EQ(Matches(R"((?:(?=\p{L})(?:[^A-Z]))+)", text), text + "|");
}

TEST(Regex, MatchesLieAnywhereInALongText) {
  // Starts are tried a few hundred at a time.
  std::string text(1'000, 'a');
  for (std::size_t at : {0U, 255U, 256U, 257U, 999U}) {
    text[at] = 'b';
  }
  EXPECT_EQ(Matches("b|$", text), "b|b|b|b|b|");
  std::string wide;
  for (int i = 0; i < 500; ++i) {
    wide += "日";
  }
  EXPECT_EQ(Matches("x|本", wide + "本x"), "本|x|");
}

TEST(Regex, AnExplodingPatternEnds) {
  const std::string text(5'000, 'a');
  const auto regex = Regex::Compile(R"((a+)+b)");
  ASSERT_TRUE(regex);
  std::vector<Span> matches;
  regex->FindAll(text, matches);
  EXPECT_TRUE(matches.empty());
}

}  // namespace
}  // namespace nibble::text
