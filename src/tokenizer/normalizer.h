#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"
#include "tokenizer/regex.h"

namespace nibble::text {

/// The "normalizer" of a tokenizer.json: text to text, before anything is cut.
class Normalizer {
 public:
  Normalizer() = default;
  /// spec: the member as parsed, null for none. Errors: kUnsupported for a type that is not built,
  /// by name; kCorruptFile for a wrong field; kLimitExceeded for steps that could blow a text up.
  static Result<Normalizer> FromJson(const json::Value& spec);

  bool empty() const { return steps_.empty(); }
  /// text must be valid UTF-8 and stays so.
  void Apply(std::string& text) const;

 private:
  enum class Kind {
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kReplace,
    kPrepend,
    kLowercase,
    kStrip,
    kStripAccents,
    kByteLevel
  };
  struct Step {
    Kind kind;
    std::string pattern = {};                 // kReplace of a string
    std::shared_ptr<const Regex> regex = {};  // kReplace of an expression
    std::string content = {};                 // kReplace, kPrepend
    bool left = false;                        // kStrip
    bool right = false;
  };
  Result<void> AddStep(const json::Value& spec, double& growth);

  std::vector<Step> steps_;
};

/// All types of a spec in order, Sequences opened: {"type": "Sequence", "<member>": [...]}. Null
/// specs give nothing. Errors: kCorruptFile, kLimitExceeded.
Result<std::vector<const json::Value*>> FlattenSequence(const json::Value& spec,
                                                        std::string_view member,
                                                        std::string_view what);

// Typed members of a spec, with the error that names what is wrong.
Result<bool> BoolMember(const json::Value& spec, std::string_view key, bool fallback,
                        std::string_view what);
Result<std::string> StringMember(const json::Value& spec, std::string_view key,
                                 std::string_view what);
/// The "type" of a spec, or "" if there is none.
std::string_view TypeOf(const json::Value& spec);

/// {"String": "..."} or {"Regex": "..."}: exactly one of the two is set.
struct Pattern {
  std::string literal;
  bool is_regex = false;
};
Result<Pattern> PatternMember(const json::Value& spec, std::string_view what);

/// Non-overlapping occurrences of `needle` (not empty) from left to right.
void FindLiteral(std::string_view text, std::string_view needle, std::vector<Span>& matches);

/// Text with every match exchanged for `content`.
std::string ReplaceMatches(std::string_view text, const std::vector<Span>& matches,
                           std::string_view content);

}  // namespace nibble::text
