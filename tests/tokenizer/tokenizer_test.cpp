#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <thread>

#include "json/value.h"
#include "tests/tokenizer/shared_data.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<TokenId> Ids(const json::Value& list) {
  std::vector<TokenId> ids;
  for (const json::Value& id : *list.AsArray()) {
    ids.push_back(TokenId{static_cast<std::int32_t>(*id.AsInt())});
  }
  return ids;
}

std::vector<std::int32_t> Plain(const std::vector<TokenId>& ids) {
  std::vector<std::int32_t> plain;
  std::transform(ids.begin(), ids.end(), std::back_inserter(plain),
                 [](TokenId id) { return Raw(id); });
  return plain;
}

std::string Golden(const std::string& file) {
  return ReadMaybeGzip(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tokenizer/" + file);
}

std::vector<json::Value> JsonLines(const std::string& text) {
  std::vector<json::Value> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    auto row = json::Parse(line);
    EXPECT_TRUE(row) << row.error().message;
    rows.push_back(std::move(*row));
  }
  return rows;
}

/// One of the golden bases with some of its members exchanged, as text.
std::string Variant(const std::string& base, const json::Value& set) {
  static const json::Value kBases = *json::Parse(Golden("bases.json"));
  json::Object file = *kBases.Find(base)->AsObject();
  for (const auto& [key, value] : *set.AsObject()) {
    constexpr std::string_view kModel = "model.";
    if (key.starts_with(kModel)) {
      file.Find("model")->AsObject()->Set(std::string_view(key).substr(kModel.size()), value);
    } else {
      file.Set(key, value);
    }
  }
  return json::Dump(json::Value(file));
}

