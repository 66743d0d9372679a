#include "tokenizer/splitter.h"

#include <algorithm>
#include <array>

#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr int kAnyDigits = 1 << 30;

struct Known {
  std::string_view pattern;
  WordRules rules;
};

#define NIBBLE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NIBBLE_SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
constexpr std::array<Known, 7> kKnown = {{
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     {.gpt2 = true}},
    {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     {.gpt2 = true}},
    {NIBBLE_CONTRACTIONS
     "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" NIBBLE_SPACES,
     {.max_digits = 3}},
    {NIBBLE_CONTRACTIONS
     "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" NIBBLE_SPACES,
     {.max_digits = 1}},
    {NIBBLE_CONTRACTIONS
     "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" NIBBLE_SPACES,
     {.max_digits = kAnyDigits}},
    {NIBBLE_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| "
                         "?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" NIBBLE_SPACES,
     {.max_digits = 1, .marks_in_words = true}},
    {NIBBLE_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}{1,3}| "
                         "?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" NIBBLE_SPACES,
     {.max_digits = 3, .marks_in_words = true}},
}};
#undef NIBBLE_CONTRACTIONS
#undef NIBBLE_SPACES

/// The character classes of one position, read once.
struct Char {
  std::uint8_t bits = 0;
  unsigned size = 0;
};

class WordCutter {
 public:
  WordCutter(const WordRules& rules, std::string_view text)
      : rules_(rules),
        letters_(rules.marks_in_words ? kLetter | kMark : kLetter),
        words_(static_cast<std::uint8_t>(letters_ | kNumber)),
        text_(text) {}

  std::size_t EndOfPiece(std::size_t at) const { return rules_.gpt2 ? EndGpt2(at) : EndCl100k(at); }

 private:
  Char At(std::size_t at) const {
    if (at >= text_.size()) {
      return {};
    }
    const auto byte = static_cast<unsigned char>(text_[at]);
    if (byte < 0x80) {
      return {class_table[byte], 1};
    }
    const CodePoint c = DecodeAt(text_, at);
    return {ClassOf(c.value), c.size};
  }

  /// End of the run from `at` whose classes satisfy `wanted`.
  template <typename Wanted>
  std::size_t Run(std::size_t at, Wanted wanted) const {
    while (true) {
      const Char c = At(at);
      if (c.size == 0 || !wanted(c.bits)) {
        return at;
      }
      at += c.size;
    }
  }

  /// Bytes of 's, 't, 're, ... at `at`, or 0.
  std::size_t Contraction(std::size_t at) const {
    if (text_[at] != '\'') {
      return 0;
    }
    const auto letter = [&](std::size_t i) {
      const char c = i < text_.size() ? text_[i] : '\0';
      return !rules_.gpt2 && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(at + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
      return 2;
    }
    const char second = letter(at + 2);
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) {
      return 3;
    }
    // The long s folds to s.
    return !rules_.gpt2 && text_.substr(at + 1, 2) == "\xC5\xBF" ? 3 : 0;
  }

  /// \s+(?!\S)|\s+ where `end` is the end of the white space from `at`.
  std::size_t EndOfSpaces(std::size_t at, std::size_t end) const {
    if (end == text_.size()) {
      return end;
    }
    const std::size_t last = PreviousStart(text_, end);
    return last > at ? last : end;
  }

  static bool IsSpace(std::uint8_t bits) { return (bits & kSpace) != 0; }
  bool IsOther(std::uint8_t bits) const { return (bits & (kSpace | words_)) == 0; }

  std::size_t EndGpt2(std::size_t at) const {
    if (const std::size_t size = Contraction(at); size > 0) {
      return at + size;
    }
    const std::size_t start = text_[at] == ' ' ? at + 1 : at;
    const Char c = At(start);
    if (c.size > 0 && !IsSpace(c.bits)) {
      const auto next = start + c.size;
      if ((c.bits & kLetter) != 0) {
        return Run(next, [](std::uint8_t bits) { return (bits & kLetter) != 0; });
      }
      if ((c.bits & kNumber) != 0) {
        return Run(next, [](std::uint8_t bits) { return (bits & kNumber) != 0; });
      }
      return Run(next, [this](std::uint8_t bits) { return IsOther(bits); });
    }
    return EndOfSpaces(at, Run(at, IsSpace));
  }

