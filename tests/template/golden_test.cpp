#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "template/jinja.h"

namespace nibble::jinja {
namespace {

json::Value ParseLine(const std::string& line) {
  json::ParseLimits limits;
  limits.duplicates = json::DuplicateKeys::kKeepLast;
  const auto value = json::Parse(line, limits);
  EXPECT_TRUE(value) << line;
  return value ? *value : json::Value();
}

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// A row says what must come out: `expected`, `raises` or `error`.
void ExpectRow(const json::Value& row, const std::string& source, const json::Object& variables,
               const std::string& now, const std::string& what) {
  RenderOptions options;
  options.now = now;
  const auto parsed = Template::Parse(source);
  const Result<std::string> text =
      parsed ? parsed->Render(variables, options) : Fail(parsed.error(), "");
  if (const json::Value* const expected = row.Find("expected")) {
    ASSERT_TRUE(text) << what << ": " << text.error().message;
    EXPECT_EQ(*text, *expected->AsString()) << what;
  } else if (const json::Value* const raises = row.Find("raises")) {
    ASSERT_FALSE(text) << what;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument) << what;
    EXPECT_EQ(text.error().message, *raises->AsString()) << what;
  } else {
    ASSERT_NE(row.Find("error"), nullptr) << what;
    ASSERT_FALSE(text) << what << ": " << *text;
    EXPECT_NE(text.error().code, ErrorCode::kInvalidArgument) << what;
    EXPECT_NE(text.error().code, ErrorCode::kInternal) << what;
    EXPECT_NE(text.error().message.find("line "), std::string::npos) << text.error().message;
  }
}

TEST(TemplateGolden, OwnTemplatesRenderAsJinja2RendersThem) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/template/cases.jsonl");
  ASSERT_TRUE(file);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const json::Value head = ParseLine(line);
  int count = 0;
  for (; std::getline(file, line); ++count) {
    const json::Value row = ParseLine(line);
    const std::string source = *row.Find("template")->AsString();
    ExpectRow(row, source, *head.Find("variables")->AsObject(), *head.Find("now")->AsString(),
              source);
  }
  EXPECT_GE(count, 340);
}

TEST(TemplateGolden, ChatTemplatesOfModels) {
  const char* const variable = std::getenv("NIBBLE_SHARED_DATA");
  const std::filesystem::path data =
      variable != nullptr ? variable : NIBBLE_SOURCE_DIR "/../shared/data";
  std::ifstream file(data / "chat-golden" / "expected.jsonl");
  if (!file) {
    GTEST_SKIP() << "no chat-golden/expected.jsonl below NIBBLE_SHARED_DATA (" << data << ")";
  }
  const auto cases = json::ParseFile((data / "chat-golden" / "cases.json").string());
  ASSERT_TRUE(cases);
  std::map<std::string, std::string> sources;
  int count = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const json::Value row = ParseLine(line);
    const std::string name = *row.Find("template")->AsString();
    if (sources.count(name) == 0) {
      constexpr std::string_view kSuffix = ".tokenizer_config";
      if (name.ends_with(kSuffix)) {
        const std::string model = name.substr(0, name.size() - kSuffix.size());
        std::filesystem::path path = data / "tokenizer-configs" / model;
        path = std::filesystem::is_directory(path) ? path / "tokenizer_config.json" : path;
        const auto config = json::ParseFile(path.string());
        ASSERT_TRUE(config) << config.error().message;
        sources[name] = *config->Find("chat_template")->AsString();
      } else {
        sources[name] = ReadAll(data / "chat-templates" / (name + ".jinja"));
      }
    }
    const std::string case_name = *row.Find("case")->AsString();
    json::Object variables = *cases->Find(case_name)->AsObject();
    variables.Set("bos_token", *row.Find("bos_token"));
    variables.Set("eos_token", *row.Find("eos_token"));
    ExpectRow(row, sources[name], variables, "2025-01-15T10:30:00", name + " " + case_name);
  }
  EXPECT_EQ(count, 480);
}

}  // namespace
}  // namespace nibble::jinja
