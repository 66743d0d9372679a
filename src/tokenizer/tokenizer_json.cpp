// tokenizer.json -> TokenizerSpec. Everything the file says is read or refused here and in the
// FromJson of the four stages; nothing is skipped in silence but truncation and padding, for which
// the engine has limits of its own.

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/limits.h"
#include "base/text.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

Result<std::int32_t> IdFromJson(const json::Value* value, std::string_view what) {
  const auto id = value == nullptr ? std::nullopt : value->AsInt();
  if (!id || *id < 0 || *id >= limits::kVocabulary) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: its id must be a number from 0 to {}",
                                                     what, limits::kVocabulary - 1));
  }
  return static_cast<std::int32_t>(*id);
}

Result<void> ReadVocab(const json::Value* vocab, TokenizerSpec& spec) {
  if (vocab == nullptr || !vocab->IsObject()) {
    return Fail(ErrorCode::kCorruptFile, "model.vocab is not an object of token to id");
  }
  const json::Object& members = *vocab->AsObject();
  if (members.size() > static_cast<std::size_t>(limits::kVocabulary)) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("model.vocab has {} tokens, more than {}",
                                                       members.size(), limits::kVocabulary));
  }
  for (const auto& [token, value] : members) {
    const auto what = [&name = token] { return fmt::format("model.vocab token {}", Quote(name)); };
    if (token.size() > limits::kTokenBytes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{} is longer than {} bytes", what(), limits::kTokenBytes));
    }
    const auto id = IdFromJson(&value, what());
    if (!id) {
      return tl::unexpected<Error>(id.error());
    }
    if (!spec.vocab.Add(token, *id)) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: the id {} is another token's", what(), *id));
    }
  }
  return {};
}

/// "left right" or ["left", "right"].
Result<std::pair<std::string_view, std::string_view>> MergeSides(const json::Value& merge,
                                                                 std::size_t index) {
  if (const std::string* text = merge.AsString()) {
    const std::size_t space = text->find(' ');
    if (space != std::string::npos && text->find(' ', space + 1) == std::string::npos) {
      return std::pair(std::string_view(*text).substr(0, space),
                       std::string_view(*text).substr(space + 1));
    }
  } else if (const json::Array* pair = merge.AsArray(); pair != nullptr && pair->size() == 2) {
    const std::string* left = (*pair)[0].AsString();
    const std::string* right = (*pair)[1].AsString();
    if (left != nullptr && right != nullptr) {
      return std::pair(std::string_view(*left), std::string_view(*right));
    }
  }
  return Fail(ErrorCode::kCorruptFile,
              fmt::format("model.merges[{}] is neither \"left right\" nor [left, right]", index));
}

Result<void> ReadMerges(const json::Value* merges, TokenizerSpec& spec) {
  if (merges == nullptr || !merges->IsArray()) {
    return Fail(ErrorCode::kCorruptFile, "model.merges is not an array");
  }
  const json::Array& list = *merges->AsArray();
  if (list.size() > static_cast<std::size_t>(limits::kMerges)) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("model.merges has {} entries, more than {}",
                                                       list.size(), limits::kMerges));
  }
  spec.merges.reserve(list.size());
  std::string joined;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (const std::string* text = list[i].AsString(); text && text->starts_with("#version")) {
      continue;  // the first line of a merges.txt
    }
    NIBBLE_TRY(sides, MergeSides(list[i], i));
    joined.assign(sides.first);
    joined += sides.second;
    const Merge merge{.left = spec.vocab.Find(sides.first),
                      .right = spec.vocab.Find(sides.second),
                      .merged = spec.vocab.Find(joined),
                      .rank = static_cast<std::int32_t>(i)};
    if (merge.left < 0 || merge.right < 0 || merge.merged < 0) {
      const std::string_view missing = merge.left < 0    ? sides.first
                                       : merge.right < 0 ? sides.second
                                                         : std::string_view(joined);
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("model.merges[{}]: the vocabulary has no token {}", i, Quote(missing)));
    }
    spec.merges.push_back(merge);
  }
  return {};
}

/// Old files name no type; only BPE and a few fields tell the models apart.
std::string_view ModelType(const json::Value& model) {
  if (const std::string_view type = TypeOf(model); !type.empty()) {
    return type;
  }
  return model.Find("merges") != nullptr                     ? "BPE"
         : model.Find("unk_id") != nullptr                   ? "Unigram"
         : model.Find("max_input_chars_per_word") != nullptr ? "WordPiece"
                                                             : "";
}

