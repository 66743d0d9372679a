#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"
#include "tokenizer/regex.h"
#include "tokenizer/splitter.h"

namespace nibble::text {

/// A text and the pieces of it that are left, in order. What no piece covers is dropped.
class Pieces {
 public:
  explicit Pieces(std::string_view text) : text_(text) {
    if (!text.empty()) {
      spans_.push_back({0, text.size()});
    }
  }
  std::string_view text() const { return text_; }
  std::string_view Text(const Span& span) const {
    return text_.substr(span.begin, span.end - span.begin);
  }
  const std::vector<Span>& spans() const { return spans_; }
  std::vector<Span>& spans() { return spans_; }

  /// Exchanges the text, and with it all spans.
  void Replace(std::string text, std::vector<Span> spans) {
    owned_ = std::move(text);
    text_ = owned_;
    spans_ = std::move(spans);
  }

 private:
  std::string_view text_;
  std::string owned_;
  std::vector<Span> spans_;
};

/// The "pre_tokenizer" of a tokenizer.json: text to the words that the model sees one by one.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// spec: the member as parsed, null for none. Errors: kUnsupported for a type or a pattern that
  /// cannot be done, by name; kCorruptFile for a wrong field.
  static Result<PreTokenizer> FromJson(const json::Value& spec);

  /// True if there is a ByteLevel step: then words are raw bytes, not its printable alphabet.
  bool byte_level() const { return byte_level_; }
  bool empty() const { return steps_.empty(); }

  /// Cuts pieces, which hold one section of valid UTF-8. starts_text: it is the first of its text.
  void Apply(Pieces& pieces, bool starts_text) const;

 private:
  enum class Kind {
    kByteLevel,
    kWords,    // Split by the rules of a known pattern
    kLiteral,  // Split at a string
    kRegex,    // Split at a pattern
    kDigits,
    kMetaspace,
    kWhitespace,       // \w+|[^\w\s]+
    kWhitespaceSplit,  // at white space
    kPunctuation,
  };
  enum class PrependScheme { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    WordRules rules = {};                     // kWords, kByteLevel
    std::string literal = {};                 // kLiteral; kMetaspace: its replacement
    std::shared_ptr<const Regex> regex = {};  // kRegex
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    bool add_prefix_space = false;  // kByteLevel
    bool split = true;              // kByteLevel: by GPT-2's pattern; kMetaspace: at replacements
    PrependScheme prepend = PrependScheme::kAlways;
  };

  static Result<Step> StepFromJson(const json::Value& spec);
  static Result<Step> SplitFromJson(const json::Value& spec, std::string_view what);
  static Result<Step> MetaspaceFromJson(const json::Value& spec, std::string_view what);
  static void FindMatches(const Step& step, std::string_view text, std::vector<Span>& matches);
  static void SplitPieces(const Step& step, Pieces& pieces);
  static void ApplyMetaspace(const Step& step, Pieces& pieces, bool starts_text);
  static void AddPrefixSpaces(Pieces& pieces);

  std::vector<Step> steps_;
  bool byte_level_ = false;
  bool map_bytes_ = false;  // steps follow ByteLevel: they see its alphabet
};

}  // namespace nibble::text
