#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/linear_kernel.h"
#include "tensor/float16.h"

// The truth of docs/adr/0002-one-arithmetic.md, written to be read.
//
// Integer weights, per output and unit u of 32 or 64 columns:
//   t    = sum (code - zero_point) * x           exact in int32
//   acc  = fma(float(t), scale, acc)             units in order; int8: scale * x_scale[block]
//   acc  = fma(minimum, float(sum x), acc)       minima only; int8: float(sum x) * x_scale[block]
//   y    = acc * factor * x_scale                int16; int8: acc * factor
// Float weights: per 64 columns fma in order from zero; the sums of 64 are added in order.
// Codebooks, per output and unit of 32 or 64 columns:
//   t    = per column in order, from zero: fma(codebook[code], x, t)
//   acc  = fma(t, scale, acc)                    units in order
//   y    = acc * factor

namespace nibble {
namespace {

// Scale or minimum of output c among those of a unit.
float LoadScale(const PackedLayout& layout, const std::uint8_t* scales, std::int64_t c) {
  if (layout.wide_scales) {
    float value = 0.0F;
    std::memcpy(&value, scales + 4 * c, sizeof value);
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, scales + 2 * c, sizeof half);
  return F16ToFloat(half);
}

// Column k of output c of a unit.
int CodeAt(const PackedLayout& layout, const std::uint8_t* unit, std::int64_t c, std::int64_t k) {
  if (!HasFourBits(layout.format)) {
    return unit[k / 4 * 64 + c * 4 + k % 4];
  }
  const std::int64_t half = layout.unit_cols / 2;
  return k < half ? unit[k / 4 * 64 + c * 4 + k % 4] & 15
                  : unit[(k - half) / 4 * 64 + c * 4 + k % 4] >> 4;
}

// Value j of block `block` of row m.
int ActivationAt(const PackedActivations& x, bool int16, std::int64_t block, std::int64_t m,
                 std::int64_t j) {
  if (!int16) {
    return x.limbs[(block * x.block_rows + m) * kActivationBlock + j];
  }
  const std::int8_t* limbs = x.limbs + (block * x.block_rows + m) * 2 * kActivationBlock;
  return 256 * limbs[j] + limbs[kActivationBlock + j];
}

template <bool kInt16>
void RunInteger(const LinearCall& call) {
  const PackedLayout& layout = call.layout;
  const PackedActivations& x = call.x;
  const bool w4 = layout.format == LinearFormat::kW4;
  const std::int64_t cols = layout.unit_cols;
  const std::int64_t code_bytes = cols * kPanelOutputs / (w4 ? 2 : 1);
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    const std::uint8_t* panel = call.weight + p * layout.panel_bytes;
    const std::int64_t outputs = std::min(kPanelOutputs, layout.rows - p * kPanelOutputs);
    for (std::int64_t c = 0; c < outputs; ++c) {
      float factor = 1.0F;
      std::memcpy(&factor, panel + layout.num_units * layout.unit_bytes + c * 4, sizeof factor);
      for (std::int64_t m = 0; m < x.num_rows; ++m) {
        float acc = 0.0F;
        for (std::int64_t u = 0; u < layout.num_units; ++u) {
          const std::uint8_t* unit = panel + u * layout.unit_bytes;
          const std::uint8_t* extra = unit + code_bytes + ScaleBytes(layout.wide_scales);
          const std::int64_t block = u * cols / kActivationBlock;
          const std::int64_t first = u * cols % kActivationBlock;
          const ActivationBlock& info = x.blocks[block * x.block_rows + m];
          const std::int64_t part = cols == kActivationBlock ? 2 : first / 32;
          int zero_point = w4 ? 8 : 128;
          if (layout.grid == LinearGrid::kZeroPoints) {
            zero_point = extra[c];
          } else if (layout.grid == LinearGrid::kMinima) {
            zero_point = 0;
          }
          std::int32_t t = zero_point * info.minus_sum[part];
          for (std::int64_t k = 0; k < cols; ++k) {
            t += CodeAt(layout, unit, c, k) * ActivationAt(x, kInt16, block, m, first + k);
          }
          float scale = LoadScale(layout, unit + code_bytes, c);
          if (!kInt16) {
            scale *= info.scale;
          }
          acc = std::fma(static_cast<float>(t), scale, acc);
          if (layout.grid == LinearGrid::kMinima) {
            acc = std::fma(LoadScale(layout, extra, c), info.scaled_sum[part], acc);
          }
        }
        float& y = call.y[m * call.y_stride + p * kPanelOutputs + c];
        y = acc * factor;
        if (kInt16) {
          y *= x.row_scales[m];
        }
      }
    }
  }
}

float FloatWeightAt(LinearFormat format, const std::uint8_t* panel, std::int64_t at) {
  if (format == LinearFormat::kF32) {
    float value = 0.0F;
    std::memcpy(&value, panel + at * 4, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, panel + at * 2, sizeof bits);
  return format == LinearFormat::kF16 ? F16ToFloat(bits) : BF16ToFloat(bits);
}

void RunFloat(const LinearCall& call) {
  const PackedLayout& layout = call.layout;
  const PackedActivations& x = call.x;
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    const std::uint8_t* panel = call.weight + p * layout.panel_bytes;
    const std::int64_t outputs = std::min(kPanelOutputs, layout.rows - p * kPanelOutputs);
    for (std::int64_t c = 0; c < outputs; ++c) {
      for (std::int64_t m = 0; m < x.num_rows; ++m) {
        float acc = 0.0F;
        for (std::int64_t block = 0; block < x.num_blocks; ++block) {
          const float* values = x.values + (block * x.block_rows + m) * kActivationBlock;
          const std::int64_t k0 = block * kActivationBlock;
          const std::int64_t count = std::min(kActivationBlock, layout.cols - k0);
          float sum = 0.0F;
          for (std::int64_t k = 0; k < count; ++k) {
            const float w = FloatWeightAt(layout.format, panel, (k0 + k) * kPanelOutputs + c);
            sum = std::fma(w, values[k], sum);
          }
          acc += sum;
        }
        call.y[m * call.y_stride + p * kPanelOutputs + c] = acc;
      }
    }
  }
}

void RunCodebook(const LinearCall& call) {
  const PackedLayout& layout = call.layout;
  const PackedActivations& x = call.x;
  const std::int64_t cols = layout.unit_cols;
  const std::int64_t code_bytes = cols * kPanelOutputs / (HasFourBits(layout.format) ? 2 : 1);
  for (std::int64_t p = call.panel_begin; p < call.panel_end; ++p) {
    const std::uint8_t* panel = call.weight + p * layout.panel_bytes;
    const std::int64_t outputs = std::min(kPanelOutputs, layout.rows - p * kPanelOutputs);
    for (std::int64_t c = 0; c < outputs; ++c) {
      float factor = 1.0F;
      std::memcpy(&factor, panel + layout.num_units * layout.unit_bytes + c * 4, sizeof factor);
      for (std::int64_t m = 0; m < x.num_rows; ++m) {
        float acc = 0.0F;
        for (std::int64_t u = 0; u < layout.num_units; ++u) {
          const std::uint8_t* unit = panel + u * layout.unit_bytes;
          const std::int64_t block = u * cols / kActivationBlock;
          const float* values = x.values + (block * x.block_rows + m) * kActivationBlock +
                                u * cols % kActivationBlock;
          float t = 0.0F;
          for (std::int64_t k = 0; k < cols; ++k) {  // behind the last column x is zero
            t = std::fma(layout.codebook[CodeAt(layout, unit, c, k)], values[k], t);
          }
          acc = std::fma(t, LoadScale(layout, unit + code_bytes, c), acc);
        }
        call.y[m * call.y_stride + p * kPanelOutputs + c] = acc * factor;
      }
    }
  }
}

struct Levels {
  float scale = 0.0F;    // real value of one step; NaN if any value is not finite
  float inverse = 0.0F;  // steps per unit; 0 if all values count as zero
};

// One definition for every ISA: the maximum is taken over the bits of |x|, which sort like the
// values and show infinity and NaN.
Levels LevelsOf(const float* x, std::int64_t count, float levels) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffU);
  }
  if (largest >= kInfinityBits) {
    return {.scale = std::numeric_limits<float>::quiet_NaN(), .inverse = 0.0F};
  }
  if (largest < kTinyBits) {
    return {};
  }
  const auto absmax = std::bit_cast<float>(largest);
  return {.scale = absmax / levels, .inverse = levels / absmax};
}

