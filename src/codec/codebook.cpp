#include "codec/codebook.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

constexpr std::array<float, 16> kNf4Values = {
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

// Written out, as bitsandbytes has them: midpoints computed in fp32 differ in their last bits.
constexpr std::array<float, 15> kNf4Midpoints = {
    -0.8480964004993439F,  -0.6106329262256622F,  -0.4599952697753906F,   -0.33967943489551544F,
    -0.23460740596055984F, -0.13791173323988914F, -0.045525018125772476F, 0.03979014977812767F,
    0.1202552504837513F,   0.2035212516784668F,   0.2920137718319893F,    0.3893125355243683F,
    0.5016634166240692F,   0.6427869200706482F,   0.8614784181118011F,
};

constexpr std::array<float, 16> kFp4Values = [] {
  constexpr std::array<float, 8> kTwelfths = {0.0F, 0.0625F, 8.0F, 12.0F, 4.0F, 6.0F, 2.0F, 3.0F};
  std::array<float, 16> values{};
  for (std::size_t code = 0; code < 16; ++code) {
    const float magnitude = kTwelfths[code % 8] / 12.0F;
    values[code] = code == 0 || code == 8 ? 0.0F : code < 8 ? magnitude : -magnitude;
  }
  return values;
}();

// Magnitudes above these take the code beside them.
struct Fp4Step {
  float above;
  std::uint8_t code;
};
constexpr std::array<Fp4Step, 7> kFp4Steps = {{{0.00260417F, 1},
                                               {0.0859375F, 6},
                                               {0.20833333F, 7},
                                               {0.29166667F, 4},
                                               {0.4166667F, 5},
                                               {0.583333F, 2},
                                               {0.8333333F, 3}}};

std::uint8_t NearestFp4(float v) {
  std::uint8_t code = 0;
  for (const Fp4Step& step : kFp4Steps) {
    code = std::fabs(v) > step.above ? step.code : code;
  }
  return static_cast<std::uint8_t>(v < 0.0F ? code | 8U : code);
}

constexpr float kLargestE4M3 = 448.0F;

constexpr float E4M3Value(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7fU;
  const std::uint32_t sign = (code & 0x80U) << 24;
  if (magnitude == 0x7fU) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  // Subnormals count 2^-9; else the exponent moves from a bias of 7 to one of 127.
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9F
                                    : std::bit_cast<float>((magnitude << 20) + (120U << 23));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

constexpr std::array<float, 256> kE4M3Values = [] {
  std::array<float, 256> values{};
  for (std::uint32_t code = 0; code < 256; ++code) {
    values[code] = E4M3Value(code);
  }
  return values;
}();

std::uint8_t NearestE4M3(float v) {
  const float magnitude = std::min(std::fabs(v), kLargestE4M3);
  const std::uint32_t sign = std::signbit(v) ? 0x80U : 0U;
  std::uint32_t code = 0;
  if (magnitude < 0x1p-6F) {
    code = static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p9F));  // 8 is 2^-6 itself
  } else {
    const auto bits = std::bit_cast<std::uint32_t>(magnitude);
    code = ((bits + 0x7ffffU + ((bits >> 20) & 1U)) >> 20) - (120U << 3);
  }
  return static_cast<std::uint8_t>(code | sign);
}

}  // namespace

const char* Name(Codebook codebook) {
  switch (codebook) {
    case Codebook::kNf4:
      return "nf4";
    case Codebook::kFp4:
      return "fp4";
    case Codebook::kFp8E4M3:
      return "fp8";
    case Codebook::kNone:
      break;
  }
  return "";
}

int BitsOf(Codebook codebook) { return codebook == Codebook::kFp8E4M3 ? 8 : 4; }

std::span<const float> ValuesOf(Codebook codebook) {
  switch (codebook) {
    case Codebook::kNf4:
      return kNf4Values;
    case Codebook::kFp4:
      return kFp4Values;
    case Codebook::kFp8E4M3:
      return kE4M3Values;
    case Codebook::kNone:
      break;
  }
  return {};
}

std::uint8_t NearestCode(Codebook codebook, float v) {
  if (codebook == Codebook::kFp8E4M3) {
    return NearestE4M3(v);
  }
  if (codebook == Codebook::kFp4) {
    return NearestFp4(v);
  }
  // lower_bound: midpoints strictly below v.
  return static_cast<std::uint8_t>(std::ranges::lower_bound(kNf4Midpoints, v) -
                                   kNf4Midpoints.begin());
}

}  // namespace nibble
