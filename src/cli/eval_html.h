#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "json/value.h"

namespace nibble::cli {

/// Adds what a page of HTML shows beside quality: "model", "weight_bytes" on disk,
/// "bits_per_weight" of the blocks' linears, and from quantization_log.json, if the folder has one,
/// "layer_errors". Errors: a log that cannot be read.
Result<void> DescribeForHtml(const Checkpoint& checkpoint, json::Object& out);

/// The JSON files of earlier runs as one page. Errors: a file that is not there or not one of
/// nibble eval; what writing gives.
Result<void> CompareResults(const std::vector<std::string>& files, const std::string& html);

/// The page of one run.
Result<void> WriteHtml(const json::Object& result, const std::string& html);

}  // namespace nibble::cli
