#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"

namespace nibble {

/// What one config group of compressed-tensors says about the weights that it targets.
struct CompressedTensorsScheme {
  std::string group;   // "group_0"
  std::string format;  // "pack-", "int-", "float-", "mxfp4-pack-" or "nvfp4-pack-quantized"
  bool is_fp8 = false;
  bool is_fp4 = false;  // MXFP4 or NVFP4
  int bits = 0;
  bool symmetric = true;
  std::int64_t group_size = 0;  // 0: a scale a row; FP8: or the columns of a square block
  bool has_one_scale = false;   // a scale for the whole matrix
};

/// `quantization_config` of a compressed-tensors checkpoint: which modules are quantized and how
/// (checkpoint-formats 6.1). Targets and ignore entries are exact module names, class names
/// ("Linear"), or "re:" and a regular expression that matches from the start of the name; names go
/// before expressions, expressions before classes.
class CompressedTensorsRules {
 public:
  /// Errors: kUnsupported naming what nibble lacks, kCorruptFile naming the member.
  static Result<CompressedTensorsRules> Parse(const json::Value& config, const std::string& source);
  CompressedTensorsRules(CompressedTensorsRules&&) noexcept;
  CompressedTensorsRules& operator=(CompressedTensorsRules&&) noexcept;
  ~CompressedTensorsRules();

  /// The scheme of a module ("model.layers.0.mlp.up_proj", class "Linear"), or nullptr if none of
  /// the groups targets it or it is ignored.
  const CompressedTensorsScheme* Find(std::string_view module, std::string_view class_name) const;
  /// Things that the config asks for and nibble leaves out, such as quantized activations.
  const std::vector<std::string>& warnings() const;

 private:
  struct Impl;
  explicit CompressedTensorsRules(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
