#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kernels/activation_rows.h"
#include "kernels/context.h"
#include "kernels/paged_attention.h"
#include "kernels/sampling.h"

namespace nibble {

// What a step's kernels read besides weights and activations, and how a device gets it. A CPU reads
// the spans where they are, so all of this is nothing there; CUDA copies them once a step to fixed
// addresses, so that a recorded step can be replayed.

/// The most that steps of one runner bring.
struct StepLimits {
  std::int64_t max_tokens = 0;
  std::int64_t max_sequences = 0;
  std::int64_t max_positions = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int32_t sliding_window = 0;  // 0: none
  std::int64_t vocab_size = 0;
  int max_in_flight = 1;  // steps begun and not yet collected
};

/// Adds the lines of step inputs, attention and the sampler to the ledger, on the device and on the
/// host. Errors: kUnsupported for heads that no kernel of the device takes.
Result<void> PlanSteps(Device& device, const StepLimits& limits);
/// Allocates what PlanSteps announced. Errors: kOutOfMemory.
Result<void> PrepareSteps(Device& device, const StepLimits& limits);

struct StepInputs {
  std::span<const TokenId> token_ids;  // [rows]
  /// [rows], or empty: >= 0 takes the token that an earlier step sampled for this slot instead.
  std::span<const std::int32_t> token_slots = {};
  std::span<const AttentionSequence> sequences;  // cover the rows in order
  /// All rows whose logits the step will ask for, in order; empty if it asks later.
  std::span<const std::int32_t> logit_rows = {};
  std::span<const SampleRow> samples = {};          // beside logit_rows
  std::span<const std::int32_t> sample_slots = {};  // where sampled tokens stay; -1: nowhere
};

/// Hands a step's inputs to the device. The same spans, or parts of them, go to the operators.
/// Errors: kLimitExceeded where the step's biased tokens exceed their buffer.
Result<void> BeginStep(KernelContext& context, const KvCache& cache, const StepInputs& inputs);

/// A step whose sampled results come to the host by themselves once its event is complete.
enum class StepSlot : std::int32_t {};
/// The slot of the step begun last.
StepSlot EndStep(KernelContext& context);
/// After the step's event: fills results[i] of samples[i]. On a CPU Sample has done so.
void CollectSamples(KernelContext& context, StepSlot slot, std::span<SampleResult> results);

/// rows[i] of x (row stride in floats) to out[i], contiguous.
void GatherRows(KernelContext& context, const float* x, std::int64_t x_stride,
                std::span<const std::int32_t> rows, float* out, std::int64_t width);

/// Activations [rows, width] that an operator wrote, where they are. What waits is launched.
ActivationRows RowsOf(KernelContext& context, const float* x, std::int64_t x_stride,
                      std::int64_t rows, std::int64_t width);

/// fp32 values of activations [rows, width] that an operator wrote, for observers and tests: on a
/// CPU x itself, else a copy in `host`.
const float* HostActivations(KernelContext& context, const float* x, std::int64_t x_stride,
                             std::int64_t rows, std::int64_t width, std::vector<float>& host);

}  // namespace nibble
