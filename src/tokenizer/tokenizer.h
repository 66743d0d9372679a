#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/gguf_vocabulary.h"
#include "base/ids.h"
#include "base/result.h"

namespace nibble {

struct EncodeOptions {
  bool add_special_tokens = false;  // apply the post-processor: <s> and the like around the text
  bool parse_special = false;  // control tokens spelled in the text become tokens; false for text
                               // of a client, who may not forge them. Other added tokens always do.
};

struct DecodeOptions {
  bool skip_special = false;  // leave control tokens out
  bool starts_text = true;    // false: the ids continue a text, so no space is taken off the front
};

/// Text <-> token ids, as the `tokenizers` library does it for the same tokenizer.json. Immutable;
/// any number of threads may share one.
///
/// Built: BPE (byte-level, and SentencePiece-style with byte fallback) with every normalizer,
/// pre-tokenizer, post-processor and decoder such models use. Anything else in a file is refused by
/// name, never skipped.
class Tokenizer {
 public:
  /// text: a tokenizer.json. source: its name, for errors. Errors: kCorruptFile, kUnsupported,
  /// kLimitExceeded.
  static Result<std::unique_ptr<Tokenizer>> FromJson(std::string_view text,
                                                     std::string_view source = "tokenizer.json");
  /// Reads DIR/tokenizer.json, and the ids of bos, eos, unk and pad from DIR/tokenizer_config.json
  /// if there is one. Errors: as FromJson, kNotFound, kIo.
  static Result<std::unique_ptr<Tokenizer>> FromFolder(const std::string& dir);
  /// Errors: kUnsupported for another model or an unknown `pre`, kCorruptFile, kLimitExceeded.
  static Result<std::unique_ptr<Tokenizer>> FromGguf(const GgufVocabulary& vocabulary,
                                                     std::string_view source = "GGUF");
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// The ids of a text. Bytes that are no UTF-8 count as U+FFFD.
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options = {}) const;
  /// The text of ids; ids outside the vocabulary add nothing. Bytes that do not form UTF-8 become
  /// U+FFFD.
  std::string Decode(std::span<const TokenId> ids, const DecodeOptions& options = {}) const;

  /// Largest id plus one; gaps are possible. A model may have more (unused) logits.
  std::int32_t vocab_size() const;
  bool Has(TokenId id) const;
  /// The bytes that one token adds inside a text; empty for an unknown id. Not always whole UTF-8.
  std::string_view TokenBytes(TokenId id) const;
  /// The token as the vocabulary spells it ("Ġthe", "<0x0A>"); empty for an unknown id.
  std::string_view TokenName(TokenId id) const;
  /// The id of a vocabulary's spelling.
  std::optional<TokenId> TokenToId(std::string_view name) const;
  bool IsSpecial(TokenId id) const;

  std::optional<TokenId> bos() const;
  std::optional<TokenId> eos() const;
  std::optional<TokenId> unk() const;
  std::optional<TokenId> pad() const;

  /// A tokenizer.json that makes the `tokenizers` library give the same ids.
  Result<std::string> ToTokenizerJson() const;

  /// The vocabulary as a GGUF file keeps it, with num_tokens entries: what the embedding has more
  /// than the tokenizer is filled up as unused. Errors: kUnsupported for a tokenizer that llama.cpp
  /// has no name for; kInvalidArgument for fewer entries than tokens.
  Result<GgufVocabulary> ToGgufVocabulary(std::int64_t num_tokens) const;

  struct Impl;  // tokenizer/tokenizer_impl.h

 private:
  friend class IncrementalDecoder;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

/// Text of one sequence, token by token. What Push returns is whole UTF-8: bytes of an unfinished
/// character wait for the next token. All outputs joined are Decode() of all ids.
class IncrementalDecoder {
 public:
  /// The tokenizer must outlive the decoder.
  explicit IncrementalDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  std::string Push(TokenId id);
  /// What is still held back, as U+FFFD. The decoder then starts a new text.
  std::string Finish();

 private:
  void Append(std::string& out, std::string_view text);
  void DrainBytes(std::string& out, bool all);

  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string pending_;  // bytes of an unfinished character
  bool first_;           // no token yet
  int strip_;            // characters that may still be taken off the front
};

}  // namespace nibble
