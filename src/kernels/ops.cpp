#include "kernels/ops.h"

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "kernels/cuda/backend.h"
#include "kernels/isa.h"
#include "kernels/ops_kernel.h"
#include "kernels/ref/lanes.h"

namespace nibble {
namespace {

const OpsKernels& Kernels() { return ForCurrentIsa(kRefOps, kAvx2Ops, kAvx512Ops); }

// Below this many floats in all, waking the pool (about 1 us) costs more than it gains.
constexpr std::int64_t kMinParallelFloats = 16384;
// A chunk of rows must be worth its atomic counter.
constexpr std::int64_t kMinChunkFloats = 4096;

template <typename Row>
void ForRows(KernelContext& context, std::int64_t num_tokens, std::int64_t width, Row row) {
  if (num_tokens <= 2 || num_tokens * width < kMinParallelFloats) {
    for (std::int64_t m = 0; m < num_tokens; ++m) {
      row(m);
    }
    return;
  }
  const std::int64_t grain = std::max<std::int64_t>(1, kMinChunkFloats / width);
  context.device->pool().For(num_tokens, grain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t m = begin; m < end; ++m) {
      row(m);
    }
  });
}

}  // namespace

void AddRmsNorm(KernelContext& context, float* residual, const float* delta, const float* weight,
                float eps, float* out, std::int64_t num_tokens, std::int64_t width) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::AddRmsNorm(context, residual, delta, weight, eps, out, num_tokens, width);
    return;
  }
  const auto run = Kernels().add_rms_norm;
  ForRows(context, num_tokens, width, [&](std::int64_t m) {
    run(residual + m * width, delta == nullptr ? nullptr : delta + m * width, weight, eps,
        out == nullptr ? nullptr : out + m * width, width);
  });
}

void AddBias(KernelContext& context, float* x, std::int64_t stride, const float* bias,
             std::int64_t num_tokens, std::int64_t width) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::AddBias(context, x, stride, bias, num_tokens, width);
    return;
  }
  const auto run = Kernels().add_bias;
  ForRows(context, num_tokens, width, [&](std::int64_t m) { run(x + m * stride, bias, width); });
}

void SwiGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
            std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
            std::int64_t width) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::SwiGlu(context, gate, gate_stride, up, up_stride, out, out_stride, num_tokens, width);
    return;
  }
  const auto run = Kernels().swiglu;
  // exp and a division make an element worth about four of the others.
  ForRows(context, num_tokens, 4 * width, [&](std::int64_t m) {
    run(gate + m * gate_stride, up + m * up_stride, out + m * out_stride, width);
  });
}

void Exp(const float* x, float* y, std::int64_t count) { Kernels().exp(x, y, count); }

void GeGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
           std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
           std::int64_t width) {
  NIBBLE_CHECK(context.device->kind() == DeviceKind::kCpu, "GeGlu runs on a CPU");
  const auto run = Kernels().geglu;
  ForRows(context, num_tokens, 4 * width, [&](std::int64_t m) {
    run(gate + m * gate_stride, up + m * up_stride, out + m * out_stride, width);
  });
}

void Scale(KernelContext& context, float* x, float factor, std::int64_t num_tokens,
           std::int64_t width) {
  NIBBLE_CHECK(context.device->kind() == DeviceKind::kCpu, "Scale runs on a CPU");
  ForRows(context, num_tokens, width, [&](std::int64_t m) {
    for (float& value : std::span(x + m * width, static_cast<std::size_t>(width))) {
      value *= factor;
    }
  });
}

float ExpRef(float x) { return ref::Exp(x); }

}  // namespace nibble
