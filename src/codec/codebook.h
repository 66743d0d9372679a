#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace nibble {

/// A fixed table of values, one a code.
enum class Codebook : std::uint8_t {
  kNone,
  kNf4,      // 4 bit: NormalFloat, quantiles of a normal distribution (bitsandbytes' table)
  kFp4,      // 4 bit: bitsandbytes' own, not OCP's e2m1: sign and 0, 1/192, 1/6 to 1 in six steps
  kFp8E4M3,  // 8 bit: 1 sign, 4 exponent, 3 mantissa bits; no infinity, largest value 448
  kFp8E5M2,  // 8 bit: 1 sign, 5 exponent, 2 mantissa bits as in IEEE 754; largest value 57344
  kE2M1,     // 4 bit: OCP's FP4 (MXFP4, NVFP4): sign and 0, 0.5, 1, 1.5, 2, 3, 4, 6
  kLog4,     // 4 bit, powers of two: 0, 1/64 to 1, and -1/128 to -1
  kLog3      // 3 bit, powers of two: 0, 1/4 to 1, and -1/8 to -1
};

/// "nf4", "fp4", "fp8", "fp8-e5m2", "e2m1", "log4", "log3"; "" for kNone.
const char* Name(Codebook codebook);
/// The codebook of a name.
std::optional<Codebook> ParseCodebook(std::string_view name);

/// Width of a code: 3, 4 or 8.
int BitsOf(Codebook codebook);
/// The largest value of a code: 1, but 448 (kFp8E4M3), 57344 (kFp8E5M2) and 6 (kE2M1).
float LargestOf(Codebook codebook);

constexpr bool IsFp8(Codebook codebook) {
  return codebook == Codebook::kFp8E4M3 || codebook == Codebook::kFp8E5M2;
}
/// Whether the values are the same with the other sign, so that a negative scale says nothing new.
constexpr bool IsSymmetric(Codebook codebook) {
  return codebook == Codebook::kFp4 || codebook == Codebook::kE2M1 || IsFp8(codebook);
}

/// The value of each code, [2^bits]: up to LargestOf on both sides of 0; codes that stand for no
/// number (IsNan) have infinity or NaN. Empty for kNone. Tables of 3 bits go on behind the span up
/// to 16 values, as kernels read them.
std::span<const float> ValuesOf(Codebook codebook);

/// The code of the nearest value. v must not be NaN.
/// kNf4, kFp4: by the thresholds of bitsandbytes, the midpoints between neighbours; a value on one
/// goes to the lower magnitude (kNf4: to the lower value).
/// kE2M1: a value in the middle goes to the even code; kLog4, kLog3: to the lower magnitude.
/// kFp8E4M3, kFp8E5M2: round to nearest even, saturating at the largest value.
std::uint8_t NearestCode(Codebook codebook, float v);

/// Codes that stand for no number: 0x7f and 0xff of kFp8E4M3; 0x7c to 0x7f and 0xfc to 0xff of
/// kFp8E5M2.
constexpr bool IsNan(Codebook codebook, std::uint8_t code) {
  return (codebook == Codebook::kFp8E4M3 && (code & 0x7fU) == 0x7fU) ||
         (codebook == Codebook::kFp8E5M2 && (code & 0x7fU) >= 0x7cU);
}

}  // namespace nibble
