#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/model_config.h"

namespace nibble {

enum class QuantizeMethod : std::uint8_t {
  kAuto,        // ChooseMethod
  kRtn,         // round to nearest; with calibration data scales are searched for what flows in
  kGptq,        // block by block on calibration data
  kAwq,         // scales folded into what makes the inputs, then as kRtn with calibration data
  kAwqGptq,     // the same scales, then GPTQ
  kLearned,     // as kGptq, then a block's codes and scales learn together from its output
  kSmoothQuant  // SmoothScales folded in, then as kRtn with calibration data
};
const char* Name(QuantizeMethod method);
std::optional<QuantizeMethod> ParseMethod(std::string_view word);
const std::vector<std::string>& MethodWords();
/// Scales are folded into what makes the inputs, first.
bool FoldsScales(QuantizeMethod method);
/// By GPTQ, on the inputs of the model as quantized so far.
bool SolvesBlocks(QuantizeMethod method);

struct QuantizeOptions;

struct MethodChoice {
  QuantizeMethod method = QuantizeMethod::kRtn;
  std::string reason;
};
/// What kAuto becomes. Errors: kInvalidArgument for a method that lacks its calibration data.
Result<MethodChoice> ChooseMethod(const QuantizeOptions& options);
/// Whether the options' device can do it by this method. Errors: kInvalidArgument naming the
/// option that it cannot have, kUnsupported for the model.
Result<void> CheckDevice(const QuantizeOptions& options, QuantizeMethod method,
                         const ModelConfig& config);

}  // namespace nibble
