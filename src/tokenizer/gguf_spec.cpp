// GgufVocabulary -> TokenizerSpec: the tokenizer.json that a GGUF's vocabulary stands for. Merges
// and word patterns follow llama.cpp's llama-vocab.cpp, which defines what tokenizer.ggml.* means.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/limits.h"
#include "base/text.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// DeepSeek's letters with case, by the ranges of its tokenizer.json.
constexpr std::string_view kDeepseekLetters =
    R"(\s?[\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA})"
    R"(\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377})"
    R"(\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
    R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
    R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77})"
    R"(\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D})"
    R"(\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3})"
    R"(\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D})"
    R"(\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184})"
    R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F})"
    R"(\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";

/// How tokenizer.ggml.pre cuts words, and the customs that go with it.
struct Pre {
  std::string_view name = {};
  std::vector<std::string_view> patterns = {};  // applied one after the other, each match isolated
  bool ignore_merges = false;
  bool add_bos = false;  // unless the file says otherwise
  bool nfc = false;      // llama.cpp leaves it out, but the models were trained with it
};

constexpr std::string_view kDigit = R"(\p{N})";

const std::vector<Pre>& KnownPres() {
  static const std::vector<Pre> kPres = [] {
    std::vector<Pre> pres;
    const auto add = [&](std::initializer_list<std::string_view> names, const Pre& pre) {
      for (const std::string_view name : names) {
        pres.push_back(pre);
        pres.back().name = name;
      }
    };
    add({"", "default"},
        {.patterns = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}});
    add({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
         "gigachat", "mellum", "a.x-4.0"},
        {.patterns = {kGpt2}});
    add({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"},
        {.patterns = {kDigit, kGpt2}});
    add({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
        {.patterns = {kLlama3}, .ignore_merges = true, .add_bos = true});
    add({"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}, {.patterns = {kLlama3}});
    add({"qwen2", "deepseek-r1-qwen", "megrez"}, {.patterns = {kQwen2}, .nfc = true});
    add({"stablelm2", "hunyuan", "solar-open", "grok-2"}, {.patterns = {kQwen2}});
    add({"qwen35"}, {.patterns = {kQwen35}, .nfc = true});
    add({"tekken"}, {.patterns = {kTekken}, .ignore_merges = true, .add_bos = true});
    add({"gpt-4o", "llama4", "kanana2"}, {.patterns = {kO200k}});
    add({"falcon"}, {.patterns = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, "[0-9][0-9][0-9]"}});
    add({"deepseek-coder"}, {.patterns = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)",
                                          "[一-龥ࠀ-一가-퟿]+", kDigit}});
    add({"deepseek-llm"},
        {.patterns = {R"([\r\n])", kDeepseekLetters, R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)", R"(\s+$)",
                      "[一-龥ࠀ-一가-퟿]+", R"(\p{N}+)"}});
    add({"deepseek-v3", "hunyuan-dense"},
        {.patterns = {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+", kDeepseek3}});
    return pres;
  }();
  return kPres;
}

json::Value Typed(std::string_view type,
                  std::initializer_list<std::pair<std::string_view, json::Value>> members) {
  json::Object object;
  object.Set("type", type);
  for (const auto& [key, value] : members) {
    object.Set(key, value);
  }
  return object;
}

json::Value Pattern(std::string_view kind, std::string_view text) {
  json::Object object;
  object.Set(kind, text);
  return object;
}

json::Value PreTokenizerOf(const Pre& pre) {
  json::Array steps;
  for (const std::string_view pattern : pre.patterns) {
    const bool last = pattern.data() == pre.patterns.back().data();
    if (pattern == kDigit) {
      steps.push_back(Typed("Digits", {{"individual_digits", true}}));
    } else if (pattern != kGpt2 || !last) {
      steps.push_back(Typed(
          "Split",
          {{"pattern", Pattern("Regex", pattern)}, {"behavior", "Isolated"}, {"invert", false}}));
    }
  }
  steps.push_back(Typed("ByteLevel", {{"add_prefix_space", false},
                                      {"trim_offsets", true},
                                      {"use_regex", pre.patterns.back() == kGpt2}}));
  return steps.size() == 1 ? steps[0] : Typed("Sequence", {{"pretokenizers", std::move(steps)}});
}

int TypeAt(const GgufVocabulary& vocabulary, std::size_t i) {
  return vocabulary.token_types.empty() ? kNormal : vocabulary.token_types[i];
}

Result<void> ReadTokens(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  const std::vector<std::string>& tokens = vocabulary.tokens;
  if (tokens.empty()) {
    return Fail(ErrorCode::kCorruptFile, "tokenizer.ggml.tokens is missing or empty");
  }
  if (tokens.size() > static_cast<std::size_t>(limits::kVocabulary)) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("tokenizer.ggml.tokens has {} entries, more "
                                                       "than {}",
                                                       tokens.size(), limits::kVocabulary));
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() < tokens.size()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("tokenizer.ggml.token_type has {} entries for {} tokens",
                            vocabulary.token_types.size(), tokens.size()));
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    if (tokens[i].size() > limits::kTokenBytes) {
      return Fail(ErrorCode::kLimitExceeded, fmt::format("tokenizer.ggml.tokens[{}] is longer than "
                                                         "{} bytes",
                                                         i, limits::kTokenBytes));
    }
    std::string name = tokens[i].empty() ? fmt::format("[EMPTY_{}]", i) : SanitizeUtf8(tokens[i]);
    if (!spec.vocab.Add(name, id)) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("tokenizer.ggml.tokens[{}]: {} is token {} "
                                                       "already",
                                                       i, Quote(name), spec.vocab.Find(name)));
    }
    const int type = TypeAt(vocabulary, i);
    const bool named = vocabulary.bos == TokenId{id} || vocabulary.eos == TokenId{id};
    const bool special = type == kControl || type == kUnknown || (named && type != kUserDefined);
    if (special || type == kUserDefined) {
      spec.added.push_back({.id = id, .content = std::move(name), .special = special});
    }
  }
  return {};
}

