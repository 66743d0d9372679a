#include "kernels/linear.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/check.h"
#include "kernels/cuda/backend.h"
#include "kernels/isa.h"
#include "kernels/linear_table.h"
#include "kernels/pack.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxOutputs = 8;

LinearActivation ActivationFor(LinearFormat format, ActivationMode mode) {
  if (format != LinearFormat::kW4 && format != LinearFormat::kW8) {
    return LinearActivation::kF32;
  }
  return mode == ActivationMode::kInt16 ? LinearActivation::kInt16 : LinearActivation::kInt8;
}

std::size_t LargestActivationBytes(std::int64_t num_rows, std::int64_t cols) {
  return std::max(ActivationBytes(LinearActivation::kInt16, num_rows, cols),
                  ActivationBytes(LinearActivation::kF32, num_rows, cols));
}

// One product of the launch, ready to run.
struct Part {
  LinearCall call;
  const LinearKernel* kernel = nullptr;
  std::int64_t first_panel = 0;  // in the numbering of the launch
};

// Panels that a worker takes at once: few enough that a worker whose core is taken away leaves the
// rest to the others, enough to keep several streams of weights going.
std::int64_t ChunkPanels(std::int64_t num_panels, int num_workers) {
  constexpr std::int64_t kStreams = 4;
  const std::int64_t share = num_panels / num_workers;
  return std::max(kStreams, share / 8 / kStreams * kStreams);
}

// Rows that a worker takes at once: a launch with few panels still has work for everybody, and a
// part is large enough to pay for unpacking the weights once more.
std::int64_t ChunkRows(std::int64_t num_tokens) {
  constexpr std::int64_t kPart = 128;
  return num_tokens < 2 * kPart ? num_tokens : kPart;
}

// Panels [begin, end) of the launch against the rows of x that start at row_begin.
void RunPanels(std::span<const Part> parts, std::int64_t begin, std::int64_t end,
               const PackedActivations& x, std::int64_t row_begin, std::uint8_t* scratch) {
  for (const Part& part : parts) {
    const std::int64_t first = std::max(begin, part.first_panel);
    const std::int64_t last = std::min(end, part.first_panel + part.call.layout.num_panels);
    if (first < last) {
      LinearCall call = part.call;
      call.x = x;
      call.y += row_begin * call.y_stride;
      call.panel_begin = first - part.first_panel;
      call.panel_end = last - part.first_panel;
      call.scratch = scratch;
      part.kernel->run(call);
    }
  }
}

// All outputs of one launch that take the same kind of activations.
void RunLaunch(KernelContext& context, LinearActivation activation, const float* x,
               std::int64_t x_stride, std::int64_t num_tokens, std::int64_t cols,
               std::span<const LinearOutput> outputs) {
  const Isa isa = CurrentIsa();
  std::array<Part, kMaxOutputs> parts;
  std::size_t num_parts = 0;
  std::int64_t num_panels = 0;
  for (const LinearOutput& output : outputs) {
    const auto layout = LayoutOf(output.weight->spec);
    NIBBLE_CHECK(layout.has_value(), "a packed weight without a layout");
    if (ActivationFor(layout->format, context.activations) != activation) {
      continue;
    }
    Part& part = parts[num_parts++];
    part.call.layout = *layout;
    part.call.weight = reinterpret_cast<const std::uint8_t*>(output.weight->data);
    part.call.y = output.y;
    part.call.y_stride = output.y_stride;
    part.kernel = &SelectLinear(isa, layout->format, activation, num_tokens);
    part.first_panel = num_panels;
    num_panels += layout->num_panels;
  }
  if (num_parts == 0) {
    return;
  }
  const std::span<const Part> ready(parts.data(), num_parts);
  const ActivationKernel& quantize = SelectActivation(isa, activation);
  ThreadPool& pool = context.device->pool();
  const auto workers = static_cast<std::size_t>(pool.num_workers());
  const std::size_t row_bytes = ActivationBytes(activation, num_tokens, cols);
  const bool each_its_own = num_tokens == 1;  // cheaper than a barrier
  NIBBLE_CHECK(
      context.scratch_bytes >= workers * static_cast<std::size_t>(kLinearKernelScratchBytes) +
                                   (each_its_own ? workers : 1) * row_bytes,
      "Linear needs LinearScratchBytes of scratch");
  auto* kernel_scratch = reinterpret_cast<std::uint8_t*>(context.scratch);
  std::byte* rows = context.scratch + workers * static_cast<std::size_t>(kLinearKernelScratchBytes);
  const std::int64_t chunk = ChunkPanels(num_panels, pool.num_workers());
  const std::int64_t chunk_rows = ChunkRows(num_tokens);
  const std::int64_t row_parts = (num_tokens + chunk_rows - 1) / chunk_rows;
  const std::int64_t num_items = (num_panels + chunk - 1) / chunk * row_parts;
  std::atomic<std::int64_t> next{0};
  pool.Run([&](int worker) {
    PackedActivations packed;
    if (each_its_own) {
      packed = PlaceActivations(activation, num_tokens, cols,
                                rows + static_cast<std::size_t>(worker) * row_bytes);
      quantize.run(x, x_stride, 0, 1, packed);
    } else {
      packed = PlaceActivations(activation, num_tokens, cols, rows);
      const auto [begin, end] = pool.Share(num_tokens, 1, worker);
      quantize.run(x, x_stride, begin, end, packed);
      pool.Barrier();
    }
    for (;;) {
      const std::int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items) {
        return;
      }
      const std::int64_t begin = item / row_parts * chunk;
      const std::int64_t row = item % row_parts * chunk_rows;
      RunPanels(ready, begin, std::min(num_panels, begin + chunk),
                PartOfRows(packed, activation, row, std::min(num_tokens, row + chunk_rows)), row,
                kernel_scratch + worker * kLinearKernelScratchBytes);
    }
  });
}

}  // namespace

