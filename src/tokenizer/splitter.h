#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/regex.h"

namespace nibble::text {

/// What becomes of the matches of a pattern (the reference library's names).
enum class SplitBehavior {
  kRemoved,             // they vanish
  kIsolated,            // each its own piece
  kMergedWithPrevious,  // each ends the piece before it
  kMergedWithNext,      // each starts the piece after it
  kContiguous,          // neighbours of one kind join
};

/// Which characters a run is made of, and how runs are cut, in the patterns of GPT-2, cl100k
/// (Llama 3) and Qwen. They differ in a few places only:
///   gpt2   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
///   cl100k (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
///           ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// Qwen2 is cl100k with \p{N}; Qwen3.5 counts \p{M} among the letters.
struct WordRules {
  bool gpt2 = false;            // else the cl100k family
  int max_digits = 3;           // cl100k: digits in one piece
  bool marks_in_words = false;  // cl100k: \p{M} belongs to the letters
  friend bool operator==(const WordRules&, const WordRules&) = default;
};

/// The rules that are exactly `pattern`, if it is one of the known ones.
std::optional<WordRules> KnownPattern(std::string_view pattern);

/// Cuts `text` (valid UTF-8) into the matches of the rules' pattern. They cover it without gaps.
void SplitWords(const WordRules& rules, std::string_view text, std::vector<Span>& pieces);

/// Pieces of text.substr(range) from the matches in it (ascending, relative to the whole text).
void ApplyBehavior(Span range, const std::vector<Span>& matches, SplitBehavior behavior,
                   bool invert, std::vector<Span>& pieces);

}  // namespace nibble::text
