#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"

namespace nibble::text {

/// The "decoder" of a tokenizer.json, as what it makes of one token at a time: its bytes, and what
/// to do at the text's beginning. Only decoders whose output can be streamed are accepted.
class Decoder {
 public:
  /// How bytes that are no UTF-8 show in the text.
  enum class Invalid {
    kNone,        // tokens are text
    kPerSubpart,  // byte-level: U+FFFD for every maximal invalid subpart of the whole text
    kPerByte,     // byte fallback: U+FFFD for every byte of a broken character
  };

  Decoder() = default;
  /// spec: the member as parsed; null: tokens are joined by spaces. Errors: kUnsupported by name,
  /// kCorruptFile.
  static Result<Decoder> FromJson(const json::Value& spec);

  /// What a token contributes. name: as the vocabulary spells it; first: it starts the text;
  /// is_byte: set if it stands for one raw byte (byte fallback) rather than for text.
  std::string Piece(std::string_view name, bool added, bool first, bool* is_byte) const;

  Invalid invalid() const { return invalid_; }
  /// After joining: at most this many strip_char() are taken off the text's beginning.
  int strip_begin() const { return strip_begin_; }
  char strip_char() const { return strip_char_; }

 private:
  enum class Kind { kByteLevel, kReplace, kByteFallback, kMetaspace, kStrip };
  struct Step {
    Kind kind;
    std::string pattern = {};  // kReplace, kMetaspace
    std::string content = {};  // kReplace, kStrip
    int start = 0;             // kStrip
    int stop = 0;
    bool prepend = true;  // kMetaspace: the first token loses its spaces
  };
  Result<void> AddStep(const json::Value& spec, bool& fused);

  std::vector<Step> steps_;
  Invalid invalid_ = Invalid::kNone;
  int strip_begin_ = 0;
  char strip_char_ = ' ';
  bool join_with_space_ = false;
};

}  // namespace nibble::text
