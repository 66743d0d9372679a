#pragma once

#include "base/result.h"
#include "codec/quantized_tensor.h"

namespace nibble {

/// The same weights on another grid: every value stays what it is, bit for bit, or nothing is
/// returned. What can become what:
///   uniform -> uniform: another width, with or without zero points, groups that divide the old
///   ones,
///                       if code - zero_point fits
///   uniform -> minima:  if -zero_point * scale is a number of the scales' storage
///   minima  -> uniform: if -minimum is a whole multiple of the scale that fits
///   minima, codebook -> the same, in groups that divide the old ones
///   float, anything -> float: if the storage holds each value
/// to: rows counts for nothing. scales: what the new grid stores scales (and minima) in. Errors:
/// kInvalidArgument saying what does not fit, and in which row and column.
Result<QuantizedTensor> Regrid(const QuantizedTensor& rows, const WeightSpec& to, DType scales);

}  // namespace nibble
