#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "json/value.h"
#include "template/jinja.h"

namespace nibble {

/// What a template expects as a message's content.
enum class ContentFormat {
  kString,  // one text
  kParts,   // [{"type": "text", "text": ...}, ...]: the template walks over them
};

/// A model's chat template, and what its text says about the messages it wants.
class ChatTemplate {
 public:
  /// Errors: as jinja::Template::Parse.
  static Result<ChatTemplate> Parse(std::string_view source);
  /// ChatML, for models without a template.
  static ChatTemplate Default();

  const jinja::Template& jinja() const { return template_; }
  ContentFormat content_format() const { return content_format_; }
  /// For an operator who knows better than the detection.
  void set_content_format(ContentFormat format) { content_format_ = format; }

  /// Messages as clients send them -> as this template wants them:
  ///   content parts joined by newlines, or kept for kParts; other parts than text are refused;
  ///   `arguments` of tool calls from a JSON string to a value, empty `tool_calls` dropped;
  ///   reasoning under each of its names (reasoning_content, reasoning, thinking);
  ///   the role developer as system where the template does not know it.
  /// Errors: kInvalidArgument naming the message; kLimitExceeded.
  Result<json::Array> Normalize(const json::Array& messages) const;

 private:
  explicit ChatTemplate(jinja::Template parsed) : template_(std::move(parsed)) {}

  jinja::Template template_;
  ContentFormat content_format_ = ContentFormat::kString;
  bool wraps_strings_ = false;    // walks over content without asking whether it is a string
  bool tests_none_ = false;       // tells a missing content from an empty one
  bool knows_developer_ = false;  // the role
};

struct ChatInput {
  json::Array messages;
  json::Value tools;  // null or an array
  bool add_generation_prompt = true;
  std::string bos_token;
  std::string eos_token;
  json::Object extra;  // chat_template_kwargs, documents, ...: variables of the template
};

/// Messages -> the prompt's text, as transformers.apply_chat_template(tokenize=False) gives it.
/// Errors: kInvalidArgument with the template's own message where it refuses the conversation, or
/// naming the message that is malformed; others as jinja::Template::Render.
Result<std::string> RenderChat(const ChatTemplate& chat_template, const ChatInput& input,
                               const jinja::RenderOptions& options = {});

}  // namespace nibble
