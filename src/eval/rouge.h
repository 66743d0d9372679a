#pragma once

#include <span>
#include <string>
#include <string_view>

namespace nibble {

struct RougeScore {
  double precision = 0.0;  // 0 to 1
  double recall = 0.0;
  double f1 = 0.0;
};

struct RougeScores {
  RougeScore rouge1, rouge2;  // n-grams of tokens
  RougeScore rouge_l;         // the longest common subsequence of tokens
};

/// ROUGE (Lin 2004) of a summary, each measure by the reference with the highest f1; the same
/// numbers as RougeScorer.score_multi of the rouge-score package. Tokens are runs of a-z and 0-9 of
/// the lower-cased text; with `stem`, words above three letters go through PorterStem.
RougeScores ScoreRouge(std::span<const std::string> references, std::string_view summary,
                       bool stem = true);

}  // namespace nibble
