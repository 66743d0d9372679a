#include "template/chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/check.h"
#include "base/text.h"
#include "template/ast.h"

namespace nibble {
namespace {

using jinja::Ast;
using jinja::kNoNode;
using jinja::NameId;
using jinja::Node;
using jinja::NodeId;
using jinja::NodeKind;

constexpr std::string_view kChatMl =
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr std::string_view kReasoningNames[] = {"reasoning_content", "thinking", "reasoning"};

/// Finds out by the tree whether a template walks over the content of messages (the question that
/// vLLM asks, too), following `set` and the parameters of macros.
class ContentUse {
 public:
  explicit ContentUse(const Ast& ast) : ast_(ast) {
    if (const NameId messages = ast.FindName("messages"); messages >= 0) {
      lists_.insert(messages);
    }
    // Each round follows one more assignment; names are few and chains of them short.
    for (int round = 0; round < 8 && Follow(); ++round) {
    }
  }

  bool WalksOverContent() const {
    return std::any_of(ast_.nodes.begin(), ast_.nodes.end(), [&](const Node& node) {
      if (node.kind == NodeKind::kFor) {
        return IsContent(node.b);
      }
      if (node.kind != NodeKind::kFilter || node.a == kNoNode || !IsContent(node.a)) {
        return false;
      }
      const std::string& name = ast_.Name(node.name);
      return name == "map" || name == "selectattr" || name == "rejectattr";
    });
  }

  /// Whether the template uses one of these tests on anything.
  bool Tests(std::initializer_list<std::string_view> names) const {
    return std::any_of(ast_.nodes.begin(), ast_.nodes.end(), [&](const Node& node) {
      return node.kind == NodeKind::kTest &&
             std::find(names.begin(), names.end(), ast_.Name(node.name)) != names.end();
    });
  }

  bool ComparesWithNone() const {
    const auto is_none = [&](NodeId id) {
      return ast_[id].kind == NodeKind::kConst && ast_[id].value.IsNone();
    };
    return std::any_of(ast_.nodes.begin(), ast_.nodes.end(), [&](const Node& node) {
      return node.kind == NodeKind::kCompare &&
             (is_none(node.a) || std::any_of(node.list.begin(), node.list.end(), is_none));
    });
  }

 private:
  /// Below filters, tests and slices, which leave elements elements.
  NodeId Bare(NodeId id) const {
    for (;;) {
      const Node& node = ast_[id];
      const bool is_slice = node.kind == NodeKind::kItem && ast_[node.b].kind == NodeKind::kSlice;
      const bool wraps = node.kind == NodeKind::kFilter || node.kind == NodeKind::kTest;
      if ((!is_slice && !wraps) || node.a == kNoNode) {
        return id;
      }
      id = node.a;
    }
  }

  bool IsNameIn(NodeId id, const std::set<NameId>& names) const {
    const Node& node = ast_[Bare(id)];
    return node.kind == NodeKind::kName && names.count(node.name) > 0;
  }

  bool IsMessage(NodeId id) const {
    const Node& node = ast_[id];
    if (node.kind == NodeKind::kItem && ast_[node.b].kind != NodeKind::kSlice) {
      return IsNameIn(node.a, lists_);  // messages[0]
    }
    return node.kind == NodeKind::kName && messages_.count(node.name) > 0;
  }

  bool IsContent(NodeId id) const {
    const Node& node = ast_[Bare(id)];
    if (node.kind == NodeKind::kName) {
      return contents_.count(node.name) > 0;
    }
    if (node.kind == NodeKind::kAttribute) {
      return ast_.Name(node.name) == "content" && IsMessage(node.a);
    }
    return node.kind == NodeKind::kItem && ast_[node.b].kind == NodeKind::kConst &&
           ast_[node.b].value.Text() == "content" && IsMessage(node.a);
  }

