#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "json/value.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace nibble {
namespace text {

/// A tokenizer before it is built: what a tokenizer.json says, wherever it came from.
struct TokenizerSpec {
  json::Value normalizer;  // as in a tokenizer.json
  json::Value pre_tokenizer;
  json::Value post_processor;
  json::Value decoder;
  std::vector<AddedToken> added;
  StringTable vocab;
  std::vector<Merge> merges;
  BpeOptions bpe;  // byte_level follows from the pre-tokenizer
  std::optional<TokenId> bos, eos, unk, pad;
};

/// Ids that the post-processor puts around a text.
struct Affixes {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
};

/// Errors: kUnsupported by name, kCorruptFile.
Result<Affixes> AffixesFromJson(const json::Value& post_processor);

Result<std::unique_ptr<const Tokenizer::Impl>> BuildTokenizer(TokenizerSpec spec);

/// Parses a tokenizer.json. Errors without the name of the file.
Result<TokenizerSpec> SpecFromJson(std::string_view text);
Result<TokenizerSpec> SpecFromGguf(const GgufVocabulary& vocabulary);
/// The tokenizer.ggml.pre that cuts words as a byte-level tokenizer does; nullopt if none is known.
std::optional<std::string> GgufPreOf(const TokenizerSpec& spec);

}  // namespace text

struct Tokenizer::Impl {
  // The parts of the pipeline as text, to be written out again.
  json::Value normalizer_spec;
  json::Value pre_tokenizer_spec;
  json::Value post_processor_spec;
  json::Value decoder_spec;

  text::Normalizer normalizer;
  text::PreTokenizer pre_tokenizer;
  text::Bpe bpe;
  text::Decoder decoder;
  text::Affixes affixes;
  std::vector<text::AddedToken> added;  // by id
  text::StringTable added_names;
  text::AddedTokenFinder raw_added;         // looked for before normalisation
  text::AddedTokenFinder normalized_added;  // and after it
  std::vector<bool> special;                // by id
  std::optional<TokenId> bos, eos, unk, pad;

  // What each token adds inside a text: bytes_.substr(offsets[id], offsets[id + 1]).
  std::string piece_bytes;
  std::vector<std::size_t> piece_offsets;
  std::vector<bool> is_byte;  // byte fallback: one raw byte

  std::int32_t vocab_size() const { return static_cast<std::int32_t>(is_byte.size()); }
  bool Has(std::int32_t id) const { return bpe.names().Has(id) || added_names.Has(id); }
  bool IsSpecial(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < special.size() &&
           special[static_cast<std::size_t>(id)];
  }
  std::string_view Name(std::int32_t id) const {
    return added_names.Has(id)   ? added_names.Text(id)
           : bpe.names().Has(id) ? bpe.names().Text(id)
                                 : std::string_view();
  }
  std::string_view Piece(std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(piece_bytes)
        .substr(piece_offsets[i], piece_offsets[i + 1] - piece_offsets[i]);
  }

  /// What one token adds; see Decoder::Piece.
  std::string DecodeOne(std::int32_t id, bool first, bool* one_byte) const;
  void EncodeSection(std::string_view section, bool starts_text, const EncodeOptions& options,
                     text::Bpe::Scratch& scratch, std::vector<TokenId>& out) const;
  void EncodeWords(std::string_view section, bool starts_text, const std::vector<bool>& blocked,
                   text::Bpe::Scratch& scratch, std::vector<TokenId>& out) const;
};

}  // namespace nibble
