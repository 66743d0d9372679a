#pragma once

#include "checkpoint/checkpoint.h"
#include "compress/output_plan.h"
#include "compress/quantize.h"
#include "json/value.h"

namespace nibble {

/// What a certificate says of how a folder was made, in the order of its keys: method, format, grid
/// or recipe, the settings that the method reads, calibration data, and the program's version. Two
/// runs of one source that agree in it give the same codes.
json::Object DescribeQuantization(const Checkpoint& source, const QuantizeOptions& options,
                                  const OutputPlan& plan, QuantizeMethod method);

}  // namespace nibble
