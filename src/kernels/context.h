#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.h"

namespace nibble {

/// Arithmetic of the activations that meet integer weights (docs/adr/0002-one-arithmetic.md). Float
/// weights always meet fp32 activations.
enum class ActivationMode : std::uint8_t {
  kInt16,  // one scale a token, two int8 limbs
  kInt8,   // one scale per 64 values of a token
  /// Hopper cards: e4m3, one scale a token, for weights of 4 bits in symmetric groups of 128; fp16
  /// for all others (docs/adr/0010-fp8-activations.md). What other modes are there, too: fp16.
  kFp8,
};

/// What every kernel call gets. Scratch belongs to the caller, is sized once at load
/// (LinearScratchBytes, AttentionScratchBytes) and is never freed or grown by a kernel.
struct KernelContext {
  Device* device = nullptr;
  std::byte* scratch = nullptr;
  std::size_t scratch_bytes = 0;
  ActivationMode activations = ActivationMode::kInt16;
};

}  // namespace nibble
