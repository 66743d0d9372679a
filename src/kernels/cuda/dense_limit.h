#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "device/cuda_device.h"

namespace nibble::cuda {

/// Floating point operations a second of one dense product of `size` cubed by cuBLASLt, fp16 in,
/// fp32 sums. `memory` holds three matrices of fp16 numbers and 64 MiB of workspace behind them.
/// Errors: kNotFound if the library is not installed; kUnavailable.
Result<double> DenseF16Rate(CudaDevice& device, std::byte* memory, std::int64_t size);
constexpr std::size_t DenseF16Bytes(std::int64_t size) {
  return static_cast<std::size_t>(3 * 2 * size * size) + (std::size_t{64} << 20);
}

}  // namespace nibble::cuda
