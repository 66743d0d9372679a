#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/linear_kernel.h"

namespace nibble {

/// Runs one variant directly, whatever the dispatch would choose, on random weights of every grid
/// and unit width over odd shapes, and compares bits with kernels/ref.
KernelReport CheckLinearKernel(const LinearKernel& kernel, std::uint32_t seed);
KernelReport CheckActivationKernel(const ActivationKernel& kernel, std::uint32_t seed);

}  // namespace nibble
