#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"

namespace nibble {

// Small float operators. All sums run over 16 virtual lanes (element i belongs to lane i % 16, fma
// in order, then a fixed tree 8-4-2-1), and exp is our own polynomial, so every ISA and thread
// count gives the same bits.

/// residual[m, :] += delta[m, :] (skipped if delta is null); out[m, :] = residual[m, :] / rms *
/// weight, with rms = sqrt(mean(residual^2) + eps) (Zhang & Sennrich 2019). All [num_tokens, width]
/// fp32, contiguous. out may be null to only add, and on a CPU residual itself.
void AddRmsNorm(KernelContext& context, float* residual, const float* delta, const float* weight,
                float eps, float* out, std::int64_t num_tokens, std::int64_t width);

/// x[m, :] += bias[:], row stride in floats.
void AddBias(KernelContext& context, float* x, std::int64_t stride, const float* bias,
             std::int64_t num_tokens, std::int64_t width);

/// out[m, i] = silu(gate[m, i]) * up[m, i]; row strides in floats.
void SwiGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
            std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
            std::int64_t width);

/// y[i] = exp(x[i]) on the calling thread of a CPU, as ExpRef computes it. y may be x.
void Exp(const float* x, float* y, std::int64_t count);

/// out[m, i] = gelu(gate[m, i]) * up[m, i] with the tanh formula of GELU. CPU only: models that
/// need it are refused on a card.
void GeGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
           std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
           std::int64_t width);

/// x[m, :] *= factor; contiguous. CPU only.
void Scale(KernelContext& context, float* x, float factor, std::int64_t num_tokens,
           std::int64_t width);

/// exp as the kernels compute it: relative error <= 2e-7 (bound proved by the test over all of
/// [-104, 89]).
float ExpRef(float x);

}  // namespace nibble
