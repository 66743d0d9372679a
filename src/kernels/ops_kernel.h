#pragma once

#include <cstdint>

namespace nibble {

// The small float operators of one ISA level, one row a call. The arithmetic (order of sums, where
// fma is used) is written down in kernels/ref/ops_ref.cpp; every level gives the same bits.
struct OpsKernels {
  const char* name;
  // residual += delta (if any); out = residual * (1 / sqrt(mean(residual^2) + eps)) * weight (if
  // out). out may be delta.
  void (*add_rms_norm)(float* residual, const float* delta, const float* weight, float eps,
                       float* out, std::int64_t width);
  void (*add_bias)(float* x, const float* bias, std::int64_t width);
  // out = gate / (1 + exp(-gate)) * up. out may be gate or up.
  void (*swiglu)(const float* gate, const float* up, float* out, std::int64_t width);
  // out = gelu(gate) * up by the tanh formula. out may be gate or up.
  void (*geglu)(const float* gate, const float* up, float* out, std::int64_t width);
  void (*exp)(const float* x, float* y, std::int64_t count);
};

// Of GELU by tanh (Hendrycks & Gimpel 2016): -2 sqrt(2 / pi) and 0.044715 times it.
constexpr float kGeluLinear = -1.5957691216F;
constexpr float kGeluCubic = -0.0713548163F;

extern const OpsKernels kRefOps;
extern const OpsKernels kAvx2Ops;
extern const OpsKernels kAvx512Ops;

}  // namespace nibble
