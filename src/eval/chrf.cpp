#include "eval/chrf.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "template/pystring.h"

namespace nibble {
namespace {

// A text without blanks, and where each of its code points begins (and the end).
struct Compact {
  explicit Compact(std::string_view text) {
    for (const std::string_view character : jinja::Characters(text)) {
      if (!jinja::IsSpace(jinja::Decode(character, 0).value)) {
        starts.push_back(bytes.size());
        bytes += character;
      }
    }
    starts.push_back(bytes.size());
  }
  std::string bytes;
  std::vector<std::size_t> starts;
};

// n-grams as parts of the text, which must outlive them.
std::unordered_map<std::string_view, std::int64_t> CountNgrams(const Compact& text, std::size_t n) {
  std::unordered_map<std::string_view, std::int64_t> counts;
  for (std::size_t i = 0; i + n < text.starts.size(); ++i) {
    ++counts[std::string_view(text.bytes)
                 .substr(text.starts[i], text.starts[i + n] - text.starts[i])];
  }
  return counts;
}

ChrfCounts Count(const Compact& hypothesis, const Compact& reference) {
  ChrfCounts counts;
  for (std::size_t n = 0; n < ChrfCounts::kOrders; ++n) {
    const auto expected = CountNgrams(reference, n + 1);
    for (const auto& [ngram, count] : expected) {
      counts.in_reference[n] += count;
    }
    if (expected.empty()) {
      continue;  // an order that the reference is too short for does not count
    }
    for (const auto& [ngram, count] : CountNgrams(hypothesis, n + 1)) {
      counts.in_hypothesis[n] += count;
      const auto found = expected.find(ngram);
      counts.matches[n] += found == expected.end() ? 0 : std::min(count, found->second);
    }
  }
  return counts;
}

}  // namespace

ChrfCounts& ChrfCounts::operator+=(const ChrfCounts& other) {
  for (std::size_t n = 0; n < kOrders; ++n) {
    matches[n] += other.matches[n];
    in_hypothesis[n] += other.in_hypothesis[n];
    in_reference[n] += other.in_reference[n];
  }
  return *this;
}

ChrfCounts CountChrf(std::string_view hypothesis, std::span<const std::string> references) {
  const Compact text(hypothesis);
  ChrfCounts best;
  double best_score = -1.0;
  for (const std::string& reference : references) {
    const ChrfCounts counts = Count(text, Compact(reference));
    if (const double score = Chrf(counts); score > best_score) {
      best = counts;
      best_score = score;
    }
  }
  return best;
}

double Chrf(const ChrfCounts& counts) {
  constexpr double kBetaSquared = 4.0;
  double precision = 0.0, recall = 0.0;
  int orders = 0;
  for (std::size_t n = 0; n < ChrfCounts::kOrders; ++n) {
    if (counts.in_hypothesis[n] > 0 && counts.in_reference[n] > 0) {
      const auto matches = static_cast<double>(counts.matches[n]);
      precision += matches / static_cast<double>(counts.in_hypothesis[n]);
      recall += matches / static_cast<double>(counts.in_reference[n]);
      ++orders;
    }
  }
  if (precision + recall <= 0.0) {
    return 0.0;
  }
  precision /= orders;
  recall /= orders;
  return 100.0 * (1.0 + kBetaSquared) * precision * recall / (kBetaSquared * precision + recall);
}

}  // namespace nibble
