#include "codec/quantized_tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>

#include "base/check.h"

namespace nibble {

std::string WeightSpec::ToString() const {
  if (kind == CodecKind::kFloat) {
    return float_dtype == DType::kF32 ? "f32" : float_dtype == DType::kF16 ? "f16" : "bf16";
  }
  const char* stored = scale_grid == ScaleGrid::kPowersOfTwo ? " e8m0 scales"
                       : scale_grid == ScaleGrid::kE4M3      ? " e4m3 scales"
                       : has_f32_scales                      ? " f32 scales"
                                                             : "";
  const std::string group = has_one_scale ? "tensor" : fmt::format("g{}", group_size);
  if (kind == CodecKind::kCodebook) {
    return fmt::format("{} {}{}", Name(codebook), group, stored);
  }
  const char* grid = kind == CodecKind::kMinimum ? "min" : has_zero_points ? "zp" : "sym";
  return fmt::format("w{} {} {}{}", bits, group, grid, stored);
}

float ScaleOnGrid(float scale, ScaleGrid grid, float divisor) {
  switch (grid) {
    case ScaleGrid::kPowersOfTwo: {
      if (scale <= 0.0F) {
        return 1.0F;
      }
      int exponent = 0;
      const float fraction = std::frexp(scale, &exponent);  // 0.5 to 1
      constexpr float kMiddle = 0.70710678F;
      return std::ldexp(1.0F, std::clamp(fraction < kMiddle ? exponent - 1 : exponent, -127, 127));
    }
    case ScaleGrid::kE4M3: {
      const std::uint8_t code = NearestCode(Codebook::kFp8E4M3, std::max(scale, 0.0F) * divisor);
      return ValuesOf(Codebook::kFp8E4M3)[code] / divisor;
    }
    case ScaleGrid::kAny:
      break;
  }
  return scale;
}

namespace {

// The bits that any of the codes has. Eight codes at a time: every load of a model comes here.
int UnionOfBits(std::span<const std::uint8_t> codes) {
  std::array<std::uint64_t, 4> bits{};
  std::size_t i = 0;
  for (; i + sizeof bits <= codes.size(); i += sizeof bits) {
    std::array<std::uint64_t, 4> words{};
    std::memcpy(words.data(), codes.data() + i, sizeof words);
    for (std::size_t w = 0; w < words.size(); ++w) {
      bits[w] |= words[w];
    }
  }
  std::uint64_t all = bits[0] | bits[1] | bits[2] | bits[3];
  for (; i < codes.size(); ++i) {
    all |= codes[i];
  }
  all |= all >> 32;
  all |= all >> 16;
  all |= all >> 8;
  return static_cast<int>(all & 0xff);
}

template <typename T>
bool AllEqual(const std::vector<T>& values) {
  return std::ranges::all_of(values, [&](T value) { return value == values.front(); });
}

bool IsScale(float scale, const WeightSpec& spec, float divisor) {
  return spec.scale_grid == ScaleGrid::kAny ||
         ScaleOnGrid(scale, spec.scale_grid, divisor) == scale;
}

}  // namespace

Result<void> Validate(const QuantizedTensor& tensor) {
  const WeightSpec& spec = tensor.spec;
  const auto elements = static_cast<std::size_t>(spec.rows * spec.cols);
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  const auto wrong = [](const char* what, std::size_t found, std::size_t expected) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("quantized tensor has {} {}, expected {}", found, what, expected));
  };
  if (spec.kind == CodecKind::kFloat) {
    return tensor.values.size() == elements ? Result<void>{}
                                            : wrong("values", tensor.values.size(), elements);
  }
  if (spec.bits < 2 || spec.bits > 8 || spec.group_size <= 0) {
    return Fail(ErrorCode::kInvalidArgument, "quantized tensor needs 2 to 8 bits and a group size");
  }
  if (tensor.codes.size() != elements) {
    return wrong("codes", tensor.codes.size(), elements);
  }
  if (tensor.scales.size() != groups) {
    return wrong("scales", tensor.scales.size(), groups);
  }
  if (tensor.zero_points.size() != (spec.has_zero_points ? groups : 0)) {
    return wrong("zero points", tensor.zero_points.size(), spec.has_zero_points ? groups : 0);
  }
  if (spec.kind == CodecKind::kMinimum && tensor.minima.size() != groups) {
    return wrong("minima", tensor.minima.size(), groups);
  }
  if (spec.kind == CodecKind::kCodebook &&
      (spec.codebook == Codebook::kNone || spec.bits != BitsOf(spec.codebook))) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("quantized tensor has codes of {} bits for the codebook \"{}\"",
                            spec.bits, Name(spec.codebook)));
  }
  const int top = (1 << spec.bits) - 1;
  if (UnionOfBits(tensor.codes) > top) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("a code exceeds {} bits", spec.bits));
  }
  if (IsFp8(spec.codebook) &&
      std::ranges::any_of(tensor.codes, [&](auto code) { return IsNan(spec.codebook, code); })) {
    return Fail(ErrorCode::kInvalidArgument, "a code is not a number");
  }
  if (spec.has_one_scale &&
      (spec.num_groups() != 1 || !AllEqual(tensor.scales) || !AllEqual(tensor.zero_points))) {
    return Fail(ErrorCode::kInvalidArgument, "rows differ in the scale that all of them share");
  }
  const auto off_grid = std::ranges::find_if(
      tensor.scales, [&](float scale) { return !IsScale(scale, spec, tensor.scale_divisor); });
  if (off_grid != tensor.scales.end()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} is no scale of {}", *off_grid, spec.ToString()));
  }
  return {};
}

