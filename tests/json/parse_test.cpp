#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "json/value.h"

namespace nibble::json {
namespace {

ErrorCode CodeOf(std::string_view text, const ParseLimits& limits = {}) {
  const auto value = Parse(text, limits);
  EXPECT_FALSE(value) << text;
  return value ? ErrorCode::kInternal : value.error().code;
}

Value Parsed(std::string_view text) {
  const auto value = Parse(text);
  EXPECT_TRUE(value) << text << ": " << (value ? "" : value.error().message);
  return value ? *value : Value("failed");
}

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += text;
  }
  return out;
}

TEST(JsonParse, NumbersAreExact) {
  EXPECT_EQ(Parsed("18446744073709551615"), Value(UINT64_MAX));
  EXPECT_EQ(Parsed("9223372036854775807"), Value(INT64_MAX));
  EXPECT_EQ(Parsed("9223372036854775808"), Value(std::uint64_t{9223372036854775808U}));
  EXPECT_EQ(Parsed("-9223372036854775808"), Value(INT64_MIN));
  EXPECT_EQ(Parsed("18446744073709551616"), Value(18446744073709551616.0));
  EXPECT_EQ(Parsed("-9223372036854775809"), Value(-9223372036854775808.0));
  EXPECT_EQ(Parsed("[0.1]"), Value(Array{0.1}));
  EXPECT_EQ(Parsed("1.0"), Value(1.0));
  EXPECT_EQ(Parsed("1E2"), Value(100.0));
  EXPECT_EQ(Parsed("-0"), Value(0));
  EXPECT_TRUE(std::signbit(*Parsed("-0.0").AsDouble()));
  EXPECT_EQ(Parsed("2.2250738585072011e-308"), Value(2.2250738585072011e-308));
  EXPECT_EQ(Parsed("4.9406564584124654e-324"), Value(5e-324));
  EXPECT_EQ(Parsed("1e-400"), Value(0.0));
  EXPECT_EQ(Parsed("1.7976931348623157e308"), Value(std::numeric_limits<double>::max()));
  EXPECT_EQ(CodeOf("1e400"), ErrorCode::kCorruptFile);
  EXPECT_EQ(CodeOf("[1" + std::string(400, '0') + "]"), ErrorCode::kCorruptFile);
}

TEST(JsonParse, AnythingButOneDocumentIsRefused) {
  for (const char* const text : {"",
                                 " ",
                                 "1 2",
                                 "\"a\" 1",
                                 "true false",
                                 "[] []",
                                 "{} x",
                                 "[1]]",
                                 "{\"a\":1}}",
                                 "nul",
                                 "truex",
                                 "[tru]",
                                 "+1",
                                 "01",
                                 "1.",
                                 ".5",
                                 "1e",
                                 "0x1",
                                 "NaN",
                                 "[1,]",
                                 "[,1]",
                                 "{\"a\":}",
                                 "{\"a\"}",
                                 "{a:1}",
                                 "{\"a\":1,}",
                                 "[1 2]",
                                 "{\"a\":1 \"b\":2}",
                                 "[1}",
                                 "{\"a\":[1,2}",
                                 "[",
                                 "{",
                                 "\"",
                                 "\"\\x\"",
                                 "\"\\ud800\"",
                                 "\"\t\"",
                                 "'a'",
                                 "\xEF\xBB\xBF{}",
                                 "\"\xC0\xAF\"",
                                 "[\"\xED\xA0\x80\"]"}) {
    EXPECT_EQ(CodeOf(text), ErrorCode::kCorruptFile) << text;
  }
}

TEST(JsonParse, ScalarsAndBlanksAtTheRoot) {
  EXPECT_EQ(Parsed(" null\n"), Value());
  EXPECT_EQ(Parsed("\r\n\"a\\u00e9\\ud83d\\ude00\"\t"), Value("a\u00e9\U0001F600"));
  EXPECT_EQ(Parsed("\"a\\u0000b\""), Value(std::string("a\0b", 3)));
  EXPECT_EQ(Parsed(" false "), Value(false));
}

TEST(JsonParse, DuplicateKeys) {
  EXPECT_EQ(CodeOf(R"({"a":1,"b":2,"a":3})"), ErrorCode::kCorruptFile);
  EXPECT_EQ(CodeOf(R"({"a":1,"\u0061":3})"), ErrorCode::kCorruptFile);
  ParseLimits last;
  last.duplicates = DuplicateKeys::kKeepLast;
  const auto value = Parse(R"({"a":1,"b":2,"a":3})", last);
  ASSERT_TRUE(value);
  EXPECT_EQ(Dump(*value), R"({"a":3,"b":2})");
}

