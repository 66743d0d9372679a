#include "eval/bleu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "template/pystring.h"

namespace nibble {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsStopOrComma(char c) { return c == '.' || c == ','; }

// mteval's symbols: ASCII punctuation and the blank, but for ' , - .
bool IsSymbol(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
         (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

std::string SeparateSymbols(std::string_view line) {
  std::string out;
  for (const char c : line) {
    if (IsSymbol(c)) {
      out += {' ', c, ' '};
    } else {
      out += c;
    }
  }
  return out;
}

// The three passes below rewrite disjoint pairs of neighbours, as a substitution by a pattern does.
template <typename Fits, typename Write>
std::string RewritePairs(std::string_view line, const Fits& fits, const Write& write) {
  std::string out;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (i + 1 < line.size() && fits(line[i], line[i + 1])) {
      out += write(line[i], line[i + 1]);
      ++i;
    } else {
      out += line[i];
    }
  }
  return out;
}

std::string SeparateWords(std::string_view line) {
  std::string out = SeparateSymbols(line);
  out = RewritePairs(
      out, [](char a, char b) { return !IsDigit(a) && IsStopOrComma(b); },
      [](char a, char b) {
        return std::string{a, ' ', b, ' '};
      });
  out = RewritePairs(
      out, [](char a, char b) { return IsStopOrComma(a) && !IsDigit(b); },
      [](char a, char b) {
        return std::string{' ', a, ' ', b};
      });
  return RewritePairs(
      out, [](char a, char b) { return IsDigit(a) && b == '-'; },
      [](char a, char b) {
        return std::string{a, ' ', b, ' '};
      });
}

std::string Prepare13a(std::string_view text) {
  std::string line(text);
  constexpr std::pair<std::string_view, std::string_view> kReplaced[] = {
      {"<skipped>", ""}, {"-\n", ""},   {"\n", " "},  {"&quot;", "\""},
      {"&amp;", "&"},    {"&lt;", "<"}, {"&gt;", ">"}};
  for (const auto& [from, to] : kReplaced) {
    line = jinja::Replace(line, from, to, -1);
  }
  return ' ' + line + ' ';
}

struct Range {
  char32_t first, last;
};
// sacrebleu's list. Its two supplementary ranges are written "\u20000" and "\u2f800", which Python
// reads as a character and a digit; compared as strings they come to what stands here.
constexpr Range kChinese[] = {
    {0x3400, 0x4db5}, {0x4e00, 0x9fa5}, {0x9fa6, 0x9fbb}, {0xf900, 0xfa2d}, {0xfa30, 0xfa6a},
    {0xfa70, 0xfad9}, {0x2001, 0x2a6d}, {0x2f81, 0x2fa1}, {0xff00, 0xffef}, {0x2e80, 0x2eff},
    {0x3000, 0x303f}, {0x31c0, 0x31ef}, {0x2f00, 0x2fdf}, {0x2ff0, 0x2fff}, {0x3100, 0x312f},
    {0x31a0, 0x31bf}, {0xfe10, 0xfe1f}, {0xfe30, 0xfe4f}, {0x2600, 0x26ff}, {0x2700, 0x27bf},
    {0x3200, 0x32ff}, {0x3300, 0x33ff}};

std::string SeparateChinese(std::string_view text) {
  std::string out;
  for (const std::string_view character : jinja::Characters(text)) {
    const char32_t point = jinja::Decode(character, 0).value;
    const bool chinese = std::ranges::any_of(
        kChinese, [&](const Range& range) { return point >= range.first && point <= range.last; });
    out += chinese ? ' ' + std::string(character) + ' ' : std::string(character);
  }
  return out;
}

std::vector<std::string> SplitAtBlanks(std::string_view text) {
  const auto pieces = jinja::Split(text, std::nullopt, -1);
  return {pieces.begin(), pieces.end()};
}

using NgramCounts = std::map<std::vector<std::string>, std::int64_t>;

NgramCounts CountNgrams(const std::vector<std::string>& tokens) {
  NgramCounts counts;
  for (std::size_t n = 1; n <= BleuCounts::kOrders; ++n) {
    for (auto at = tokens.begin(); static_cast<std::size_t>(tokens.end() - at) >= n; ++at) {
      ++counts[{at, at + static_cast<std::ptrdiff_t>(n)}];
    }
  }
  return counts;
}

}  // namespace

const char* Name(BleuTokenizer tokenizer) {
  switch (tokenizer) {
    case BleuTokenizer::k13a:
      return "13a";
    case BleuTokenizer::kZh:
      return "zh";
    case BleuTokenizer::kChar:
      return "char";
  }
  return "?";
}

std::vector<std::string> TokenizeForBleu(std::string_view text, BleuTokenizer tokenizer) {
  const std::string_view line = jinja::Strip(text, jinja::Side::kRight);
  switch (tokenizer) {
    case BleuTokenizer::k13a:
      return SplitAtBlanks(SeparateWords(Prepare13a(line)));
    case BleuTokenizer::kZh:
      return SplitAtBlanks(SeparateWords(SeparateChinese(jinja::Strip(line, jinja::Side::kBoth))));
    case BleuTokenizer::kChar:
      break;
  }
  std::vector<std::string> characters;
  for (const std::string_view character : jinja::Characters(line)) {
    if (!jinja::IsSpace(jinja::Decode(character, 0).value)) {
      characters.emplace_back(character);
    }
  }
  return characters;
}

BleuCounts& BleuCounts::operator+=(const BleuCounts& other) {
  hypothesis_tokens += other.hypothesis_tokens;
  reference_tokens += other.reference_tokens;
  for (std::size_t n = 0; n < kOrders; ++n) {
    matches[n] += other.matches[n];
    ngrams[n] += other.ngrams[n];
  }
  return *this;
}

BleuCounts CountBleu(std::string_view hypothesis, std::span<const std::string> references,
                     BleuTokenizer tokenizer) {
  const std::vector<std::string> tokens = TokenizeForBleu(hypothesis, tokenizer);
  BleuCounts counts{.hypothesis_tokens = static_cast<std::int64_t>(tokens.size())};
  NgramCounts expected;  // of each n-gram as many as the reference has that has most
  std::optional<std::int64_t> nearest;
  for (const std::string& reference : references) {
    const std::vector<std::string> words = TokenizeForBleu(reference, tokenizer);
    for (const auto& [ngram, count] : CountNgrams(words)) {
      expected[ngram] = std::max(expected[ngram], count);
    }
    const auto length = static_cast<std::int64_t>(words.size());
    const auto distance = [&](std::int64_t l) { return std::abs(l - counts.hypothesis_tokens); };
    if (!nearest || distance(length) < distance(*nearest) ||
        (distance(length) == distance(*nearest) && length < *nearest)) {
      nearest = length;
    }
  }
  counts.reference_tokens = nearest.value_or(0);
  for (const auto& [ngram, count] : CountNgrams(tokens)) {
    counts.ngrams[ngram.size() - 1] += count;
    const auto found = expected.find(ngram);
    counts.matches[ngram.size() - 1] +=
        found == expected.end() ? 0 : std::min(count, found->second);
  }
  return counts;
}

double Bleu(const BleuCounts& counts) {
  double log_precisions = 0.0;
  double halvings = 1.0;
  bool any = false;
  for (std::size_t n = 0; n < BleuCounts::kOrders; ++n) {
    any = any || counts.matches[n] > 0;
    if (counts.ngrams[n] == 0) {
      return 0.0;  // no hypothesis is that long: the precision of this order is 0
    }
    const auto total = static_cast<double>(counts.ngrams[n]);
    const double matches =
        counts.matches[n] > 0 ? static_cast<double>(counts.matches[n]) : 1.0 / (halvings *= 2.0);
    log_precisions += std::log(100.0 * matches / total);
  }
  if (!any) {
    return 0.0;
  }
  const auto length = static_cast<double>(counts.hypothesis_tokens);
  const auto expected = static_cast<double>(counts.reference_tokens);
  const double brevity = length < expected ? std::exp(1.0 - expected / length) : 1.0;
  return brevity * std::exp(log_precisions / static_cast<double>(BleuCounts::kOrders));
}

}  // namespace nibble
