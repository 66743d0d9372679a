#pragma once

#include <string>

#include "json/value.h"
#include "kernels/limits_probe.h"

namespace nibble::cli {

/// Measured limits as members of a JSON object, in the units of their fields.
json::Object DescribeLimits(const MachineLimits& limits);
json::Object DescribeLimits(const CardLimits& limits);

/// One line: "NVIDIA H100, 132 SMs: memory read 3050 GB/s, ...".
std::string DescribeLimitsInWords(const CardLimits& limits);

}  // namespace nibble::cli
