#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "json/value.h"
#include "tensor/tensor.h"

namespace nibble {

// The 4-bit layout of bitsandbytes (NF4), of a weight W [out, in] with n = out * in values:
//   W                                    U8 [n / 2, 1]   two codes a byte, the first in the high
//                                                        nibble, row-major
//   W.absmax                             F32 [n / blocksize], or U8 codes of the nested map
//   W.quant_map                          F32 [16]        the table
//   W.nested_absmax                      F32 [ceil(blocks / nested_blocksize)]    double
//   W.nested_quant_map                   F32 [256]                                quantization
//   W.quant_state.bitsandbytes__nf4      U8, JSON: what follows

inline constexpr std::string_view kBitsandbytesStateSuffix = ".quant_state.bitsandbytes__nf4";

/// What `quant_state` says.
struct BitsandbytesState {
  std::int64_t block_size = 0;  // values that share an absmax, along the flattened weight
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  /// Double quantization: absmax = nested_quant_map[code] * nested_absmax[i / block] + offset.
  struct Nested {
    std::int64_t block_size = 0;
    float offset = 0.0F;
  };
  std::optional<Nested> nested;
};

/// Errors: kUnsupported for another table, kCorruptFile naming the member.
Result<BitsandbytesState> ParseBitsandbytesState(std::string_view text, const std::string& source);

/// What `quant_state` of a weight in blocks of block_size, without double quantization, says.
/// dtype: of the model's other tensors.
std::string BitsandbytesStateText(std::int64_t rows, std::int64_t cols, std::int64_t block_size,
                                  DType dtype);

/// Checks `quantization_config`. Errors: kUnsupported naming what nibble lacks (LLM.int8, FP4).
Result<void> CheckBitsandbytesConfig(const json::Value& config, const std::string& source);

/// The `quantization_config` of weights in NF4 without double quantization. compute_dtype: what
/// transformers multiplies in.
json::Object BitsandbytesConfig(DType compute_dtype);

}  // namespace nibble