std::unique_ptr<Tokenizer> Load(const std::string& text) {
  auto tokenizer = Tokenizer::FromJson(text, "test");
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

std::unique_ptr<Tokenizer> LoadVariant(const std::string& base, const std::string& set = "{}") {
  return Load(Variant(base, *json::Parse(set)));
}

/// Pushes ids one by one; every output must be whole UTF-8.
std::string DecodeStepwise(const Tokenizer& tokenizer, std::span<const TokenId> ids,
                           const DecodeOptions& options = {}) {
  IncrementalDecoder decoder(tokenizer, options);
  std::string text;
  for (const TokenId id : ids) {
    const std::string step = decoder.Push(id);
    EXPECT_TRUE(json::Parse(json::Dump(json::Value(step)))->AsString() != nullptr);
    EXPECT_EQ(*json::Parse(json::Dump(json::Value(step)))->AsString(), step) << "no whole UTF-8";
    text += step;
  }
  return text + decoder.Finish();
}

void ExpectCase(const Tokenizer& tokenizer, const json::Value& row,
                const std::string& special_key) {
  const std::string& text = *row.Find("text")->AsString();
  const std::vector<TokenId> ids = Ids(*row.Find("ids"));
  const json::Value* special = row.Find(special_key);
  SCOPED_TRACE(json::Dump(json::Value(text)));
  EXPECT_EQ(Plain(tokenizer.Encode(text, {.parse_special = true})), Plain(ids));
  EXPECT_EQ(Plain(tokenizer.Encode(text, {.add_special_tokens = true, .parse_special = true})),
            Plain(special == nullptr ? ids : Ids(*special)));
  const std::string& decoded = *row.Find("decoded")->AsString();
  EXPECT_EQ(tokenizer.Decode(ids), decoded);
  EXPECT_EQ(DecodeStepwise(tokenizer, ids), decoded);
  if (const json::Value* skipped = row.Find("skipped")) {
    EXPECT_EQ(tokenizer.Decode(ids, {.skip_special = true}), *skipped->AsString());
  }
}

TEST(TokenizerGolden, EveryVariantEqualsTheReferenceLibrary) {
  int cases = 0;
  for (const json::Value& variant : JsonLines(Golden("cases.jsonl"))) {
    SCOPED_TRACE(*variant.Find("name")->AsString());
    const auto tokenizer = Load(Variant(*variant.Find("base")->AsString(), *variant.Find("set")));
    ASSERT_NE(tokenizer, nullptr);
    for (const json::Value& row : *variant.Find("cases")->AsArray()) {
      ExpectCase(*tokenizer, row, "special");
      ++cases;
    }
  }
  EXPECT_GE(cases, 700);
}

TEST(TokenizerGolden, WhatIsWrittenReadsBackTheSame) {
  for (const json::Value& variant : JsonLines(Golden("cases.jsonl"))) {
    SCOPED_TRACE(*variant.Find("name")->AsString());
    const auto original = Load(Variant(*variant.Find("base")->AsString(), *variant.Find("set")));
    ASSERT_NE(original, nullptr);
    const auto written = original->ToTokenizerJson();
    ASSERT_TRUE(written);
    const auto again = Load(*written);
    ASSERT_NE(again, nullptr);
    for (const json::Value& row : *variant.Find("cases")->AsArray()) {
      ExpectCase(*again, row, "special");
    }
    EXPECT_EQ(*again->ToTokenizerJson(), *written);
  }
}

TEST(TokenizerShared, RealTokenizersEqualTheReferenceLibrary) {
  const std::string golden = ReadMaybeGzip(SharedData() + "/tokenizer-golden/hf.jsonl");
  if (golden.empty()) {
    GTEST_SKIP() << "no tokenizer-golden/hf.jsonl below NIBBLE_SHARED_DATA (" << SharedData()
                 << ")";
  }
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  int cases = 0;
  for (const json::Value& row : JsonLines(golden)) {
    const std::string& name = *row.Find("tokenizer")->AsString();
    if (name == "all-minilm-l6-v2") {
      continue;  // WordPiece, see RefusesByName
    }
    if (!tokenizers.contains(name)) {
      tokenizers[name] =
          Load(ReadMaybeGzip(SharedData() + "/tokenizers/" + name + "/tokenizer.json.gz"));
    }
    ASSERT_NE(tokenizers[name], nullptr) << name;
    SCOPED_TRACE(name);
    ExpectCase(*tokenizers[name], row, "ids_special");
    ++cases;
  }
  EXPECT_EQ(cases, 240);
}

TEST(TokenizerShared, WikiTextHasTheReferenceNumberOfTokens) {
  const std::string text = ReadMaybeGzip(SharedData() + "/wikitext2/wiki.test.raw");
  if (text.empty()) {
    GTEST_SKIP() << "no wikitext2/wiki.test.raw below NIBBLE_SHARED_DATA (" << SharedData() << ")";
  }
  // tokenizers 0.23.3, without special tokens.
  for (const auto& [name, count] : {std::pair("gpt2", 286'221U), std::pair("llama2", 335'687U)}) {
    const auto tokenizer =
        Load(ReadMaybeGzip(SharedData() + "/tokenizers/" + name + "/tokenizer.json.gz"));
    ASSERT_NE(tokenizer, nullptr);
    const auto ids = tokenizer->Encode(text);
    EXPECT_EQ(ids.size(), count) << name;
    EXPECT_EQ(tokenizer->Decode(ids), text) << name;
  }
}

TEST(Tokenizer, LongTextsUseACacheOfWordsAndGiveTheSameTokens) {
  // Lines of letters only: a line break is a piece of its own, so lines may be encoded one by one.
  const auto tokenizer = LoadVariant("byte");
  std::uint32_t state = 3;
  const auto next = [&](std::uint32_t bound) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % bound;
  };
  std::string text;
  std::vector<TokenId> by_line;
  while (text.size() < 200'000) {
    std::string line;
    for (std::uint32_t word = 0; word < 10; ++word) {
      line += word == 0 ? "" : " ";
      for (std::uint32_t letter = next(20) + 1; letter > 0; --letter) {
        line += "etaoinshr"[next(9)];
      }
    }
    line += "\n";
    const auto ids = tokenizer->Encode(line);
    by_line.insert(by_line.end(), ids.begin(), ids.end());
    text += line;
  }
  EXPECT_EQ(tokenizer->Encode(text), by_line);
}

