#pragma once

#include <cstdint>

#include "base/check.h"
#include "tensor/tensor.h"

namespace nibble {

/// Inputs of a linear as the operators of a device leave them, in the device's memory: fp32 on a
/// CPU; on CUDA fp16 at the pitch of fp32 rows, gated products times 1/32 (adr/0007).
struct ActivationRows {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kF32 or kF16
  std::int64_t stride = 0;    // numbers between rows
  float scale = 1.0F;         // a value is its number times this power of two
  std::int64_t num_rows = 0;
  std::int64_t width = 0;

  /// [num_rows, width], contiguous: what a CPU leaves.
  const float* floats() const {
    NIBBLE_CHECK(dtype == DType::kF32 && stride == width && scale == 1.0F, "rows of a card");
    return static_cast<const float*>(data);
  }
};

}  // namespace nibble
