#include "compress/certificate.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace nibble
