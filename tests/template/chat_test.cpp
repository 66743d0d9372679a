#include "template/chat.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

json::Value Json(std::string_view text) {
  const auto value = json::Parse(text);
  EXPECT_TRUE(value) << text;
  return value ? *value : json::Value();
}

ChatTemplate Parsed(std::string_view source) {
  auto parsed = ChatTemplate::Parse(source);
  EXPECT_TRUE(parsed) << source;
  return parsed ? *parsed : ChatTemplate::Default();
}

ContentFormat FormatOf(std::string_view source) { return Parsed(source).content_format(); }

std::string Normalized(const ChatTemplate& chat, std::string_view messages) {
  const auto out = chat.Normalize(*Json(messages).AsArray());
  return out ? json::Dump(*out) : "error: " + out.error().message;
}

std::string Rendered(const ChatTemplate& chat, const ChatInput& input) {
  const auto text = RenderChat(chat, input);
  return text ? *text : "error: " + text.error().message;
}

TEST(Chat, DefaultIsChatMl) {
  ChatInput input;
  input.messages =
      *Json(R"([{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}])")
           .AsArray();
  EXPECT_EQ(Rendered(ChatTemplate::Default(), input),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  input.add_generation_prompt = false;
  EXPECT_EQ(Rendered(ChatTemplate::Default(), input),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

TEST(Chat, VariablesAreThoseOfTransformers) {
  ChatInput input;
  input.messages = *Json(R"([{"role":"user","content":"Hi"}])").AsArray();
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  input.extra.Set("enable_thinking", false);
  input.extra.Set("messages", "ignored");
  const ChatTemplate chat = Parsed(
      "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}"
      "{{ enable_thinking }}{{ add_generation_prompt }}{{ messages|length }}");
  EXPECT_EQ(Rendered(chat, input), "<s></s>TrueTrueFalseTrue1");
  input.tools = *Json(R"([{"type":"function"}])").AsArray();
  EXPECT_EQ(Rendered(Parsed("{{ tools[0].type }}"), input), "function");
}

TEST(Chat, RefusalsOfTheTemplateKeepTheirText) {
  ChatInput input;
  input.messages = *Json(R"([{"role":"system","content":"x"}])").AsArray();
  const auto text = RenderChat(
      Parsed("{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') "
             "}}{% endif %}"),
      input);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(text.error().message, "System role not supported");
}

TEST(Chat, ContentFormatIsReadFromTheTree) {
  for (const char* const source : {
           "{% for m in messages %}{{ m.content }}{% endfor %}",
           "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}",
           "{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{% endfor %}",
           "{% for m in other %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}",
           "{% for t in tools %}{% for c in t.content %}{{ c }}{% endfor %}{% endfor %}",
           "{% for m in messages %}{% for c in m.content.split() %}{{ c }}{% endfor %}{% endfor %}",
       }) {
    EXPECT_EQ(FormatOf(source), ContentFormat::kString) << source;
  }
  for (const char* const source : {
           "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
           "{% for m in messages %}{% for c in m['content'] %}{{ c }}{% endfor %}{% endfor %}",
           "{% for m in messages[1:] %}{% for c in m.content | list %}{% endfor %}{% endfor %}",
           "{% set rest = messages[1:] %}{% for m in rest %}{% for c in m.content %}{% endfor %}"
           "{% endfor %}",
           "{% for m in messages %}{% set body = m.content %}{% for c in body %}{% endfor %}"
           "{% endfor %}",
           "{% for c in messages[0].content %}{% endfor %}",
           "{% macro show(what) %}{% for c in what %}{% endfor %}{% endmacro %}"
           "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
           "{% for m in messages %}{{ m.content | selectattr('type', 'eq', 'text') | list }}"
           "{% endfor %}",
       }) {
    EXPECT_EQ(FormatOf(source), ContentFormat::kParts) << source;
  }
}

TEST(Chat, PartsAreJoinedForTemplatesThatWantStrings) {
  const ChatTemplate chat = ChatTemplate::Default();
  EXPECT_EQ(Normalized(chat, R"([{"role":"user","content":[{"type":"text","text":"a"},"b",
                                 {"type":"text","text":"c"}]}])"),
            R"([{"role":"user","content":"a\nb\nc"}])");
  EXPECT_EQ(
      Normalized(chat, R"([{"role":"assistant","content":[{"type":"refusal","refusal":"no"}]}])"),
      R"([{"role":"assistant","content":"no"}])");
  EXPECT_EQ(
      Normalized(chat, R"([{"role":"user","content":[{"type":"image_url"}]}])"),
      "error: messages[0].content[0]: this model takes text only, not parts of type image_url");
  EXPECT_EQ(Normalized(chat, R"([{"role":"user","content":[{"text":"x"}]}])"),
            "error: messages[0].content[0]: a content part needs a `type`");
}

