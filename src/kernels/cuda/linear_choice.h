#pragma once

#include <span>

#include "device/cuda_device.h"
#include "kernels/cuda/linear_kernel.h"

namespace nibble::cuda {

/// 227 KB of shared memory a block and copies by tensor map: data-centre cards from Hopper on.
bool HasBigBlocks(const CudaDevice& device);

/// Which kernel a product runs on. All give the same bits, so this only decides about speed.
enum class LinearVariant : std::uint8_t { kSmall, kMedium, kLarge, kTile };
const char* Name(LinearVariant variant);
LinearVariant ChooseLinear(const CudaDevice& device, const LinearArgs& args);

/// Whether a product may be part of a chain (LaunchLinearChain), and whether these are one.
bool HasChains(const CudaDevice& device, const LinearArgs& args);
bool IsChain(std::span<const LinearArgs> products, int num_sms);

/// Whether the kernel of a product norms its input, too (LinearArgs::residual).
bool NormsInput(const CudaDevice& device, const LinearArgs& args);

/// Runs it on the kernel chosen, on the device's stream. Returns a cudaError_t.
int LaunchLinear(CudaDevice& device, const LinearArgs& args);

}  // namespace nibble::cuda
