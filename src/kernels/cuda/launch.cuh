#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace nibble::cuda {

/// Launches a kernel that calls LaunchDependents and WaitForPrevious: its prologue may overlap the
/// end of the kernel before it.
template <typename... Args>
int Launch(void (*kernel)(Args...), dim3 grid, int threads, int smem_bytes, cudaStream_t stream,
           std::type_identity_t<Args>... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(smem_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace nibble::cuda