Result<void> ReadMerges(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  if (vocabulary.merges.empty()) {
    return Fail(ErrorCode::kCorruptFile, "tokenizer.ggml.merges is missing or empty");
  }
  if (vocabulary.merges.size() > static_cast<std::size_t>(limits::kMerges)) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("tokenizer.ggml.merges has {} entries, more than {}",
                            vocabulary.merges.size(), limits::kMerges));
  }
  for (std::size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string_view merge = vocabulary.merges[i];
    const std::size_t space = merge.find(' ', 1);  // the left side may be a space, never empty
    const std::string_view left = merge.substr(0, space);
    const std::string_view right =
        space == std::string_view::npos ? std::string_view() : merge.substr(space + 1);
    const Merge rule{.left = spec.vocab.Find(left),
                     .right = spec.vocab.Find(right),
                     .merged = spec.vocab.Find(fmt::format("{}{}", left, right)),
                     .rank = static_cast<std::int32_t>(i)};
    if (rule.left < 0 || rule.right < 0 || rule.merged < 0) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("tokenizer.ggml.merges[{}] {} does not join two tokens into a third",
                              i, Quote(merge)));
    }
    spec.merges.push_back(rule);
  }
  return {};
}

/// SentencePiece has no list of merges: any two neighbours that together are a token may join, the
/// highest score first, and of equal scores the leftmost.
Result<void> MergesFromScores(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  const std::vector<float>& scores = vocabulary.scores;
  if (scores.size() < vocabulary.tokens.size()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("tokenizer.ggml.scores has {} entries for {} tokens", scores.size(),
                            vocabulary.tokens.size()));
  }
  std::vector<float> distinct(
      scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(vocabulary.tokens.size()));
  if (std::any_of(distinct.begin(), distinct.end(), [](float s) { return std::isnan(s); })) {
    return Fail(ErrorCode::kCorruptFile, "tokenizer.ggml.scores holds a NaN");
  }
  std::sort(distinct.begin(), distinct.end(), std::greater<>());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (std::int32_t id = 0; id < spec.vocab.bound(); ++id) {
    const auto i = static_cast<std::size_t>(id);
    const int type = TypeAt(vocabulary, i);
    if (type != kNormal && type != kUserDefined && type != kUnused) {
      continue;  // what text is made of never becomes a control token
    }
    const auto rank =
        std::lower_bound(distinct.begin(), distinct.end(), scores[i], std::greater<>());
    const std::string_view name = spec.vocab.Text(id);
    for (std::size_t cut = DecodeAt(name, 0).size; cut < name.size();
         cut += DecodeAt(name, cut).size) {
      const std::int32_t left = spec.vocab.Find(name.substr(0, cut));
      const std::int32_t right = left < 0 ? -1 : spec.vocab.Find(name.substr(cut));
      if (right >= 0) {
        spec.merges.push_back({.left = left,
                               .right = right,
                               .merged = id,
                               .rank = static_cast<std::int32_t>(rank - distinct.begin())});
      }
    }
    if (spec.merges.size() > static_cast<std::size_t>(limits::kMerges)) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("tokenizer.ggml.tokens make more than {} merges", limits::kMerges));
    }
  }
  return {};
}

