#pragma once

#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "kernels/linear_kernel.h"

namespace nibble {

/// The CPU layout of a weight. Errors: kUnsupported naming the spec, if no kernel runs it.
Result<PackedLayout> LayoutOf(const WeightSpec& spec);

/// Row `row` of a packed weight as fp32 [layout.cols]: the roundings of Dequantize.
void DequantizePackedRow(const PackedLayout& layout, const std::uint8_t* weight, std::int64_t row,
                         float* out);

}  // namespace nibble