TEST(Tokenizer, ControlTokensInTextAreOnlyReadWhenAskedFor) {
  const auto tokenizer = LoadVariant("byte");
  const TokenId start = *tokenizer->TokenToId("<s>");
  const std::string text = "a<s>[INST]b";
  const auto with = tokenizer->Encode(text, {.parse_special = true});
  const auto without = tokenizer->Encode(text);
  EXPECT_EQ(std::count(with.begin(), with.end(), start), 1);
  EXPECT_EQ(std::count(without.begin(), without.end(), start), 0);
  // [INST] is an added token, but no control token.
  EXPECT_EQ(std::count(without.begin(), without.end(), *tokenizer->TokenToId("[INST]")), 1);
  EXPECT_EQ(tokenizer->Decode(without), text);
}

TEST(Tokenizer, IgnoreMergesDoesNotForgeControlTokens) {
  // A control token inside the vocabulary that is one word of the text.
  const auto tokenizer =
      LoadVariant("byte", R"({"model.ignore_merges": true, "model.merges": [], "added_tokens":
               [{"id": 275, "content": "Ġthe", "special": true}]})");
  EXPECT_THAT(Plain(tokenizer->Encode("a the", {})), ::testing::Not(::testing::Contains(275)));
}

TEST(Tokenizer, NamesBytesAndRangesOfTokens) {
  const auto tokenizer = LoadVariant("byte");
  const TokenId the = *tokenizer->TokenToId("Ġthe");
  EXPECT_EQ(tokenizer->TokenName(the), "Ġthe");
  EXPECT_EQ(tokenizer->TokenBytes(the), " the");
  EXPECT_EQ(tokenizer->TokenBytes(*tokenizer->TokenToId("ÿ")), "\xFF");
  EXPECT_EQ(tokenizer->vocab_size(), 428);
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->TokenToId("</s>")));
  EXPECT_FALSE(tokenizer->IsSpecial(the));
  for (const std::int32_t id : {-1, 428, 2'000'000'000}) {
    EXPECT_FALSE(tokenizer->Has(TokenId{id}));
    EXPECT_EQ(tokenizer->TokenName(TokenId{id}), "");
    EXPECT_EQ(tokenizer->TokenBytes(TokenId{id}), "");
    EXPECT_FALSE(tokenizer->IsSpecial(TokenId{id}));
  }
  EXPECT_EQ(tokenizer->TokenToId("no such token"), std::nullopt);
  const auto spm = LoadVariant("spm");
  EXPECT_EQ(spm->TokenBytes(*spm->TokenToId("<0x0A>")), "\n");
  EXPECT_EQ(spm->TokenBytes(*spm->TokenToId("▁the")), " the");
}

TEST(Tokenizer, InvalidUtf8CountsAsReplacementCharacters) {
  const auto tokenizer = LoadVariant("byte");
  EXPECT_EQ(Plain(tokenizer->Encode("a\xFF\xE2\x82z")), Plain(tokenizer->Encode("a\uFFFD\uFFFDz")));
}

TEST(Tokenizer, ManyThreadsMayShareOne) {
  const auto tokenizer =
      LoadVariant("byte", R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
               {"type": "Split", "pattern": {"Regex": "\\w+|\\W"}, "behavior": "Isolated"},
               {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}})");
  std::string text;
  for (int i = 0; i < 300; ++i) {
    text += "the scheduler, and the kernels! ";
  }
  const auto expected = tokenizer->Encode(text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4);
  for (int& result : equal) {
    threads.emplace_back([&] { result = tokenizer->Encode(text) == expected ? 1 : 0; });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_THAT(equal, ::testing::Each(1));
}

