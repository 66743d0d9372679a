// The build without CUDA.
#include "solve/cuda_solver.h"

namespace nibble {

SolverMemory MemoryOfCudaSolver(const SolverLimits&) { return {}; }

Result<std::unique_ptr<LinearSolver>> MakeCudaSolver(CudaDevice&, const SolverLimits&) {
  return Fail(ErrorCode::kUnavailable, "this build has no CUDA: quantize with --device cpu");
}

}  // namespace nibble
