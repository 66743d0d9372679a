#include "compress/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "compress/quantize.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class Calibration : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string folder =
        (fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3").string();
    auto model = Checkpoint::Open(folder);
    ASSERT_TRUE(model) << model.error().message;
    model_ = std::move(*model);
    auto tokenizer = Tokenizer::FromFolder(folder);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_ = std::move(*tokenizer);
  }
  fs::path Write(const std::string& name, const std::string& text) const {
    std::ofstream(temp_.path() / name, std::ios::binary) << text;
    return temp_.path() / name;
  }
  Result<CalibrationSet> Load(const fs::path& file, const CalibrationOptions& options) const {
    return LoadCalibration(file, *model_, *tokenizer_, options);
  }
  std::string ErrorOf(const std::string& name, const std::string& text) const {
    const auto set = Load(Write(name, text), {.num_samples = 1, .length = 4});
    EXPECT_FALSE(set);
    return set ? "" : set.error().message;
  }

  std::unique_ptr<Checkpoint> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  testing::TempFolder temp_;
};

TEST_F(Calibration, WindowsAreDisjointPiecesOfTheTextChosenByTheSeed) {
  const std::string text(DefaultCertificateText());
  const fs::path file = Write("prose.txt", text);
  const auto tokens = tokenizer_->Encode(text);
  const CalibrationOptions options{.num_samples = 9, .length = 16, .seed = 5};
  const auto set = Load(file, options);
  ASSERT_TRUE(set) << set.error().message;
  ASSERT_EQ(set->num_windows(), 9);
  std::set<std::ptrdiff_t> starts;
  std::ptrdiff_t last = -1;
  for (std::int64_t i = 0; i < 9; ++i) {
    const auto window = set->Window(i);
    std::ptrdiff_t start = -1;
    for (std::size_t at = 0; at + 16 <= tokens.size(); at += 16) {
      if (std::equal(window.begin(), window.end(), tokens.begin() + static_cast<long>(at))) {
        start = static_cast<std::ptrdiff_t>(at);
      }
    }
    ASSERT_GE(start, 0) << "no piece of the text";
    EXPECT_GT(start, last) << "not in the order of the file";
    last = start;
    starts.insert(start);
  }
  EXPECT_EQ(starts.size(), 9U);
  EXPECT_EQ(Load(file, options)->tokens, set->tokens);
  EXPECT_NE(Load(file, {.num_samples = 9, .length = 16, .seed = 6})->tokens, set->tokens);
  EXPECT_EQ(set->identity.Find("samples")->AsInt(), 9);
  EXPECT_EQ(set->identity.Find("seed")->AsInt(), 5);
  EXPECT_EQ(*set->identity.Find("file")->AsString(), "prose.txt");
  EXPECT_EQ(set->identity.Find("sha256")->AsString()->size(), 64U);
}

TEST_F(Calibration, AShortTextGivesAllItHas) {
  const auto set = Load(Write("a.txt", std::string(DefaultCertificateText())),
                        {.num_samples = 1'000'000, .length = 64});
  ASSERT_TRUE(set);
  EXPECT_EQ(set->num_windows(),
            static_cast<std::int64_t>(tokenizer_->Encode(DefaultCertificateText()).size() / 64));
}

TEST_F(Calibration, EveryKindOfRowIsRead) {
  const std::string chat =
      R"([{"role":"user","content":"Where is the house?"},{"role":"assistant","content":"On the hill."}])";
  const auto tokens = [&](const std::string& row) {
    const auto set = Load(Write("rows.jsonl", row + "\n\n"), {.num_samples = 1000, .length = 2});
    EXPECT_TRUE(set) << set.error().message;
    return set ? set->tokens : std::vector<TokenId>();
  };
  const auto messages = tokens(R"({"messages":)" + chat + "}");
  EXPECT_EQ(tokens(R"({"conversations":[{"from":"human","value":"Where is the house?"},)"
                   R"({"from":"gpt","value":"On the hill."}]})"),
            messages);
  EXPECT_EQ(tokens(R"({"prompt":"Where is the house?","completion":"On the hill."})"), messages);
  const auto special = [&](const std::vector<TokenId>& ids) {
    return std::ranges::any_of(ids, [&](TokenId id) { return tokenizer_->IsSpecial(id); });
  };
  EXPECT_TRUE(special(messages)) << "the template makes control tokens";
  const auto text = tokens(R"({"text":"The house on the hill and the road to the house."})");
  EXPECT_GT(text.size(), 4U);
}

