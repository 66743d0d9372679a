// The build without CUDA.
#include "solve/cuda_solver.h"

namespace nibble {

SolverMemory MemoryOfCudaSolver(const SolverLimits&) { return {}; }

Result<void> CheckCudaSolver() {
  return Fail(ErrorCode::kUnavailable, "this build has no CUDA: quantize with --device cpu");
}

Result<std::unique_ptr<LinearSolver>> MakeCudaSolver(CudaDevice&, const SolverLimits&) {
  return tl::unexpected<Error>(CheckCudaSolver().error());
}

}  // namespace nibble
