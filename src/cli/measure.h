#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "device/device.h"
#include "engine/engine.h"

namespace nibble::cli {

/// Made-up requests that all come at once.
struct RequestShape {
  int count = 1;
  std::int64_t prompt_tokens = 512;
  std::int64_t output_tokens = 128;  // 2 or more, generated whatever they are
};

struct Measured {
  double seconds = 0.0;           // from submitting to the last token of all
  double seconds_to_first = 0.0;  // from submitting to the first token
  double prefill_tokens_per_s = 0.0;
  // All together, in the steps in which every one of them decodes; if there is none, as the prompts
  // take longer than the first one's output, behind the last prompt.
  double decode_tokens_per_s = 0.0;
  double ms_per_token = 0.0;  // of one sequence
};

/// Runs them on this thread, greedily. Errors: kCancelled if the user interrupts, kInternal if a
/// sequence ends early.
Result<Measured> RunRequests(Engine& engine, const RequestShape& shape);

/// The value below which a share `q` of them lies (the nearest rank); 0 of none.
double Quantile(std::vector<double> values, double q);
double Median(std::vector<double> values);

/// Memory in use on the card, this process's and others'.
std::int64_t CardUsedBytes(const Device& device);

}  // namespace nibble::cli
