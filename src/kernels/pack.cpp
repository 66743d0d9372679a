#include "kernels/pack.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cuda/backend.h"
#include "kernels/linear.h"
#include "tensor/float16.h"

// docs/formats/packed_weight.md describes the bytes.

namespace nibble {
namespace {

constexpr std::int64_t kFactorBytes = kPanelOutputs * 4;

std::int64_t CodeBytes(const PackedLayout& layout) {
  return layout.unit_cols * kPanelOutputs / (HasFourBits(layout.format) ? 2 : 1);
}

// Scale or minimum of output c among those of a unit.
void StoreScale(const PackedLayout& layout, std::uint8_t* scales, std::int64_t c, float value) {
  if (layout.wide_scales) {
    std::memcpy(scales + 4 * c, &value, sizeof value);
    return;
  }
  const std::uint16_t half = FloatToF16(value);
  std::memcpy(scales + 2 * c, &half, sizeof half);
}

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

bool IsHalf(float value) { return F16ToFloat(FloatToF16(value)) == value; }

// The power of two that turns a row's f16 values into its scales and minima. 1 if all of them are
// f16 values already; else the largest magnitude is brought to [2^14, 2^15), so that 30 binades
// below it keep full precision.
float RowFactor(std::span<const float> scales, std::span<const float> minima) {
  bool exact = true;
  float largest = 0.0F;
  for (const auto& values : {scales, minima}) {
    for (const float value : values) {
      exact = exact && (IsHalf(value) || !std::isfinite(value));
      if (std::isfinite(value)) {
        largest = std::max(largest, std::fabs(value));
      }
    }
  }
  if (exact || largest == 0.0F) {
    return 1.0F;
  }
  // Both the factor and its inverse must be normal numbers.
  return std::ldexp(1.0F, std::clamp(std::ilogb(largest) - 14, -120, 120));
}

// The code that is worth nothing, without zero points and minima.
int Middle(const PackedLayout& layout) {
  switch (layout.format) {
    case LinearFormat::kW4:
      return 8;
    case LinearFormat::kNf4:
      return static_cast<int>(std::find(layout.codebook, layout.codebook + 16, 0.0F) -
                              layout.codebook);
    case LinearFormat::kFp8:
      return NearestCode(Codebook::kFp8E4M3, 0.0F);
    default:
      return 128;
  }
}

// Codes of bits < 4 (< 8) run as 4 (8) bit ones; the middle of a symmetric grid moves along.
int CodeShift(const WeightSpec& spec, const PackedLayout& layout) {
  if (layout.grid != LinearGrid::kSymmetric || layout.codebook != nullptr) {
    return 0;
  }
  return Middle(layout) - (1 << (spec.bits - 1));
}

void PackIntegerPanel(const QuantizedTensor& rows, std::int64_t first, std::int64_t count,
                      const PackedLayout& layout, std::uint8_t* panel) {
  const WeightSpec& spec = rows.spec;
  const std::int64_t groups = spec.num_groups();
  const bool w4 = HasFourBits(layout.format);
  const int shift = CodeShift(spec, layout);
  const std::int64_t code_bytes = CodeBytes(layout);
  const std::int64_t extra_at = code_bytes + ScaleBytes(layout.wide_scales);
  std::memset(panel, 0, static_cast<std::size_t>(layout.panel_bytes));
  for (std::int64_t c = 0; c < kPanelOutputs; ++c) {
    const bool real = c < count;
    const std::int64_t row = first + c;
    const auto of_row = [&](const std::vector<float>& values) {
      return std::span(values).subspan(static_cast<std::size_t>(row * groups),
                                       static_cast<std::size_t>(groups));
    };
    float factor = 1.0F;
    if (real && !layout.wide_scales) {
      const auto minima =
          spec.kind == CodecKind::kMinimum ? of_row(rows.minima) : std::span<const float>();
      factor = RowFactor(of_row(rows.scales), minima);
    }
    std::memcpy(panel + layout.num_units * layout.unit_bytes + c * 4, &factor, sizeof factor);
    const float inverse = 1.0F / factor;
    for (std::int64_t u = 0; u < layout.num_units; ++u) {
      std::uint8_t* unit = panel + u * layout.unit_bytes;
      const std::int64_t k0 = u * layout.unit_cols;
      const auto group = static_cast<std::size_t>(row * groups + k0 / spec.group_size);
      // Padding: a code that is worth nothing (minima: scale and activations are zero there).
      int pad = Middle(layout);
      if (layout.grid == LinearGrid::kZeroPoints) {
        pad = real ? rows.zero_points[group] : 0;
        unit[extra_at + c] = static_cast<std::uint8_t>(pad);
      } else if (layout.grid == LinearGrid::kMinima) {
        pad = 0;
        StoreScale(layout, unit + extra_at, c, real ? rows.minima[group] * inverse : 0.0F);
      }
      StoreScale(layout, unit + code_bytes, c, real ? rows.scales[group] * inverse : 0.0F);
      for (std::int64_t k = 0; k < layout.unit_cols; ++k) {
        int code = pad;
        if (real && k0 + k < spec.cols) {
          code = rows.codes[static_cast<std::size_t>(row * spec.cols + k0 + k)] + shift;
        }
        const std::int64_t half = layout.unit_cols / 2;
        if (!w4) {
          unit[k / 4 * 64 + c * 4 + k % 4] = static_cast<std::uint8_t>(code);
        } else if (k < half) {
          unit[k / 4 * 64 + c * 4 + k % 4] |= static_cast<std::uint8_t>(code);
        } else {
          unit[(k - half) / 4 * 64 + c * 4 + k % 4] |= static_cast<std::uint8_t>(code << 4);
        }
      }
    }
  }
}

void PackFloatPanel(const QuantizedTensor& rows, std::int64_t first, std::int64_t count,
                    const PackedLayout& layout, std::uint8_t* panel) {
  for (std::int64_t k = 0; k < layout.cols; ++k) {
    for (std::int64_t c = 0; c < kPanelOutputs; ++c) {
      const float value =
          c < count ? rows.values[static_cast<std::size_t>((first + c) * layout.cols + k)] : 0.0F;
      const std::int64_t at = k * kPanelOutputs + c;
      if (layout.format == LinearFormat::kF32) {
        std::memcpy(panel + at * 4, &value, sizeof value);
      } else {
        const std::uint16_t bits =
            layout.format == LinearFormat::kF16 ? FloatToF16(value) : FloatToBF16(value);
        std::memcpy(panel + at * 2, &bits, sizeof bits);
      }
    }
  }
}

}  // namespace

Result<PackedLayout> LayoutOf(const WeightSpec& spec) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 32;
  if (spec.rows <= 0 || spec.cols <= 0 || spec.rows > kLargest || spec.cols > kLargest) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("a weight of {} x {} cannot be packed", spec.rows, spec.cols));
  }
  PackedLayout layout;
  layout.rows = spec.rows;
  layout.cols = spec.cols;
  layout.num_panels = (spec.rows + kPanelOutputs - 1) / kPanelOutputs;
  const bool codebook = spec.kind == CodecKind::kCodebook;
  const bool is_float = spec.kind == CodecKind::kFloat;
  const std::int64_t group = is_float ? spec.cols : std::min(spec.group_size, spec.cols);
  if (!is_float && (spec.bits < 2 || spec.bits > 8 || group <= 0 ||
                    codebook != (spec.codebook != Codebook::kNone))) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("no kernel runs {} weights of {} bits (2 to 8 bits in groups, uniform "
                            "or with minima, and codebooks are supported)",
                            spec.ToString(), spec.bits));
  }
  // Groups that no unit divides (GGUF's Q6_K has 16 columns) run as the exact values, and so does
  // what no kernel decodes.
  const bool as_values =
      (group < spec.cols && group % 32 != 0) || spec.codebook == Codebook::kFp8E5M2;
  if (is_float || as_values) {
    switch (as_values ? DType::kF32 : spec.float_dtype) {
      case DType::kF32:
        layout.format = LinearFormat::kF32;
        break;
      case DType::kF16:
        layout.format = LinearFormat::kF16;
        break;
      case DType::kBF16:
        layout.format = LinearFormat::kBF16;
        break;
      default:
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("no kernel runs {} weights (f32, f16 and bf16 are supported)",
                                Name(spec.float_dtype)));
    }
    const std::int64_t size = layout.format == LinearFormat::kF32 ? 4 : 2;
    layout.unit_cols = kActivationBlock;
    layout.num_units = (spec.cols + kActivationBlock - 1) / kActivationBlock;
    layout.unit_bytes = kActivationBlock * kPanelOutputs * size;
    layout.panel_bytes = spec.cols * kPanelOutputs * size;
    return layout;
  }
  layout.format = spec.codebook == Codebook::kFp8E4M3 ? LinearFormat::kFp8
                  : codebook                          ? LinearFormat::kNf4
                  : spec.bits <= 4                    ? LinearFormat::kW4
                                                      : LinearFormat::kW8;
  layout.codebook = codebook ? ValuesOf(spec.codebook).data() : nullptr;
  layout.grid = spec.kind == CodecKind::kMinimum ? LinearGrid::kMinima
                : spec.has_zero_points           ? LinearGrid::kZeroPoints
                                                 : LinearGrid::kSymmetric;
  // Whole rows may choose: 64 wastes up to 63 columns of padding, which only short rows notice.
  const bool whole_row = group == spec.cols;
  const std::int64_t tail = spec.cols % 64;
  layout.unit_cols = whole_row ? (tail >= 1 && tail <= 32 && spec.cols < 256 ? 32 : 64)
                               : (group % 64 == 0 ? 64 : 32);
  layout.num_units = (spec.cols + layout.unit_cols - 1) / layout.unit_cols;
  layout.wide_scales = spec.has_f32_scales;
  layout.unit_bytes = CodeBytes(layout) + ScaleBytes(layout.wide_scales);
  if (layout.grid == LinearGrid::kZeroPoints) {
    layout.unit_bytes += kPanelOutputs;
  } else if (layout.grid == LinearGrid::kMinima) {
    layout.unit_bytes += ScaleBytes(layout.wide_scales);
  }
  layout.panel_bytes = layout.num_units * layout.unit_bytes + kFactorBytes;
  return layout;
}

