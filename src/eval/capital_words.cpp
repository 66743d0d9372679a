#include "eval/capital_words.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "template/pystring.h"

// The tokenizer puts blanks around punctuation and cuts off clitics, rule by rule. What it cuts off
// matters here only where letters stand on both sides: marks are blanks from the start.

namespace nibble {
namespace {

using Points = std::u32string;

constexpr std::u32string_view kMarks = U"«»“”‘’„`\";@#$%&?!*[](){}<>\u2012\u2013\u2014\u2015";
constexpr std::u32string_view kClosers = U"])}>\"'»”’ \n\t";
constexpr std::u32string_view kClitics[] = {U"re", U"ve", U"ll", U"m", U"t", U"s", U"d", U"n"};

Points Decoded(std::string_view text) {
  Points out;
  for (std::size_t at = 0; at < text.size();) {
    const jinja::CodePoint point = jinja::Decode(text, at);
    out += point.value;
    at += point.length;
  }
  return out;
}

bool IsWordPoint(char32_t point) {
  return point == U'_' || jinja::IsAlpha(point) || jinja::IsNumeric(point);
}

char32_t AsciiLower(char32_t point) {
  return point >= U'A' && point <= U'Z' ? point - U'A' + U'a' : point;
}

// Whether these letters, of either case, stand at `at`.
bool Stands(const Points& text, std::size_t at, std::u32string_view letters) {
  return at + letters.size() <= text.size() &&
         std::equal(letters.begin(), letters.end(), text.begin() + static_cast<std::ptrdiff_t>(at),
                    [](char32_t a, char32_t b) { return a == AsciiLower(b); });
}

bool IsWordAt(const Points& text, std::size_t at) {
  return at < text.size() && IsWordPoint(text[at]);
}

// An apostrophe before a word that is no clitic, as in 'twas: it is cut off.
bool OpensWord(const Points& text, std::size_t at) {
  const bool inside = at > 0 && IsWordPoint(text[at - 1]);
  return text[at] == U'\'' && !inside && IsWordAt(text, at + 1) &&
         std::ranges::none_of(kClitics, [&](std::u32string_view clitic) {
           return Stands(text, at + 1, clitic) && !IsWordAt(text, at + 1 + clitic.size());
         });
}

// Whether the word before the period is initials, as U.S is.
bool AreInitials(const Points& text, std::size_t period) {
  std::size_t letters = 0;
  std::size_t at = period;
  while (at > 0 && text[at] == U'.' && jinja::IsAlpha(text[at - 1])) {
    ++letters;
    at -= at > 1 ? 2 : 1;
  }
  return letters > 0 && (at == 0 || (text[at] != U'.' && !IsWordPoint(text[at])));
}

// A period before a blank, or what Punkt takes for the end of a word. Initials go on in an
// apostrophe: U.S.'s.
bool EndsSentence(const Points& text, std::size_t at) {
  constexpr std::u32string_view kEnds = U")\";}]*:@'({[!?";
  if (text[at] != U'.' || (at > 0 && text[at - 1] == U'.')) {
    return false;
  }
  if (at + 1 < text.size() && text[at + 1] == U'\'') {
    return !AreInitials(text, at);
  }
  if (at + 1 < text.size() && kEnds.find(text[at + 1]) != std::u32string_view::npos) {
    return true;
  }
  const std::size_t next = text.find_first_not_of(kClosers, at + 1);
  return next == at + 1 ? jinja::IsSpace(text[next]) : next == Points::npos;
}

// All that is cut off and has no case becomes a blank.
Points WithoutMarks(const Points& text) {
  Points out = U" ";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t point = text[i];
    const auto next_is = [&](char32_t wanted) {
      return i + 1 < text.size() && text[i + 1] == wanted;
    };
    const bool pause =
        (point == U',' || point == U':') && !(i + 1 < text.size() && jinja::IsDecimal(text[i + 1]));
    if ((point == U'-' || point == U'.' || point == U'\'') && next_is(point)) {
      const bool all = point == U'.';  // of dots; a pair of the others
      out += U' ';
      for (++i; all && next_is(U'.'); ++i) {
      }
    } else if (pause || jinja::IsSpace(point) || kMarks.find(point) != std::u32string_view::npos ||
               OpensWord(text, i) || EndsSentence(text, i)) {
      out += U' ';
    } else {
      out += point;
    }
  }
  return out + U' ';
}

// Puts a blank before what `begins` finds at a place: a clitic that ends before a blank.
template <typename Begins>
Points Cut(const Points& text, Begins begins) {
  Points out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool joined = i > 0 && text[i - 1] != U' ' && text[i - 1] != U'\'';
    if (joined && begins(i)) {
      out += U' ';
    }
    out += text[i];
  }
  return out;
}

