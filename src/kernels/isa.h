#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kernels/isa_level.h"

namespace nibble {

const char* Name(Isa isa);
std::optional<Isa> ParseIsa(std::string_view name);

/// The highest level this machine can run (CPUID + XCR0).
Isa DetectIsa();
/// Whether the level in use may multiply pairs of bf16 (vdpbf16ps): some of kAvx512 do not have it.
bool HasBf16Products();
/// Whether that is the fastest way: on AMD's (Zen 4: 117 G products/s a core, fp32 fma 59). Intel's
/// Emerald Rapids begins one every other cycle, where it begins four fma: 41 G and 86.
bool HasFastBf16Products();
/// The level the kernels use: DetectIsa unless lowered by ForceIsa. Read once per operator.
Isa CurrentIsa();
/// For tests and `--isa`: lowers the level. Asking for more than the machine has is ignored and
/// returns false.
bool ForceIsa(Isa isa);
/// "AMD EPYC ... avx512 vnni bf16 (no amx)", to print beside every figure.
std::string DescribeCpu();

}  // namespace nibble
