#pragma once

#include <cstdint>

namespace nibble {

/// Levels of kernels, in rising order. A level runs everything the levels below it need.
enum class Isa : std::uint8_t {
  kRef,     // scalar C++, the truth
  kAvx2,    // AVX2 + FMA + F16C
  kAvx512,  // AVX-512 F/BW/VL/DQ + VNNI
  kAmx,     // + AMX tiles (kernels come later; reported only)
};

}  // namespace nibble
