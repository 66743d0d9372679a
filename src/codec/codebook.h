#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// A fixed table of values, one a code.
enum class Codebook : std::uint8_t {
  kNone,
  kNf4,     // 4 bit: NormalFloat, quantiles of a normal distribution (bitsandbytes' table)
  kFp4,     // 4 bit: bitsandbytes' own, not OCP's e2m1: sign and 0, 1/192, 1/6 to 1 in six steps
  kFp8E4M3  // 8 bit: 1 sign, 4 exponent, 3 mantissa bits; no infinity, largest value 448
};

/// "nf4", "fp4", "fp8"; "" for kNone.
const char* Name(Codebook codebook);

/// Width of a code: 4 (kNf4, kFp4) or 8 (kFp8E4M3).
int BitsOf(Codebook codebook);

/// The value of each code, [2^bits]: -1 to 1 (kNf4, kFp4), -448 to 448 (kFp8E4M3, where the codes
/// 0x7f and 0xff are NaN). Empty for kNone.
std::span<const float> ValuesOf(Codebook codebook);

/// The code of the nearest value. v must not be NaN.
/// kNf4, kFp4: by the thresholds of bitsandbytes, the midpoints between neighbours; a value on one
/// goes to the lower magnitude (kNf4: to the lower value).
/// kFp8E4M3: round to nearest even, saturating at 448.
std::uint8_t NearestCode(Codebook codebook, float v);

/// Codes that stand for no number: 0x7f and 0xff of kFp8E4M3.
constexpr bool IsNan(Codebook codebook, std::uint8_t code) {
  return codebook == Codebook::kFp8E4M3 && (code & 0x7fU) == 0x7fU;
}

}  // namespace nibble
