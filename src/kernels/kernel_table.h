#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "device/device.h"
#include "kernels/isa_level.h"
#include "kernels/limits_probe.h"

namespace nibble {

/// What forcing one variant against kernels/ref found.
struct KernelReport {
  bool ok = true;
  std::int64_t num_cases = 0;
  std::string detail;  // of the first difference; empty if ok
};

/// One measurement of one variant.
struct KernelSpeed {
  enum class Limit : std::uint8_t {
    kRead,
    kInt8,
    kF32,
    kInt16,
    kF16,
    kFp8  // twice kF16, as tensor cores multiply 8 bits; not measured by itself
  };
  std::string shape;     // "out=2048 in=2048 rows=1"
  double bytes = 0.0;    // moved in one call, weights and inputs that come from memory
  double ops = 0.0;      // multiplications and additions in one call
  double seconds = 0.0;  // one call, median
  int num_runs = 0;
  Limit limit = Limit::kRead;  // what bounds it
  double limb_products = 1.0;  // integer products per product of the formula: 2 for int16
};

/// One variant of one kernel, as `nibble kernels` lists it.
struct KernelInfo {
  std::string name;    // "linear.w4.int16.avx512.rows"
  std::string family;  // "linear"
  Isa isa = Isa::kRef;
  std::string accepts;  // shapes it takes: "1-4 rows"
  std::function<KernelReport(std::uint32_t seed)> check;
  /// Measures on all workers of the device; empty: not measured.
  std::function<std::vector<KernelSpeed>(Device& device)> bench;
};

/// Every variant of this build, also those that this machine cannot run. A family adds its own
/// function here and to the list in kernel_table.cpp.
std::vector<KernelInfo> KernelTable();
std::vector<KernelInfo> LinearKernelInfos();
std::vector<KernelInfo> FloatKernelInfos();  // norms, RoPE, attention, sampling, products, grids

/// The CUDA kernels on the shapes of a layer of Llama-2-7B: W4 products in groups of 128, attention
/// over an fp16 cache. To be measured on a CUDA device; their check is the gpu suite of the tests.
/// Empty in a build without CUDA.
std::vector<KernelInfo> CudaKernelInfos();

/// Share of the limit that a measurement reached, 0 if the limit is unknown.
double FractionOfLimit(const KernelSpeed& speed, const MachineLimits& limits);
double FractionOfLimit(const KernelSpeed& speed, const CardLimits& limits);

/// The median of at least 10 timings of `run`, within about `seconds`.
struct Timing {
  double seconds = 0.0;
  int num_runs = 0;
};
Timing MedianTime(double seconds, const std::function<void()>& run);

}  // namespace nibble
