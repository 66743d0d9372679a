#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble::text {

/// Bytes [begin, end) of a text.
struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
  friend bool operator==(const Span&, const Span&) = default;
};

/// Rewrites a pattern of the Oniguruma dialect (that tokenizer files are written in) into PCRE2's,
/// where the two read the same text differently: \s, \w, \h and \b, nested classes, class
/// intersection (&&), {,n}. Errors: kUnsupported, naming the construct.
Result<std::string> TranslatePattern(std::string_view pattern);

/// A compiled pattern over UTF-8. Matching never fails and never hangs: work a match and time a
/// call are bounded, and a search that hits a bound reports no further match.
/// Immutable; any number of threads may use one.
class Regex {
 public:
  /// Errors: kUnsupported with the reason, if the pattern cannot be translated or compiled.
  static Result<Regex> Compile(std::string_view pattern);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  /// All matches from left to right, as an iterator over matches finds them: an empty match
  /// directly after the previous match does not count. `text` must be valid UTF-8.
  void FindAll(std::string_view text, std::vector<Span>& matches) const;

 private:
  struct Impl;
  explicit Regex(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::text
