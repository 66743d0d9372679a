#include "cli/model_text.h"

#include <fmt/format.h>

#include <utility>

#include "base/limits.h"
#include "io/file.h"
#include "template/chat.h"

namespace nibble::cli {
namespace {

// A control token spelled out in a message is carried through the template as this private-use
// character and the token's number, and becomes plain text again when the rendered prompt is
// tokenized piece by piece.
constexpr std::string_view kMark = "\xEF\x9F\xBF";  // U+F7FF

class Impl final : public TextOfModel {
 public:
  Impl(const Checkpoint& checkpoint, const Tokenizer& tokenizer, ChatTemplate chat)
      : checkpoint_(checkpoint), tokenizer_(tokenizer), chat_(std::move(chat)) {
    for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      if (tokenizer.IsSpecial(TokenId{id}) && !tokenizer.TokenName(TokenId{id}).empty()) {
        control_tokens_.emplace_back(tokenizer.TokenName(TokenId{id}));
      }
    }
  }

  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const override {
    return tokenizer_.Encode(text, {.add_special_tokens = add_special_tokens});
  }

  Result<std::vector<TokenId>> EncodeChat(const ChatPrompt& prompt,
                                          bool add_special_tokens) const override {
    ChatInput input{.messages = prompt.messages,
                    .tools = prompt.tools,
                    .add_generation_prompt = prompt.add_generation_prompt,
                    .bos_token = checkpoint_.bos_token(),
                    .eos_token = checkpoint_.eos_token(),
                    .extra = prompt.extra};
    bool marked = false;
    for (json::Value& message : input.messages) {
      marked = MarkStrings(message) || marked;
    }
    marked = MarkStrings(input.tools) || marked;
    json::Value extra(std::move(input.extra));
    marked = MarkStrings(extra) || marked;
    input.extra = std::move(*extra.AsObject());
    auto rendered = RenderChat(chat_, input);
    if (!rendered) {
      // Whatever went wrong, this conversation does not fit this template: the client's to mend.
      return Fail(ErrorCode::kInvalidArgument, rendered.error().message);
    }
    const std::string text = std::move(*rendered);
    if (!marked) {
      return tokenizer_.Encode(text,
                               {.add_special_tokens = add_special_tokens, .parse_special = true});
    }
    return EncodeMarked(text, add_special_tokens);
  }

  std::string Decode(std::span<const TokenId> tokens, bool skip_special) const override {
    return tokenizer_.Decode(tokens, {.skip_special = skip_special});
  }
  std::string_view TokenBytes(TokenId id) const override { return tokenizer_.TokenBytes(id); }
  std::int64_t vocab_size() const override { return tokenizer_.vocab_size(); }

 private:
  static std::string Marker(std::size_t index) {
    return fmt::format("{}{}{}", kMark, index, kMark);
  }

  // Replaces control tokens in every string below `value`; true if there was one. The depth of a
  // request's JSON is limited when it is parsed.
  bool MarkStrings(json::Value& value) const {
    bool marked = false;
    if (const std::string* text = value.AsString()) {
      std::string out = *text;
      for (std::size_t i = 0; i < control_tokens_.size(); ++i) {
        for (std::size_t at = out.find(control_tokens_[i]); at != std::string::npos;
             at = out.find(control_tokens_[i], at + 1)) {
          out.replace(at, control_tokens_[i].size(), Marker(i));
          marked = true;
        }
      }
      if (marked) {
        value = json::Value(std::move(out));
      }
    } else if (json::Array* items = value.AsArray()) {
      for (json::Value& item : *items) {
        marked = MarkStrings(item) || marked;
      }
    } else if (const json::Object* members = std::as_const(value).AsObject()) {
      json::Object out = *members;
      for (const auto& [key, ignored] : *members) {
        marked = MarkStrings(*out.Find(key)) || marked;
      }
      if (marked) {
        value = json::Value(std::move(out));
      }
    }
    return marked;
  }

  std::vector<TokenId> EncodeMarked(const std::string& text, bool add_special_tokens) const {
    std::vector<TokenId> ids;
    std::size_t begin = 0;
    const auto append = [&](std::string_view piece, bool parse_special) {
      const auto more =
          tokenizer_.Encode(piece, {.add_special_tokens = add_special_tokens && ids.empty(),
                                    .parse_special = parse_special});
      ids.insert(ids.end(), more.begin(), more.end());
    };
    for (;;) {
      const std::size_t mark = text.find(kMark, begin);
      if (mark == std::string::npos) {
        append(std::string_view(text).substr(begin), true);
        return ids;
      }
      append(std::string_view(text).substr(begin, mark - begin), true);
      std::size_t at = mark + kMark.size();
      std::size_t index = 0;
      while (at < text.size() && text[at] >= '0' && text[at] <= '9' &&
             index < control_tokens_.size()) {
        index = index * 10 + static_cast<std::size_t>(text[at++] - '0');
      }
      const bool ours =
          index < control_tokens_.size() && text.compare(at, kMark.size(), kMark) == 0;
      append(ours ? std::string_view(control_tokens_[index]) : kMark, false);
      begin = ours ? at + kMark.size() : mark + kMark.size();
    }
  }

  const Checkpoint& checkpoint_;
  const Tokenizer& tokenizer_;
  ChatTemplate chat_;
  std::vector<std::string> control_tokens_;
};

}  // namespace

Result<std::unique_ptr<TextOfModel>> TextOfModel::Create(const Checkpoint& checkpoint,
                                                         const Tokenizer& tokenizer,
                                                         const std::string& template_file) {
  std::optional<std::string> source = checkpoint.chat_template();
  if (!template_file.empty()) {
    NIBBLE_TRY(text, ReadFile(template_file, limits::kTemplateBytes));
    source = std::move(text);
  }
  if (!source) {
    return std::make_unique<Impl>(checkpoint, tokenizer, ChatTemplate::Default());
  }
  auto parsed = ChatTemplate::Parse(*source);
  if (!parsed) {
    return Fail(parsed.error(),
                template_file.empty() ? "the model's chat template: " : template_file + ": ");
  }
  return std::make_unique<Impl>(checkpoint, tokenizer, std::move(*parsed));
}

ChatPrompt UserTurn(const std::string& system, const std::string& user) {
  ChatPrompt prompt;
  const auto add = [&](const char* role, const std::string& content) {
    json::Object message;
    message.Set("role", role);
    message.Set("content", content);
    prompt.messages.push_back(std::move(message));
  };
  if (!system.empty()) {
    add("system", system);
  }
  add("user", user);
  return prompt;
}

}  // namespace nibble::cli
