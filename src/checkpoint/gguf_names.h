#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/model_config.h"

namespace nibble {

/// The name of a weight in a GGUF file:
/// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight".
std::string GgufNameOf(const ModelConfig& config, const std::string& canonical);

/// What a GGUF file adds to the elements of a weight: Gemma's norms hold the 1 of 1 + w there.
float GgufOffsetOf(const ModelConfig& config, const std::string& canonical);

/// Heads whose rows lie interleaved in a GGUF file: those of q and k in a file of architecture
/// llama; 0 for every other weight.
std::int64_t GgufInterleavedHeads(const ModelConfig& config, const std::string& canonical);

/// Where row `index` of our half-split order lies in the file, heads being head_dim rows: row r of
/// a head lies at 2r (first half) or 2(r - d/2) + 1.
constexpr std::int64_t GgufRowOf(std::int64_t index, std::int64_t head_dim) {
  const std::int64_t in_head = index % head_dim;
  const std::int64_t half = head_dim / 2;
  return index - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

}  // namespace nibble
