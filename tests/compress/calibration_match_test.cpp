#include "compress/calibration_match.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "compress/quantize.h"
#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

class CalibrationMatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string folder =
        (std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3").string();
    auto source = Checkpoint::Open(folder);
    ASSERT_TRUE(source) << source.error().message;
    source_ = std::move(*source);
    auto tokenizer = Tokenizer::FromFolder(folder);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    prose_ = (*tokenizer)->Encode(DefaultCertificateText());
    calibration_.length = 64;
    calibration_.tokens.assign(prose_.begin(), prose_.begin() + 64 * 4);
  }

  std::unique_ptr<Checkpoint> source_;
  std::vector<TokenId> prose_;
  CalibrationSet calibration_;
};

TEST_F(CalibrationMatchTest, TheDataItselfIsNear) {
  const std::vector<TokenText> texts = {{.name = "same", .tokens = calibration_.tokens}};
  const auto match = MatchCalibration(*source_, calibration_, texts, 1);
  ASSERT_TRUE(match) << match.error().message;
  ASSERT_EQ(match->texts.size(), 1U);
  EXPECT_EQ(match->windows, 4);
  EXPECT_EQ(match->context, 64);
  EXPECT_EQ(match->texts[0].perplexity, match->perplexity);
  EXPECT_EQ(match->texts[0].coverage, 1.0);
  EXPECT_FALSE(match->texts[0].is_far);
  EXPECT_EQ(match->Describe().at(0).find("warning"), std::string::npos);
  EXPECT_EQ(match->ToJson().Find("texts")->AsArray()->size(), 1U);
}

TEST_F(CalibrationMatchTest, TokensThatNeverOccurAreFarAndTheNumbersAreSaid) {
  std::vector<TokenId> other;
  for (std::int32_t token = 0; other.size() < 64; token = (token + 1) % 320) {
    if (std::ranges::find(calibration_.tokens, TokenId{token}) == calibration_.tokens.end()) {
      other.push_back(TokenId{token});
    }
  }
  other.insert(other.end(), calibration_.tokens.begin(), calibration_.tokens.begin() + 64);
  const std::vector<TokenText> texts = {{.name = "other", .tokens = other}};
  const auto match = MatchCalibration(*source_, calibration_, texts, 1);
  ASSERT_TRUE(match) << match.error().message;
  EXPECT_EQ(match->texts[0].coverage, 0.5);
  EXPECT_TRUE(match->texts[0].is_far);
  const std::string line = match->Describe().at(0);
  EXPECT_NE(line.find("warning: calibration data is far from other"), std::string::npos) << line;
  EXPECT_NE(line.find("50.0 % of the text's tokens"), std::string::npos) << line;
}

TEST_F(CalibrationMatchTest, ItStopsWhenTold) {
  const std::vector<TokenText> texts = {{.name = "same", .tokens = prose_}};
  const auto stopped = MatchCalibration(*source_, calibration_, texts, 1,
                                        [](auto, auto, const auto&) { return false; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
}

TEST(ChannelFacts, DeadAndRareChannelsAreCountedOnceAGroup) {
  const std::vector<double> squares = {0.0, 1.0, 2.0, 1e-6, 3.0, 0.0, 2.0};
  json::Object facts;
  SetChannelFacts(squares, facts);
  EXPECT_EQ(facts.Find("dead_channels")->AsInt(), 2);
  EXPECT_EQ(facts.Find("rare_channels")->AsInt(), 1);
  json::Object none;
  SetChannelFacts(std::vector<double>{1.0, 2.0, 0.5}, none);
  EXPECT_TRUE(none.empty());
  json::Object log;
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight"}) {
    log.Set(name, facts);
  }
  const ChannelCounts counts = CountChannels(log);
  EXPECT_EQ(counts.dead, 4);
  EXPECT_EQ(counts.rare, 2);
}

}  // namespace
}  // namespace nibble
