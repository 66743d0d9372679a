#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// What the CUDA backend runs on: its attention copies by cp.async.bulk (Hopper). The products and
/// small kernels also run on 8.0 (A100).
inline constexpr int kLeastComputeCapability = 90;

struct CudaCard {
  std::string name;
  int compute_capability = 0;  // 90 for 9.0
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;  // 0: unknown, there is no NVML
  int num_sms = 0;
  int clock_mhz = 0;         // the highest of the SMs
  int memory_clock_mhz = 0;  // the highest
  int memory_bus_bits = 0;
  std::uint64_t l2_bytes = 0;
};

struct CudaLibrary {
  std::string name;  // "libnccl.so.2"
  std::string path;  // empty: not found
  std::string used_for;
};

/// What of CUDA this machine has. Asked of the driver's own library, so every build can say it.
struct CudaInfo {
  bool built_in = false;       // this program has the CUDA backend
  int cuda_version = 0;        // that the driver speaks, 13000 for 13.0; 0: no driver
  std::string driver_version;  // "580.82.07", empty if unknown
  std::vector<CudaCard> cards;
  std::string problem;  // what keeps the backend from starting, and how to mend it; empty: nothing
  std::vector<CudaLibrary> libraries;
};
CudaInfo ProbeCuda();

}  // namespace nibble