void Linear(KernelContext& context, const float* x, std::int64_t x_stride, std::int64_t num_tokens,
            std::span<const LinearOutput> outputs) {
  NIBBLE_CHECK(outputs.size() <= kMaxOutputs, "too many products in one launch");
  if (outputs.empty() || num_tokens == 0) {
    return;
  }
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::Linear(context, x, x_stride, num_tokens, outputs);
    return;
  }
  const std::int64_t cols = outputs.front().weight->spec.cols;
  for (const LinearOutput& output : outputs) {
    NIBBLE_CHECK(output.weight->spec.cols == cols, "products of a launch share their input");
  }
  const auto mode = context.activations == ActivationMode::kInt16 ? LinearActivation::kInt16
                                                                  : LinearActivation::kInt8;
  RunLaunch(context, mode, x, x_stride, num_tokens, cols, outputs);
  RunLaunch(context, LinearActivation::kF32, x, x_stride, num_tokens, cols, outputs);
}

std::size_t LinearScratchBytes(const Device& device, std::int64_t max_tokens,
                               std::int64_t max_in_features, ActivationMode mode) {
  if (device.kind() == DeviceKind::kCuda) {
    return mode == ActivationMode::kFp8 ? cuda::Fp8ScratchBytes(max_tokens, max_in_features) : 0;
  }
  // Asking for the number of workers changes nothing.
  const auto workers = static_cast<std::size_t>(const_cast<Device&>(device).pool().num_workers());
  return workers * static_cast<std::size_t>(kLinearKernelScratchBytes) +
         std::max(workers * LargestActivationBytes(1, max_in_features),
                  LargestActivationBytes(max_tokens, max_in_features));
}

Result<void> ValidateActivations(const Device& device, ActivationMode mode) {
  if (mode != ActivationMode::kFp8) {
    return {};
  }
  if (device.kind() == DeviceKind::kCuda) {
    return cuda::ValidateFp8Activations(device);
  }
  return Fail(ErrorCode::kUnsupported,
              "fp8 activations: a CPU has no products of 8-bit floats; they are for Hopper cards "
              "(--device cuda), and a CPU takes int16 or int8");
}

bool TakesFp8Activations(const WeightSpec& spec) { return cuda::TakesFp8Activations(spec); }

void Embedding(KernelContext& context, const PackedWeight& table, std::span<const TokenId> ids,
               float* out) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::Embedding(context, table, ids, out);
    return;
  }
  const auto layout = LayoutOf(table.spec);
  NIBBLE_CHECK(layout.has_value(), "a packed weight without a layout");
  const auto* data = reinterpret_cast<const std::uint8_t*>(table.data);
  constexpr std::int64_t kGrain = 8;
  context.device->pool().For(static_cast<std::int64_t>(ids.size()), kGrain,
                             [&](std::int64_t begin, std::int64_t end, int) {
                               for (std::int64_t i = begin; i < end; ++i) {
                                 const std::int64_t row = Raw(ids[static_cast<std::size_t>(i)]);
                                 NIBBLE_CHECK(row >= 0 && row < layout->rows,
                                              "a token id beyond the embedding");
                                 DequantizePackedRow(*layout, data, row, out + i * layout->cols);
                               }
                             });
}

}  // namespace nibble
