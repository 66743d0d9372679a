#pragma once

#include <cstdint>

namespace nibble {

/// What a paged cache stores keys and values in: CPU kBF16, kInt8 and kF32, CUDA all
/// but kF32. kFp8 is e4m3.
enum class KvDType : std::uint8_t { kBF16, kInt8, kF16, kF32, kFp8 };

}  // namespace nibble
