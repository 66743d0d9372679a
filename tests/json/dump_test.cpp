#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>

#include "json/value.h"

namespace nibble::json {
namespace {

constexpr DumpStyle kPython = {
    .item_separator = ", ", .key_separator = ": ", .python_floats = true};

std::string Quoted(std::string_view text) {
  std::string out;
  AppendQuoted(out, text);
  return out;
}

TEST(JsonDump, EscapesOnlyWhatJsonRequires) {
  EXPECT_EQ(Quoted(""), "\"\"");
  EXPECT_EQ(Quoted("a\"b\\c/d"), R"("a\"b\\c/d")");
  EXPECT_EQ(Quoted("\b\f\n\r\t"), R"("\b\f\n\r\t")");
  EXPECT_EQ(Quoted(std::string_view("\0\x01\x1f\x7f", 4)), "\"\\u0000\\u0001\\u001f\x7f\"");
  EXPECT_EQ(Quoted("h\u00e9\u4e16\U0001F600<&>"), "\"h\u00e9\u4e16\U0001F600<&>\"");
}

TEST(JsonDump, InvalidUtf8BecomesReplacementCharacters) {
  EXPECT_EQ(Quoted("a\xFFz"), "\"a\uFFFDz\"");
  EXPECT_EQ(Quoted("\xC0\xAF"), "\"\uFFFD\uFFFD\"");            // overlong
  EXPECT_EQ(Quoted("\xED\xA0\x80"), "\"\uFFFD\uFFFD\uFFFD\"");  // surrogate
  EXPECT_EQ(Quoted("\xF0\x9F\x98"), "\"\uFFFD\"");              // cut: one maximal part
  EXPECT_EQ(Quoted("\xE4\xB8\"x"), "\"\uFFFD\\\"x\"");
  EXPECT_EQ(Quoted("\xF4\x90\x80\x80"), "\"\uFFFD\uFFFD\uFFFD\uFFFD\"");  // beyond U+10FFFF
}

// Expected strings: Python 3.11, json.dumps(value, ensure_ascii=False).
TEST(JsonDump, PythonFloats) {
  const std::pair<double, const char*> cases[] = {
      {0.0, "0.0"},
      {-0.0, "-0.0"},
      {1.0, "1.0"},
      {100000.0, "100000.0"},
      {1e15, "1000000000000000.0"},
      {1e16, "1e+16"},
      {123456789012345680.0, "1.2345678901234568e+17"},
      {0.0001, "0.0001"},
      {0.00001, "1e-05"},
      {1.5e-7, "1.5e-07"},
      {1e22, "1e+22"},
      {1e100, "1e+100"},
      {5e-324, "5e-324"},
      {0.1, "0.1"},
      {1.0 / 3, "0.3333333333333333"},
      {9007199254740993.0, "9007199254740992.0"},
      {std::numeric_limits<double>::infinity(), "Infinity"},
      {-std::numeric_limits<double>::infinity(), "-Infinity"},
      {std::numeric_limits<double>::quiet_NaN(), "NaN"}};
  for (const auto& [value, text] : cases) {
    EXPECT_EQ(Dump(Value(value), kPython), text);
  }
}

TEST(JsonDump, NotFiniteIsNull) {
  EXPECT_EQ(Dump(Array{Value(std::numeric_limits<double>::infinity()), Value(std::nan(""))}),
            "[null,null]");
}

TEST(JsonDump, DoublesReadBackBitForBit) {
  std::mt19937_64 random(20261123);
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t bits = random();
    const auto d = std::bit_cast<double>(bits);
    if (!std::isfinite(d)) {
      continue;
    }
    for (const DumpStyle& style : {DumpStyle{}, kPython}) {
      const auto back = Parse(Dump(Value(d), style));
      ASSERT_TRUE(back) << d;
      ASSERT_TRUE(back->IsDouble()) << d;
      const double read = *back->AsDouble();
      ASSERT_EQ(std::bit_cast<std::uint64_t>(read), bits) << Dump(Value(d), style);
    }
  }
}

TEST(JsonDump, MatchesJsonDumps) {
  const auto value =
      Parse(R"({"b":[1,2.50,null,true,{}],"a":{"x":"\u00e9\n","nested":[[],{"k":[0]}]}})");
  ASSERT_TRUE(value);
  EXPECT_EQ(Dump(*value),
            "{\"b\":[1,2.5,null,true,{}],\"a\":{\"x\":\"\u00e9\\n\",\"nested\":[[],{\"k\":[0]}]}}");
  EXPECT_EQ(Dump(*value, kPython),
            "{\"b\": [1, 2.5, null, true, {}], \"a\": {\"x\": \"\u00e9\\n\", \"nested\": [[], "
            "{\"k\": [0]}]}}");
  DumpStyle pretty;
  pretty.indent = 2;
  pretty.key_separator = ": ";
  pretty.sort_keys = true;
  EXPECT_EQ(Dump(*value, pretty),
            "{\n  \"a\": {\n    \"nested\": [\n      [],\n      {\n        \"k\": [\n          0\n"
            "        ]\n      }\n    ],\n    \"x\": \"\u00e9\\n\"\n  },\n  \"b\": [\n    1,\n"
            "    2.5,\n    null,\n    true,\n    {}\n  ]\n}");
  pretty.indent = 0;
  EXPECT_EQ(Dump(Array{Value(1), Value(2)}, pretty), "[\n1,\n2\n]");
  EXPECT_EQ(Dump(Value(UINT64_MAX)), "18446744073709551615");
}

}  // namespace
}  // namespace nibble::json