  /// One round of following names; true if it found any new one.
  bool Follow() {
    const auto known = [&] { return lists_.size() + messages_.size() + contents_.size(); };
    const std::size_t before = known();
    const auto assign = [&](NameId name, NodeId value) {
      if (IsNameIn(value, lists_)) {
        lists_.insert(name);
      }
      if (IsMessage(value)) {
        messages_.insert(name);
      }
      if (IsContent(value)) {
        contents_.insert(name);
      }
    };
    for (const Node& node : ast_.nodes) {
      if (node.kind == NodeKind::kSet && ast_[node.a].kind == NodeKind::kName) {
        assign(ast_[node.a].name, node.b);
      } else if (node.kind == NodeKind::kFor && ast_[node.a].kind == NodeKind::kName &&
                 IsNameIn(node.b, lists_)) {
        messages_.insert(ast_[node.a].name);
      } else if (node.kind == NodeKind::kCall && ast_[node.a].kind == NodeKind::kName) {
        const auto macro = Macro(ast_[node.a].name);
        for (std::size_t i = 0; macro != nullptr && i < node.list.size(); ++i) {
          if (i < macro->names.size()) {
            assign(macro->names[i], node.list[i]);
          }
        }
      }
    }
    return known() > before;
  }

  const Node* Macro(NameId name) const {
    const auto found = std::find_if(ast_.nodes.begin(), ast_.nodes.end(), [&](const Node& node) {
      return node.kind == NodeKind::kMacro && node.name == name;
    });
    return found != ast_.nodes.end() ? &*found : nullptr;
  }

  const Ast& ast_;
  std::set<NameId> lists_;     // of messages
  std::set<NameId> messages_;  // one of them
  std::set<NameId> contents_;  // what one of them says
};

tl::unexpected<Error> Invalid(std::string message) {
  return Fail(ErrorCode::kInvalidArgument, std::move(message));
}

/// The text of one content part.
Result<std::string> PartText(const json::Value& part, const std::string& where) {
  if (const std::string* const text = part.AsString()) {
    return *text;
  }
  const json::Value* const type = part.Find("type");
  const std::string* const type_name = type != nullptr ? type->AsString() : nullptr;
  if (type_name == nullptr) {
    return Invalid(fmt::format("{}: a content part needs a `type`", where));
  }
  if (*type_name != "text" && *type_name != "refusal") {
    return Invalid(fmt::format("{}: this model takes text only, not parts of type {}", where,
                               Quote(*type_name)));
  }
  const json::Value* const text = part.Find(*type_name);
  if (text == nullptr || text->AsString() == nullptr) {
    return Invalid(fmt::format("{}.{} must be a string", where, *type_name));
  }
  return *text->AsString();
}

json::Value TextPart(std::string text) {
  json::Object part;
  part.Set("type", "text");
  part.Set("text", std::move(text));
  return part;
}

/// tool_calls with `arguments` as values instead of as JSON text.
Result<json::Array> ToolCalls(const json::Value& calls, const std::string& where) {
  const json::Array* const array = calls.AsArray();
  if (array == nullptr) {
    return Invalid(fmt::format("{} must be an array, not {}", where, calls.TypeName()));
  }
  json::Array out = *array;
  for (std::size_t i = 0; i < out.size(); ++i) {
    json::Object* const call = out[i].AsObject();
    json::Value* const function_value = call != nullptr ? call->Find("function") : nullptr;
    json::Object* const function = function_value != nullptr ? function_value->AsObject() : nullptr;
    if (function == nullptr) {
      return Invalid(fmt::format("{}[{}].function must be an object", where, i));
    }
    const json::Value* const arguments = function->Find("arguments");
    if (arguments == nullptr || arguments->IsNull() ||
        (arguments->AsString() != nullptr && arguments->AsString()->empty())) {
      function->Set("arguments", json::Object());
    } else if (const std::string* const text = arguments->AsString()) {
      auto parsed = json::Parse(*text, {.duplicates = json::DuplicateKeys::kKeepLast});
      if (!parsed) {
        return Invalid(fmt::format("{}[{}].function.arguments must be a JSON text: {}", where, i,
                                   parsed.error().message));
      }
      function->Set("arguments", std::move(*parsed));
    }
  }
  return out;
}

void AliasReasoning(json::Object& message) {
  for (const std::string_view name : kReasoningNames) {
    const json::Value* const found = message.Find(name);
    if (found == nullptr || found->IsNull()) {
      continue;
    }
    const json::Value reasoning = *found;
    for (const std::string_view alias : kReasoningNames) {
      const json::Value* const existing = message.Find(alias);
      if (existing == nullptr || existing->IsNull()) {
        message.Set(alias, reasoning);
      }
    }
    return;
  }
}

}  // namespace

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source) {
  NIBBLE_TRY(parsed, jinja::Template::Parse(source));
  ChatTemplate chat(std::move(parsed));
  const ContentUse use(chat.template_.ast());
  chat.content_format_ = use.WalksOverContent() ? ContentFormat::kParts : ContentFormat::kString;
  chat.wraps_strings_ = !use.Tests({"string", "iterable", "sequence", "mapping"});
  chat.tests_none_ = use.Tests({"none"}) || use.ComparesWithNone();
  chat.knows_developer_ = source.find("developer") != std::string_view::npos;
  return chat;
}