Result<std::size_t> PackedSizeBytes(const Device& device, const WeightSpec& spec) {
  if (device.kind() == DeviceKind::kCuda) {
    return cuda::PackedSizeBytes(spec);
  }
  NIBBLE_TRY(layout, LayoutOf(spec));
  return static_cast<std::size_t>(layout.num_panels * layout.panel_bytes);
}

Result<void> PackRows(Device& device, const QuantizedTensor& rows, std::int64_t row_begin,
                      PackedWeight& weight) {
  if (device.kind() == DeviceKind::kCuda) {
    return cuda::PackRows(device, rows, row_begin, weight);
  }
  NIBBLE_TRY(layout, LayoutOf(weight.spec));
  NIBBLE_TRY_VOID(Validate(rows));
  WeightSpec expected = weight.spec;
  expected.rows = rows.spec.rows;
  const std::int64_t row_end = row_begin + rows.spec.rows;
  if (!(rows.spec == expected) || row_begin < 0 || row_begin % kPanelOutputs != 0 ||
      row_end > layout.rows || (row_end % kPanelOutputs != 0 && row_end != layout.rows)) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("rows [{}, {}) of {} [{}, {}] do not fit a packed {} [{}, {}]", row_begin,
                    row_end, rows.spec.ToString(), rows.spec.rows, rows.spec.cols,
                    weight.spec.ToString(), weight.spec.rows, weight.spec.cols));
  }
  if (weight.data == nullptr ||
      weight.size_bytes < static_cast<std::size_t>(layout.num_panels * layout.panel_bytes)) {
    return Fail(ErrorCode::kInvalidArgument, "the memory of a packed weight is too small");
  }
  if (rows.spec.kind != CodecKind::kFloat && layout.format == LinearFormat::kF32) {
    QuantizedTensor values{.spec = {.rows = rows.spec.rows, .cols = rows.spec.cols}};
    values.values = Dequantize(rows);
    PackedWeight as_floats = weight;
    as_floats.spec = {.rows = weight.spec.rows, .cols = weight.spec.cols};
    return PackRows(device, values, row_begin, as_floats);
  }
  for (std::int64_t first = 0; first < rows.spec.rows; first += kPanelOutputs) {
    auto* panel = reinterpret_cast<std::uint8_t*>(weight.data) +
                  (row_begin + first) / kPanelOutputs * layout.panel_bytes;
    const std::int64_t count = std::min(kPanelOutputs, rows.spec.rows - first);
    if (rows.spec.kind == CodecKind::kFloat) {
      PackFloatPanel(rows, first, count, layout, panel);
    } else {
      PackIntegerPanel(rows, first, count, layout, panel);
    }
  }
  return {};
}

