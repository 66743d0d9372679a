#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/ops_kernel.h"
#include "kernels/ref/lanes.h"

namespace nibble {
namespace {

void AddRmsNormRow(float* residual, const float* delta, const float* weight, float eps, float* out,
                   std::int64_t width) {
  ref::Lanes squares{};
  for (std::int64_t i = 0; i < width; ++i) {
    if (delta != nullptr) {
      residual[i] += delta[i];
    }
    float& lane = squares[static_cast<std::size_t>(i % 16)];
    lane = std::fma(residual[i], residual[i], lane);
  }
  if (out == nullptr) {
    return;
  }
  const float inverse_rms = 1.0F / std::sqrt(ref::Sum(squares) / static_cast<float>(width) + eps);
  for (std::int64_t i = 0; i < width; ++i) {
    out[i] = residual[i] * inverse_rms * weight[i];
  }
}

void AddBiasRow(float* x, const float* bias, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    x[i] += bias[i];
  }
}

void SwiGluRow(const float* gate, const float* up, float* out, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    out[i] = gate[i] / (1.0F + ref::Exp(-gate[i])) * up[i];
  }
}

// gelu(x) = x / 2 * (1 + tanh u) = x / (1 + exp(-2u)),  -2u = x (a + b x^2)
void GeGluRow(const float* gate, const float* up, float* out, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    const float x = gate[i];
    const float minus_2u = std::fma(x * x, kGeluCubic, kGeluLinear) * x;
    out[i] = x / (1.0F + ref::Exp(minus_2u)) * up[i];
  }
}

void ExpRow(const float* x, float* y, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    y[i] = ref::Exp(x[i]);
  }
}

}  // namespace

const OpsKernels kRefOps = {.name = "ref",
                            .add_rms_norm = AddRmsNormRow,
                            .add_bias = AddBiasRow,
                            .swiglu = SwiGluRow,
                            .geglu = GeGluRow,
                            .exp = ExpRow};

}  // namespace nibble
