#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "json/value.h"

namespace nibble {

/// What the layouts share: the facts beside the weights, filled in while opening.
class CheckpointBase : public Checkpoint {
 public:
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  std::span<const WeightInfo> weights() const override { return weights_; }
  std::span<const float> kv_scales() const override { return kv_scales_; }
  const std::optional<std::string>& tokenizer_json() const override { return tokenizer_json_; }
  const std::optional<GgufVocabulary>& gguf_vocabulary() const override { return vocabulary_; }
  const std::optional<std::string>& chat_template() const override { return chat_template_; }
  const std::string& bos_token() const override { return bos_token_; }
  const std::string& eos_token() const override { return eos_token_; }
  const GenerationDefaults& generation() const override { return generation_; }
  const std::optional<std::string>& generation_config_json() const override {
    return generation_config_json_;
  }
  const std::optional<std::string>& tokenizer_config_json() const override {
    return tokenizer_config_json_;
  }
  const std::optional<json::Value>& certificate() const override { return certificate_; }
  const std::optional<json::Value>& quantization_config() const override {
    return quantization_config_;
  }
  std::span<const std::string> warnings() const override { return warnings_; }

 protected:
  std::filesystem::path path_;
  ModelConfig config_;
  std::vector<WeightInfo> weights_;
  std::vector<float> kv_scales_;
  std::optional<std::string> tokenizer_json_;
  std::optional<GgufVocabulary> vocabulary_;
  std::optional<std::string> chat_template_;
  std::string bos_token_, eos_token_;
  GenerationDefaults generation_;
  std::optional<std::string> generation_config_json_, tokenizer_config_json_;
  std::optional<json::Value> certificate_, quantization_config_;
  std::vector<std::string> warnings_;
};

Result<std::unique_ptr<Checkpoint>> OpenHuggingFaceFolder(const std::filesystem::path& folder);
Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::filesystem::path& file);

/// Values of `count` elements of a float dtype, widened exactly.
Result<std::vector<float>> WidenFloats(DType dtype, std::span<const std::byte> bytes);

/// Why a pickled file is not read, and what to do.
std::string PickledMessage(const std::string& file);

/// kCorruptFile naming the tensor if a value, scale or minimum is infinite or not a number.
Result<void> CheckFinite(const QuantizedTensor& rows, const std::string& file,
                         const std::string& name);

}  // namespace nibble