/// {"SpecialToken": {"id": "<s>", "type_id": 0}}
json::Value TemplatePiece(std::string_view kind, std::string_view id, int type_id) {
  json::Object inner;
  inner.Set("id", id);
  inner.Set("type_id", type_id);
  json::Object piece;
  piece.Set(kind, std::move(inner));
  return piece;
}

/// <s> A </s>, as the file wants it.
Result<json::Value> PostProcessorOf(const GgufVocabulary& vocabulary, const TokenizerSpec& spec,
                                    bool default_bos) {
  const bool add_bos = vocabulary.add_bos.value_or(default_bos && spec.bos.has_value());
  const bool add_eos = vocabulary.add_eos.value_or(false);
  if ((add_bos && !spec.bos) || (add_eos && !spec.eos)) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("tokenizer.ggml.add_{0}_token is true, but {0}_token_id is not given",
                            add_bos && !spec.bos ? "bos" : "eos"));
  }
  if (!add_bos && !add_eos) {
    return json::Value();
  }
  json::Array single;
  json::Array pair;
  json::Object tokens;
  const auto add_token = [&](TokenId id, json::Array& list, int type_id) {
    const std::string_view name = spec.vocab.Text(Raw(id));
    list.push_back(TemplatePiece("SpecialToken", name, type_id));
    json::Object token;
    token.Set("id", name);
    token.Set("ids", json::Array{std::int64_t{Raw(id)}});
    token.Set("tokens", json::Array{name});
    tokens.Set(name, std::move(token));
  };
  const auto add_sequence = [&](std::string_view name, json::Array& list, int type_id) {
    if (add_bos) {
      add_token(*spec.bos, list, type_id);
    }
    list.push_back(TemplatePiece("Sequence", name, type_id));
    if (add_eos) {
      add_token(*spec.eos, list, type_id);
    }
  };
  add_sequence("A", single, 0);
  add_sequence("A", pair, 0);
  add_sequence("B", pair, 1);
  return Typed("TemplateProcessing", {{"single", std::move(single)},
                                      {"pair", std::move(pair)},
                                      {"special_tokens", std::move(tokens)}});
}