bool Begins(const Points& text, std::size_t at, std::span<const std::u32string_view> clitics) {
  return std::ranges::any_of(clitics, [&](std::u32string_view clitic) {
    return text.compare(at, clitic.size(), clitic) == 0;
  });
}

Points WithoutClitics(const Points& marked) {
  constexpr std::u32string_view kNone[] = {U"' "};
  const Points closed = Cut(marked, [&](std::size_t i) {
    return i + 2 < marked.size() && Begins(marked, i, kNone);  // not at the end
  });
  const Points once = Cut(closed, [&](std::size_t i) {
    constexpr std::u32string_view kOne[] = {U"' ", U"'s ", U"'S ", U"'m ", U"'M ", U"'d ", U"'D "};
    return Begins(closed, i, kOne);
  });
  return Cut(once, [&](std::size_t i) {
    constexpr std::u32string_view kThree[] = {U"'ll ", U"'LL ", U"'re ", U"'RE ",
                                              U"'ve ", U"'VE ", U"n't ", U"N'T "};
    return Begins(once, i, kThree);
  });
}

struct Contraction {
  std::u32string_view first, second;
};

// Makes two words of such as CANNOT.
Points Divided(const Points& text, std::span<const Contraction> contractions) {
  std::vector<std::size_t> cuts;
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const auto& [first, second] : contractions) {
      const std::size_t middle = i + first.size(), end = middle + second.size();
      const bool begins =
          first[0] == U'\'' ? i > 0 && text[i - 1] == U' ' : i == 0 || !IsWordPoint(text[i - 1]);
      const bool ends =
          first == U"wan" ? end < text.size() && text[end] == U' ' : !IsWordAt(text, end);
      if (begins && ends && Stands(text, i, first) && Stands(text, middle, second)) {
        cuts.insert(cuts.end(), {i, middle, end});
      }
    }
  }
  std::ranges::sort(cuts);
  Points out = text;
  for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
    out.insert(*cut, 1, U' ');
  }
  return out;
}

Points WithoutContractions(const Points& text) {
  constexpr Contraction kWords[] = {{U"can", U"not"}, {U"d", U"'ye"},  {U"gim", U"me"},
                                    {U"gon", U"na"},  {U"got", U"ta"}, {U"lem", U"me"},
                                    {U"more", U"'n"}, {U"wan", U"na"}};
  constexpr Contraction kBegun[] = {{U"'t", U"is"},
                                    {U"'t", U"was"}};  // perhaps by one of the above
  return Divided(Divided(text, kWords), kBegun);
}

}  // namespace

std::int64_t CountCapitalWords(std::string_view text) {
  const Points words = WithoutContractions(WithoutClitics(WithoutMarks(Decoded(text))));
  std::int64_t count = 0;
  bool has_upper = false, has_other = false;  // of the word
  for (const char32_t point : words) {
    if (point == U' ') {
      count += has_upper && !has_other ? 1 : 0;
      has_upper = has_other = false;
    } else {
      has_upper = has_upper || jinja::IsUpperPoint(point);
      has_other = has_other || (jinja::IsCased(point) && !jinja::IsUpperPoint(point));
    }
  }
  return count;
}

}  // namespace nibble
