#pragma once

#include <cstdint>

#include "kernels/isa_level.h"

namespace nibble {

/// Loops that show what one core can do at most, per ISA (limits_probe.h). Plain data only.
struct LimitKernels {
  Isa isa;
  void (*read)(const std::uint8_t* data, std::int64_t size_bytes);  // size a multiple of 4096
  void (*int8_products)(std::int64_t iterations);  // u8 x s8 summed in int32, registers only
  double int8_ops_per_iteration;                   // a multiplication and an addition are two
  void (*f32_fma)(std::int64_t iterations);
  double f32_ops_per_iteration;
  void (*int16_products)(std::int64_t iterations);  // pairs of them summed in int32
  double int16_ops_per_iteration;
};

LimitKernels Avx2LimitKernels();
LimitKernels Avx512LimitKernels();

}  // namespace nibble
