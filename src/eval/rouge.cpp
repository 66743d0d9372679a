#include "eval/rouge.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "eval/porter_stemmer.h"
#include "template/pystring.h"

namespace nibble {
namespace {

using Tokens = std::vector<std::string>;

Tokens Tokenize(std::string_view text, bool stem) {
  Tokens tokens;
  std::string token;
  const auto end_token = [&] {
    if (!token.empty()) {
      tokens.push_back(stem && token.size() > 3 ? PorterStem(token) : token);
      token.clear();
    }
  };
  for (const char c : jinja::Lower(text)) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
      token += c;
    } else {
      end_token();
    }
  }
  end_token();
  return tokens;
}

RougeScore ScoreOf(std::int64_t matches, std::int64_t in_summary, std::int64_t in_reference) {
  RougeScore score;
  score.precision =
      static_cast<double>(matches) / static_cast<double>(std::max<std::int64_t>(in_summary, 1));
  score.recall =
      static_cast<double>(matches) / static_cast<double>(std::max<std::int64_t>(in_reference, 1));
  if (score.precision + score.recall > 0.0) {
    score.f1 = 2.0 * score.precision * score.recall / (score.precision + score.recall);
  }
  return score;
}

std::map<Tokens, std::int64_t> CountNgrams(const Tokens& tokens, std::size_t n) {
  std::map<Tokens, std::int64_t> counts;
  for (auto at = tokens.begin(); static_cast<std::size_t>(tokens.end() - at) >= n; ++at) {
    ++counts[Tokens(at, at + static_cast<std::ptrdiff_t>(n))];
  }
  return counts;
}

RougeScore ScoreNgrams(const Tokens& reference, const Tokens& summary, std::size_t n) {
  const auto expected = CountNgrams(reference, n);
  std::int64_t matches = 0, in_summary = 0, in_reference = 0;
  for (const auto& [ngram, count] : expected) {
    in_reference += count;
  }
  for (const auto& [ngram, count] : CountNgrams(summary, n)) {
    in_summary += count;
    const auto found = expected.find(ngram);
    matches += found == expected.end() ? 0 : std::min(count, found->second);
  }
  return ScoreOf(matches, in_summary, in_reference);
}

RougeScore ScoreLongestCommon(const Tokens& reference, const Tokens& summary) {
  // Row i of the table: the longest common subsequence of i tokens of the reference and so many of
  // the summary. One row and the one before it are enough.
  std::vector<std::int64_t> row(summary.size() + 1), before(summary.size() + 1);
  for (const std::string& token : reference) {
    std::swap(row, before);
    for (std::size_t j = 1; j <= summary.size(); ++j) {
      row[j] = token == summary[j - 1] ? before[j - 1] + 1 : std::max(before[j], row[j - 1]);
    }
  }
  return ScoreOf(row.back(), static_cast<std::int64_t>(summary.size()),
                 static_cast<std::int64_t>(reference.size()));
}

}  // namespace

RougeScores ScoreRouge(std::span<const std::string> references, std::string_view summary,
                       bool stem) {
  const Tokens tokens = Tokenize(summary, stem);
  RougeScores best;
  bool first = true;
  const auto keep_better = [&](RougeScore& kept, const RougeScore& score) {
    if (first || score.f1 > kept.f1) {
      kept = score;
    }
  };
  for (const std::string& text : references) {
    const Tokens reference = Tokenize(text, stem);
    keep_better(best.rouge1, ScoreNgrams(reference, tokens, 1));
    keep_better(best.rouge2, ScoreNgrams(reference, tokens, 2));
    keep_better(best.rouge_l, ScoreLongestCommon(reference, tokens));
    first = false;
  }
  return best;
}

}  // namespace nibble
