#pragma once

#include <cstdint>

namespace nibble {

/// What a paged cache stores keys and values in: CPU kBF16, kInt8 and kF32, CUDA kF16 and kBF16.
enum class KvDType : std::uint8_t { kBF16, kInt8, kF16, kF32 };

}  // namespace nibble
