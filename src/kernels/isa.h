#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// Levels of kernels, in rising order. A level runs everything the levels below it need.
enum class Isa : std::uint8_t {
  kRef,     // scalar C++, the truth
  kAvx2,    // AVX2 + FMA + F16C
  kAvx512,  // AVX-512 F/BW/VL/DQ + VNNI
  kAmx,     // + AMX tiles (kernels come later; reported only)
};

const char* Name(Isa isa);
std::optional<Isa> ParseIsa(std::string_view name);

/// The highest level this machine can run (CPUID + XCR0).
Isa DetectIsa();
/// The level the kernels use: DetectIsa unless lowered by ForceIsa. Read once per operator.
Isa CurrentIsa();
/// For tests and `--isa`: lowers the level. Asking for more than the machine has is ignored and
/// returns false.
bool ForceIsa(Isa isa);
/// "AMD EPYC ... avx512 vnni bf16 (no amx)", to print beside every figure.
std::string DescribeCpu();

}  // namespace nibble
