#include "compress/certificate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

namespace nibble {
namespace {

Certificate Example() {
  Certificate out;
  json::Object source;
  source.Set("name", "toy.gguf");
  out.source = source;
  out.recipe = source;
  out.text_name = "a \"quoted\" name";
  out.text_sha256 = std::string(64, 'a');
  out.text_tokens = 512;
  out.text_context = 128;
  out.source_perplexity = 19.5;
  out.int16 = {.perplexity = 25.0, .kl_mean = 0.40, .kl_stderr = 0.01, .kl_p99 = 1.5, .top1 = 0.7};
  out.int8 = {.perplexity = 25.1, .kl_mean = 0.41, .kl_stderr = 0.01, .kl_p99 = 1.5, .top1 = 0.7};
  out.tables_stored = "f16";
  out.tables_served = "w8 g32 sym";
  out.golden_prompt = {TokenId{1}, TokenId{2}};
  out.golden_int16 = {.sha256 = std::string(64, 'b'), .top = {{TokenId{7}, 1.5F}}};
  out.golden_int8 = {.sha256 = std::string(64, 'c'), .top = {{TokenId{7}, 1.25F}}};
  out.tensors["model.norm.weight"] = std::string(64, 'd');
  out.files["config.json"] = std::string(64, 'e');
  return out;
}

TEST(Certificate, SurvivesTheRoundTrip) {
  const std::string text = ToJson(Example());
  const auto back = ParseCertificate(text, "x");
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(ToJson(*back), text);
  EXPECT_EQ(back->golden_int16.top.at(0).second, 1.5F);
  EXPECT_EQ(back->int8.kl_mean, 0.41);
}

TEST(Certificate, AnyFlippedBitIsNoticed) {
  const std::string text = ToJson(Example());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const int bit : {0, 3, 6}) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      ASSERT_FALSE(ParseCertificate(damaged, "x")) << "byte " << i << " bit " << bit;
    }
  }
  EXPECT_FALSE(ParseCertificate(text.substr(0, text.size() - 1), "x"));
  EXPECT_FALSE(ParseCertificate("", "x"));
}

TEST(Certificate, AutoTakesInt8OnlyWhereItAddsLittleToTheWeightsOwnLoss) {
  Certificate certificate = Example();
  EXPECT_EQ(certificate.auto_activations(), ActivationMode::kInt8);  // 0.01 is 2.5 % of 0.40
  certificate.int8.kl_mean = 0.43;                                   // 7.5 %
  EXPECT_EQ(certificate.auto_activations(), ActivationMode::kInt16);
  certificate.int16.kl_mean = 0.0;  // lossless weights: nothing may be added
  certificate.int8.kl_mean = 0.0;
  EXPECT_EQ(certificate.auto_activations(), ActivationMode::kInt16);
}

TEST(Certificate, LogitsOfAnotherDeviceAreComparedWithinATolerance) {
  const Certificate::GoldenLogits golden{
      .sha256 = "", .top = {{TokenId{3}, 20.0F}, {TokenId{1}, 18.0F}, {TokenId{5}, 17.0F}}};
  const std::vector<float> logits = {-9.0F, 18.0F, 16.5F, 20.0F, 2.0F, 17.0F};
  const auto with = [&](std::size_t token, float logit) {
    std::vector<float> changed = logits;
    changed[token] = logit;
    return CompareGoldenLogits(golden, changed, 0.02F);  // 0.4
  };
  const auto same = CompareGoldenLogits(golden, logits, 0.02F);
  ASSERT_TRUE(same) << same.error().message;
  EXPECT_EQ(*same, 0.0F);
  EXPECT_NEAR(with(1, 18.3F).value_or(1.0F), 0.015F, 1e-6F);
  EXPECT_NEAR(with(3, 19.8F).value_or(1.0F), 0.01F, 1e-6F);
  EXPECT_NEAR(with(2, 17.1F).value_or(1.0F), 0.005F, 1e-6F);  // beyond the last recorded one
  EXPECT_EQ(with(0, -20.0F).value_or(1.0F), 0.0F);            // nobody knows what it was
  for (const auto& [token, logit] :
       {std::pair{1UL, 18.5F}, {1UL, 17.5F}, {2UL, 17.5F}, {4UL, std::nanf("")}, {0UL, 1e30F}}) {
    const auto refused = with(token, logit);
    ASSERT_FALSE(refused) << token << " at " << logit;
    EXPECT_EQ(refused.error().code, ErrorCode::kCorruptFile);
  }
  EXPECT_NE(with(1, 18.5F).error().message.find("token 1 at 18.5 where exactly 18 was recorded"),
            std::string::npos)
      << with(1, 18.5F).error().message;
  EXPECT_FALSE(CompareGoldenLogits(golden, std::vector<float>(4, 1.0F), 0.5F)) << "a short row";
  EXPECT_FALSE(CompareGoldenLogits({}, logits, 0.5F)) << "nothing to compare with";
}

}  // namespace
}  // namespace nibble
