#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "kernels/context.h"
#include "kernels/linear.h"
#include "kernels/paged_attention.h"
#include "kernels/sampling.h"
#include "kernels/step.h"
#include "kernels/weight_stream.h"

// The operators of kernels/*.h on a CUDA device: what kernels/*.cpp call where device.kind() says
// so. Activations that a product reads (normed, attention, gated) are fp16 at the start of each
// row, at the row pitch that the model gave for fp32; everything else is fp32. Errors of launches
// are noted with the device and surface at the end of the step (Device::Health).

namespace nibble::cuda {

Result<std::size_t> PackedSizeBytes(const WeightSpec& spec);
Result<void> PackRows(Device& device, const QuantizedTensor& rows, std::int64_t row_begin,
                      PackedWeight& weight);

void Linear(KernelContext& context, const float* x, std::int64_t x_stride, std::int64_t num_tokens,
            std::span<const LinearOutput> outputs);
/// Activations of 8 bits: what Linear keeps them in (KernelContext::scratch), whether the card has
/// products of them, and whether a weight's are.
std::size_t Fp8ScratchBytes(std::int64_t max_tokens, std::int64_t max_in_features);
Result<void> ValidateFp8Activations(const Device& device);
bool TakesFp8Activations(const WeightSpec& spec);
void Embedding(KernelContext& context, const PackedWeight& table, std::span<const TokenId> ids,
               float* out);
void AddRmsNorm(KernelContext& context, float* residual, const float* delta, const float* weight,
                float eps, float* out, std::int64_t num_tokens, std::int64_t width);
void AddBias(KernelContext& context, float* x, std::int64_t stride, const float* bias,
             std::int64_t num_tokens, std::int64_t width);
void SwiGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
            std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
            std::int64_t width);

/// Bytes of one head of a block.
std::int64_t HeadBytes(const KvCacheSpec& spec);
Result<void> Validate(const KvCacheSpec& spec);
void RopeAndCache(KernelContext& context, const KvCache& cache, std::int64_t layer,
                  const RopeAndCacheArgs& args, std::span<const AttentionSequence> sequences);
void PagedAttention(KernelContext& context, const KvCache& cache, std::int64_t layer,
                    const PagedAttentionArgs& args, std::span<const AttentionSequence> sequences);

void Sample(KernelContext& context, float* logits, std::int64_t logits_stride,
            std::int64_t vocab_size, std::span<const SampleRow> rows);

Result<void> StreamWeights(Device& device, const StreamedWeights& weights);

Result<void> PlanSteps(Device& device, const StepLimits& limits);
Result<void> PrepareSteps(Device& device, const StepLimits& limits);
Result<void> BeginStep(KernelContext& context, const KvCache& cache, const StepInputs& inputs);
StepSlot EndStep(KernelContext& context);
void CollectSamples(KernelContext& context, StepSlot slot, std::span<SampleResult> results);
void GatherRows(KernelContext& context, const float* x, std::int64_t x_stride,
                std::span<const std::int32_t> rows, float* out, std::int64_t width);
ActivationRows RowsOf(KernelContext& context, const float* x, std::int64_t x_stride,
                      std::int64_t rows, std::int64_t width);
void HostActivations(KernelContext& context, const float* x, std::int64_t x_stride,
                     std::int64_t rows, std::int64_t width, std::vector<float>& host);

}  // namespace nibble::cuda
