#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/folder_format.h"

namespace nibble {

/// What a whole model can be written as.
enum class ModelFormat : std::uint8_t {
  kCompressedTensors,
  kGptq,
  kGptqV2,
  kAwq,
  kBitsandbytes,
  kBitsandbytesNested,
  kNibble,  // its own layout, for what no other holds
  kGguf,
  kSafetensors  // floats
};

/// "compressed-tensors", "gptq", "gptq_v2", "awq", "bitsandbytes", "bitsandbytes-nested", "nibble",
/// "gguf", "safetensors".
std::string_view Name(ModelFormat format);
std::optional<ModelFormat> ParseModelFormat(std::string_view name);
/// How its quantized weights lie in a folder; nullopt for kGguf and kSafetensors.
std::optional<FolderFormat> FolderFormatOf(ModelFormat format);

/// Whether a program loads a model, and how or why not.
struct Consumer {
  std::string_view name;
  bool loads = false;
  std::string how;
};
/// vLLM, transformers, llama.cpp, onnxruntime and TensorRT, as of August 2026.
std::vector<Consumer> ConsumersOf(ModelFormat format, std::span<const WeightToWrite> weights);

}  // namespace nibble
