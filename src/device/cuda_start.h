#pragma once

#include <string>

namespace nibble {

/// The CUDA version that the backend is compiled for; drivers of the same major version run it.
inline constexpr int kCudaVersion = 13000;

/// Why CUDA does not start, and how to mend it. `error` is what cudaGetDeviceCount, or cuInit,
/// gave (the numbers agree); driver_version what the driver speaks, 13000 for 13.0, 0 if there is
/// none; `text` the error in CUDA's words; `library` what is wrong with a libcuda.so.1 that is
/// there (ProblemOfDriver).
std::string ExplainCudaStart(int error, int driver_version, const std::string& text,
                             const std::string& library);

/// Why the driver's library cannot be used although it is there; empty if it can, or is not there.
std::string ProblemOfDriver();

/// Whether this program has the CUDA backend.
bool BuiltWithCuda();

}  // namespace nibble