TEST(Tokenizer, LongWordsTakeTheHeapAndGiveTheSameTokens) {
  // The heap serves words of more than 32 symbols; below, a scan does. A word of 33 letters that
  // differs from a shorter one only by a last lone letter must begin with its tokens.
  const auto tokenizer = LoadVariant("byte", R"({"pre_tokenizer":
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}})");
  for (const std::string_view unit : {"the", "quence", "itsobo", "nobody", " scheduler"}) {
    std::string word;
    while (word.size() < 24) {
      word += unit;
    }
    const auto scan = Plain(tokenizer->Encode(word));
    const auto heap = Plain(tokenizer->Encode(word + std::string(12, 'Z')));
    ASSERT_GE(heap.size(), scan.size() + 12) << word;
    EXPECT_EQ(std::vector(heap.begin(), heap.end() - 12), scan) << word;
  }
}

TEST(Tokenizer, AMillionLettersAreOneWordInReasonableTime) {
  const auto tokenizer = LoadVariant("byte");
  const std::string text(1'000'000, 'e');
  const auto ids = tokenizer->Encode(text);
  EXPECT_EQ(tokenizer->Decode(ids), text);
}

TEST(IncrementalDecoder, HoldsBackUnfinishedCharacters) {
  const auto tokenizer = LoadVariant("byte");
  const auto ids = tokenizer->Encode("\U0001F680!", {});
  IncrementalDecoder decoder(*tokenizer);
  std::vector<std::string> steps;
  for (const TokenId id : ids) {
    steps.push_back(decoder.Push(id));
  }
  EXPECT_EQ(steps.back(), "!");
  EXPECT_EQ(steps.front(), "");
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Push(ids.front()), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(IncrementalDecoder, AnySequenceOfIdsGivesTheTextOfDecode) {
  std::uint32_t state = 20261124;
  const auto next = [&](std::uint32_t bound) {
    state = state * 1664525 + 1013904223;
    return static_cast<std::int32_t>((state >> 8) % bound);
  };
  for (const std::string base : {"byte", "spm", "chars"}) {
    const auto tokenizer = LoadVariant(base);
    for (int round = 0; round < 300; ++round) {
      std::vector<TokenId> ids;
      for (int i = next(12); i >= 0; --i) {
        ids.push_back(TokenId{next(round % 2 == 0 ? 300 : 560) - 2});
      }
      for (const bool skip : {false, true}) {
        for (const bool starts : {false, true}) {
          const DecodeOptions options{.skip_special = skip, .starts_text = starts};
          EXPECT_EQ(DecodeStepwise(*tokenizer, ids, options), tokenizer->Decode(ids, options));
        }
      }
    }
  }
}

TEST(IncrementalDecoder, BytesThatAreNoUtf8BecomeReplacementCharacters) {
  const auto spm = LoadVariant("spm");
  const auto id = [&](std::string_view name) { return *spm->TokenToId(name); };
  const std::vector<TokenId> euro = {id("<0xE2>"), id("<0x82>"), id("<0xAC>")};
  EXPECT_EQ(spm->Decode(euro), "€");
  const std::vector<TokenId> broken = {id("<0xE2>"), id("<0x82>"), id("▁the"), id("<0xFF>")};
  EXPECT_EQ(spm->Decode(broken), "\uFFFD\uFFFD the\uFFFD");
  EXPECT_EQ(DecodeStepwise(*spm, broken), spm->Decode(broken));
}

TEST(IncrementalDecoder, AContinuedTextKeepsItsLeadingSpace) {
  const auto spm = LoadVariant("spm");
  const std::vector<TokenId> ids = {*spm->TokenToId("▁the")};
  EXPECT_EQ(spm->Decode(ids), "the");
  EXPECT_EQ(spm->Decode(ids, {.starts_text = false}), " the");
}

struct BadFile {
  const char* name;
  const char* base;
  const char* set;
  ErrorCode code;
  const char* message;  // a part of it
};

class TokenizerBadFile : public ::testing::TestWithParam<BadFile> {};

TEST_P(TokenizerBadFile, IsRefusedByName) {
  const BadFile& bad = GetParam();
  const auto tokenizer =
      Tokenizer::FromJson(Variant(bad.base, *json::Parse(bad.set)), "dir/x.json");
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code, bad.code) << tokenizer.error().message;
  EXPECT_THAT(tokenizer.error().message, AllOf(HasSubstr("dir/x.json: "), HasSubstr(bad.message)));
}

