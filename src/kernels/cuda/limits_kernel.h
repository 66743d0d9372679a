#pragma once

#include <cstdint>

struct CUstream_st;

namespace nibble::cuda {

// Kernels that show what a card can do at most (limits.cpp), and what benches fill memory with.
// Each launcher returns a cudaError_t.

/// Pseudo-random fp16 numbers of about 1/128, either sign: no value that arithmetic treats apart,
/// and as much switching as real data. size_bytes in multiples of 16.
int LaunchFill(void* data, std::int64_t size_bytes, CUstream_st* stream);

/// Reads `size_bytes` (a multiple of kReadGrain) once, from end to end.
enum class ReadMethod : std::uint8_t {
  kLoads4,  // 4 independent 16-byte loads a thread
  kLoads8,
  kCopies  // bulk copies to shared memory: Hopper and its successors
};
constexpr std::int64_t kReadGrain = 64 * 1024;
int LaunchReadStream(ReadMethod method, void* data, std::int64_t size_bytes, int num_sms,
                     CUstream_st* stream);

/// One block an SM that does nothing. Dependent: it may start while the launch before it ends.
int LaunchEmpty(bool dependent, int num_sms, CUstream_st* stream);

}  // namespace nibble::cuda
