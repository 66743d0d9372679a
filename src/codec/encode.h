#pragma once

#include <cstdint>
#include <span>

#include "codec/quantized_tensor.h"

namespace nibble {

/// Storage of the scales: they are rounded to it before codes are chosen, so that what is on disk
/// and what was measured are the same numbers.
float RoundToDType(float value, DType dtype);

/// Symmetric round-to-nearest without search, for tables that are repacked at load (embedding and
/// head at 8 bit):
///   scale = round_f16(absmax / (2^(bits-1) - 1)),  code = clamp(round(w / scale)) + 2^(bits-1)
/// rows: [num_rows * cols], row-major, finite. The last group of a row may be short. An all-zero
/// group gets scale 0.
QuantizedTensor EncodeAbsmax(std::span<const float> rows, std::int64_t num_rows, std::int64_t cols,
                             int bits, std::int64_t group_size);

/// The power of two that compressed-tensors scales a block by whose largest magnitude is absmax:
/// absmax down to a power of two, or up from 1.75 times one on, over that of `largest`; 1 for a
/// block of zeros.
float PowerOfTwoScale(float absmax, float largest);

/// The same for a codebook, without search and with scales in f32:
///   scale = absmax / the codebook's largest value,  code = NearestCode(w * (1 / scale))
/// kNf4 and kFp4 give the bytes that bitsandbytes writes, its absmax being the scale.
/// scale_grid: the scale is moved there first, to a power of two as PowerOfTwoScale says.
QuantizedTensor EncodeCodebook(std::span<const float> rows, std::int64_t num_rows,
                               std::int64_t cols, Codebook codebook, std::int64_t group_size,
                               ScaleGrid scale_grid = ScaleGrid::kAny, float scale_divisor = 1.0F);

}  // namespace nibble
