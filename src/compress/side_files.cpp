#include "compress/side_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string_view>

#include "base/sha256.h"
#include "checkpoint/model_config.h"
#include "compress/quantize.h"

namespace nibble {
namespace {

constexpr json::DumpStyle kStyle = {.indent = 2, .key_separator = ": "};

Result<void> WriteText(AtomicWriter& out, const char* name, const std::string& text) {
  return out.IsDone(name) ? Result<void>{} : out.WriteWhole(name, text);
}

std::string TokenizerConfig(const Checkpoint& source, const Tokenizer& tokenizer) {
  if (source.tokenizer_config_json()) {
    return *source.tokenizer_config_json();
  }
  json::Object out;
  out.Set("tokenizer_class", "PreTrainedTokenizerFast");
  const auto set = [&](const char* key, std::optional<TokenId> token) {
    if (token) {
      out.Set(key, tokenizer.TokenName(*token));
    }
  };
  set("bos_token", tokenizer.bos());
  set("eos_token", tokenizer.eos());
  set("unk_token", tokenizer.unk());
  set("pad_token", tokenizer.pad());
  out.Set("clean_up_tokenization_spaces", false);
  out.Set("model_max_length", source.config().max_position_embeddings);
  return json::Dump(out, kStyle) + "\n";
}

}  // namespace

Result<void> WriteSideFiles(const Checkpoint& source, const Tokenizer& tokenizer,
                            const json::Object& config, AtomicWriter& out) {
  NIBBLE_TRY_VOID(WriteText(out, "config.json", json::Dump(config, kStyle) + "\n"));
  std::string tokenizer_json;
  if (source.tokenizer_json()) {
    tokenizer_json = *source.tokenizer_json();
  } else {
    NIBBLE_TRY(made, tokenizer.ToTokenizerJson());
    tokenizer_json = std::move(made);
  }
  NIBBLE_TRY_VOID(WriteText(out, "tokenizer.json", tokenizer_json));
  NIBBLE_TRY_VOID(WriteText(out, "tokenizer_config.json", TokenizerConfig(source, tokenizer)));
  if (source.chat_template()) {
    NIBBLE_TRY_VOID(WriteText(out, "chat_template.jinja", *source.chat_template()));
  }
  if (source.generation_config_json()) {
    return WriteText(out, "generation_config.json", *source.generation_config_json());
  }
  json::Object generation;
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (const json::Value* value = config.Find(key)) {
      generation.Set(key, *value);
    }
  }
  return WriteText(out, "generation_config.json", json::Dump(generation, kStyle) + "\n");
}

std::string SideFilesDigest(const Checkpoint& source) {
  Sha256 hash;
  const auto add = [&](std::string_view text) {
    const auto size = static_cast<std::uint64_t>(text.size());
    hash.Update(std::as_bytes(std::span(&size, 1)));
    hash.Update(std::as_bytes(std::span(text)));
  };
  add(json::Dump(ToHuggingFaceConfig(source.config())));
  for (const auto* file : {&source.tokenizer_json(), &source.tokenizer_config_json(),
                           &source.chat_template(), &source.generation_config_json()}) {
    add(file->value_or(""));
  }
  if (const auto& vocabulary = source.gguf_vocabulary()) {
    for (const auto* list : {&vocabulary->tokens, &vocabulary->merges}) {
      std::ranges::for_each(*list, add);
    }
    hash.Update(std::as_bytes(std::span(vocabulary->scores)));
    hash.Update(std::as_bytes(std::span(vocabulary->token_types)));
    for (const auto& token :
         {vocabulary->bos, vocabulary->eos, vocabulary->unk, vocabulary->pad, vocabulary->eot}) {
      add(token ? fmt::format("{}", Raw(*token)) : "");
    }
    for (const auto& flag :
         {vocabulary->add_bos, vocabulary->add_eos, vocabulary->add_space_prefix}) {
      add(flag ? fmt::format("{}", *flag) : "");
    }
    add(vocabulary->model);
    add(vocabulary->pre);
  }
  return hash.Hex();
}

Result<GgufModelFacts> GgufFactsOf(const Checkpoint& source, const Tokenizer& tokenizer) {
  GgufModelFacts facts{.name = source.path().filename().string(),
                       .config = source.config(),
                       .chat_template = source.chat_template()};
  if (facts.name.empty()) {  // "folder/"
    facts.name = source.path().parent_path().filename().string();
  }
  if (source.gguf_vocabulary()) {
    facts.vocabulary = *source.gguf_vocabulary();
    return facts;
  }
  NIBBLE_TRY(vocabulary, tokenizer.ToGgufVocabulary(source.config().vocab_size));
  if (!vocabulary.bos) {
    vocabulary.bos = source.config().bos_token_id;
  }
  const std::vector<TokenId>& ends = source.config().eos_token_ids;
  if (!vocabulary.eos && !ends.empty()) {
    vocabulary.eos = ends.front();
  }
  for (const TokenId end : ends) {
    if (end != vocabulary.eos && !vocabulary.eot) {
      vocabulary.eot = end;
    }
  }
  NIBBLE_TRY(again, Tokenizer::FromGguf(vocabulary));
  const std::string_view text = DefaultCertificateText();
  if (again->Encode(text) != tokenizer.Encode(text)) {
    return Fail(ErrorCode::kInternal,
                "the vocabulary made of this tokenizer cuts a text in another way");
  }
  facts.vocabulary = std::move(vocabulary);
  return facts;
}

}  // namespace nibble
