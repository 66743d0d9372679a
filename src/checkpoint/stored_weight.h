#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "codec/quantized_tensor.h"
#include "io/safetensors.h"
#include "json/value.h"

namespace nibble {

/// A tensor of a safetensors folder.
struct Located {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
  TensorView view() const { return file->View(*entry); }
};
using TensorMap = std::map<std::string, Located>;

/// One weight that a layout keeps in several tensors, checked.
class StoredWeight {
 public:
  virtual ~StoredWeight() = default;
  StoredWeight(const StoredWeight&) = delete;
  StoredWeight& operator=(const StoredWeight&) = delete;

  const WeightSpec& spec() const { return spec_; }
  const std::string& stored_as() const { return stored_as_; }
  /// In the order in which a certificate hashes them.
  const std::vector<Located>& parts() const { return parts_; }
  /// Rows [begin, end) into the arrays of `out`, which has its spec and is empty. Reads the mapping
  /// without a guard.
  virtual Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const = 0;

 protected:
  StoredWeight(WeightSpec spec, std::string stored_as, std::vector<Located> parts)
      : spec_(spec), stored_as_(std::move(stored_as)), parts_(std::move(parts)) {}
  WeightSpec spec_;
  std::string stored_as_;
  std::vector<Located> parts_;
};

/// A way of keeping quantized weights in a folder, as its quantization_config announces it.
class WeightLayout {
 public:
  virtual ~WeightLayout() = default;
  /// The weight, if the folder keeps it in this layout; nullptr if not. Names of the tensors that
  /// belong to it are added to `used`. Errors: kCorruptFile for tensors that contradict each other
  /// or the config, kUnsupported naming what nibble lacks.
  virtual Result<std::unique_ptr<StoredWeight>> Find(const ExpectedWeight& wanted,
                                                     const TensorMap& tensors,
                                                     std::set<std::string>& used) = 0;
  /// Things worth telling that Find met.
  virtual std::vector<std::string> Warnings() const { return {}; }
};

/// Readers of the methods "gptq", "awq" and "bitsandbytes", and of nibble's own layout. source: the
/// file that config, the quantization_config, is from. Errors: kCorruptFile naming the member,
/// kUnsupported.
Result<std::unique_ptr<WeightLayout>> MakeGptqLayout(const json::Value& config,
                                                     const std::string& source);
Result<std::unique_ptr<WeightLayout>> MakeAwqLayout(const json::Value& config,
                                                    const std::string& source);
Result<std::unique_ptr<WeightLayout>> MakeBitsandbytesLayout(const json::Value& config,
                                                             const std::string& source);
Result<std::unique_ptr<WeightLayout>> MakeNibbleLayout(const json::Value& config,
                                                       const std::string& source);

}  // namespace nibble