QuantizedTensor SliceRows(const QuantizedTensor& tensor, std::int64_t begin, std::int64_t end) {
  NIBBLE_CHECK(0 <= begin && begin <= end && end <= tensor.spec.rows, "rows of the tensor");
  QuantizedTensor out{.spec = tensor.spec, .scale_divisor = tensor.scale_divisor};
  out.spec.rows = end - begin;
  const auto copy = [&](const auto& from, auto& to, std::int64_t width) {
    if (!from.empty()) {
      to.assign(from.begin() + begin * width, from.begin() + end * width);
    }
  };
  const std::int64_t groups = tensor.spec.num_groups();
  copy(tensor.codes, out.codes, tensor.spec.cols);
  copy(tensor.scales, out.scales, groups);
  copy(tensor.zero_points, out.zero_points, groups);
  copy(tensor.minima, out.minima, groups);
  copy(tensor.values, out.values, tensor.spec.cols);
  return out;
}

std::vector<float> Dequantize(const QuantizedTensor& tensor) {
  const WeightSpec& spec = tensor.spec;
  if (spec.kind == CodecKind::kFloat) {
    return tensor.values;
  }
  std::vector<float> weights(static_cast<std::size_t>(spec.rows * spec.cols));
  const std::int64_t groups = spec.num_groups();
  const int middle = 1 << (spec.bits - 1);
  const std::span<const float> codebook = ValuesOf(spec.codebook);
  for (std::int64_t row = 0; row < spec.rows; ++row) {
    for (std::int64_t col = 0; col < spec.cols; ++col) {
      const auto at = static_cast<std::size_t>(row * spec.cols + col);
      const auto group = static_cast<std::size_t>(row * groups + col / spec.group_size);
      const int code = tensor.codes[at];
      const float scale = tensor.scales[group];
      switch (spec.kind) {
        case CodecKind::kUniform: {
          const int zero = spec.has_zero_points ? tensor.zero_points[group] : middle;
          weights[at] = static_cast<float>(code - zero) * scale;
          break;
        }
        case CodecKind::kMinimum:
          weights[at] = static_cast<float>(code) * scale + tensor.minima[group];
          break;
        case CodecKind::kCodebook:
          weights[at] = codebook[static_cast<std::size_t>(code)] * scale;
          break;
        case CodecKind::kFloat:
          break;
      }
    }
  }
  return weights;
}

}  // namespace nibble
