#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

namespace nibble {
namespace {

constexpr int kWeightBits = 8;

#include "kernels/cpu/linear_integer_avx2.inl"

constexpr LinearKernel kKernels[] = {
    {"linear.w8.int16.avx2", LinearFormat::kW8, LinearActivation::kInt16, Isa::kAvx2, 1, INT64_MAX,
     Run<2>},
    {"linear.w8.int8.avx2", LinearFormat::kW8, LinearActivation::kInt8, Isa::kAvx2, 1, INT64_MAX,
     Run<1>},
};

}  // namespace

LinearKernelList Avx2LinearW8Kernels() { return {kKernels, 2}; }

}  // namespace nibble
