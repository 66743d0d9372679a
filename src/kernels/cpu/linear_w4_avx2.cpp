#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

namespace nibble {
namespace {

constexpr int kWeightBits = 4;

#include "kernels/cpu/linear_integer_avx2.inl"

constexpr LinearKernel kKernels[] = {
    {"linear.w4.int16.avx2", LinearFormat::kW4, LinearActivation::kInt16, Isa::kAvx2, 1, INT64_MAX,
     Run<2>},
    {"linear.w4.int8.avx2", LinearFormat::kW4, LinearActivation::kInt8, Isa::kAvx2, 1, INT64_MAX,
     Run<1>},
};

}  // namespace

LinearKernelList Avx2LinearW4Kernels() { return {kKernels, 2}; }

}  // namespace nibble
