#pragma once

#include <string>

#include "base/result.h"
#include "cli/command.h"

namespace nibble::cli {

struct KernelOptions {
  bool cuda = false;   // the card's kernels instead of the CPU's
  bool json = false;   // one JSON object on standard output
  std::string filter;  // only names that contain this
};

/// Measures the kernels beside the limits of the same run and prints them: `nibble kernels` and
/// `nibble bench kernels`. Errors: kUnavailable without a card.
Result<int> MeasureKernels(const KernelOptions& options, const Environment& environment);

}  // namespace nibble::cli
