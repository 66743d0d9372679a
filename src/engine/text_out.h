#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "engine/request.h"

namespace nibble {

class Tokenizer;

/// Tokens of one output -> complete UTF-8, piece by piece.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  virtual std::string Push(TokenId token) = 0;
  /// What is still held back (bytes of an unfinished character, as U+FFFD).
  virtual std::string Finish() = 0;
};

class TextDecoderFactory {
 public:
  virtual ~TextDecoderFactory() = default;
  virtual std::unique_ptr<TextDecoder> Start(bool skip_special_tokens) const = 0;
};

/// Decoders of a tokenizer, which must outlive the factory. An output continues its prompt, so a
/// leading space is kept.
std::unique_ptr<TextDecoderFactory> MakeTextDecoderFactory(const Tokenizer& tokenizer);

/// Finds stop strings in a text that arrives in pieces, as if it came character by character: the
/// match that ends first wins, of several ending there the longest. So the outcome does not depend
/// on where tokens or events begin and end. Text that may be the beginning of a stop string is held
/// back until it is known.
class StopStringMatcher {
 public:
  /// include_stop: the stop string stays in the text (and nothing needs to be held back).
  StopStringMatcher(std::vector<std::string> stops, bool include_stop);

  struct Piece {
    std::string text;            // may be sent now
    std::optional<int> matched;  // index of the stop string; nothing follows it
  };
  /// check: may a match end in this piece (min_tokens forbids it at first).
  Piece Push(std::string_view text, bool check = true);
  /// The text ends here without a match: what was held back.
  std::string Finish();

 private:
  std::size_t HeldBack() const;

  std::vector<std::string> stops_;
  bool include_stop_;
  std::size_t longest_ = 0;
  std::string buffer_;        // the end of the text: what is unsent, and enough before it to match
  std::size_t num_sent_ = 0;  // bytes of buffer_ that were given out
};

/// The text of one choice: decoder and stop strings together.
class TextOut {
 public:
  TextOut(const SamplingParams& params, std::unique_ptr<TextDecoder> decoder);

  struct Piece {
    std::string text;
    std::optional<std::string> stop;  // the stop string that ended the text
  };
  Piece Push(TokenId token, bool check_stop = true);
  /// The end of the output, by whatever reason: everything still held back.
  Piece Finish();

 private:
  std::unique_ptr<TextDecoder> decoder_;
  std::vector<std::string> stops_;
  std::optional<StopStringMatcher> matcher_;  // none without stop strings
};

}  // namespace nibble
