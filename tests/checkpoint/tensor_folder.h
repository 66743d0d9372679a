#pragma once

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "tests/checkpoint/tiny_model.h"
#include "tests/io/temp_folder.h"

namespace nibble::testing {

/// The tensors of a folder, to be changed before they are written.
struct RawTensor {
  DType dtype;
  Shape shape;
  std::string bytes;
};
using RawTensors = std::map<std::string, RawTensor>;

/// Writes config.json and model.safetensors, and opens the folder. quantization: no member if
/// empty.
inline Result<std::unique_ptr<Checkpoint>> OpenWith(const TempFolder& folder,
                                                    const ModelConfig& model,
                                                    const RawTensors& tensors,
                                                    const json::Object& quantization) {
  std::vector<SafetensorsEntry> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
    data += tensor.bytes;
  }
  const std::string header = BuildSafetensorsHeader(entries);
  std::ofstream(folder.path() / "model.safetensors", std::ios::binary) << header << data;
  json::Object config = ToHuggingFaceConfig(model);
  if (!quantization.empty()) {
    config.Set("quantization_config", quantization);
  }
  std::ofstream(folder.path() / "config.json", std::ios::binary) << json::Dump(config);
  return Checkpoint::Open(folder.path().string());
}

/// The tensors of model.safetensors of a folder.
inline RawTensors ReadTensors(const std::filesystem::path& folder) {
  RawTensors out;
  const auto file = SafetensorsFile::Open(folder / "model.safetensors");
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const TensorView view = (*file)->View(entry);
    out[entry.name] = {entry.dtype,
                       entry.shape,
                       {reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()}};
  }
  return out;
}

}  // namespace nibble::testing
