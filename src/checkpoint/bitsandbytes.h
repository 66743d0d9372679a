#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "codec/codebook.h"
#include "json/value.h"
#include "tensor/tensor.h"

namespace nibble {

// The 4-bit layout of bitsandbytes (NF4, FP4), of a weight W [out, in] with n = out * in values:
//   W                                    U8 [n / 2, 1]   two codes a byte, the first in the high
//                                                        nibble, row-major; the same bytes may
//                                                        have another type
//   W.absmax                             F32 [n / blocksize], or U8 codes of the nested map
//   W.quant_map                          F32 [16]        the table
//   W.nested_absmax                      F32 [ceil(blocks / nested_blocksize)]    double
//   W.nested_quant_map                   F32 [256]                                quantization
//   W.quant_state.bitsandbytes__nf4      U8, JSON: what follows; or ...__fp4
// Its int8 layout (LLM.int8), of X.weight:
//   X.weight                             I8 [out, in]    w = code * SCB / 127
//   X.SCB                                F32 [out]       the largest magnitude of a row
//   X.weight_format                      U8 []           0

/// ".quant_state.bitsandbytes__nf4", or "...__fp4".
std::string BitsandbytesStateSuffix(Codebook codebook);

/// What `quant_state` says.
struct BitsandbytesState {
  Codebook codebook = Codebook::kNf4;
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

/// What `quant_state` says, as bitsandbytes spells it. dtype: of the model's other tensors.
std::string BitsandbytesStateText(const BitsandbytesState& state, DType dtype);

/// The map that bitsandbytes quantizes absmax with: 256 values from -0.993 to 1, rising.
std::span<const float> BitsandbytesNestedMap();

/// Absmax values of a weight after double quantization, in nested blocks of 256.
struct NestedAbsmax {
  std::vector<std::uint8_t> codes;  // one an absmax
  std::vector<float> absmax;        // one a nested block
  float offset = 0.0F;              // the mean
};
NestedAbsmax NestAbsmax(std::span<const float> absmax);

/// What a folder of bitsandbytes holds: 4-bit codes of a table, or int8 (kNone).
struct BitsandbytesScheme {
  Codebook codebook = Codebook::kNf4;
  bool nested = false;
};
/// The `quantization_config`. compute_dtype: what transformers multiplies in.
json::Object BitsandbytesConfig(const BitsandbytesScheme& scheme, DType compute_dtype);

}  // namespace nibble
