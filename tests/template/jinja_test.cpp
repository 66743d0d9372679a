#include "template/jinja.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble::jinja {
namespace {

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += text;
  }
  return out;
}

Result<std::string> Render(std::string_view source, const RenderOptions& options = {},
                           const json::Object& variables = {}) {
  const auto parsed = Template::Parse(source);
  return parsed ? parsed->Render(variables, options) : Fail(parsed.error(), "");
}

/// What comes out, or why nothing does.
std::string Text(std::string_view source, const RenderOptions& options = {},
                 const json::Object& variables = {}) {
  const auto text = Render(source, options, variables);
  return text ? *text : "error: " + text.error().message;
}

void ExpectLimit(const Result<std::string>& text) {
  ASSERT_FALSE(text) << text->substr(0, 100);
  EXPECT_EQ(text.error().code, ErrorCode::kLimitExceeded) << text.error().message;
}

TEST(Jinja, ErrorsNameTheLine) {
  const auto syntax = Render("a\nb {{ 1 + }}");
  ASSERT_FALSE(syntax);
  EXPECT_EQ(syntax.error().code, ErrorCode::kCorruptFile);
  EXPECT_NE(syntax.error().message.find("line 2"), std::string::npos) << syntax.error().message;
  const auto runtime = Render("a\n\n{{ x.y }}");
  ASSERT_FALSE(runtime);
  EXPECT_EQ(runtime.error().code, ErrorCode::kCorruptFile);
  EXPECT_EQ(runtime.error().message, "template line 3: UndefinedError: 'x' is undefined");
}

TEST(Jinja, RaiseExceptionGivesTheTemplatesOwnMessage) {
  const auto text = Render("{{ raise_exception('Only user and assistant roles!') }}");
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(text.error().message, "Only user and assistant roles!");
}

TEST(Jinja, TagsThatNeedOtherTemplatesAreNamed) {
  for (const char* const source :
       {"{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}"}) {
    const auto text = Render(source);
    ASSERT_FALSE(text);
    EXPECT_EQ(text.error().code, ErrorCode::kUnsupported) << text.error().message;
  }
}

TEST(Jinja, TheClockCanBeFixed) {
  RenderOptions options;
  options.now = "2024-02-29T23:59:58";
  EXPECT_EQ(Text("{{ strftime_now('%A %d %B %Y %H:%M:%S %j') }}", options),
            "Thursday 29 February 2024 23:59:58 060");
  EXPECT_EQ(Text("{{ strftime_now('%Y') }}").size(), 4U);
  for (const char* const wrong :
       {"", "now", "2025-02-30T00:00:00", "2025-01-15", "2025-01-15T10:30:00Z",
        "2025-01-15T24:30:00", "-025-01-15T10:30:00"}) {
    options.now = wrong;
    const auto text = Render("x", options);
    ASSERT_FALSE(text) << wrong;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Jinja, TemplatesAreBoundedInSizeAndNesting) {
  EXPECT_TRUE(Render(std::string(limits::kTemplateBytes, 'x')));
  ExpectLimit(Render(std::string(limits::kTemplateBytes + 1, 'x')));
  for (const auto& [open, close] :
       {std::pair("(", ")"), std::pair("[", "]"), std::pair("-", ""), std::pair("not ", ""),
        std::pair("{1:", "}"), std::pair("x[", "]"), std::pair("f(", ")"),
        std::pair("1 if 1 else ", ""), std::pair("x|d(", ")")}) {
    EXPECT_TRUE(Template::Parse("{{ " + Repeat(open, 40) + "1" + Repeat(close, 40) + " }}"));
    ExpectLimit(Render("{{ " + Repeat(open, 20000) + "1" + Repeat(close, 20000) + " }}"));
  }
  EXPECT_TRUE(Render(Repeat("{% if 1 %}", 100) + Repeat("{% endif %}", 100)));
  ExpectLimit(Render(Repeat("{% if 1 %}", 10000) + Repeat("{% endif %}", 10000)));
  ExpectLimit(Render("{% set " + Repeat("(", 20000) + "x" + Repeat(")", 20000) + " = 1 %}"));
}

TEST(Jinja, LongChainsDoNotExhaustTheStack) {
  EXPECT_EQ(Text("{{ 1" + Repeat(" + 1", 1000) + " }}"), "1001");
  ExpectLimit(Render("{{ 1" + Repeat(" + 1", 50000) + " }}"));
  EXPECT_EQ(Text("{{ 1" + Repeat(" ~ 1", 5000) + " }}"), std::string(5001, '1'));
  EXPECT_EQ(Text("{{ 'a'" + Repeat("|upper|lower", 5000) + " }}"), "a");
  ExpectLimit(Render("{{ x" + Repeat(".y", 50000) + " }}"));
  EXPECT_EQ(Text("{% if 0 %}" + Repeat("{% elif 0 %}", 5000) + "{% else %}e{% endif %}"), "e");
}

TEST(Jinja, WorkIsBounded) {
  ExpectLimit(
      Render("{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) "
             "%}{% endfor %}{% endfor %}{% endfor %}"));
  ExpectLimit(Render("{% for a in range(100001) %}{% endfor %}"));
  EXPECT_TRUE(Render("{% for a in range(100000) %}{% endfor %}"));
  RenderOptions few;
  few.max_loop_items = 3;
  EXPECT_TRUE(Render("{% for a in [1, 2, 3] %}{% endfor %}", few));
  ExpectLimit(Render("{% for a in [1, 2, 3, 4] %}{% endfor %}", few));
  few = {};
  few.max_operations = 100;
  ExpectLimit(Render(Repeat("{{ 1 }}", 100), few));
}

TEST(Jinja, TextIsBounded) {
  ExpectLimit(Render("{{ 'x' * 5000000 }}"));
  ExpectLimit(Render("{{ 'x' * 10 ** 18 }}"));
  ExpectLimit(Render("{% set x = 'abcdefgh' * 65536 %}{% for i in range(9) %}{{ x }}{% endfor %}"));
  EXPECT_TRUE(Render("{% set x = 'abcdefgh' * 65536 %}{% for i in range(8) %}{{ x }}{% endfor %}"));
  ExpectLimit(
      Render("{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
             "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"));
  ExpectLimit(Render("{{ ('a' * 100000)|replace('a', 'b' * 1000) }}"));
  ExpectLimit(Render("{{ 'a'|center(10 ** 12) }}"));
  ExpectLimit(Render("{{ '%1000000d' % 1 }}"));
  ExpectLimit(Render("{{ '{:999999999}'.format(1) }}"));
  ExpectLimit(Render("{{ [1]|tojson(indent=100000) }}"));
  ExpectLimit(Render("{{ ('x' * 4000)|list|join('y' * 4000) }}"));
  ExpectLimit(Render("{{ [1] * 10 ** 9 }}"));
  ExpectLimit(Render("{{ ('a\n' * 10000)|indent(10000) }}"));
}

TEST(Jinja, ValuesThatNestOrRepeatThemselvesAreBounded) {
  ExpectLimit(
      Render("{% set ns = namespace(x=[]) %}{% for i in range(200) %}"
             "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}"));
  ExpectLimit(
      Render("{% set ns = namespace(x={}) %}{% for i in range(200) %}"
             "{% set ns.x = {'k': ns.x} %}{% endfor %}"));
  ExpectLimit(Render("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}"));
  // Each list names the one before twice: walking it doubles with every turn.
  const std::string doubled =
      "{% set ns = namespace(x=[], y=[]) %}{% for i in range(60) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  for (const char* const use :
       {"{{ ns.x == ns.y }}", "{{ ns.x < ns.y }}", "{{ ns.x }}", "{{ ns.x|tojson }}",
        "{{ ns.x in [ns.y] }}", "{{ [ns.x, ns.y]|sort }}", "{{ [ns.y].index(ns.x) }}",
        "{{ [ns.x, ns.y]|min }}"}) {
    ExpectLimit(Render(doubled + use));
  }
  EXPECT_TRUE(Render(doubled + "{{ ns.x|length }}"));
}

