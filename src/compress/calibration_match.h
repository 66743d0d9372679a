#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/calibration.h"
#include "json/value.h"

namespace nibble {

/// How near calibration data is to the texts that a model is judged on: the source's perplexity on
/// a few windows of each, cut alike, and how many of a text's tokens the data has at all.
struct CalibrationMatch {
  struct Text {
    std::string name;
    double perplexity = 0.0;
    double coverage = 0.0;  // share of its tokens that occur in the calibration data
    /// Another kind of text: its perplexity is twice or half that of the data, or a tenth of its
    /// tokens never occur there.
    bool is_far = false;
  };
  double perplexity = 0.0;  // of the calibration data
  std::int64_t windows = 0, context = 0;
  std::vector<Text> texts;

  json::Object ToJson() const;
  /// One line a text, for people.
  std::vector<std::string> Describe() const;
};

/// Return false to stop (kCancelled).
using MatchProgress =
    std::function<bool(std::uint64_t done, std::uint64_t total, const std::string& detail)>;

/// Memory: what EvaluateAlone takes. Texts need two tokens or more.
Result<CalibrationMatch> MatchCalibration(const Checkpoint& source,
                                          const CalibrationSet& calibration,
                                          std::span<const TokenText> texts, int num_threads,
                                          const MatchProgress& progress = {});

/// What the inputs of a group of linears say about the calibration data, from the sum of squares of
/// each channel: "dead_channels", which never had a value, and "rare_channels", whose energy is
/// below 1/10,000 of the median's. Only counts above zero are set.
void SetChannelFacts(std::span<const double> squares, json::Object& facts);

/// The same over a whole log (tensor name -> facts); an input is counted once for all linears that
/// share it.
struct ChannelCounts {
  std::int64_t dead = 0, rare = 0;
};
ChannelCounts CountChannels(const json::Object& log);

}  // namespace nibble