constexpr ErrorCode kCorrupt = ErrorCode::kCorruptFile;
constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
constexpr ErrorCode kLimit = ErrorCode::kLimitExceeded;

INSTANTIATE_TEST_SUITE_P(
    Files, TokenizerBadFile,
    ::testing::Values(
        BadFile{"word_piece", "byte", R"({"model.type": "WordPiece"})", kUnsupported, "WordPiece"},
        BadFile{"no_model", "byte", R"({"model": null})", kCorrupt, "\"model\""},
        BadFile{"untyped", "byte", R"({"model": {"unk_id": 0, "vocab": []}})", kUnsupported,
                "Unigram"},
        BadFile{"untyped_2", "byte", R"({"model": {"vocab": {}}})", kUnsupported, "model type"},
        BadFile{"prefix", "byte", R"({"model.continuing_subword_prefix": "##"})", kUnsupported,
                "continuing_subword_prefix"},
        BadFile{"dropout", "byte", R"({"model.dropout": 0.1})", kUnsupported, "dropout"},
        BadFile{"flag", "byte", R"({"model.fuse_unk": 3})", kCorrupt, "fuse_unk"},
        BadFile{"unk", "byte", R"({"model.unk_token": "<none>"})", kCorrupt, "<none>"},
        BadFile{"vocab", "byte", R"({"model.vocab": []})", kCorrupt, "model.vocab"},
        BadFile{"vocab_id", "byte", R"({"model.vocab": {"a": -1}})", kCorrupt, "token a"},
        BadFile{"vocab_twice", "byte", R"({"model.vocab": {"a": 1, "b": 1}})", kCorrupt, "token b"},
        BadFile{"vocab_large", "byte", R"({"model.vocab": {"a": 2000000}})", kCorrupt, "token a"},
        BadFile{"merges", "byte", R"({"model.merges": {}})", kCorrupt, "model.merges"},
        BadFile{"merge", "byte", R"({"model.merges": ["a b", "ab"]})", kCorrupt, "model.merges["},
        BadFile{"merge_pair", "byte", R"({"model.merges": [["a"]]})", kCorrupt, "model.merges[0]"},
        BadFile{"merge_type", "byte", R"({"model.merges": [["a", 1]]})", kCorrupt,
                "model.merges[0]"},
        BadFile{"merge_missing", "byte", R"({"model.merges": [["the", "xx"]]})", kCorrupt, "xx"},
        BadFile{"added", "byte", R"({"added_tokens": {}})", kCorrupt, "added_tokens"},
        BadFile{"added_content", "byte", R"({"added_tokens": [{"id": 1}]})", kCorrupt, "content"},
        BadFile{"added_id", "byte", R"({"added_tokens": [{"id": 5, "content": "<x>"}]})", kCorrupt,
                "<x>"},
        BadFile{"normalizer", "byte", R"({"normalizer": {"type": "Nmt"}})", kUnsupported, "Nmt"},
        BadFile{"normalizer_type", "byte", R"({"normalizer": 1})", kCorrupt, "normalizer"},
        BadFile{"sequence", "byte", R"({"normalizer": {"type": "Sequence"}})", kCorrupt,
                "normalizers"},
        BadFile{"replace", "byte", R"({"normalizer": {"type": "Replace", "content": "a"}})",
                kCorrupt, "pattern"},
        BadFile{"replace_regex", "byte",
                R"({"normalizer": {"type": "Replace", "content": "a", "pattern": {"Regex": "("}}})",
                kUnsupported, "Replace"},
        BadFile{"replace_empty", "byte",
                R"({"normalizer": {"type": "Replace", "content": "a", "pattern": {"String": ""}}})",
                kUnsupported, "empty"},
        BadFile{"growth", "byte",
                R"({"normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Replace", "content": "aaaaaaaaaaaaaaaaaaaa", "pattern": {"String": "a"}},
                    {"type": "Replace", "content": "aaaaaaaaaaaaaaaaaaaa", "pattern": {"String": "a"}},
                    {"type": "Replace", "content": "aaaaaaaaaaaaaaaaaaaa", "pattern": {"String": "a"}}
                    ]}})",
                kLimit, "longer"},
        BadFile{"pre_tokenizer", "byte", R"({"pre_tokenizer": {"type": "UnicodeScripts"}})",
                kUnsupported, "UnicodeScripts"},
        BadFile{
            "behavior", "byte",
            R"({"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "X"}})",
            kUnsupported, "behavior"},
        BadFile{"split_pattern", "byte",
                R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a{2}+"},
                    "behavior": "Isolated"}})",
                kUnsupported, "a{2}+"},
        BadFile{"metaspace", "byte",
                R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}})", kCorrupt,
                "replacement"},
        BadFile{
            "metaspace_scheme", "byte",
            R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "x"}})",
            kUnsupported, "prepend_scheme"},
        BadFile{"bytes_twice", "byte",
                R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"},
                    {"type": "ByteLevel"}]}})",
                kUnsupported, "ByteLevel twice"},
        BadFile{"post", "byte", R"({"post_processor": {"type": "Other"}})", kUnsupported, "Other"},
        BadFile{"template", "byte", R"({"post_processor": {"type": "TemplateProcessing"}})",
                kCorrupt, "single"},
        BadFile{"template_token", "byte",
                R"({"post_processor": {"type": "TemplateProcessing", "special_tokens": {},
                    "single": [{"SpecialToken": {"id": "<q>"}}]}})",
                kCorrupt, "<q>"},
        BadFile{"template_b", "byte",
                R"({"post_processor": {"type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "B"}}]}})",
                kCorrupt, "Sequence A"},
        BadFile{"template_empty", "byte",
                R"({"post_processor": {"type": "TemplateProcessing", "single": []}})", kCorrupt,
                "Sequence A"},
        BadFile{"template_id", "byte",
                R"({"post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 9999],
                    "sep": ["</s>", 1]}})",
                kCorrupt, "9999"},
        BadFile{"roberta", "byte", R"({"post_processor": {"type": "RobertaProcessing"}})", kCorrupt,
                "cls"},
        BadFile{"decoder", "byte", R"({"decoder": {"type": "CTC"}})", kUnsupported, "CTC"},
        BadFile{"decoder_regex", "byte",
                R"({"decoder": {"type": "Replace", "content": "", "pattern": {"Regex": "a"}}})",
                kUnsupported, "Replace"},
        BadFile{"decoder_strip", "byte",
                R"({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}})",
                kUnsupported, "Strip"},
        BadFile{"decoder_count", "byte",
                R"({"decoder": {"type": "Strip", "content": " ", "start": -1, "stop": 1}})",
                kCorrupt, "start"},
        BadFile{"decoder_fused", "byte",
                R"({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"},
                    {"type": "ByteFallback"}]}})",
                kUnsupported, "after Fuse"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(Tokenizer, CutOffFilesAreRefused) {
  const std::string text = Variant("byte", *json::Parse("{}"));
  for (std::size_t size = 0; size < text.size(); size += 997) {
    EXPECT_FALSE(Tokenizer::FromJson(text.substr(0, size))) << size;
  }
}

TEST(Tokenizer, AMissingFolderIsNamed) {
  const auto tokenizer = Tokenizer::FromFolder("/nonexistent/folder");
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(tokenizer.error().message, HasSubstr("/nonexistent/folder/tokenizer.json"));
}

}  // namespace
}  // namespace nibble
