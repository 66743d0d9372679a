#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "json/value.h"
#include "tests/tokenizer/shared_data.h"
#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::vector<std::int32_t> Plain(const std::vector<TokenId>& ids) {
  std::vector<std::int32_t> plain;
  for (const TokenId id : ids) {
    plain.push_back(Raw(id));
  }
  return plain;
}

std::string Golden(const std::string& file) {
  return ReadMaybeGzip(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tokenizer/" + file);
}

/// The vocabulary of a golden base, as a GGUF would hold it.
GgufVocabulary FromBase(const std::string& base, const std::string& model) {
  const json::Value file = *json::Parse(Golden("bases.json"));
  const json::Value& spec = *file.Find(base);
  GgufVocabulary vocabulary;
  vocabulary.model = model;
  const auto set = [&](const std::string& token, std::int64_t id, int type) {
    const auto i = static_cast<std::size_t>(id);
    vocabulary.tokens.resize(std::max(vocabulary.tokens.size(), i + 1));
    vocabulary.token_types.resize(vocabulary.tokens.size(), 1);
    vocabulary.tokens[i] = token;
    vocabulary.token_types[i] = type;
  };
  for (const auto& [token, id] : *spec.Find("model")->Find("vocab")->AsObject()) {
    const bool is_byte = model == "llama" && token.size() == 6 && token.starts_with("<0x");
    set(token, *id.AsInt(), token == "<unk>" ? 2 : is_byte ? 6 : 1);
  }
  for (const json::Value& token : *spec.Find("added_tokens")->AsArray()) {
    const std::string& content = *token.Find("content")->AsString();
    if (content != "<unk>") {
      set(content, *token.Find("id")->AsInt(), *token.Find("special")->AsBool() ? 3 : 4);
    }
  }
  for (const json::Value& merge : *spec.Find("model")->Find("merges")->AsArray()) {
    vocabulary.merges.push_back(*(*merge.AsArray())[0].AsString() + " " +
                                *(*merge.AsArray())[1].AsString());
  }
  return vocabulary;
}

/// (text, ids) of a golden variant; texts with added tokens are left out, as a GGUF says less of
/// them (no lstrip, rstrip, single_word).
std::vector<std::pair<std::string, std::vector<std::int32_t>>> Cases(const std::string& variant) {
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> cases;
  std::istringstream lines(Golden("cases.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json::Value row = *json::Parse(line);
    if (*row.Find("name")->AsString() != variant) {
      continue;
    }
    for (const json::Value& item : *row.Find("cases")->AsArray()) {
      const std::string& text = *item.Find("text")->AsString();
      if (text.find("<s>") != std::string::npos) {
        continue;
      }
      std::vector<std::int32_t> ids;
      for (const json::Value& id : *item.Find("ids")->AsArray()) {
        ids.push_back(static_cast<std::int32_t>(*id.AsInt()));
      }
      cases.emplace_back(text, std::move(ids));
    }
  }
  EXPECT_GE(cases.size(), 10U) << variant;
  return cases;
}

std::unique_ptr<Tokenizer> Load(const GgufVocabulary& vocabulary) {
  auto tokenizer = Tokenizer::FromGguf(vocabulary, "test.gguf");
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

/// The same tokenizer as a GGUF file would have it, with some unused entries.
std::unique_ptr<Tokenizer> ThroughGguf(const Tokenizer& tokenizer) {
  const auto vocabulary = tokenizer.ToGgufVocabulary(tokenizer.vocab_size() + 3);
  EXPECT_TRUE(vocabulary) << vocabulary.error().message;
  return vocabulary ? Load(*vocabulary) : nullptr;
}

/// The vocabulary as loaded, as written to a tokenizer.json and read back, and as made from that.
std::vector<std::unique_ptr<Tokenizer>> EveryWay(const GgufVocabulary& vocabulary) {
  std::vector<std::unique_ptr<Tokenizer>> ways;
  ways.push_back(Load(vocabulary));
  auto written = Tokenizer::FromJson(*ways[0]->ToTokenizerJson(), "written");
  EXPECT_TRUE(written) << written.error().message;
  ways.push_back(std::move(*written));
  ways.push_back(ThroughGguf(*ways[1]));
  return ways;
}

struct PreCase {
  const char* pre;
  const char* variant;
};

class GgufPre : public ::testing::TestWithParam<PreCase> {};

TEST_P(GgufPre, CutsLikeTheTokenizerOfItsModels) {
  GgufVocabulary vocabulary = FromBase("byte", "gpt2");
  vocabulary.pre = GetParam().pre;
  for (const auto& tokenizer : EveryWay(vocabulary)) {
    for (const auto& [text, ids] : Cases(GetParam().variant)) {
      EXPECT_EQ(Plain(tokenizer->Encode(text, {.parse_special = true})), ids) << text;
      if (!std::string(GetParam().variant).starts_with("qwen")) {  // which normalise
        EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Pres, GgufPre,
    ::testing::Values(PreCase{"gpt-2", "gpt2"}, PreCase{"mpt", "gpt2"}, PreCase{"smollm", "smollm"},
                      PreCase{"starcoder", "smollm"}, PreCase{"refact", "smollm"},
                      PreCase{"command-r", "smollm"}, PreCase{"llama-bpe", "llama3"},
                      PreCase{"qwen2", "qwen2"}, PreCase{"qwen35", "qwen35"},
                      PreCase{"gpt-4o", "o200k"}, PreCase{"deepseek-v3", "deepseek_v3"}),
    [](const auto& param_info) {
      std::string name = param_info.param.pre;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

TEST(Gguf, EveryNamedPreLoads) {
  for (const char* pre :
       {"", "default", "falcon", "deepseek-llm", "deepseek-coder", "tekken", "dbrx"}) {
    GgufVocabulary vocabulary = FromBase("byte", "gpt2");
    vocabulary.pre = pre;
    for (const auto& tokenizer : EveryWay(vocabulary)) {
      const std::string text = "The 12345 kernels'll run\n\n  x=(1+2);  日本語テキスト ½!  \n";
      EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << pre;
    }
  }
}

TEST(Gguf, ScoresMergeLikeSentencePiece) {
  GgufVocabulary vocabulary = FromBase("spm", "llama");
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    vocabulary.scores.push_back(-static_cast<float>(i));
  }
  vocabulary.unk = TokenId{0};
  vocabulary.bos = TokenId{520};
  vocabulary.eos = TokenId{521};
  for (const auto& tokenizer : EveryWay(vocabulary)) {
    for (const auto& [text, ids] : Cases("llama2")) {
      EXPECT_EQ(Plain(tokenizer->Encode(text, {.parse_special = true})), ids) << text;
      std::vector<std::int32_t> with_bos = ids;
      with_bos.insert(with_bos.begin(), 520);
      EXPECT_EQ(Plain(tokenizer->Encode(text, {.add_special_tokens = true})), with_bos) << text;
    }
  }
}

TEST(Gguf, EqualScoresAreServedFromLeftToRight) {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>", "a", "aa", "aaa", "aaaa"};
  vocabulary.scores = {0, 0, 0, 0, -5, -5, -5};
  vocabulary.token_types = {2, 3, 3, 1, 1, 1, 1};
  vocabulary.add_space_prefix = false;
  for (const auto& tokenizer : EveryWay(vocabulary)) {
    // aa, then it grows to aaa and aaaa before the next pair is looked at.
    EXPECT_EQ(Plain(tokenizer->Encode("aaaaaaa")), (std::vector<std::int32_t>{6, 5}));
  }
}

TEST(Gguf, ControlTokensAreNeverMadeOfText) {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>", "<", "s", ">", "s>"};
  vocabulary.scores = {0, 0, 0, -1, -2, -3, -4};
  vocabulary.token_types = {2, 3, 3, 1, 1, 1, 1};
  vocabulary.add_space_prefix = false;
  const auto tokenizer = Load(vocabulary);
  EXPECT_EQ(Plain(tokenizer->Encode("<s>")), (std::vector<std::int32_t>{3, 6}));
  EXPECT_EQ(Plain(tokenizer->Encode("<s>", {.parse_special = true})),
            (std::vector<std::int32_t>{1}));
}

TEST(Gguf, FlagsOfTheFileDecideAboutBosAndEos) {
  GgufVocabulary vocabulary = FromBase("byte", "gpt2");
  vocabulary.pre = "llama-bpe";
  vocabulary.bos = TokenId{420};
  vocabulary.eos = TokenId{421};
  const EncodeOptions special{.add_special_tokens = true};
  EXPECT_EQ(Plain(Load(vocabulary)->Encode("", special)), (std::vector<std::int32_t>{420}));
  vocabulary.add_bos = false;
  EXPECT_EQ(Plain(Load(vocabulary)->Encode("", special)), (std::vector<std::int32_t>{}));
  vocabulary.add_bos = true;
  vocabulary.add_eos = true;
  EXPECT_EQ(Plain(Load(vocabulary)->Encode("", special)), (std::vector<std::int32_t>{420, 421}));
  EXPECT_EQ(Load(vocabulary)->bos(), TokenId{420});
  EXPECT_EQ(Load(vocabulary)->eos(), TokenId{421});
}

TEST(Gguf, ATokenizerWithoutANameInLlamaCppIsRefused) {
  auto tokenizer = Load([] {
    GgufVocabulary vocabulary = FromBase("byte", "gpt2");
    vocabulary.pre = "gpt-2";
    return vocabulary;
  }());
  EXPECT_FALSE(tokenizer->ToGgufVocabulary(tokenizer->vocab_size() - 1));
  std::string text = *tokenizer->ToTokenizerJson();
  const std::string from = "\"use_regex\":true";
  const auto at = text.find(from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, from.size(), "\"use_regex\":false");
  const auto other = Tokenizer::FromJson(text, "other");
  ASSERT_TRUE(other) << other.error().message;
  const auto refused = (*other)->ToGgufVocabulary((*other)->vocab_size());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
}

TEST(Gguf, DamagedVocabulariesAreRefused) {
  const auto refused = [](auto change) {
    GgufVocabulary vocabulary = FromBase("byte", "gpt2");
    vocabulary.pre = "gpt-2";
    change(vocabulary);
    const auto tokenizer = Tokenizer::FromGguf(vocabulary, "x.gguf");
    return tokenizer ? std::string("accepted") : tokenizer.error().message;
  };
  EXPECT_THAT(refused([](auto& v) { v.pre = "no-such-pre"; }), HasSubstr("no-such-pre"));
  EXPECT_THAT(refused([](auto& v) { v.model = "bert"; }), HasSubstr("bert"));
  EXPECT_THAT(refused([](auto& v) { v.tokens.clear(); }), HasSubstr("tokens"));
  EXPECT_THAT(refused([](auto& v) { v.tokens[7] = v.tokens[8]; }), HasSubstr("tokens[8]"));
  EXPECT_THAT(refused([](auto& v) { v.tokens[7] = std::string(2000, 'x'); }),
              HasSubstr("tokens[7]"));
  EXPECT_THAT(refused([](auto& v) { v.token_types.resize(3); }), HasSubstr("token_type"));
  EXPECT_THAT(refused([](auto& v) { v.merges.clear(); }), HasSubstr("merges"));
  EXPECT_THAT(refused([](auto& v) { v.merges[3] = "xyz"; }), HasSubstr("merges[3]"));
  EXPECT_THAT(refused([](auto& v) { v.merges[3] = ""; }), HasSubstr("merges[3]"));
  EXPECT_THAT(refused([](auto& v) { v.add_bos = true; }), HasSubstr("bos"));
  EXPECT_THAT(refused([](auto& v) { v.model = "llama"; }), HasSubstr("scores"));
  EXPECT_THAT(refused([](auto& v) {
                v.model = "llama";
                v.scores.assign(v.tokens.size(), std::nanf(""));
              }),
              HasSubstr("NaN"));
}

/// Reads the metadata of a GGUF v3 file of our own test data: no checks but for its end.
class GgufMetadata {
 public:
  explicit GgufMetadata(std::string bytes) : bytes_(std::move(bytes)) {
    at_ = 4 + 4 + 8;  // magic, version, tensors
    for (auto keys = Read<std::uint64_t>(); keys > 0; --keys) {
      const std::string key = Text();
      ReadValue(key, Read<std::uint32_t>());
    }
  }
  GgufVocabulary vocabulary;

 private:
  template <typename T>
  T Read() {
    T value{};
    std::memcpy(&value, bytes_.substr(at_, sizeof(T)).data(), sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string Text() {
    const auto size = static_cast<std::size_t>(Read<std::uint64_t>());
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  void ReadValue(const std::string& key, std::uint32_t type) {
    constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    constexpr std::uint32_t kBool = 7;
    constexpr std::uint32_t kString = 8;
    constexpr std::uint32_t kArray = 9;
    constexpr std::string_view kPrefix = "tokenizer.ggml.";
    const std::string name = key.starts_with(kPrefix) ? key.substr(kPrefix.size()) : "";
    GgufVocabulary& v = vocabulary;
    if (type == kString) {
      const std::string text = Text();
      (name == "model" ? v.model : name == "pre" ? v.pre : ignored_) = text;
    } else if (type == kArray) {
      const auto element = Read<std::uint32_t>();
      for (auto count = Read<std::uint64_t>(); count > 0; --count) {
        if (element == kString) {
          (name == "tokens"   ? v.tokens
           : name == "merges" ? v.merges
                              : ignored_list_)
              .push_back(Text());
        } else if (name == "scores") {
          v.scores.push_back(Read<float>());
        } else if (name == "token_type") {
          v.token_types.push_back(Read<std::int32_t>());
        } else {
          at_ += kSizes[element];
        }
      }
    } else if (type == kBool) {
      const bool value = Read<std::uint8_t>() != 0;
      if (name == "add_bos_token") {
        v.add_bos = value;
      } else if (name == "add_eos_token") {
        v.add_eos = value;
      } else if (name == "add_space_prefix") {
        v.add_space_prefix = value;
      }
    } else if (name.ends_with("token_id")) {
      const TokenId id{static_cast<std::int32_t>(Read<std::uint32_t>())};
      (name == "bos_token_id"       ? v.bos
       : name == "eos_token_id"     ? v.eos
       : name == "unknown_token_id" ? v.unk
                                    : v.pad) = id;
    } else {
      at_ += kSizes[type];
    }
  }

  std::string bytes_;
  std::size_t at_ = 0;
  std::string ignored_;
  std::vector<std::string> ignored_list_;
};

/// Texts and ids of one pair of files of llama.cpp.
std::vector<std::pair<std::string, std::vector<std::int32_t>>> LlamaCppCases(
    const std::string& name) {
  const std::string base = SharedData() + "/gguf-vocab/ggml-vocab-" + name + ".gguf";
  const std::string inputs = ReadMaybeGzip(base + ".inp");
  std::istringstream outputs(ReadMaybeGzip(base + ".out"));
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> cases;
  std::size_t begin = 0;
  for (std::string line; std::getline(outputs, line);) {
    const std::size_t end = inputs.find(kSeparator, begin);
    std::istringstream numbers(line);
    std::vector<std::int32_t> ids;
    for (std::int32_t id = 0; numbers >> id;) {
      ids.push_back(id);
    }
    cases.emplace_back(inputs.substr(begin, end - begin), std::move(ids));
    begin = end + kSeparator.size();
    if (end == std::string::npos) {
      break;
    }
  }
  return cases;
}

class LlamaCpp : public ::testing::TestWithParam<const char*> {};

TEST_P(LlamaCpp, VocabularyGivesTheSameIds) {
  const std::string name = GetParam();
  const std::string file =
      ReadMaybeGzip(SharedData() + "/gguf-vocab/ggml-vocab-" + name + ".gguf.gz");
  if (file.empty()) {
    GTEST_SKIP() << "no gguf-vocab below NIBBLE_SHARED_DATA (" << SharedData() << ")";
  }
  const auto cases = LlamaCppCases(name);
  ASSERT_GE(cases.size(), 40U);
  for (const auto& tokenizer : EveryWay(GgufMetadata(file).vocabulary)) {
    for (const auto& [text, ids] : cases) {
      EXPECT_EQ(Plain(tokenizer->Encode(text)), ids) << text;
      std::vector<TokenId> typed;
      for (const std::int32_t id : ids) {
        typed.push_back(TokenId{id});
      }
      EXPECT_EQ(tokenizer->Decode(typed), text);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, LlamaCpp, ::testing::Values("llama-spm", "deepseek-coder"),
                         [](const auto& param_info) {
                           std::string name = param_info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(LlamaCpp, CasesHoldForTheTokenizerJsonOfTheSameModel) {
  for (const auto& [folder, name] : {std::pair("gpt2", "gpt-2"), std::pair("qwen2", "qwen2"),
                                     std::pair("llama2", "llama-spm")}) {
    const std::string file =
        ReadMaybeGzip(SharedData() + "/tokenizers/" + folder + "/tokenizer.json.gz");
    if (file.empty()) {
      GTEST_SKIP() << "no tokenizers below NIBBLE_SHARED_DATA (" << SharedData() << ")";
    }
    const auto tokenizer = Tokenizer::FromJson(file, folder);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    const auto as_gguf = ThroughGguf(**tokenizer);
    ASSERT_TRUE(as_gguf);
    for (const auto& [text, ids] : LlamaCppCases(name)) {
      EXPECT_EQ(Plain((*tokenizer)->Encode(text)), ids) << text;
      EXPECT_EQ(Plain(as_gguf->Encode(text)), ids) << text;
    }
  }
}

TEST(LlamaCpp, BertVocabularyIsRefusedByName) {
  const std::string file = ReadMaybeGzip(SharedData() + "/gguf-vocab/ggml-vocab-bert-bge.gguf.gz");
  if (file.empty()) {
    GTEST_SKIP() << "no gguf-vocab below NIBBLE_SHARED_DATA (" << SharedData() << ")";
  }
  const auto tokenizer = Tokenizer::FromGguf(GgufMetadata(file).vocabulary, "bge");
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(tokenizer.error().message, HasSubstr("bert"));
}

}  // namespace
}  // namespace nibble
