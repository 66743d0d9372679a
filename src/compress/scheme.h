#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "codec/quantized_tensor.h"
#include "compress/model_format.h"
#include "io/gguf.h"

namespace nibble {

constexpr std::int64_t kNf4Group = 64;   // bitsandbytes' block
constexpr std::int64_t kFp8Block = 128;  // rows and columns that share a scale
constexpr std::int64_t kMxFp4Group = 32;
constexpr std::int64_t kNvFp4Group = 16;
constexpr std::int64_t kWholeTensor = -2;  // as group size: one scale for the matrix

/// A grid that linears are rounded to, before it meets the shape of one. What --scheme and recipes
/// name.
struct Scheme {
  bool keeps_floats = false;  // not rounded at all; nothing below says anything then
  int bits = 4;
  std::int64_t group_size = -1;  // columns that share a scale; 0: a whole row; -1: the model's
                                 // (DefaultGroupSize); kWholeTensor
  bool symmetric = true;
  Codebook codebook = Codebook::kNone;
  ScaleGrid scale_grid = ScaleGrid::kAny;
  std::optional<GgufType> block_type;  // blocks of GGUF that are no uniform grid
  bool gguf = false;                   // named after a block of GGUF, which is then written

  /// Whether groups are settled by the scheme itself, and zero points with them.
  bool has_own_groups() const;
  bool is_fp8() const { return IsFp8(codebook); }
  bool is_log() const { return codebook == Codebook::kLog4 || codebook == Codebook::kLog3; }
  /// Whether its errors are worth more than rounding: below 8 bits.
  bool is_narrow() const {
    return !keeps_floats && !is_fp8() && (codebook != Codebook::kNone || bits < 8);
  }
  friend bool operator==(const Scheme&, const Scheme&) = default;
};

/// "int4", "nf4", "q4_k", "float", ...: what --scheme takes, in the order of --help.
const std::vector<std::string>& SchemeWords();
std::optional<Scheme> ParseScheme(std::string_view word);
/// The word of a scheme, whatever its groups and zero points.
std::string WordOf(const Scheme& scheme);
/// The format that holds such weights if the user names none.
ModelFormat UsualFormat(const Scheme& scheme);

/// The largest of 128, 64, 32 that divides the width of every linear; 0 (whole rows) if none does.
std::int64_t DefaultGroupSize(const ModelConfig& config);
/// What `weight` is stored as. float_dtype: of weights that are kept. Errors: kInvalidArgument
/// naming the weight whose width the groups do not divide, and the groups that this model takes.
Result<WeightSpec> SpecOf(const Scheme& scheme, const ExpectedWeight& weight,
                          const ModelConfig& config, DType float_dtype);

}  // namespace nibble
