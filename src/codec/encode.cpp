#include "codec/encode.h"

#include <algorithm>
#include <cmath>

#include "tensor/float16.h"

namespace nibble {

float RoundToDType(float value, DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return F16ToFloat(FloatToF16(value));
    case DType::kBF16:
      return BF16ToFloat(FloatToBF16(value));
    default:
      return value;
  }
}

namespace {

float AbsMax(std::span<const float> values) {
  float absmax = 0.0F;
  for (const float value : values) {
    absmax = std::max(absmax, std::fabs(value));
  }
  return absmax;
}

// To the nearest integer, ties to even, where |value| < 2^22. nearbyint is a call on plain x86-64.
int RoundSmall(float value) {
  constexpr float kOneAndAHalf = 0x1.8p23F;  // its last bit is worth 1
  return static_cast<int>((value + kOneAndAHalf) - kOneAndAHalf);
}

}  // namespace

float PowerOfTwoScale(float absmax, float largest) {
  if (absmax == 0.0F) {
    return 1.0F;
  }
  constexpr float kUp = 1.75F;
  const int exponent = std::ilogb(absmax);
  const int up = std::ldexp(absmax, -exponent) >= kUp ? 1 : 0;
  return std::ldexp(1.0F, std::clamp(exponent + up - std::ilogb(largest), -127, 127));
}

QuantizedTensor EncodeAbsmax(std::span<const float> rows, std::int64_t num_rows, std::int64_t cols,
                             int bits, std::int64_t group_size) {
  QuantizedTensor out;
  out.spec = {.rows = num_rows,
              .cols = cols,
              .kind = CodecKind::kUniform,
              .bits = bits,
              .group_size = group_size};
  const std::int64_t groups = out.spec.num_groups();
  const int top = (1 << (bits - 1)) - 1;
  out.codes.resize(rows.size());
  out.scales.resize(static_cast<std::size_t>(num_rows * groups));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t begin = group * group_size;
      const std::int64_t end = std::min(cols, begin + group_size);
      const auto values = rows.subspan(static_cast<std::size_t>(row * cols + begin),
                                       static_cast<std::size_t>(end - begin));
      const float scale = RoundToDType(AbsMax(values) / static_cast<float>(top), DType::kF16);
      out.scales[static_cast<std::size_t>(row * groups + group)] = scale;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float code = scale == 0.0F ? 0.0F : values[i] / scale;
        const float clamped = std::clamp(code, static_cast<float>(-top), static_cast<float>(top));
        out.codes[static_cast<std::size_t>(row * cols + begin) + i] =
            static_cast<std::uint8_t>(RoundSmall(clamped) + top + 1);
      }
    }
  }
  return out;
}

QuantizedTensor EncodeCodebook(std::span<const float> rows, std::int64_t num_rows,
                               std::int64_t cols, Codebook codebook, std::int64_t group_size,
                               ScaleGrid scale_grid, float scale_divisor) {
  QuantizedTensor out{.scale_divisor = scale_grid == ScaleGrid::kE4M3 ? scale_divisor : 1.0F};
  out.spec = {.rows = num_rows,
              .cols = cols,
              .kind = CodecKind::kCodebook,
              .bits = BitsOf(codebook),
              .group_size = group_size,
              .has_f32_scales = true,
              .codebook = codebook,
              .scale_grid = scale_grid};
  const float largest = LargestOf(codebook);
  constexpr float kTiny = 1e-38F;  // what bitsandbytes divides by at least
  out.codes.reserve(rows.size());
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t begin = 0; begin < cols; begin += group_size) {
      const auto values =
          rows.subspan(static_cast<std::size_t>(row * cols + begin),
                       static_cast<std::size_t>(std::min(group_size, cols - begin)));
      const float absmax = AbsMax(values);
      const float scale = scale_grid == ScaleGrid::kPowersOfTwo
                              ? PowerOfTwoScale(absmax, largest)
                              : ScaleOnGrid(absmax / largest, scale_grid, scale_divisor);
      const float inverse = 1.0F / std::max(scale, kTiny);
      out.scales.push_back(scale);
      for (const float value : values) {
        out.codes.push_back(NearestCode(codebook, value * inverse));
      }
    }
  }
  return out;
}

}  // namespace nibble
