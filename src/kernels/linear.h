#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/ids.h"
#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "kernels/context.h"

namespace nibble {

/// A weight matrix in the layout of one device, opaque to models. Points into memory that the model
/// planned. The CPU's layout: docs/formats/packed_weight.md.
struct PackedWeight {
  WeightSpec spec;
  std::byte* data = nullptr;
  std::size_t size_bytes = 0;
  int part = -1;  // >= 0: it comes to `data` from host memory with this part (weight_stream.h)
};

/// Bytes that Pack will write, known from the spec alone: memory is planned before weights are
/// read. Errors: kUnsupported for a spec that no kernel runs (the message says which are).
Result<std::size_t> PackedSizeBytes(const Device& device, const WeightSpec& spec);

/// Writes rows [row_begin, row_begin + rows.spec.rows) of `weight` from canonical form. row_begin
/// is a multiple of 16; the last call may end at an odd row. rows.spec must equal weight.spec but
/// for the number of rows. Calls for disjoint rows may run in parallel.
Result<void> PackRows(Device& device, const QuantizedTensor& rows, std::int64_t row_begin,
                      PackedWeight& weight);

/// One product of a launch: y[m, 0..rows) = x[m, :] W^T for every token row m. No bias.
struct LinearOutput {
  const PackedWeight* weight = nullptr;
  float* y = nullptr;
  std::int64_t y_stride = 0;  // floats between token rows
};

/// Products that share one input (q, k, v; gate, up), in one launch.
/// x: [num_tokens, in_features] fp32, row stride x_stride. Integer weights meet the activations as
/// context.activations says; integer inside a group, fp32 over groups in order, so a row's result
/// does not depend on the other rows, on the thread count or on the ISA.
void Linear(KernelContext& context, const float* x, std::int64_t x_stride, std::int64_t num_tokens,
            std::span<const LinearOutput> outputs);

/// Scratch that Linear needs for up to max_tokens rows of up to max_in_features.
std::size_t LinearScratchBytes(const Device& device, std::int64_t max_tokens,
                               std::int64_t max_in_features,
                               ActivationMode mode = ActivationMode::kInt16);

/// Errors: kUnsupported, with the reason, if the device does not compute with such activations.
Result<void> ValidateActivations(const Device& device, ActivationMode mode);
/// Whether Linear of this weight meets e4m3 activations where the mode is kFp8.
bool TakesFp8Activations(const WeightSpec& spec);

/// out[i, :] = row ids[i] of the packed table, dequantized to fp32. Ids must be below
/// table.spec.rows.
void Embedding(KernelContext& context, const PackedWeight& table, std::span<const TokenId> ids,
               float* out);

}  // namespace nibble
