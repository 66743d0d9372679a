#pragma once

#include <string>

#include "base/result.h"
#include "base/thread_pool.h"
#include "device/device.h"
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
  double int16_gop_per_s = 0.0;    // the same of int16
};

/// Measures for about `seconds`; the best of several repetitions, as the machine may be shared.
/// Needs 256 MiB for the time of the call. Rates of arithmetic are 0 at Isa::kRef.
MachineLimits MeasureLimits(ThreadPool& pool, Isa isa, double seconds = 1.0);

/// What a card can do at most right now.
struct CardLimits {
  std::string name;
  int num_sms = 0;
  double read_gb_per_s = 0.0;      // device memory read as a stream
  double copy_gb_per_s = 0.0;      // pinned host memory copied to the card; 0: not measured
  double graph_node_us = 0.0;      // one of many empty kernels of a recorded step, a block an SM
  double dependent_node_us = 0.0;  // the same where each may start while the one before it ends
  double f16_gflop_per_s = 0.0;  // a dense fp16 product of 8192 cubed by cuBLASLt; 0: not measured
  std::string f16_missing;       // why not
};

/// Measures on the device's stream for about two seconds; nothing else may run on it. Needs 2 GiB
/// of the card for the time of the call, or what is free. Errors: kOutOfMemory, kUnavailable.
Result<CardLimits> MeasureCardLimits(Device& device);

}  // namespace nibble
