#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "codec/quantized_tensor.h"

namespace nibble {

/// Rounding onto the grids of GGUF's K-quants: blocks of 256 columns whose groups have scales (and
/// minima) that are small whole multiples of one f16 number.
///   kMinimum, 4 or 5 bits, groups of 32: w = code * (d * s) - dmin * m,  s, m in 0..63  (Q4_K,
///   Q5_K) kMinimum, 2 bits, groups of 16: s, m in 0..15 (Q2_K) kUniform, 6 bits, groups of 16: w =
///   (code - 32) * (d * s),  s in -128..127          (Q6_K) kUniform, 3 bits, groups of 16: w =
///   (code - 4) * (d * s),   s in -32..31            (Q3_K)
/// Per group a list of ranges is tried; given the codes of each, scale and minimum are the weighted
/// least squares of the group, and after d and dmin are chosen for the block the whole multiples
/// are searched once more around theirs. An error counts sqrt(mean(w^2)) + |w|, or, with
/// importance[cols] (a column's mean squared input), importance * sqrt(mean(w^2) + w^2).
/// weights: [rows * cols], row-major. grid: as GgufSpecOf gives it; rows and cols say nothing. The
/// result does not depend on how rows are split over calls. Errors: kInvalidArgument for another
/// grid or a width that is no multiple of 256; kCorruptFile for a weight that is not finite.
Result<QuantizedTensor> QuantizeSuperBlocks(std::span<const float> weights, std::int64_t rows,
                                            std::int64_t cols, const WeightSpec& grid,
                                            std::span<const float> importance = {});

/// Rounding onto groups with a minimum, scale and minimum being f16 numbers (GGUF's Q4_1 and Q5_1):
/// w = code * scale + minimum. The search is the same, and the minimum may have either sign.
/// Errors: kInvalidArgument for a group that does not divide cols; kCorruptFile.
Result<QuantizedTensor> QuantizeMinima(std::span<const float> weights, std::int64_t rows,
                                       std::int64_t cols, int bits, std::int64_t group_size);

}  // namespace nibble