Result<void> ReadModel(const json::Value& model, TokenizerSpec& spec) {
  const std::string_view type = ModelType(model);
  if (type != "BPE") {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("model type {} is not supported (only BPE is)", Quote(type)));
  }
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json::Value* value = model.Find(affix);
    if (value != nullptr && !value->IsNull() &&
        (value->AsString() == nullptr || !value->AsString()->empty())) {
      return Fail(ErrorCode::kUnsupported, fmt::format("model.{} is not supported", affix));
    }
  }
  if (const json::Value* dropout = model.Find("dropout");
      dropout != nullptr && !dropout->IsNull() && dropout->AsDouble() != 0.0) {
    return Fail(ErrorCode::kUnsupported, "model.dropout is not supported: ids would be random");
  }
  NIBBLE_TRY(byte_fallback, BoolMember(model, "byte_fallback", false, "model"));
  NIBBLE_TRY(fuse_unk, BoolMember(model, "fuse_unk", false, "model"));
  NIBBLE_TRY(ignore_merges, BoolMember(model, "ignore_merges", false, "model"));
  spec.bpe.byte_fallback = byte_fallback;
  spec.bpe.fuse_unk = fuse_unk;
  spec.bpe.ignore_merges = ignore_merges;
  if (const json::Value* unk = model.Find("unk_token"); unk != nullptr && !unk->IsNull()) {
    NIBBLE_TRY(name, StringMember(model, "unk_token", "model"));
    spec.bpe.unk_token = std::move(name);
  }
  NIBBLE_TRY_VOID(ReadVocab(model.Find("vocab"), spec));
  return ReadMerges(model.Find("merges"), spec);
}

Result<void> ReadAddedTokens(const json::Value* list, TokenizerSpec& spec) {
  if (list == nullptr || list->IsNull()) {
    return {};
  }
  if (!list->IsArray()) {
    return Fail(ErrorCode::kCorruptFile, "added_tokens is not an array");
  }
  if (list->AsArray()->size() > static_cast<std::size_t>(limits::kVocabulary)) {
    return Fail(ErrorCode::kLimitExceeded, "added_tokens is longer than a vocabulary may be");
  }
  for (const json::Value& item : *list->AsArray()) {
    constexpr std::string_view kWhat = "added_tokens";
    AddedToken token;
    NIBBLE_TRY(content, StringMember(item, "content", kWhat));
    const std::string what = fmt::format("added token {}", Quote(content));
    NIBBLE_TRY(id, IdFromJson(item.Find("id"), what));
    NIBBLE_TRY(special, BoolMember(item, "special", false, what));
    NIBBLE_TRY(normalized, BoolMember(item, "normalized", !special, what));
    NIBBLE_TRY(lstrip, BoolMember(item, "lstrip", false, what));
    NIBBLE_TRY(rstrip, BoolMember(item, "rstrip", false, what));
    NIBBLE_TRY(single_word, BoolMember(item, "single_word", false, what));
    if (content.size() > limits::kTokenBytes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{} is longer than {} bytes", what, limits::kTokenBytes));
    }
    const std::int32_t in_vocab = spec.vocab.Find(content);
    if (in_vocab >= 0 ? in_vocab != id : spec.vocab.Has(id)) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: its id is {}, but model.vocab says otherwise", what, id));
    }
    spec.added.push_back({.id = id,
                          .content = std::move(content),
                          .special = special,
                          .normalized = normalized,
                          .lstrip = lstrip,
                          .rstrip = rstrip,
                          .single_word = single_word});
  }
  return {};
}

/// {"id": "<s>", ...}: the ids that special_tokens gives for it.
Result<void> AppendTemplateToken(const json::Value& piece, const json::Value& processor,
                                 std::vector<TokenId>& ids) {
  NIBBLE_TRY(name, StringMember(piece, "id", "post_processor TemplateProcessing"));
  const json::Value* tokens = processor.Find("special_tokens");
  const json::Value* token = tokens == nullptr ? nullptr : tokens->Find(name);
  const json::Value* list = token == nullptr ? nullptr : token->Find("ids");
  if (list == nullptr || !list->IsArray()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("post_processor TemplateProcessing: special_tokens has no ids for {}",
                            Quote(name)));
  }
  for (const json::Value& value : *list->AsArray()) {
    NIBBLE_TRY(id, IdFromJson(&value, "post_processor TemplateProcessing"));
    ids.push_back(TokenId{id});
  }
  return {};
}