void DequantizePackedRow(const PackedLayout& layout, const std::uint8_t* weight, std::int64_t row,
                         float* out) {
  const std::uint8_t* panel = weight + row / kPanelOutputs * layout.panel_bytes;
  const std::int64_t c = row % kPanelOutputs;
  if (layout.format == LinearFormat::kF32) {
    for (std::int64_t k = 0; k < layout.cols; ++k) {
      std::memcpy(out + k, panel + (k * kPanelOutputs + c) * 4, sizeof(float));
    }
    return;
  }
  if (layout.format == LinearFormat::kF16 || layout.format == LinearFormat::kBF16) {
    for (std::int64_t k = 0; k < layout.cols; ++k) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, panel + (k * kPanelOutputs + c) * 2, sizeof bits);
      out[k] = layout.format == LinearFormat::kF16 ? F16ToFloat(bits) : BF16ToFloat(bits);
    }
    return;
  }
  const bool w4 = HasFourBits(layout.format);
  const std::int64_t code_bytes = CodeBytes(layout);
  const std::int64_t half = layout.unit_cols / 2;
  float factor = 1.0F;
  std::memcpy(&factor, panel + layout.num_units * layout.unit_bytes + c * 4, sizeof factor);
  for (std::int64_t u = 0; u < layout.num_units; ++u) {
    const std::uint8_t* unit = panel + u * layout.unit_bytes;
    const float scale = LoadScale(layout, unit + code_bytes, c) * factor;
    const std::uint8_t* extra = unit + code_bytes + ScaleBytes(layout.wide_scales);
    int zero_point = Middle(layout);
    float minimum = 0.0F;
    if (layout.grid == LinearGrid::kZeroPoints) {
      zero_point = extra[c];
    } else if (layout.grid == LinearGrid::kMinima) {
      zero_point = 0;
      minimum = LoadScale(layout, extra, c) * factor;
    }
    const std::int64_t k0 = u * layout.unit_cols;
    const std::int64_t count = std::min<std::int64_t>(layout.unit_cols, layout.cols - k0);
    for (std::int64_t k = 0; k < count; ++k) {
      int code = 0;
      if (!w4) {
        code = unit[k / 4 * 64 + c * 4 + k % 4];
      } else if (k < half) {
        code = unit[k / 4 * 64 + c * 4 + k % 4] & 15;
      } else {
        code = unit[(k - half) / 4 * 64 + c * 4 + k % 4] >> 4;
      }
      if (layout.codebook != nullptr) {
        out[k0 + k] = layout.codebook[code] * scale;
        continue;
      }
      const float value = static_cast<float>(code - zero_point) * scale;
      out[k0 + k] = layout.grid == LinearGrid::kMinima ? value + minimum : value;
    }
  }
}

}  // namespace nibble
