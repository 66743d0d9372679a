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
/// The level the kernels use: DetectIsa unless lowered by ForceIsa. Read once per operator.
Isa CurrentIsa();
/// For tests and `--isa`: lowers the level. Asking for more than the machine has is ignored and
/// returns false.
bool ForceIsa(Isa isa);
/// "AMD EPYC ... avx512 vnni bf16 (no amx)", to print beside every figure.
std::string DescribeCpu();

}  // namespace nibble
