#pragma once

#include <cstdint>

#include "kernels/isa_level.h"

// What the linear kernels of all ISAs share: plain data only, as files with -mavx512* include this.
// Layout of weights: docs/formats/packed_weight.md. Arithmetic: docs/adr/0002-one-arithmetic.md.

namespace nibble {

// kNf4: any table of at most 16 values (NF4, FP4, e2m1, log4, log3).
enum class LinearFormat : std::uint8_t { kF32, kF16, kBF16, kW4, kW8, kNf4, kFp8 };
enum class LinearGrid : std::uint8_t {
  kSymmetric,   // zero point 8 (w4) or 128 (w8)
  kZeroPoints,  // one u8 a group and output
  kMinima       // one minimum a group and output
};
enum class LinearActivation : std::uint8_t {
  kF32,    // float weights, and codebooks
  kInt16,  // one scale a row, two int8 limbs: x = scale * (256 * high + low)
  kInt8,   // one scale per 64 columns of a row
};

constexpr std::int64_t kPanelOutputs = 16;     // outputs of a panel
constexpr std::int64_t kActivationBlock = 64;  // columns of a block of activations

constexpr bool HasFourBits(LinearFormat format) {
  return format == LinearFormat::kW4 || format == LinearFormat::kNf4;
}

/// Bytes of the scales of a unit; zero points or minima follow them.
constexpr std::int64_t ScaleBytes(bool wide_scales) {
  return kPanelOutputs * (wide_scales ? 4 : 2);
}

/// How a weight matrix lies in memory.
struct PackedLayout {
  LinearFormat format = LinearFormat::kF32;
  LinearGrid grid = LinearGrid::kSymmetric;
  bool wide_scales = false;         // scales and minima are f32, not f16
  std::int32_t unit_cols = 64;      // columns of a unit: 64, or 32 for weights with codes
  std::int64_t rows = 0;            // out_features
  std::int64_t cols = 0;            // in_features
  std::int64_t num_units = 0;       // of a panel
  std::int64_t unit_bytes = 0;      // integer weights: codes, scales, zero points or minima
  const float* codebook = nullptr;  // kNf4, kFp8: the value of each code
  std::int64_t panel_bytes = 0;
  std::int64_t num_panels = 0;
};

/// What belongs to the 64 values of one block of one row. "half" is 32 values.
struct ActivationBlock {
  std::int32_t minus_sum[3];  // minus the sum of the integers: first half, second half, both
  float scale;                // kInt8: of this block; kInt16: 1
  float scaled_sum[3];        // float(sum) * scale
  float unused;
};

/// Activations as the kernels read them: block-major, so that no power-of-two row stride puts all
/// rows into one cache set. The last block is padded with zeros.
struct PackedActivations {
  std::int64_t num_rows = 0;
  std::int64_t block_rows = 0;  // rows that a block has in memory; more than num_rows in a part
  std::int64_t cols = 0;
  std::int64_t num_blocks = 0;
  std::int8_t* limbs = nullptr;  // kInt16: [block][row][high, low][64]; kInt8: [block][row][64]
  ActivationBlock* blocks = nullptr;  // [block][row]
  float* row_scales = nullptr;        // kInt16: [row]
  float* values = nullptr;            // kF32: [block][row][64]
};

/// One call of a kernel: all rows of x against panels [panel_begin, panel_end).
struct LinearCall {
  PackedLayout layout;
  const std::uint8_t* weight = nullptr;
  PackedActivations x;
  std::int64_t panel_begin = 0;
  std::int64_t panel_end = 0;
  float* y = nullptr;               // [row][layout.rows]
  std::int64_t y_stride = 0;        // floats
  std::uint8_t* scratch = nullptr;  // kLinearKernelScratchBytes, aligned to 64, of this worker
};

/// One variant. `run` takes every grid and unit width of its format.
struct LinearKernel {
  const char* name;
  LinearFormat format;
  LinearActivation activation;
  Isa isa;
  std::int64_t min_rows;  // of activations
  std::int64_t max_rows;
  void (*run)(const LinearCall& call);
};

struct LinearKernelList {
  const LinearKernel* kernels;
  int count;
};

/// Quantizes (or only copies, kF32) rows [row_begin, row_end) of x [x.num_rows, x.cols].
struct ActivationKernel {
  const char* name;
  LinearActivation activation;
  Isa isa;
  void (*run)(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
              const PackedActivations& packed);
};

struct ActivationKernelList {
  const ActivationKernel* kernels;
  int count;
};

constexpr std::int64_t kLinearKernelScratchBytes = 192 * 1024;

// Levels of the limbs: 32639 = 127 * 256 + 127 is the largest value whose balanced limbs are both
// at most 127.
constexpr float kInt16Levels = 32639.0F;
constexpr float kInt8Levels = 127.0F;
// Rows (blocks) whose largest magnitude is below this are zero: 2^-100.
constexpr std::uint32_t kTinyBits = 0x0d800000U;
constexpr std::uint32_t kInfinityBits = 0x7f800000U;

// In rising order of what they need.
LinearKernelList RefLinearKernels();
LinearKernelList Avx2LinearW4Kernels();
LinearKernelList Avx2LinearW8Kernels();
LinearKernelList Avx2LinearFloatKernels();
LinearKernelList Avx2LinearCodebookKernels();
LinearKernelList Avx512LinearW4Kernels();
LinearKernelList Avx512LinearW8Kernels();
LinearKernelList Avx512LinearFloatKernels();
LinearKernelList Avx512LinearCodebookKernels();
ActivationKernelList RefActivationKernels();
ActivationKernelList Avx2ActivationKernels();
ActivationKernelList Avx512ActivationKernels();

}  // namespace nibble
