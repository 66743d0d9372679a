#include "kernels/step.h"

#include <cstring>

#include "kernels/cuda/backend.h"

namespace nibble {

Result<void> PlanSteps(Device& device, const StepLimits& limits) {
  return device.kind() == DeviceKind::kCuda ? cuda::PlanSteps(device, limits) : Result<void>{};
}

Result<void> PrepareSteps(Device& device, const StepLimits& limits) {
  return device.kind() == DeviceKind::kCuda ? cuda::PrepareSteps(device, limits) : Result<void>{};
}

Result<void> BeginStep(KernelContext& context, const KvCache& cache, const StepInputs& inputs) {
  return context.device->kind() == DeviceKind::kCuda ? cuda::BeginStep(context, cache, inputs)
                                                     : Result<void>{};
}

StepSlot EndStep(KernelContext& context) {
  return context.device->kind() == DeviceKind::kCuda ? cuda::EndStep(context) : StepSlot{0};
}

void CollectSamples(KernelContext& context, StepSlot slot, std::span<SampleResult> results) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::CollectSamples(context, slot, results);
  }
}

void GatherRows(KernelContext& context, const float* x, std::int64_t x_stride,
                std::span<const std::int32_t> rows, float* out, std::int64_t width) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::GatherRows(context, x, x_stride, rows, out, width);
    return;
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(out + static_cast<std::int64_t>(i) * width, x + rows[i] * x_stride,
                static_cast<std::size_t>(width) * sizeof(float));
  }
}

ActivationRows RowsOf(KernelContext& context, const float* x, std::int64_t x_stride,
                      std::int64_t rows, std::int64_t width) {
  return context.device->kind() == DeviceKind::kCuda
             ? cuda::RowsOf(context, x, x_stride, rows, width)
             : ActivationRows{.data = x, .stride = x_stride, .num_rows = rows, .width = width};
}

const float* HostActivations(KernelContext& context, const float* x, std::int64_t x_stride,
                             std::int64_t rows, std::int64_t width, std::vector<float>& host) {
  if (context.device->kind() != DeviceKind::kCuda) {
    return x;
  }
  cuda::HostActivations(context, x, x_stride, rows, width, host);
  return host.data();
}

}  // namespace nibble
