#include "tokenizer/splitter.h"

#include <gtest/gtest.h>

#include <string>

#include "tokenizer/regex.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr std::string_view kPatterns[] = {
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
};

class KnownPatternTest : public ::testing::TestWithParam<std::string_view> {};

// The pattern itself, run by PCRE2, is the oracle. The characters are of Unicode 13 or older, where
// both sides agree.
TEST_P(KnownPatternTest, CutsLikeItsPattern) {
  const auto rules = KnownPattern(GetParam());
  ASSERT_TRUE(rules);
  const auto regex = Regex::Compile(GetParam());
  ASSERT_TRUE(regex) << regex.error().message;
  constexpr std::string_view kAtoms[] = {
      " ",   "  ",     "\n", "\r\n",   "\t",     "'",      "'s",     "'S",      "'ſ",
      "'re", "'VE",    "'l", "'ll",    "a",      "Zq",     "é",      "e\u0301", "\u0301",
      "1",   "12",     "½",  "²",      "Ⅷ",      "٣",      "!",      "...",     "-",
      "_",   "日本",   "。", "\u00a0", "\u3000", "\u180e", "\u200b", "\u2028",  "\u0085",
      "😀",   "\u0000", "ǅ",  "ª",      "\u0e31"};
  std::uint32_t state = 7;
  const auto next = [&](std::size_t bound) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % bound;
  };
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    for (std::size_t i = next(12) + 1; i > 0; --i) {
      text += kAtoms[next(std::size(kAtoms))];
    }
    std::vector<Span> cut;
    SplitWords(*rules, text, cut);
    std::vector<Span> matches;
    regex->FindAll(text, matches);
    std::vector<Span> pieces;
    ApplyBehavior({0, text.size()}, matches, SplitBehavior::kIsolated, false, pieces);
    ASSERT_EQ(cut, pieces) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, KnownPatternTest, ::testing::ValuesIn(kPatterns));

TEST(ApplyBehavior, ReferenceExample) {
  // "the-final--countdown" at "-": the example of the reference library's documentation.
  const std::string text = "the-final--countdown";
  const std::vector<Span> matches = {{3, 4}, {9, 10}, {10, 11}};
  const auto pieces = [&](SplitBehavior behavior) {
    std::vector<Span> spans;
    ApplyBehavior({0, text.size()}, matches, behavior, false, spans);
    std::string joined;
    for (const Span& span : spans) {
      joined += (joined.empty() ? "" : "|") + text.substr(span.begin, span.end - span.begin);
    }
    return joined;
  };
  EXPECT_EQ(pieces(SplitBehavior::kRemoved), "the|final|countdown");
  EXPECT_EQ(pieces(SplitBehavior::kIsolated), "the|-|final|-|-|countdown");
  EXPECT_EQ(pieces(SplitBehavior::kMergedWithPrevious), "the-|final-|-|countdown");
  EXPECT_EQ(pieces(SplitBehavior::kMergedWithNext), "the|-final|-|-countdown");
  EXPECT_EQ(pieces(SplitBehavior::kContiguous), "the|-|final|--|countdown");
}

TEST(Normalize, OrderOfMarksInLongRunsIsCanonical) {
  // 220 (below) goes before 230 (above), whatever the length of the run; in good time.
  for (const int pairs : {10, 200, 200'000}) {
    std::string mixed = "a";
    std::string ordered = "a";
    for (int i = 0; i < pairs; ++i) {
      mixed += "\u0302\u0323";
    }
    for (int i = 0; i < pairs; ++i) {
      ordered += "\u0323";
    }
    for (int i = 0; i < pairs; ++i) {
      ordered += "\u0302";
    }
    EXPECT_EQ(Normalize(mixed, NormalForm::kNfd), ordered) << pairs;
    // NFC composes the base with its first mark and the first above: ậ.
    EXPECT_EQ(Normalize(mixed, NormalForm::kNfc),
              "\u1EAD" + ordered.substr(3, 2 * static_cast<std::size_t>(pairs - 1)) +
                  ordered.substr(1 + 2 * static_cast<std::size_t>(pairs) + 2))
        << pairs;
  }
}

TEST(Utf8, InvalidSubpartsAreMaximal) {
  // The example of the Unicode standard, table 3-8.
  EXPECT_EQ(SanitizeUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(SanitizeUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_TRUE(IsValidUtf8("aé€😀"));
  EXPECT_FALSE(IsValidUtf8("\xED\xA0\x80"));
  EXPECT_FALSE(IsValidUtf8("\xE2\x82"));
}

}  // namespace
}  // namespace nibble::text