// round-to-nearest-even(x * inverse). inverse = 0 gives 0 whatever x is.
int Quantize(float x, float inverse) {
  return inverse == 0.0F ? 0 : static_cast<int>(std::nearbyint(x * inverse));
}

template <bool kInt16>
void QuantizeRows(const float* x, std::int64_t x_stride, std::int64_t row_begin,
                  std::int64_t row_end, const PackedActivations& packed) {
  for (std::int64_t m = row_begin; m < row_end; ++m) {
    const float* row = x + m * x_stride;
    Levels levels;
    if (kInt16) {
      levels = LevelsOf(row, packed.cols, kInt16Levels);
      packed.row_scales[m] = levels.scale;
    }
    for (std::int64_t block = 0; block < packed.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      const std::int64_t count = std::min(kActivationBlock, packed.cols - k0);
      if (!kInt16) {
        levels = LevelsOf(row + k0, count, kInt8Levels);
      }
      std::int8_t* limbs =
          packed.limbs + (block * packed.block_rows + m) * kActivationBlock * (kInt16 ? 2 : 1);
      ActivationBlock info{};
      info.scale = kInt16 ? 1.0F : levels.scale;
      for (std::int64_t j = 0; j < kActivationBlock; ++j) {
        const int q = j < count ? Quantize(row[k0 + j], levels.inverse) : 0;
        info.minus_sum[j / 32] -= q;
        if (kInt16) {
          const int low = ((q + 128) & 255) - 128;
          limbs[j] = static_cast<std::int8_t>((q - low) / 256);
          limbs[kActivationBlock + j] = static_cast<std::int8_t>(low);
        } else {
          limbs[j] = static_cast<std::int8_t>(q);
        }
      }
      info.minus_sum[2] = info.minus_sum[0] + info.minus_sum[1];
      for (int part = 0; part < 3; ++part) {
        info.scaled_sum[part] = static_cast<float>(-info.minus_sum[part]) * info.scale;
      }
      packed.blocks[block * packed.block_rows + m] = info;
    }
  }
}

