#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/module_rule.h"
#include "json/value.h"

namespace nibble {

// GPTQ (AutoGPTQ, GPTQModel) of a linear X [out, in], `bits` 2, 3, 4 or 8:
//   X.qweight  I32 [in * bits / 32, out]      codes of a column, a stream of bits along in
//   X.qzeros   I32 [groups, out * bits / 32]  zero points of a group, a stream along out
//   X.scales   F16 (BF16, F32) [groups, out]
//   X.g_idx    I32 [in]                       the group of each input; may be absent
// w = (code - zero) * scale, in `checkpoint_format` "gptq_v2". In "gptq" (v1) qzeros hold zero - 1.

/// How one module is kept.
struct GptqScheme {
  int bits = 4;
  std::int64_t group_size = 128;  // 0: the whole row
  std::optional<bool> symmetric, desc_act;
  friend bool operator==(const GptqScheme&, const GptqScheme&) = default;
};

enum class GptqZeros : std::uint8_t { kMinusOne, kAsTheyAre };  // v1, v2

/// `quantization_config` of a GPTQ folder.
class GptqConfig {
 public:
  /// Errors: kCorruptFile naming the member, kUnsupported (5, 6 or 7 bits, gptq_p, other words).
  static Result<GptqConfig> Parse(const json::Value& config, const std::string& source);

  /// What the config says of a module ("model.layers.0.mlp.up_proj"); nullopt if `dynamic` leaves
  /// it out: it is kept as floats.
  std::optional<GptqScheme> Find(std::string_view module) const;

  std::optional<GptqZeros> zeros;  // absent: the config does not say, which means v1
  bool adds_to_words = false;  // v1 by GPTQModel: the one is taken from whole words, with borrow

 private:
  struct Override {
    ModuleRule rule;
    bool skip = false;
    GptqScheme scheme;
  };
  GptqScheme scheme_;
  std::vector<Override> overrides_;  // the first that matches decides
};

/// The `quantization_config` of a folder whose linears all have this scheme. version: of nibble.
json::Object GptqConfigObject(const GptqScheme& scheme, GptqZeros zeros, bool lm_head,
                              std::string_view version);

}  // namespace nibble
