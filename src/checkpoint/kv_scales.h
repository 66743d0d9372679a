#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/model_config.h"
#include "json/value.h"
#include "tensor/tensor.h"

namespace nibble {

/// The stored tensor of this name, if there is one; whoever asks makes use of it.
using FindTensor = std::function<std::optional<TensorView>(const std::string& name)>;

/// The scales of an fp8 KV cache that a Hugging Face folder carries (checkpoint-formats 7.4):
/// `k_scale` and `v_scale` beside a layer's attention, under any of their names, one number a layer
/// or one a KV head. Returns what stored numbers are multiplied by,
/// [num_layers][2][num_kv_heads] (keys, values), or nothing if there are none. Where only some
/// layers have them the others get 1, and `warnings` says so. `scheme` is kv_cache_scheme of
/// quantization_config, or null: scales that it declares to be of another cache than symmetric fp8
/// are left out with a warning.
/// Errors: kCorruptFile, kUnsupported naming the tensor, in the folder `path`.
Result<std::vector<float>> ReadKvScales(const ModelConfig& model, const json::Value* scheme,
                                        const FindTensor& find, const std::string& path,
                                        std::vector<std::string>& warnings);

}  // namespace nibble