TEST(JsonParse, DepthIsBounded) {
  EXPECT_TRUE(Parse(Repeat("[", 64) + Repeat("]", 64)));
  EXPECT_EQ(CodeOf(Repeat("[", 65) + Repeat("]", 65)), ErrorCode::kLimitExceeded);
  EXPECT_TRUE(Parse(Repeat("{\"a\":", 64) + "1" + Repeat("}", 64)));
  EXPECT_EQ(CodeOf(Repeat("{\"a\":", 65) + "1" + Repeat("}", 65)), ErrorCode::kLimitExceeded);
}

TEST(JsonParse, CountsAndSizesAreBounded) {
  ParseLimits limits;
  limits.max_values = 3;
  EXPECT_TRUE(Parse("[1,[2,3]]", {.max_values = 4}));
  EXPECT_EQ(CodeOf("[1,[2,3]]", limits), ErrorCode::kLimitExceeded);
  limits = {};
  limits.max_bytes = 4;
  EXPECT_TRUE(Parse("[10]", limits));
  EXPECT_EQ(CodeOf("[100]", limits), ErrorCode::kLimitExceeded);
  limits = {};
  limits.max_string_bytes = 2;
  EXPECT_TRUE(Parse(R"({"ab":"cd"})", limits));
  EXPECT_EQ(CodeOf(R"({"ab":"cde"})", limits), ErrorCode::kLimitExceeded);
  EXPECT_EQ(CodeOf(R"({"abc":"cd"})", limits), ErrorCode::kLimitExceeded);
}

TEST(JsonParse, ErrorsSayWhere) {
  const auto value = Parse(R"({"a": [1, 2, x]})");
  ASSERT_FALSE(value);
  EXPECT_NE(value.error().message.find("near byte 13"), std::string::npos) << value.error().message;
}

TEST(JsonParse, FilesAreNamedInErrors) {
  const std::string path = ::testing::TempDir() + "nibble_parse_test.json";
  const auto missing = ParseFile(path + ".absent");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  const auto folder = ParseFile(::testing::TempDir());
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().code, ErrorCode::kIo);
  std::ofstream(path) << "{\"a\": [1, 2.5]}";
  const auto value = ParseFile(path);
  ASSERT_TRUE(value) << value.error().message;
  EXPECT_EQ(Dump(*value), R"({"a":[1,2.5]})");
  std::ofstream(path) << "{\"a\": ";
  const auto broken = ParseFile(path);
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, ErrorCode::kCorruptFile);
  EXPECT_NE(broken.error().message.find(path), std::string::npos);
  std::remove(path.c_str());
}

std::string FromBase64(std::string_view text) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  unsigned bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::size_t digit = kAlphabet.find(c);
    if (digit == std::string_view::npos) {
      break;
    }
    bits = (bits << 6) | static_cast<unsigned>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>((bits >> count) & 0xFF);
    }
  }
  return out;
}

TEST(JsonParse, AgreesWithJsonTestSuite) {
  const char* const variable = std::getenv("NIBBLE_SHARED_DATA");
  const std::filesystem::path data =
      variable != nullptr ? variable : NIBBLE_SOURCE_DIR "/../shared/data";
  std::ifstream file(data / "json-test-suite" / "cases.jsonl");
  if (!file) {
    GTEST_SKIP() << "no json-test-suite/cases.jsonl below NIBBLE_SHARED_DATA (" << data << ")";
  }
  int count = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const Value row = Parsed(line);
    ASSERT_NE(row.Find("name"), nullptr);
    const std::string name = *row.Find("name")->AsString();
    std::string text;
    if (const Value* const bytes = row.Find("b64")) {
      text = FromBase64(*bytes->AsString());
    } else {
      text = Repeat(FromBase64(*row.Find("repeat_b64")->AsString()),
                    static_cast<int>(*row.Find("count")->AsInt())) +
             FromBase64(*row.Find("tail_b64")->AsString());
    }
    ParseLimits limits;
    limits.duplicates = DuplicateKeys::kKeepLast;  // the suite takes them
    const auto value = Parse(text, limits);
    const std::string expect = *row.Find("expect")->AsString();
    if (expect == "accept") {
      EXPECT_TRUE(value) << name << ": " << (value ? "" : value.error().message);
    } else if (expect == "reject") {
      EXPECT_FALSE(value) << name;
    }
    if (value) {
      const auto again = Parse(Dump(*value), limits);
      ASSERT_TRUE(again) << name;
      EXPECT_EQ(*again, *value) << name;
    }
  }
  EXPECT_EQ(count, 318);
}

}  // namespace
}  // namespace nibble::json
