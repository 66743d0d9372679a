#pragma once

#include <memory>

#include "base/result.h"
#include "device/cuda_device.h"
#include "solve/linear_solver.h"

namespace nibble {

// The LinearSolver of a card: docs/kernels/cuda_gptq.md.

/// MemoryOfSolver for a card.
SolverMemory MemoryOfCudaSolver(const SolverLimits& limits);
/// Errors: kUnavailable naming what is missing: cuBLAS, cuSOLVER, CUDA in the build.
Result<void> CheckCudaSolver();
/// Errors: those of CheckCudaSolver; kOutOfMemory.
Result<std::unique_ptr<LinearSolver>> MakeCudaSolver(CudaDevice& device,
                                                     const SolverLimits& limits);

}  // namespace nibble