  std::size_t EndCl100k(std::size_t at) const {
    if (const std::size_t size = Contraction(at); size > 0) {
      return at + size;
    }
    const auto is_letter = [this](std::uint8_t bits) { return (bits & letters_) != 0; };
    const Char c = At(at);
    // [^\r\n\p{L}\p{N}]?\p{L}+: marks, where they count as letters, may also be the prefix.
    if ((c.bits & (kNewline | kLetter | kNumber)) == 0 && is_letter(At(at + c.size).bits)) {
      return Run(at + c.size, is_letter);
    }
    if (is_letter(c.bits)) {
      return Run(at, is_letter);
    }
    if ((c.bits & kNumber) != 0) {
      std::size_t end = at;
      Char digit = c;
      for (int i = 0; i < rules_.max_digits && (digit.bits & kNumber) != 0; ++i) {
        end += digit.size;
        digit = At(end);
      }
      return end;
    }
    const std::size_t start = text_[at] == ' ' ? at + 1 : at;
    const Char other = At(start);
    if (other.size > 0 && IsOther(other.bits)) {
      const std::size_t end =
          Run(start + other.size, [this](std::uint8_t bits) { return IsOther(bits); });
      return Run(end, [](std::uint8_t bits) { return (bits & kNewline) != 0; });
    }
    const std::size_t end = Run(at, IsSpace);
    const std::size_t newline = text_.substr(at, end - at).find_last_of("\r\n");
    return newline != std::string_view::npos ? at + newline + 1 : EndOfSpaces(at, end);
  }

  WordRules rules_;
  std::uint8_t letters_;
  std::uint8_t words_;
  std::string_view text_;
};

}  // namespace

std::optional<WordRules> KnownPattern(std::string_view pattern) {
  const auto* known = std::find_if(kKnown.begin(), kKnown.end(),
                                   [&](const Known& k) { return k.pattern == pattern; });
  return known == kKnown.end() ? std::nullopt : std::optional(known->rules);
}

void SplitWords(const WordRules& rules, std::string_view text, std::vector<Span>& pieces) {
  const WordCutter cutter(rules, text);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = cutter.EndOfPiece(at);
    pieces.push_back({at, end});
    at = end;
  }
}

void ApplyBehavior(Span range, const std::vector<Span>& matches, SplitBehavior behavior,
                   bool invert, std::vector<Span>& pieces) {
  // The text as alternating stretches, each a match or not.
  struct Stretch {
    Span span;
    bool match;
  };
  std::vector<Stretch> stretches;
  stretches.reserve(2 * matches.size() + 1);
  std::size_t at = range.begin;
  for (const Span& match : matches) {
    if (match.begin > at) {
      stretches.push_back({{at, match.begin}, invert});
    }
    stretches.push_back({match, !invert});
    at = match.end;
  }
  if (at < range.end) {
    stretches.push_back({{at, range.end}, invert});
  }

  const std::size_t first = pieces.size();
  bool previous = false;  // whether the last stretch was a match
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Stretch& s : stretches) {
        pieces.push_back(s.span);
      }
      break;
    case SplitBehavior::kRemoved:
      for (const Stretch& s : stretches) {
        if (!s.match) {
          pieces.push_back(s.span);
        }
      }
      break;
    case SplitBehavior::kContiguous:
      for (const Stretch& s : stretches) {
        if (s.match == previous && pieces.size() > first) {
          pieces.back().end = s.span.end;
        } else {
          pieces.push_back(s.span);
        }
        previous = s.match;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Stretch& s : stretches) {
        if (s.match && !previous && pieces.size() > first) {
          pieces.back().end = s.span.end;
        } else {
          pieces.push_back(s.span);
        }
        previous = s.match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto s = stretches.rbegin(); s != stretches.rend(); ++s) {
        if (s->match && !previous && pieces.size() > first) {
          pieces.back().begin = s->span.begin;
        } else {
          pieces.push_back(s->span);
        }
        previous = s->match;
      }
      std::reverse(pieces.begin() + static_cast<std::ptrdiff_t>(first), pieces.end());
      break;
  }
  pieces.erase(std::remove_if(pieces.begin() + static_cast<std::ptrdiff_t>(first), pieces.end(),
                              [](const Span& s) { return s.begin == s.end; }),
               pieces.end());
}

}  // namespace nibble::text
