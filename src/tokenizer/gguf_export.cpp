// Tokenizer -> GgufVocabulary: the way back of gguf_spec.cpp.

#include <fmt/core.h>

#include <algorithm>

#include "tokenizer/tokenizer_impl.h"

namespace nibble {
namespace {

enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

bool IsByteToken(std::string_view name) {
  return name.size() == 6 && name.starts_with("<0x") && name.ends_with(">");
}

// "Prepend" anywhere among the normalizers, or a Metaspace that prepends: a text gets a space in
// front.
bool PrependsSpace(const json::Value& step) {
  const json::Value* type = step.Find("type");
  if (type != nullptr && *type == json::Value("Prepend")) {
    return true;
  }
  if (type != nullptr && *type == json::Value("Metaspace")) {
    const json::Value* scheme = step.Find("prepend_scheme");
    const json::Value* old = step.Find("add_prefix_space");
    return scheme != nullptr ? !(*scheme == json::Value("never"))
                             : old == nullptr || !(*old == json::Value(false));
  }
  for (const char* list : {"normalizers", "pretokenizers"}) {
    const json::Value* steps = step.Find(list);
    if (steps != nullptr && steps->AsArray() != nullptr &&
        std::ranges::any_of(*steps->AsArray(), PrependsSpace)) {
      return true;
    }
  }
  return false;
}

bool IsByteLevel(const json::Value& pre_tokenizer) {
  const json::Value* type = pre_tokenizer.Find("type");
  const json::Value* steps = pre_tokenizer.Find("pretokenizers");
  return (type != nullptr && *type == json::Value("ByteLevel")) ||
         (steps != nullptr && steps->AsArray() != nullptr &&
          std::ranges::any_of(*steps->AsArray(), IsByteLevel));
}

}  // namespace

Result<GgufVocabulary> Tokenizer::ToGgufVocabulary(std::int64_t num_tokens) const {
  NIBBLE_TRY(json, ToTokenizerJson());
  NIBBLE_TRY(spec, text::SpecFromJson(json));
  if (num_tokens < vocab_size()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("the tokenizer has {} tokens, the model {}", vocab_size(), num_tokens));
  }
  GgufVocabulary out;
  out.bos = bos();
  out.eos = eos();
  out.unk = unk();
  out.pad = pad();
  NIBBLE_TRY(affixes, text::AffixesFromJson(spec.post_processor));
  // GGUF knows one token before a text and one behind it, and what they are.
  const auto around = [](const std::vector<TokenId>& ids, std::optional<TokenId>& token) {
    if (!ids.empty() && !token) {
      token = ids.front();
    }
    return ids.empty() || (ids.size() == 1 && ids.front() == token);
  };
  if (!around(affixes.before, out.bos) || !around(affixes.after, out.eos)) {
    return Fail(
        ErrorCode::kUnsupported,
        "this tokenizer puts other tokens around a text than bos and eos, which GGUF has no "
        "place for");
  }
  out.add_bos = !affixes.before.empty();
  out.add_eos = !affixes.after.empty();
  const bool llama = !IsByteLevel(spec.pre_tokenizer);
  out.model = llama ? "llama" : "gpt2";
  if (!llama) {
    const auto pre = text::GgufPreOf(spec);
    if (!pre) {
      return Fail(ErrorCode::kUnsupported,
                  "this tokenizer cuts words in a way that no tokenizer.ggml.pre names");
    }
    out.pre = *pre;
  } else {
    out.pre = "default";
    out.add_space_prefix = PrependsSpace(spec.normalizer) || PrependsSpace(spec.pre_tokenizer);
  }
  const auto count = static_cast<std::size_t>(num_tokens);
  out.tokens.resize(count);
  out.token_types.assign(count, kUnused);
  for (std::size_t i = 0; i < count; ++i) {
    const TokenId id{static_cast<std::int32_t>(i)};
    if (!Has(id)) {
      out.tokens[i] = fmt::format("[PAD{}]", i);
      continue;
    }
    out.tokens[i] = std::string(TokenName(id));
    out.token_types[i] = llama && IsByteToken(out.tokens[i]) ? kByte : kNormal;
  }
  for (const text::AddedToken& added : spec.added) {
    out.token_types[static_cast<std::size_t>(added.id)] = added.special ? kControl : kUserDefined;
  }
  if (out.unk && llama) {
    out.token_types[static_cast<std::size_t>(Raw(*out.unk))] = kUnknown;
  }
  if (!llama) {
    for (const text::Merge& merge : spec.merges) {
      out.merges.push_back(
          fmt::format("{} {}", spec.vocab.Text(merge.left), spec.vocab.Text(merge.right)));
    }
    return out;
  }
  // SentencePiece joins the neighbours whose union has the highest score: the earlier a merge, the
  // higher. What no merge makes is never joined.
  out.scores.assign(count, -static_cast<float>(spec.merges.size()) - 1.0F);
  for (const text::Merge& merge : spec.merges) {
    float& score = out.scores[static_cast<std::size_t>(merge.merged)];
    score = std::max(score, -static_cast<float>(merge.rank));
  }
  return out;
}

}  // namespace nibble
