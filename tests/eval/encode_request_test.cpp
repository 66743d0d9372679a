#include "eval/encode_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace nibble {
namespace {

std::unique_ptr<Tokenizer> TinyTokenizer() {
  const auto folder = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3";
  auto tokenizer = Tokenizer::FromFolder(folder.string());
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return std::move(*tokenizer);
}

TEST(EncodePrompt, AsksTheChatTemplateWhereThereIsOne) {
  const auto tokenizer = TinyTokenizer();
  EncodeRules rules{.max_positions = 64};
  const TaskRequest request{.context = "the house", .max_tokens = 4};
  const auto plain = EncodePrompt(request, *tokenizer, rules);
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_EQ(plain->tokens, tokenizer->Encode("the house", {.parse_special = true}));
  std::string asked;
  rules.encode_chat = [&](const std::string& prompt) -> Result<std::vector<TokenId>> {
    asked = prompt;
    return std::vector{TokenId{1}, TokenId{7}};
  };
  const auto chat = EncodePrompt(request, *tokenizer, rules);
  ASSERT_TRUE(chat) << chat.error().message;
  EXPECT_EQ(asked, "the house");
  EXPECT_THAT(chat->tokens, ::testing::ElementsAre(TokenId{1}, TokenId{7}));
}

TEST(EncodePrompt, PassesOnWhatTheTemplateSays) {
  const auto tokenizer = TinyTokenizer();
  const EncodeRules rules{.max_positions = 64,
                          .encode_chat = [](const std::string&) -> Result<std::vector<TokenId>> {
                            return Fail(ErrorCode::kInvalidArgument, "there is no template");
                          }};
  const auto chat = EncodePrompt({.context = "a", .max_tokens = 4}, *tokenizer, rules);
  ASSERT_FALSE(chat);
  EXPECT_EQ(chat.error().message, "there is no template");
}

}  // namespace
}  // namespace nibble
