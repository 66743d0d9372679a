#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "device/cuda_device.h"
#include "kernels/context.h"
#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/linear_a8.h"
#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/sampling_kernel.h"
#include "kernels/cuda/weight_stream.h"
#include "kernels/step.h"

// What a CUDA device keeps from step to step (steps.cpp) and from operator to operator
// (backend.cpp).

struct CUevent_st;

namespace nibble::cuda {

constexpr std::size_t RoundUp(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// Where a step's inputs lie: at the same offsets in device memory and in each staging buffer.
struct InputLayout {
  std::size_t first_row = 0, num_rows = 0, first_position = 0;  // [sequences] int32
  std::size_t header = 0;                                       // Header
  std::size_t tokens = 0;                                       // [tokens] TokenRecord
  std::size_t records = 0;                                      // [samples] SampleRecord
  std::size_t adjustments = 0;
  std::size_t items = 0;   // [items] DecodeItem
  std::size_t tiles = 0;   // [tiles][2] int32
  std::size_t tables = 0;  // [sequences][table_width] int32
  std::size_t bytes = 0;
  std::int64_t max_samples = 0, max_adjustments = 0, max_items = 0, max_tiles = 0, table_width = 0;
};

struct Header {
  SampleRecordResult* results = nullptr;
  std::int32_t num_items = 0;
  std::int32_t unused = 0;
};

inline std::size_t ResultBytes(const InputLayout& at) {
  return RoundUp(static_cast<std::size_t>(at.max_samples) * sizeof(SampleRecordResult));
}

/// A product to launch, the part of the streamed weights that it reads (-1: none), and its
/// activations of 8 bits, if it has such.
struct Product {
  LinearArgs args;
  int part = -1;
  E4M3Rows fp8;
};

struct State {
  StepLimits limits;
  InputLayout at;
  DeviceBuffer inputs, partial, arrived, shared, slot_tokens;  // on the device
  DeviceBuffer staging, results;                               // pinned, one piece a slot
  std::vector<CUevent_st*> copied;                             // by slot
  std::unique_ptr<WeightStream> weights;                       // null: all weights lie on the card
  int slot = -1;
  // Of the step begun last.
  const SampleRow* first_sample = nullptr;
  const std::int32_t* first_logit_row = nullptr;
  std::size_t num_samples = 0;
  int num_tokens = 0;
  int num_decode = 0;  // sequences of one row
  int num_tiles = 0;
  // The operator called last, if its kernel can take in the next one. Everything else flushes it.
  std::optional<NormArgs> norm;
  std::optional<Product> linear;
  std::vector<LinearArgs> chain;  // products that are known, and become one kernel
  std::optional<RopeArgs> rope;
  std::vector<Adjustment> adjustments;  // of one row, while they are listed
  // Of fp16 activations that have one, by address. Memory may hold one kind after the other: each
  // operator that writes activations says theirs.
  std::vector<std::pair<const void*, float>> scales;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State();
  int num_slots() const { return static_cast<int>(copied.size()); }
  std::byte* staging_of(int index) const {
    return staging.data() + static_cast<std::size_t>(index) * at.bytes;
  }
  SampleRecordResult* results_of(int index) const {
    return reinterpret_cast<SampleRecordResult*>(results.data() +
                                                 static_cast<std::size_t>(index) * ResultBytes(at));
  }
  template <typename T>
  T* On(std::size_t offset) const {
    return reinterpret_cast<T*>(inputs.data() + offset);
  }
  float ScaleOf(const void* x) const {
    for (const auto& [address, scale] : scales) {
      if (address == x) {
        return scale;
      }
    }
    return 1.0F;
  }
  void NoteScale(const void* x, float scale) {
    std::erase_if(scales, [&](const auto& kept) { return kept.first == x; });
    if (scale != 1.0F) {
      scales.emplace_back(x, scale);
    }
  }
};

inline CudaDevice& DeviceOf(KernelContext& context) {
  return static_cast<CudaDevice&>(*context.device);
}
inline CudaDevice& AsCuda(Device& device) { return static_cast<CudaDevice&>(device); }

inline State& StateOf(CudaDevice& device) {
  NIBBLE_CHECK(device.kernel_state() != nullptr, "PrepareSteps comes first");
  return *static_cast<State*>(device.kernel_state().get());
}

/// The kernels launched so far are done with their part of the streamed weights, if they had one.
inline void UseWeights(State& state, int part) {
  if (state.weights != nullptr) {
    state.weights->Use(part);
  }
}

/// Launches what waits for the next operator.
void Flush(CudaDevice& device, State& state);

/// Copies a part of the step's staged inputs to the device.
void CopyInputs(CudaDevice& device, State& state, std::size_t offset, std::size_t bytes);

}  // namespace nibble::cuda
