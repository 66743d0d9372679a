#include "compress/calibration_match.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>
#include <unordered_set>

#include "compress/block_walk.h"
#include "device/device.h"
#include "eval/blockwise.h"

namespace nibble {
namespace {

constexpr std::int64_t kWindows = 8, kContext = 128;
constexpr double kFarPerplexity = 2.0;
constexpr double kFarCoverage = 0.9;
constexpr double kRareShare = 1e-4;  // of the median channel's energy

// Windows of all texts in one row, so that one pass through the model measures them.
class Samples {
 public:
  explicit Samples(std::int64_t context) : context_(context) {}

  void Add(std::span<const TokenId> window) {
    const auto head = window.first(static_cast<std::size_t>(context_));
    tokens_.insert(tokens_.end(), head.begin(), head.end());
  }
  // Of the windows [first, first + count).
  static double Perplexity(const QualityReport& report, std::int64_t first, std::int64_t count) {
    const auto nll = std::span(report.window_nll)
                         .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    return std::exp(std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(count));
  }
  std::int64_t num_windows() const { return static_cast<std::int64_t>(tokens_.size()) / context_; }
  std::span<TokenId> tokens() { return tokens_; }

 private:
  std::int64_t context_;
  std::vector<TokenId> tokens_;
};

double Coverage(const std::unordered_set<std::int32_t>& seen, std::span<const TokenId> tokens) {
  const auto known =
      std::ranges::count_if(tokens, [&](TokenId token) { return seen.contains(Raw(token)); });
  return static_cast<double>(known) / static_cast<double>(tokens.size());
}

bool IsFar(const CalibrationMatch::Text& text, double calibration_perplexity) {
  const double ratio = text.perplexity / calibration_perplexity;
  return ratio > kFarPerplexity || ratio < 1.0 / kFarPerplexity || text.coverage < kFarCoverage;
}

std::int64_t CountOf(const json::Value& facts, std::string_view key) {
  const json::Value* count = facts.Find(key);
  return count == nullptr ? 0 : count->AsInt().value_or(0);
}

// The others of a group have the same input.
bool IsFirstOfGroup(std::string_view weight) {
  return std::ranges::any_of(kLinearGroups, [&](LinearGroup group) {
    return weight.ends_with(fmt::format(".{}.weight", LinearsOf(group).front()));
  });
}

}  // namespace

json::Object CalibrationMatch::ToJson() const {
  json::Array all;
  for (const Text& text : texts) {
    json::Object one;
    one.Set("name", text.name);
    one.Set("source_perplexity", text.perplexity);
    one.Set("token_coverage", text.coverage);
    all.emplace_back(std::move(one));
  }
  json::Object out;
  out.Set("source_perplexity", perplexity);
  out.Set("windows", windows);
  out.Set("context", context);
  out.Set("texts", std::move(all));
  return out;
}

std::vector<std::string> CalibrationMatch::Describe() const {
  std::vector<std::string> lines;
  for (const Text& text : texts) {
    lines.push_back(fmt::format(
        "{}calibration data {} {}: the source's perplexity is {:.1f} and {:.1f}, {:.1f} % of the "
        "text's tokens occur in the data{}",
        text.is_far ? "warning: " : "", text.is_far ? "is far from" : "beside", text.name,
        perplexity, text.perplexity, 100.0 * text.coverage,
        text.is_far ? "; calibrate on data like what the model will read" : ""));
  }
  return lines;
}

Result<CalibrationMatch> MatchCalibration(const Checkpoint& source,
                                          const CalibrationSet& calibration,
                                          std::span<const TokenText> texts, int num_threads,
                                          const MatchProgress& progress) {
  CalibrationMatch out{.context = std::min(kContext, calibration.length)};
  for (const TokenText& text : texts) {
    out.context = std::min(out.context, static_cast<std::int64_t>(text.tokens.size()));
  }
  out.windows = std::min(kWindows, calibration.num_windows());
  Samples samples(out.context);
  for (std::int64_t i = 0; i < out.windows; ++i) {  // from the whole of the data
    samples.Add(calibration.Window(i * calibration.num_windows() / out.windows));
  }
  std::vector<std::int64_t> firsts;  // windows of the texts
  for (const TokenText& text : texts) {
    firsts.push_back(samples.num_windows());
    const auto windows = static_cast<std::int64_t>(text.tokens.size()) / out.context;
    for (std::int64_t i = 0; i < std::min(kWindows, windows); ++i) {
      samples.Add(std::span(text.tokens).subspan(static_cast<std::size_t>(i * out.context)));
    }
  }
  firsts.push_back(samples.num_windows());
  BeginWindows(source.config(), out.context, samples.tokens());
  const auto device = MakeCpuDevice(num_threads);
  NIBBLE_TRY(quality,
             EvaluateAlone(source, *device, samples.tokens(), {.context = out.context}, progress));
  out.perplexity = Samples::Perplexity(quality, 0, out.windows);
  std::unordered_set<std::int32_t> seen;
  for (const TokenId token : calibration.tokens) {
    seen.insert(Raw(token));
  }
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CalibrationMatch::Text text{
        .name = texts[i].name,
        .perplexity = Samples::Perplexity(quality, firsts[i], firsts[i + 1] - firsts[i]),
        .coverage = Coverage(seen, texts[i].tokens)};
    text.is_far = IsFar(text, out.perplexity);
    out.texts.push_back(std::move(text));
  }
  return out;
}

void SetChannelFacts(std::span<const double> squares, json::Object& facts) {
  std::vector<double> sorted(squares.begin(), squares.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::ranges::nth_element(sorted, middle);
  const double bound = kRareShare * *middle;
  const std::int64_t dead = std::ranges::count(squares, 0.0);
  const std::int64_t rare =
      std::ranges::count_if(squares, [&](double square) { return square > 0.0 && square < bound; });
  if (dead > 0) {
    facts.Set("dead_channels", dead);
  }
  if (rare > 0) {
    facts.Set("rare_channels", rare);
  }
}

ChannelCounts CountChannels(const json::Object& log) {
  ChannelCounts out;
  for (const auto& [name, facts] : log) {
    if (IsFirstOfGroup(name)) {
      out.dead += CountOf(facts, "dead_channels");
      out.rare += CountOf(facts, "rare_channels");
    }
  }
  return out;
}

}  // namespace nibble