Result<void> BuildGpt2(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  const std::vector<Pre>& pres = KnownPres();
  const auto pre = std::find_if(pres.begin(), pres.end(),
                                [&](const Pre& p) { return p.name == vocabulary.pre; });
  if (pre == pres.end()) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("tokenizer.ggml.pre {} is not supported", Quote(vocabulary.pre)));
  }
  NIBBLE_TRY_VOID(ReadMerges(vocabulary, spec));
  spec.bpe.ignore_merges = pre->ignore_merges;
  if (pre->nfc) {
    spec.normalizer = Typed("NFC", {});
  }
  spec.pre_tokenizer = PreTokenizerOf(*pre);
  spec.decoder = Typed("ByteLevel",
                       {{"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}});
  NIBBLE_TRY(post_processor, PostProcessorOf(vocabulary, spec, pre->add_bos));
  spec.post_processor = std::move(post_processor);
  return {};
}

Result<void> BuildLlama(const GgufVocabulary& vocabulary, TokenizerSpec& spec) {
  constexpr std::string_view kMetaSpace = "\xE2\x96\x81";
  NIBBLE_TRY_VOID(MergesFromScores(vocabulary, spec));
  spec.bpe.fuse_unk = true;
  spec.bpe.byte_fallback = spec.vocab.Find("<0x00>") >= 0;
  if (spec.unk) {
    spec.bpe.unk_token = std::string(spec.vocab.Text(Raw(*spec.unk)));
  }
  const bool prefix = vocabulary.add_space_prefix.value_or(true);
  const json::Value replace =
      Typed("Replace", {{"pattern", Pattern("String", " ")}, {"content", kMetaSpace}});
  const json::Value restore =
      Typed("Replace", {{"pattern", Pattern("String", kMetaSpace)}, {"content", " "}});
  json::Array decoders = {restore, Typed("ByteFallback", {}), Typed("Fuse", {})};
  if (prefix) {
    spec.normalizer =
        Typed("Sequence",
              {{"normalizers", json::Array{Typed("Prepend", {{"prepend", kMetaSpace}}), replace}}});
    decoders.push_back(Typed("Strip", {{"content", " "}, {"start", 1}, {"stop", 0}}));
  } else {
    spec.normalizer = replace;
  }
  spec.decoder = Typed("Sequence", {{"decoders", std::move(decoders)}});
  NIBBLE_TRY(post_processor, PostProcessorOf(vocabulary, spec, /*default_bos=*/true));
  spec.post_processor = std::move(post_processor);
  return {};
}

}  // namespace

std::optional<std::string> GgufPreOf(const TokenizerSpec& spec) {
  // The patterns that cut words, in order; nothing for a step that no `pre` has.
  std::vector<std::string> patterns;
  const auto read = [&](const json::Value& step) {
    const json::Value* type = step.Find("type");
    const std::string name = type == nullptr || !type->IsString() ? "" : *type->AsString();
    const auto is = [&](const char* key, const json::Value& value, bool fallback) {
      const json::Value* found = step.Find(key);
      return found == nullptr ? fallback : *found == value;
    };
    if (name == "Digits") {
      patterns.emplace_back(kDigit);
      return is("individual_digits", true, false);
    }
    if (name == "ByteLevel") {
      if (is("use_regex", true, true)) {
        patterns.emplace_back(kGpt2);
      }
      return is("add_prefix_space", false, false);
    }
    const json::Value* pattern = step.Find("pattern");
    const json::Value* regex = pattern == nullptr ? nullptr : pattern->Find("Regex");
    if (name != "Split" || regex == nullptr || !regex->IsString()) {
      return false;
    }
    patterns.push_back(*regex->AsString());
    return is("behavior", "Isolated", false) && is("invert", false, true);
  };
  const json::Value* steps = spec.pre_tokenizer.Find("pretokenizers");
  if (steps != nullptr && steps->AsArray() != nullptr) {
    for (const json::Value& step : *steps->AsArray()) {
      if (!read(step)) {
        return std::nullopt;
      }
    }
  } else if (!read(spec.pre_tokenizer)) {
    return std::nullopt;
  }
  const json::Value* normalizer = spec.normalizer.Find("type");
  const bool nfc = normalizer != nullptr && *normalizer == json::Value("NFC");
  if (!nfc && !spec.normalizer.IsNull()) {
    return std::nullopt;
  }
  for (const Pre& pre : KnownPres()) {
    if (!pre.name.empty() && pre.nfc == nfc && pre.ignore_merges == spec.bpe.ignore_merges &&
        std::ranges::equal(pre.patterns, patterns)) {
      return std::string(pre.name);
    }
  }
  return std::nullopt;
}

Result<TokenizerSpec> SpecFromGguf(const GgufVocabulary& vocabulary) {
  const bool llama = vocabulary.model == "llama";
  if (!llama && vocabulary.model != "gpt2") {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("tokenizer.ggml.model {} is not supported (only gpt2 and llama are)",
                            Quote(vocabulary.model)));
  }
  TokenizerSpec spec;
  NIBBLE_TRY_VOID(ReadTokens(vocabulary, spec));
  const auto known = [&](std::optional<TokenId> id, std::int32_t custom) {
    const std::int32_t raw = id ? Raw(*id) : custom;
    return spec.vocab.Has(raw) ? std::optional(TokenId{raw}) : std::nullopt;
  };
  spec.bos = known(vocabulary.bos, llama ? 1 : -1);
  spec.eos = known(vocabulary.eos, llama ? 2 : -1);
  spec.unk = known(vocabulary.unk, llama ? 0 : -1);
  spec.pad = known(vocabulary.pad, -1);
  NIBBLE_TRY_VOID(llama ? BuildLlama(vocabulary, spec) : BuildGpt2(vocabulary, spec));
  return spec;
}

}  // namespace nibble::text
