#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

namespace nibble {
namespace {

constexpr int kWeightBits = 4;
constexpr std::int64_t kPrefetchBytes = 2048;

#include "kernels/cpu/linear_integer_avx512.inl"

constexpr std::int64_t kAnyRows = INT64_MAX;

constexpr LinearKernel kKernels[] = {
    {"linear.w4.int16.avx512.rows", LinearFormat::kW4, LinearActivation::kInt16, Isa::kAvx512, 1, 4,
     Run<2, false>},
    {"linear.w4.int16.avx512.batch", LinearFormat::kW4, LinearActivation::kInt16, Isa::kAvx512, 5,
     kAnyRows, Run<2, true>},
    {"linear.w4.int8.avx512.rows", LinearFormat::kW4, LinearActivation::kInt8, Isa::kAvx512, 1, 4,
     Run<1, false>},
    {"linear.w4.int8.avx512.batch", LinearFormat::kW4, LinearActivation::kInt8, Isa::kAvx512, 5,
     kAnyRows, Run<1, true>},
};

}  // namespace

LinearKernelList Avx512LinearW4Kernels() { return {kKernels, 4}; }

}  // namespace nibble
