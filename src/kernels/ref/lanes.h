#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// Sixteen virtual lanes in plain C++: the arithmetic that every ISA level repeats bit for bit.
namespace nibble::ref {

using Lanes = std::array<float, 16>;

// Comparisons as the x86 instructions make them: with a NaN on either side the second one wins.
inline float Max(float a, float b) { return a > b ? a : b; }
inline float Min(float a, float b) { return a < b ? a : b; }

/// Tree 8-4-2-1 over the lanes.
inline float Sum(Lanes lanes) {
  for (std::size_t half = 8; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

inline float Max(Lanes lanes) {
  for (std::size_t half = 8; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      lanes[i] = Max(lanes[i], lanes[i + half]);
    }
  }
  return lanes[0];
}

/// x = n * ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite), e^r by a polynomial of degree 6 whose
/// relative error is 3.2e-9, times 2^n with one rounding. 0 below -104, infinity above
/// 88.722832 (the last argument whose result is finite).
inline float Exp(float x) {
  if (x < -104.0F) {
    return 0.0F;
  }
  if (x > 0x1.62e42ep6F) {
    return std::numeric_limits<float>::infinity();
  }
  if (x != x) {
    return x;
  }
  constexpr float kRound = 0x1.8p23F;  // adding it rounds to the nearest even integer
  const float n = (x * 0x1.715476p0F + kRound) - kRound;
  float r = std::fma(n, -0x1.62e43p-1F, x);
  r = std::fma(n, 0x1.05c61p-29F, r);
  float p = 0x1.6a4d14p-10F;
  p = std::fma(p, r, 0x1.12398ap-7F);
  p = std::fma(p, r, 0x1.5558bp-5F);
  p = std::fma(p, r, 0x1.555492p-3F);
  p = std::fma(p, r, 0x1.fffffcp-2F);
  p = std::fma(p, r, 1.0F);
  p = std::fma(p, r, 1.0F);
  // Two factors, as 2^n alone may not be representable; only the second product can round.
  const auto whole = static_cast<std::int32_t>(n);
  const std::int32_t half = whole >> 1;
  const auto power = [](std::int32_t e) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23);
  };
  return p * power(half) * power(whole - half);
}

}  // namespace nibble::ref
