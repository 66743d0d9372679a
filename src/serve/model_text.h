#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "json/value.h"

namespace nibble {

/// What a chat template is given.
struct ChatPrompt {
  json::Array messages;  // contents are strings
  json::Value tools;     // null: none
  bool add_generation_prompt = true;
  json::Object extra;  // chat_template_kwargs, documents, ...
};

/// What the server needs of a model's text side. Shared by all I/O threads: implementations are
/// immutable.
class ModelText {
 public:
  virtual ~ModelText() = default;
  virtual std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const = 0;
  /// The ids of a conversation. Only the template makes control tokens: those that a message spells
  /// out stay text. Errors: kUnsupported without a template; kInvalidArgument when it refuses.
  virtual Result<std::vector<TokenId>> EncodeChat(const ChatPrompt& prompt,
                                                  bool add_special_tokens) const = 0;
  virtual std::string Decode(std::span<const TokenId> tokens, bool skip_special) const = 0;
  /// The bytes one token adds; not always whole UTF-8.
  virtual std::string_view TokenBytes(TokenId id) const = 0;
  virtual std::int64_t vocab_size() const = 0;
};

}  // namespace nibble