TEST(Chat, PartsStayForTemplatesThatWalkOverThem) {
  const ChatTemplate walks = Parsed(
      "{% for m in messages %}{% for c in m.content %}{{ c.text }};{% endfor %}{% endfor %}");
  EXPECT_EQ(Normalized(walks, R"([{"role":"user","content":[{"type":"text","text":"a"}]},
                                  {"role":"user","content":"plain"}])"),
            R"([{"role":"user","content":[{"type":"text","text":"a"}]},)"
            R"({"role":"user","content":[{"type":"text","text":"plain"}]}])");
  const ChatTemplate asks = Parsed(
      "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
      "{% for c in m.content %}{{ c.text }};{% endfor %}{% endif %}{% endfor %}");
  EXPECT_EQ(Normalized(asks, R"([{"role":"user","content":"plain"}])"),
            R"([{"role":"user","content":"plain"}])");
  ChatTemplate forced = walks;
  forced.set_content_format(ContentFormat::kString);
  EXPECT_EQ(Normalized(forced, R"([{"role":"user","content":[{"type":"text","text":"a"}]}])"),
            R"([{"role":"user","content":"a"}])");
}

TEST(Chat, ToolCallsAreRead) {
  const ChatTemplate chat = ChatTemplate::Default();
  EXPECT_EQ(Normalized(chat, R"([{"role":"assistant","content":"","tool_calls":[
              {"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\":1,\"a\":[2]}"}},
              {"id":"2","type":"function","function":{"name":"g","arguments":""}},
              {"id":"3","type":"function","function":{"name":"h","arguments":{"x":1}}}]}])"),
            R"([{"role":"assistant","content":"","tool_calls":[)"
            R"({"id":"1","type":"function","function":{"name":"f","arguments":{"b":1,"a":[2]}}},)"
            R"({"id":"2","type":"function","function":{"name":"g","arguments":{}}},)"
            R"({"id":"3","type":"function","function":{"name":"h","arguments":{"x":1}}}]}])");
  EXPECT_EQ(Normalized(chat, R"([{"role":"assistant","content":"x","tool_calls":[]}])"),
            R"([{"role":"assistant","content":"x"}])");
  EXPECT_NE(Normalized(chat, R"([{"role":"assistant","tool_calls":[
              {"function":{"name":"f","arguments":"{"}}]}])")
                .find("messages[0].tool_calls[0].function.arguments"),
            std::string::npos);
}

TEST(Chat, MissingContent) {
  EXPECT_EQ(Normalized(ChatTemplate::Default(), R"([{"role":"assistant","content":null}])"),
            R"([{"role":"assistant","content":""}])");
  const ChatTemplate tells = Parsed("{% for m in messages %}{{ m.content is none }}{% endfor %}");
  EXPECT_EQ(Normalized(tells, R"([{"role":"assistant"}])"),
            R"([{"role":"assistant","content":null}])");
  EXPECT_EQ(Normalized(tells, R"([{"role":"user"}])"), "error: messages[0].content is missing");
}

TEST(Chat, ReasoningGoesUnderEachOfItsNames) {
  EXPECT_EQ(Normalized(ChatTemplate::Default(),
                       R"([{"role":"assistant","content":"x","reasoning":"why"}])"),
            R"([{"role":"assistant","content":"x","reasoning":"why","reasoning_content":"why",)"
            R"("thinking":"why"}])");
}

TEST(Chat, DeveloperIsSystemWhereTheTemplateDoesNotKnowIt) {
  constexpr std::string_view kMessages = R"([{"role":"developer","content":"x"}])";
  EXPECT_EQ(Normalized(ChatTemplate::Default(), kMessages), R"([{"role":"system","content":"x"}])");
  EXPECT_EQ(Normalized(Parsed("{% if messages[0].role == 'developer' %}{% endif %}"), kMessages),
            R"([{"role":"developer","content":"x"}])");
}

TEST(Chat, MalformedMessagesAreNamed) {
  const ChatTemplate chat = ChatTemplate::Default();
  EXPECT_EQ(Normalized(chat, "[]"), "error: messages must hold at least one message");
  EXPECT_EQ(Normalized(chat, "[1]"), "error: messages[0] must be an object, not integer");
  EXPECT_EQ(Normalized(chat, R"([{"content":"x"}])"), "error: messages[0].role must be a string");
  EXPECT_EQ(Normalized(chat, R"([{"role":"user","content":5}])"),
            "error: messages[0].content must be a string or an array, not integer");
  const json::Array many(limits::kMessages + 1, Json(R"({"role":"user","content":""})"));
  ASSERT_FALSE(chat.Normalize(many));
  EXPECT_EQ(chat.Normalize(many).error().code, ErrorCode::kLimitExceeded);
}

}  // namespace
}  // namespace nibble