ChatTemplate ChatTemplate::Default() {
  auto chat = Parse(kChatMl);
  NIBBLE_CHECK(chat.has_value(), "the built-in template does not parse");
  return std::move(*chat);
}

Result<json::Array> ChatTemplate::Normalize(const json::Array& messages) const {
  if (messages.empty()) {
    return Invalid("messages must hold at least one message");
  }
  if (messages.size() > static_cast<std::size_t>(limits::kMessages)) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("{} messages; at most {}", messages.size(), limits::kMessages));
  }
  json::Array out;
  out.reserve(messages.size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    const json::Object* const given = messages[i].AsObject();
    if (given == nullptr) {
      return Invalid(fmt::format("{} must be an object, not {}", where, messages[i].TypeName()));
    }
    json::Object message = *given;
    const json::Value* const role = message.Find("role");
    if (role == nullptr || role->AsString() == nullptr) {
      return Invalid(fmt::format("{}.role must be a string", where));
    }
    const bool is_assistant = *role->AsString() == "assistant";
    if (*role->AsString() == "developer" && !knows_developer_) {
      message.Set("role", "system");
    }
    const json::Value* const content = message.Find("content");
    if (content == nullptr || content->IsNull()) {
      if (!is_assistant) {
        return Invalid(fmt::format("{}.content is missing", where));
      }
      message.Set("content", tests_none_ ? json::Value() : json::Value(""));
    } else if (const json::Array* const parts = content->AsArray()) {
      json::Array kept;
      std::string joined;
      for (std::size_t j = 0; j < parts->size(); ++j) {
        NIBBLE_TRY(text, PartText((*parts)[j], fmt::format("{}.content[{}]", where, j)));
        joined += (j > 0 ? "\n" : "") + text;
        kept.push_back(TextPart(std::move(text)));
      }
      message.Set("content", content_format_ == ContentFormat::kParts
                                 ? json::Value(std::move(kept))
                                 : json::Value(std::move(joined)));
    } else if (content->AsString() == nullptr) {
      return Invalid(fmt::format("{}.content must be a string or an array, not {}", where,
                                 content->TypeName()));
    } else if (content_format_ == ContentFormat::kParts && wraps_strings_) {
      message.Set("content", json::Array{TextPart(*content->AsString())});
    }
    if (const json::Value* const calls = message.Find("tool_calls")) {
      if (calls->IsNull() || (calls->AsArray() != nullptr && calls->AsArray()->empty())) {
        message.Erase("tool_calls");
      } else {
        NIBBLE_TRY(parsed, ToolCalls(*calls, where + ".tool_calls"));
        message.Set("tool_calls", std::move(parsed));
      }
    }
    AliasReasoning(message);
    out.emplace_back(std::move(message));
  }
  return out;
}

Result<std::string> RenderChat(const ChatTemplate& chat_template, const ChatInput& input,
                               const jinja::RenderOptions& options) {
  NIBBLE_TRY(messages, chat_template.Normalize(input.messages));
  json::Object variables;
  // transformers passes these two even when they are None.
  variables.Set("tools", input.tools);
  variables.Set("documents", json::Value());
  variables.Set("bos_token", input.bos_token);
  variables.Set("eos_token", input.eos_token);
  for (const auto& [name, value] : input.extra) {
    variables.Set(name, value);
  }
  variables.Set("messages", std::move(messages));
  variables.Set("add_generation_prompt", input.add_generation_prompt);
  return chat_template.jinja().Render(variables, options);
}

}  // namespace nibble
