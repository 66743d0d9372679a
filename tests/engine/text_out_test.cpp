#include "engine/text_out.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

struct Outcome {
  std::string text;
  std::string stop;  // empty: none
  bool operator==(const Outcome&) const = default;
};

Outcome Match(const std::vector<std::string>& pieces, const std::vector<std::string>& stops,
              bool include) {
  StopStringMatcher matcher(stops, include);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    auto out = matcher.Push(piece);
    outcome.text += out.text;
    if (out.matched) {
      outcome.stop = stops[static_cast<std::size_t>(*out.matched)];
      return outcome;
    }
  }
  outcome.text += matcher.Finish();
  return outcome;
}

/// Character by character, the whole text at hand.
Outcome MatchNaively(const std::string& text, const std::vector<std::string>& stops, bool include) {
  Outcome outcome;
  for (const char c : text) {
    outcome.text += c;
    const std::string* longest = nullptr;
    for (const std::string& stop : stops) {
      if (outcome.text.ends_with(stop) && (longest == nullptr || stop.size() > longest->size())) {
        longest = &stop;
      }
    }
    if (longest != nullptr) {
      outcome.stop = *longest;
      if (!include) {
        outcome.text.resize(outcome.text.size() - longest->size());
      }
      return outcome;
    }
  }
  return outcome;
}

TEST(StopStrings, AMatchAcrossTokensIsRemoved) {
  EXPECT_EQ(Match({"Hello ", "wo", "r", "ld, all"}, {"world"}, false),
            (Outcome{"Hello ", "world"}));
  EXPECT_EQ(Match({"Hello ", "wo", "r", "ld, all"}, {"world"}, true),
            (Outcome{"Hello world", "world"}));
}

TEST(StopStrings, TextThatMayBecomeAStopStringIsHeldBack) {
  StopStringMatcher matcher({"\n\nUser:"}, false);
  EXPECT_EQ(matcher.Push("answer\n").text, "answer");
  EXPECT_EQ(matcher.Push("\nUs").text, "");
  EXPECT_EQ(matcher.Push("ually").text, "\n\nUsually");
  EXPECT_EQ(matcher.Push("\n").text, "");
  EXPECT_EQ(matcher.Finish(), "\n");
}

TEST(StopStrings, NothingIsHeldBackWhenTheStopStringStays) {
  StopStringMatcher matcher({"end"}, true);
  EXPECT_EQ(matcher.Push("the e").text, "the e");
  EXPECT_EQ(matcher.Push("n").text, "n");
  const auto piece = matcher.Push("d of it");
  EXPECT_EQ(piece.text, "d");
  EXPECT_EQ(piece.matched, 0);
}

TEST(StopStrings, AMatchMustEndWhereCheckingIsAllowed) {
  StopStringMatcher matcher({"ab"}, false);
  const auto early = matcher.Push("xaby", /*check=*/false);
  EXPECT_FALSE(early.matched);
  EXPECT_EQ(early.text, "xaby");
  EXPECT_FALSE(matcher.Push("a", false).matched);
  const auto late = matcher.Push("b", true);
  EXPECT_TRUE(late.matched);
  EXPECT_EQ(late.text, "");
}

TEST(StopStrings, TheOutcomeDoesNotDependOnTokenBorders) {
  std::mt19937 random(20261124);
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_matches = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::string> stops(static_cast<std::size_t>(draw(1, 4)));
    for (std::string& stop : stops) {
      for (int k = draw(1, 5); k > 0; --k) {
        stop += static_cast<char>('a' + draw(0, 2));
      }
    }
    std::string text;
    std::vector<std::string> pieces;
    for (int p = draw(0, 12); p > 0; --p) {
      std::string piece;
      for (int k = draw(0, 4); k > 0; --k) {
        piece += static_cast<char>('a' + draw(0, 2));
      }
      text += piece;
      pieces.push_back(piece);
    }
    const bool include = draw(0, 1) == 1;
    const Outcome expected = MatchNaively(text, stops, include);
    ASSERT_EQ(Match(pieces, stops, include), expected) << "round " << round << " text " << text;
    num_matches += expected.stop.empty() ? 0 : 1;
  }
  EXPECT_GT(num_matches, 1000);
}

TEST(StopStrings, LongStopStringsAreFoundAtTheLimit) {
  const std::string stop(256, 'a');
  std::vector<std::string> pieces(255, "a");
  EXPECT_EQ(Match(pieces, {stop + "b", stop}, false), (Outcome{std::string(255, 'a'), ""}));
  pieces.emplace_back("a");
  EXPECT_EQ(Match(pieces, {stop + "b", stop}, false), (Outcome{"", stop}));
}

/// Four tokens of a byte-level vocabulary: the two bytes of an e-acute apart, "a", " b"; one
/// control token.
constexpr const char* kTokenizerJson = R"({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [{"id": 4, "content": "</s>", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"\u00c3": 0, "\u00a9": 1, "a": 2, "\u0120b": 3}, "merges": []}})";

TEST(TextOut, CharactersAreWholeAndControlTokensAreSkipped) {
  const auto tokenizer = Tokenizer::FromJson(kTokenizerJson);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto decoders = MakeTextDecoderFactory(**tokenizer);
  SamplingParams params;
  TextOut text(params, decoders->Start(params.skip_special_tokens));
  EXPECT_EQ(text.Push(TokenId{3}).text, " b");  // an output continues its prompt
  EXPECT_EQ(text.Push(TokenId{0}).text, "");
  EXPECT_EQ(text.Push(TokenId{1}).text, "\xC3\xA9");
  EXPECT_EQ(text.Push(TokenId{4}).text, "");
  EXPECT_EQ(text.Push(TokenId{0}).text, "");
  EXPECT_EQ(text.Finish().text, "\xEF\xBF\xBD");
}

TEST(TextOut, AStopStringMayBeginInsideAHeldBackCharacter) {
  const auto tokenizer = Tokenizer::FromJson(kTokenizerJson);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto decoders = MakeTextDecoderFactory(**tokenizer);
  SamplingParams params;
  params.stop = {"\xC3\xA9 b"};
  TextOut text(params, decoders->Start(params.skip_special_tokens));
  EXPECT_EQ(text.Push(TokenId{2}).text, "a");
  EXPECT_EQ(text.Push(TokenId{0}).text, "");
  EXPECT_EQ(text.Push(TokenId{1}).text, "");
  const auto piece = text.Push(TokenId{3});
  EXPECT_EQ(piece.text, "");
  EXPECT_EQ(piece.stop, "\xC3\xA9 b");
}

}  // namespace
}  // namespace nibble
