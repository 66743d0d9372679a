#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "serve/model_text.h"

namespace nibble::testing {

constexpr TokenId kEnd{256};
constexpr TokenId kBegin{257};
constexpr std::int64_t kFakeVocab = 258;

/// A tokenizer in which every byte is a token, so that tests can see through it.
class FakeText final : public ModelText {
 public:
  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const override {
    std::vector<TokenId> ids;
    if (add_special_tokens) {
      ids.push_back(kBegin);
    }
    for (const char c : text) {
      ids.push_back(static_cast<TokenId>(static_cast<unsigned char>(c)));
    }
    return ids;
  }
  Result<std::vector<TokenId>> EncodeChat(const ChatPrompt& prompt,
                                          bool add_special_tokens) const override {
    std::string text;
    for (const json::Value& message : prompt.messages) {
      const std::string& content = *message.Find("content")->AsString();
      if (content == "refuse") {
        return Fail(ErrorCode::kInvalidArgument, "the template refuses this");
      }
      text += *message.Find("role")->AsString() + ":" + content + "\n";
    }
    return Encode(text + (prompt.add_generation_prompt ? "assistant:" : ""), add_special_tokens);
  }
  std::string Decode(std::span<const TokenId> tokens, bool skip_special) const override {
    std::string text;
    for (const TokenId id : tokens) {
      if (Raw(id) < 256 || !skip_special) {
        text += TokenBytes(id);
      }
    }
    return text;
  }
  std::string_view TokenBytes(TokenId id) const override {
    static const std::vector<std::string> kBytes = [] {
      std::vector<std::string> bytes;
      for (int i = 0; i < 256; ++i) {
        bytes.emplace_back(1, static_cast<char>(i));
      }
      bytes.insert(bytes.end(), {"<end>", "<begin>"});
      return bytes;
    }();
    return kBytes.at(static_cast<std::size_t>(Raw(id)));
  }
  std::int64_t vocab_size() const override { return kFakeVocab; }
};

}  // namespace nibble::testing
