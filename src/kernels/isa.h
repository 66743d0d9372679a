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
/// Of the kernels of each level, those of CurrentIsa.
template <typename Kernels>
const Kernels& ForCurrentIsa(const Kernels& ref, const Kernels& avx2, const Kernels& avx512) {
  const Isa isa = CurrentIsa();
  return isa >= Isa::kAvx512 ? avx512 : isa == Isa::kAvx2 ? avx2 : ref;
}
/// For tests and `--isa`: lowers the level. Asking for more than the machine has is ignored and
/// returns false.
bool ForceIsa(Isa isa);
/// "AMD EPYC ... avx512 vnni bf16 (no amx)", to print beside every figure.
std::string DescribeCpu();

}  // namespace nibble