void CopyRows(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
              const PackedActivations& packed) {
  for (std::int64_t m = row_begin; m < row_end; ++m) {
    for (std::int64_t block = 0; block < packed.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      const std::int64_t count = std::min(kActivationBlock, packed.cols - k0);
      float* values = packed.values + (block * packed.block_rows + m) * kActivationBlock;
      std::copy_n(x + m * x_stride + k0, count, values);
      std::fill(values + count, values + kActivationBlock, 0.0F);
    }
  }
}

constexpr std::int64_t kAnyRows = std::numeric_limits<std::int64_t>::max();

constexpr std::array<LinearKernel, 9> kKernels = {{
    {"linear.w4.int16.ref", LinearFormat::kW4, LinearActivation::kInt16, Isa::kRef, 1, kAnyRows,
     RunInteger<true>},
    {"linear.w4.int8.ref", LinearFormat::kW4, LinearActivation::kInt8, Isa::kRef, 1, kAnyRows,
     RunInteger<false>},
    {"linear.w8.int16.ref", LinearFormat::kW8, LinearActivation::kInt16, Isa::kRef, 1, kAnyRows,
     RunInteger<true>},
    {"linear.w8.int8.ref", LinearFormat::kW8, LinearActivation::kInt8, Isa::kRef, 1, kAnyRows,
     RunInteger<false>},
    {"linear.f32.ref", LinearFormat::kF32, LinearActivation::kF32, Isa::kRef, 1, kAnyRows,
     RunFloat},
    {"linear.f16.ref", LinearFormat::kF16, LinearActivation::kF32, Isa::kRef, 1, kAnyRows,
     RunFloat},
    {"linear.bf16.ref", LinearFormat::kBF16, LinearActivation::kF32, Isa::kRef, 1, kAnyRows,
     RunFloat},
    {"linear.nf4.ref", LinearFormat::kNf4, LinearActivation::kF32, Isa::kRef, 1, kAnyRows,
     RunCodebook},
    {"linear.fp8.ref", LinearFormat::kFp8, LinearActivation::kF32, Isa::kRef, 1, kAnyRows,
     RunCodebook},
}};

constexpr std::array<ActivationKernel, 3> kActivationKernels = {{
    {"activations.int16.ref", LinearActivation::kInt16, Isa::kRef, QuantizeRows<true>},
    {"activations.int8.ref", LinearActivation::kInt8, Isa::kRef, QuantizeRows<false>},
    {"activations.f32.ref", LinearActivation::kF32, Isa::kRef, CopyRows},
}};

}  // namespace

LinearKernelList RefLinearKernels() { return {kKernels.data(), static_cast<int>(kKernels.size())}; }

ActivationKernelList RefActivationKernels() {
  return {kActivationKernels.data(), static_cast<int>(kActivationKernels.size())};
}

}  // namespace nibble