TEST_F(Calibration, RowsAreToldByTheEndingAndAByteOrderMarkIsNoText) {
  const std::string row = R"({"text":"The house on the hill and the road to the house."})";
  const auto tokens = [&](const std::string& name, const std::string& text) {
    const auto set = Load(Write(name, text), {.num_samples = 1000, .length = 2});
    EXPECT_TRUE(set) << set.error().message;
    return set ? set->tokens : std::vector<TokenId>();
  };
  const auto expected = tokens("a.jsonl", row);
  for (const char* name : {"a.JSONL", "a.json", "a.ndjson"}) {
    EXPECT_EQ(tokens(name, "\xEF\xBB\xBF" + row), expected) << name;
  }
  EXPECT_EQ(tokens("a.txt", "\xEF\xBB\xBFThe house"), tokens("b.txt", "The house"));
}

TEST_F(Calibration, ErrorsNameFileLineAndWhatIsExpected) {
  for (const char* nothing : {"", " \n\n"}) {
    EXPECT_NE(ErrorOf("empty.txt", nothing).find("empty.txt: there is no text in it"),
              std::string::npos);
    EXPECT_NE(ErrorOf("empty.jsonl", nothing).find("empty.jsonl: there is no text in it"),
              std::string::npos);
  }
  EXPECT_NE(ErrorOf("short.txt", "The").find("less than one sample of 4"), std::string::npos);
  const std::string good = R"({"text":"The house on the hill."})";
  EXPECT_NE(ErrorOf("a.jsonl", good + "\n{\"text\":\n").find("a.jsonl, line 2"), std::string::npos);
  EXPECT_NE(ErrorOf("b.jsonl", good + "\n[1]\n").find("line 2: expected an object"),
            std::string::npos);
  EXPECT_NE(ErrorOf("c.jsonl", R"({"body":"x"})").find("none of \"text\", \"messages\""),
            std::string::npos);
  EXPECT_NE(ErrorOf("d.jsonl", R"({"text":7})").find("\"text\" is integer"), std::string::npos);
  EXPECT_NE(ErrorOf("e.jsonl", R"({"messages":[{"role":"user"}]})").find("line 1"),
            std::string::npos);
  for (const char* name : {"array.json", "array.jsonl"}) {
    EXPECT_NE(ErrorOf(name, "\n[" + good + "]").find("is an array; give one object a line"),
              std::string::npos);
  }
  // Other encodings and other files.
  for (const std::string& bytes :
       {std::string("\xFF\xFEh\0i\0", 6), std::string("a\nb\xE4", 4), std::string("a\nb\0", 4)}) {
    const std::string text = ErrorOf("bytes.txt", bytes);
    EXPECT_NE(text.find("no UTF-8 text"), std::string::npos) << text;
    EXPECT_NE(text.find("iconv"), std::string::npos) << text;
    EXPECT_NE(text.find(bytes[0] == 'a' ? "line 2" : "line 1"), std::string::npos) << text;
  }
  const auto missing = Load(temp_.path() / "none.txt", {.length = 4});
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("none.txt"), std::string::npos);
  const auto longer = Load(Write("f.txt", "x"), {.length = 1 << 20});
  ASSERT_FALSE(longer);
  EXPECT_NE(longer.error().message.find("positions"), std::string::npos);
}

}  // namespace
}  // namespace nibble
