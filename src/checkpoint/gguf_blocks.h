#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "io/gguf.h"

namespace nibble {

// The blocks of GGUF's types and our canonical form. Codes, scales and minima of the blocks are
// kept as they are, so that Dequantize gives the bits of ggml's own decoder:
//   Q4_0 Q5_0 Q8_0   uniform, groups of 32      Q4_1 Q5_1   minima, groups of 32
//   Q3_K Q6_K        uniform, groups of 16      Q4_K Q5_K   minima, groups of 32
//   Q2_K             minima, groups of 16
// A K-quant's scale is d * (a whole number), exact in f32, and its minimum -dmin * (a whole
// number).

/// What a type is held as, without rows and columns; nullopt for one that nibble does not decode.
std::optional<WeightSpec> GgufSpecOf(std::uint32_t type);

/// The type that holds this spec as it is: f32 scales mean a K-quant.
std::optional<GgufType> GgufTypeOf(const WeightSpec& spec);

/// One row of blocks -> row `index` of out, whose arrays have their sizes.
void DecodeGgufRow(GgufType type, const std::byte* blocks, QuantizedTensor& out,
                   std::int64_t index);

/// Rows -> their blocks, row after row. rows.spec is that of GgufSpecOf(type); floats are rounded
/// to the type. Errors: kInvalidArgument if the width is no multiple of the block, a scale or
/// minimum is no f16 number, or those of a K-quant's 256 columns are no whole multiples of one f16
/// number.
Result<std::string> EncodeGgufRows(GgufType type, const QuantizedTensor& rows);

}  // namespace nibble
