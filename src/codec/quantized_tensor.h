#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "codec/codebook.h"
#include "tensor/tensor.h"

namespace nibble {

/// The meaning of the codes of a QuantizedTensor.
enum class CodecKind : std::uint8_t {
  kFloat,    // no codes: plain values of `float_dtype`
  kUniform,  // w = (code - zero_point) * scale
  kMinimum,  // w = code * scale + minimum           (GGUF Q4_1; the minimum is a float)
  kCodebook  // w = ValuesOf(codebook)[code] * scale (NF4, FP4, FP8, ...)
};

/// Which numbers scales may be.
enum class ScaleGrid : std::uint8_t {
  kAny,          // those of their storage
  kPowersOfTwo,  // 2^-127 to 2^127 (E8M0; MXFP4)
  kE4M3          // e4m3 numbers of 0 or more, divided by the tensor's scale_divisor (NVFP4)
};

/// What a weight matrix is stored as, without the values.
struct WeightSpec {
  std::int64_t rows = 0;  // out_features
  std::int64_t cols = 0;  // in_features
  CodecKind kind = CodecKind::kFloat;
  DType float_dtype = DType::kF32;  // kFloat: kF32, kF16 or kBF16
  int bits = 0;                     // quantized: width of a code, 2..8
  std::int64_t group_size =
      0;  // quantized: columns that share a scale; the last group may be short
  bool has_zero_points = false;         // kUniform; absent: zero_point = 2^(bits-1) everywhere
  bool has_f32_scales = false;          // scales and minima are f32; else f16 or bf16 values
  Codebook codebook = Codebook::kNone;  // kCodebook: which; it says how wide a code is
  ScaleGrid scale_grid = ScaleGrid::kAny;
  bool has_one_scale = false;  // the whole matrix has one, which `scales` repeats for every row

  std::int64_t num_groups() const {
    return group_size == 0 ? 0 : (cols + group_size - 1) / group_size;
  }
  /// "w4 g64 sym", "w8 g32 zp", "w4 g32 min", "w4 g32 sym f32 scales", "nf4 g64 f32 scales",
  /// "e2m1 g32 e8m0 scales", "w8 tensor sym", "bf16", for tables and messages.
  std::string ToString() const;
  friend bool operator==(const WeightSpec&, const WeightSpec&) = default;
};

/// Canonical, device-independent form of a weight matrix [rows, cols], or of a range of its rows.
/// Every checkpoint layout is decoded to this, every solver produces this, every device packs from
/// this.
struct QuantizedTensor {
  WeightSpec spec;
  std::vector<std::uint8_t> codes;        // [rows * cols], one code a byte, unsigned 0..2^bits-1
  std::vector<float> scales;              // [rows * num_groups]
  std::vector<std::uint8_t> zero_points;  // [rows * num_groups], or empty
  std::vector<float> minima;              // [rows * num_groups], kMinimum
  float scale_divisor = 1.0F;             // ScaleGrid::kE4M3: every scale is an e4m3 number over it
  std::vector<float> values;  // [rows * cols], kFloat (widened exactly from float_dtype)
};

/// The scale of the grid that is nearest (powers of two: by their ratio); scale >= 0. E8M0 has no
/// 0: that becomes 1. kAny: as it is.
float ScaleOnGrid(float scale, ScaleGrid grid, float divisor);

/// Checks that the arrays have the sizes that the spec asks for and codes fit their width.
Result<void> Validate(const QuantizedTensor& tensor);

/// Rows [begin, end) of a tensor.
QuantizedTensor SliceRows(const QuantizedTensor& tensor, std::int64_t begin, std::int64_t end);

/// The truth: fp32 weights [rows * cols]. One rounding per product, as written above.
std::vector<float> Dequantize(const QuantizedTensor& tensor);

}  // namespace nibble
