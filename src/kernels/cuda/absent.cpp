// The build without CUDA: no device says kCuda, so nothing here is ever called, but for questions
// about a cache that is not the CPU's.
#include <fmt/format.h>

#include <cstdlib>

#include "base/check.h"
#include "kernels/cuda/backend.h"
#include "kernels/kernel_table.h"
#include "kernels/limits_probe.h"

namespace nibble::cuda {
namespace {
[[noreturn]] void Absent() {
  NIBBLE_CHECK(false, "a CUDA kernel in a build without CUDA");
  std::abort();
}
}  // namespace

void Linear(KernelContext&, const float*, std::int64_t, std::int64_t,
            std::span<const LinearOutput>) {
  Absent();
}
std::size_t Fp8ScratchBytes(std::int64_t, std::int64_t) { Absent(); }
Result<void> ValidateFp8Activations(const Device&) { Absent(); }
bool TakesFp8Activations(const WeightSpec&) { return false; }
void Embedding(KernelContext&, const PackedWeight&, std::span<const TokenId>, float*) { Absent(); }
void AddRmsNorm(KernelContext&, float*, const float*, const float*, float, float*, std::int64_t,
                std::int64_t) {
  Absent();
}
void AddBias(KernelContext&, float*, std::int64_t, const float*, std::int64_t, std::int64_t) {
  Absent();
}
void SwiGlu(KernelContext&, const float*, std::int64_t, const float*, std::int64_t, float*,
            std::int64_t, std::int64_t, std::int64_t) {
  Absent();
}
std::int64_t HeadBytes(const KvCacheSpec& spec) {
  return 4 * spec.block_size_tokens * spec.head_dim;
}
Result<void> Validate(const KvCacheSpec& spec) {
  return Fail(
      ErrorCode::kUnsupported,
      fmt::format("KV blocks of {} tokens: the CPU's kernels take 16", spec.block_size_tokens));
}
void RopeAndCache(KernelContext&, const KvCache&, std::int64_t, const RopeAndCacheArgs&,
                  std::span<const AttentionSequence>) {
  Absent();
}
void PagedAttention(KernelContext&, const KvCache&, std::int64_t, const PagedAttentionArgs&,
                    std::span<const AttentionSequence>) {
  Absent();
}
void Sample(KernelContext&, float*, std::int64_t, std::int64_t, std::span<const SampleRow>) {
  Absent();
}
Result<void> StreamWeights(Device&, const StreamedWeights&) { Absent(); }
Result<void> PlanSteps(Device&, const StepLimits&) { Absent(); }
Result<void> PrepareSteps(Device&, const StepLimits&) { Absent(); }
Result<void> BeginStep(KernelContext&, const KvCache&, const StepInputs&) { Absent(); }
StepSlot EndStep(KernelContext&) { Absent(); }
void CollectSamples(KernelContext&, StepSlot, std::span<SampleResult>) { Absent(); }
void GatherRows(KernelContext&, const float*, std::int64_t, std::span<const std::int32_t>, float*,
                std::int64_t) {
  Absent();
}
ActivationRows RowsOf(KernelContext&, const float*, std::int64_t, std::int64_t, std::int64_t) {
  Absent();
}
void HostActivations(KernelContext&, const float*, std::int64_t, std::int64_t, std::int64_t,
                     std::vector<float>&) {
  Absent();
}

}  // namespace nibble::cuda

namespace nibble {

Result<CardLimits> MeasureCardLimits(Device&) { cuda::Absent(); }
std::vector<KernelInfo> CudaKernelInfos() { return {}; }

}  // namespace nibble
