#pragma once

#include <vector>

#include "kernels/kernel_table.h"

namespace nibble::cuda {

/// The kernels of GPTQ and the product of its sums at the shapes of Llama-2-7B, a part of
/// CudaKernelInfos. Whole phases, factors among them: solve_cuda_test's timing.
std::vector<KernelInfo> GptqKernelInfos();

}  // namespace nibble::cuda
