#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"

namespace nibble {

// AWQ ("gemm") of a linear X [out, in], 4 bits:
//   X.qweight  I32 [in, out / 8]       codes of an input, 8 outputs a word
//   X.qzeros   I32 [groups, out / 8]   zero points, in the same order
//   X.scales   F16 (BF16, F32) [groups, out]
// w = (code - zero) * scale. Bits 4s..4s+3 of a word belong to output kAwqOrder[s] of its eight.

inline constexpr std::array<std::int64_t, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};
/// The place in a word of each of its eight outputs.
inline constexpr std::array<unsigned, 8> kAwqSlot = {0, 4, 1, 5, 2, 6, 3, 7};

/// `quantization_config` of an AWQ folder.
struct AwqConfig {
  std::int64_t group_size = 128;  // 0: the whole row
  std::vector<std::string> skip;  // parts of names of modules that are kept as floats

  /// Errors: kCorruptFile naming the member, kUnsupported (other bits or versions).
  static Result<AwqConfig> Parse(const json::Value& config, const std::string& source);
  bool Skips(std::string_view module) const;
};

/// The `quantization_config` of a folder whose linears are all kept so. skip: modules that are not.
json::Object AwqConfigObject(std::int64_t group_size, const std::vector<std::string>& skip);

}  // namespace nibble
