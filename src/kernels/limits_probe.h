#pragma once

#include "base/thread_pool.h"
#include "kernels/isa_level.h"

namespace nibble {

/// What this machine can do at most right now, to print beside every figure of speed. Rates of all
/// workers of the pool together unless the name says one.
struct MachineLimits {
  int num_threads = 1;
  double read_gb_per_s_one = 0.0;  // memory read, one thread
  double read_gb_per_s = 0.0;      // memory read, all threads
  double int8_gop_per_s = 0.0;     // u8 x s8 products in registers
  double f32_gop_per_s = 0.0;      // fp32 FMA in registers
};

/// Measures for about `seconds`; the best of several repetitions, as the machine may be shared.
/// Needs 256 MiB for the time of the call. Rates of arithmetic are 0 at Isa::kRef.
MachineLimits MeasureLimits(ThreadPool& pool, Isa isa, double seconds = 1.0);

}  // namespace nibble