TEST(Jinja, SearchingIsLinearOrCharged) {
  // Naive search needs 10^12 steps for each of these.
  const std::string texts = "{% set t = 'a' * 2000000 %}{% set p = 'a' * 1000000 ~ 'b' %}";
  EXPECT_EQ(Text(texts + "{{ p in t }}{{ t.find(p) }}{{ t.count(p) }}{{ t.split(p)|length }}"
                         "{{ t.replace(p, '')|length }}{{ t.partition(p)|length }}"),
            "False-10120000003");
  for (const char* const use :
       {"{{ t.rfind(p) }}", "{{ t.rsplit(p) }}", "{{ t.rpartition(p) }}",
        "{{ t.strip('b' * 1000000 ~ 'a') }}", "{{ t|trim(p) }}", "{{ t.startswith((p,) * 1000) }}",
        "{{ ([t] * 1000)|sort }}", "{{ ([t] * 1000)|unique|list }}"}) {
    ExpectLimit(Render(texts + use));
  }
}

TEST(Jinja, MacrosThatCallThemselvesAreBounded) {
  ExpectLimit(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"));
  EXPECT_EQ(Text("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}x{% endmacro %}{{ m(63) }}"),
            std::string(64, 'x'));
  ExpectLimit(
      Render("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(64) }}"));
  ExpectLimit(
      Render("{% set ns = namespace(l=[]) %}{% for i in range(90) %}{% set ns.l = [ns.l] %}"
             "{% endfor %}{% for x in ns.l recursive %}{{ loop(x) }}{% endfor %}"));
  ExpectLimit(
      Render("{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}"));
}

TEST(Jinja, IntegersStayExactBeyond64Bits) {
  json::Object variables;
  variables.Set("u", UINT64_MAX);
  EXPECT_EQ(Text("{{ u }} {{ u + 1 }} {{ -u * 4 }}", {}, variables),
            "18446744073709551615 18446744073709551616 -73786976294838206460");
  ExpectLimit(Render("{{ 2 ** 200 }}"));
  ExpectLimit(Render("{{ 10 ** 38 * 100 }}"));
  EXPECT_EQ(Text("{{ (-(2 ** 126) - 2 ** 126) // -1 if false else 'skipped' }}"), "skipped");
  ExpectLimit(Render("{{ (-(2 ** 126) - 2 ** 126) // -1 }}"));
  EXPECT_EQ(Text("{{ (-(2 ** 126) - 2 ** 126) % -1 }}"), "0");
}

TEST(Jinja, TemplatesMustBeUtf8) {
  const auto text = Render("caf\xE9");
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kCorruptFile);
}

TEST(Jinja, OneTemplateRendersManyTimes) {
  const auto parsed =
      Template::Parse("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + x %}{{ ns.n }}");
  ASSERT_TRUE(parsed);
  for (int i = 0; i < 3; ++i) {
    json::Object variables;
    variables.Set("x", i);
    EXPECT_EQ(*parsed->Render(variables), std::to_string(i));
  }
}

TEST(Jinja, FromJsonReadsWhatToJsonWrites) {
  EXPECT_EQ(Text("{{ '{\"a\": [1, 2.5, null]}'|from_json }}"), "{'a': [1, 2.5, None]}");
  EXPECT_FALSE(Render("{{ '{'|fromjson }}"));
}

}  // namespace
}  // namespace nibble::jinja