Result<Affixes> TemplateAffixes(const json::Value& processor) {
  const json::Value* single = processor.Find("single");
  if (single == nullptr || !single->IsArray()) {
    return Fail(ErrorCode::kCorruptFile,
                "post_processor TemplateProcessing: \"single\" is not an array");
  }
  Affixes affixes;
  bool seen = false;
  for (const json::Value& piece : *single->AsArray()) {
    if (const json::Value* special = piece.Find("SpecialToken")) {
      NIBBLE_TRY_VOID(
          AppendTemplateToken(*special, processor, seen ? affixes.after : affixes.before));
      continue;
    }
    const json::Value* sequence = piece.Find("Sequence");
    const json::Value* id = sequence == nullptr ? nullptr : sequence->Find("id");
    if (id == nullptr || id->AsString() == nullptr || *id->AsString() != "A" || seen) {
      return Fail(ErrorCode::kCorruptFile,
                  "post_processor TemplateProcessing: \"single\" may hold SpecialTokens and the "
                  "Sequence A once");
    }
    seen = true;
  }
  if (!seen) {
    return Fail(ErrorCode::kCorruptFile,
                "post_processor TemplateProcessing: \"single\" has no Sequence A");
  }
  return affixes;
}

/// BertProcessing and RobertaProcessing: "cls": ["<s>", 0], "sep": ["</s>", 2].
Result<TokenId> NamedId(const json::Value& processor, std::string_view key) {
  const json::Value* pair = processor.Find(key);
  const json::Array* items = pair == nullptr ? nullptr : pair->AsArray();
  const std::string what = fmt::format("post_processor {}", key);
  NIBBLE_TRY(id, IdFromJson(items != nullptr && items->size() == 2 ? &(*items)[1] : nullptr, what));
  return TokenId{id};
}

}  // namespace

Result<Affixes> AffixesFromJson(const json::Value& post_processor) {
  Affixes all;
  NIBBLE_TRY(flat, FlattenSequence(post_processor, "processors", "post_processor"));
  for (const json::Value* processor : flat) {
    const std::string_view type = TypeOf(*processor);
    Affixes affixes;
    if (type == "TemplateProcessing") {
      NIBBLE_TRY(from_template, TemplateAffixes(*processor));
      affixes = std::move(from_template);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      NIBBLE_TRY(cls, NamedId(*processor, "cls"));
      NIBBLE_TRY(sep, NamedId(*processor, "sep"));
      affixes = {{cls}, {sep}};
    } else if (type != "ByteLevel") {  // which only moves offsets
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("post_processor {} is not supported", Quote(type)));
    }
    all.before.insert(all.before.begin(), affixes.before.begin(), affixes.before.end());
    all.after.insert(all.after.end(), affixes.after.begin(), affixes.after.end());
    constexpr std::size_t kMaxAffixes = 1'024;
    if (all.before.size() + all.after.size() > kMaxAffixes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("post_processor: more than {} tokens around a text", kMaxAffixes));
    }
  }
  return all;
}

Result<TokenizerSpec> SpecFromJson(std::string_view text) {
  json::ParseLimits parse_limits;
  parse_limits.max_bytes = limits::kTokenizerJsonBytes;
  NIBBLE_TRY(file, json::Parse(text, parse_limits));
  const json::Value* model = file.Find("model");
  if (model == nullptr || !model->IsObject()) {
    return Fail(ErrorCode::kCorruptFile, "there is no object \"model\"");
  }
  TokenizerSpec spec;
  NIBBLE_TRY_VOID(ReadModel(*model, spec));
  NIBBLE_TRY_VOID(ReadAddedTokens(file.Find("added_tokens"), spec));
  const auto part = [&](std::string_view name) {
    const json::Value* value = file.Find(name);
    return value == nullptr ? json::Value() : *value;
  };
  spec.normalizer = part("normalizer");
  spec.pre_tokenizer = part("pre_tokenizer");
  spec.post_processor = part("post_processor");
  spec.decoder = part("decoder");
  return spec;
}

}  // namespace nibble::text
