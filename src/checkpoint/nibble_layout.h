#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/stored_weight.h"
#include "json/value.h"

namespace nibble {

// nibble's own layout (docs/formats/checkpoints.md), for codebooks that no other project stores:
// log4, log3 and FP8 e5m2. For W [out, in]:
//   log4, log3: W_packed I32 [out, ceil(in * bits / 32)]   codes of a row, a stream of bits along
//   in fp8-e5m2:   W        F8_E5M2 [out, in] both:       W_scale  F16, BF16 or F32 [out, groups]
// The config is compressed-tensors' with a format and types of weights that no other reader
// accepts. A quant_method of our own would not do: transformers 5.23 skips those that it does not
// know, and runs on random weights.

/// A codebook that is stored so, and the modules whose weights are.
struct NibbleGroup {
  Codebook codebook = Codebook::kNone;
  std::int64_t group_size = 0;  // 0: whole rows
  std::vector<std::string> modules;
};

/// Whether the layout holds the codebook.
bool NibbleLayoutHolds(Codebook codebook);
json::Object NibbleConfigObject(std::span<const NibbleGroup> groups);
/// Whether a quantization_config of compressed-tensors announces this layout.
bool IsNibbleConfig(const json::Value& config);

}  // namespace nibble
