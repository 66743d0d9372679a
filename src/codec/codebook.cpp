#include "codec/codebook.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "tensor/float16.h"

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

// Sign, and 0 or the magnitudes given; code 8 is -0.
constexpr std::array<float, 16> Signed(const std::array<float, 8>& magnitudes) {
  std::array<float, 16> values{};
  for (std::size_t code = 0; code < 16; ++code) {
    values[code] = code < 8 ? magnitudes[code] : -magnitudes[code - 8];
  }
  return values;
}

constexpr std::array<float, 16> kE2M1Values =
    Signed({0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F});

std::uint8_t NearestE2M1(float v) {
  const float magnitude = std::fabs(v);
  // Ties go to the even code: the odd ones keep neither of their ends.
  const int code = (magnitude > 0.25F ? 1 : 0) + (magnitude >= 0.75F ? 1 : 0) +
                   (magnitude > 1.25F ? 1 : 0) + (magnitude >= 1.75F ? 1 : 0) +
                   (magnitude > 2.5F ? 1 : 0) + (magnitude >= 3.5F ? 1 : 0) +
                   (magnitude > 5.0F ? 1 : 0);
  return static_cast<std::uint8_t>(code + (std::signbit(v) ? 8 : 0));
}

// Sign and exponent, of which 0 means 0; where the sign would make a second 0 of it, the exponent
// goes one lower instead. On SmolLM2 that loses least (docs/quantization.md).
constexpr std::array<float, 16> LogValues(std::uint32_t top) {
  std::array<float, 16> values{};  // with 3 bits the upper half is for kernels that read 16
  for (std::uint32_t code = 1; code <= 2 * top + 1; ++code) {
    const bool negative = code > top;
    const std::uint32_t exponent = negative ? code - top - 1 : code;
    const float magnitude = 1.0F / static_cast<float>(1U << (top - exponent));
    values[code] = negative ? -magnitude : magnitude;
  }
  return values;
}

constexpr std::uint32_t kLog4Top = 7;  // the code of 1
constexpr std::uint32_t kLog3Top = 3;
constexpr std::array<float, 16> kLog4Values = LogValues(kLog4Top);
constexpr std::array<float, 16> kLog3Values = LogValues(kLog3Top);

std::uint8_t NearestLog(float v, std::uint32_t top) {
  const bool negative = v < 0.0F;
  const float magnitude = std::fabs(v);
  std::uint32_t code = negative ? top + 1 : 1;
  const std::uint32_t last = negative ? 2 * top + 1 : top;
  float value = 1.0F / static_cast<float>(1U << (last - code));
  if (magnitude <= 0.5F * value) {
    return 0;
  }
  for (; code < last && magnitude > 1.5F * value; ++code) {
    value *= 2.0F;
  }
  return static_cast<std::uint8_t>(code);
}

constexpr float kLargestE4M3 = 448.0F;
constexpr float kLargestE5M2 = 57344.0F;

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

// e5m2 is the upper half of binary16.
constexpr std::array<float, 256> kE5M2Values = [] {
  std::array<float, 256> values{};
  for (std::uint32_t code = 0; code < 256; ++code) {
    values[code] = F16ToFloat(static_cast<std::uint16_t>(code << 8));
  }
  return values;
}();

std::uint8_t NearestE5M2(float v) {
  const float magnitude = std::min(std::fabs(v), kLargestE5M2);
  const std::uint32_t sign = std::signbit(v) ? 0x80U : 0U;
  std::uint32_t code = 0;
  if (magnitude < 0x1p-14F) {
    code = static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p16F));  // 4 is 2^-14 itself
  } else {
    const auto bits = std::bit_cast<std::uint32_t>(magnitude);
    code = ((bits + 0xfffffU + ((bits >> 21) & 1U)) >> 21) - (112U << 2);
  }
  return static_cast<std::uint8_t>(code | sign);
}

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
    case Codebook::kFp8E5M2:
      return "fp8-e5m2";
    case Codebook::kE2M1:
      return "e2m1";
    case Codebook::kLog4:
      return "log4";
    case Codebook::kLog3:
      return "log3";
    case Codebook::kNone:
      break;
  }
  return "";
}

std::optional<Codebook> ParseCodebook(std::string_view name) {
  for (const Codebook codebook :
       {Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3, Codebook::kFp8E5M2, Codebook::kE2M1,
        Codebook::kLog4, Codebook::kLog3}) {
    if (Name(codebook) == name) {
      return codebook;
    }
  }
  return std::nullopt;
}

int BitsOf(Codebook codebook) { return IsFp8(codebook) ? 8 : codebook == Codebook::kLog3 ? 3 : 4; }

float LargestOf(Codebook codebook) {
  switch (codebook) {
    case Codebook::kFp8E4M3:
      return kLargestE4M3;
    case Codebook::kFp8E5M2:
      return kLargestE5M2;
    case Codebook::kE2M1:
      return kE2M1Values[7];
    default:
      return 1.0F;
  }
}

std::span<const float> ValuesOf(Codebook codebook) {
  switch (codebook) {
    case Codebook::kNf4:
      return kNf4Values;
    case Codebook::kFp4:
      return kFp4Values;
    case Codebook::kFp8E4M3:
      return kE4M3Values;
    case Codebook::kFp8E5M2:
      return kE5M2Values;
    case Codebook::kE2M1:
      return kE2M1Values;
    case Codebook::kLog4:
      return kLog4Values;
    case Codebook::kLog3:
      return std::span(kLog3Values).first(8);
    case Codebook::kNone:
      break;
  }
  return {};
}

std::uint8_t NearestCode(Codebook codebook, float v) {
  switch (codebook) {
    case Codebook::kFp8E4M3:
      return NearestE4M3(v);
    case Codebook::kFp8E5M2:
      return NearestE5M2(v);
    case Codebook::kFp4:
      return NearestFp4(v);
    case Codebook::kE2M1:
      return NearestE2M1(v);
    case Codebook::kLog4:
      return NearestLog(v, kLog4Top);
    case Codebook::kLog3:
      return NearestLog(v, kLog3Top);
    case Codebook::kNf4:
    case Codebook::kNone:
      break;
  }
  // lower_bound: midpoints strictly below v.
  return static_cast<std::uint8_t>(std::ranges::lower_bound(kNf4Midpoints, v) -
                                   kNf4Midpoints.begin());
}

}  // namespace nibble
