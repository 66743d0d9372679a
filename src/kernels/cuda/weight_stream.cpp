#include "kernels/cuda/weight_stream.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/cuda/ops_kernel.h"

namespace nibble::cuda {
namespace {

// A part comes in pieces, so that a step's own small copies do not wait for all of it where both
// take turns at one copy engine.
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;

}  // namespace

WeightStream::WeightStream(CudaDevice& device, const StreamedWeights& weights)
    : device_(device), weights_(weights), schedule_(static_cast<int>(weights_.parts.size())) {}

Result<std::unique_ptr<WeightStream>> WeightStream::Create(CudaDevice& device,
                                                           const StreamedWeights& weights) {
  for (const auto part : weights.parts) {
    NIBBLE_CHECK(part.size() <= weights.slot_bytes, "a part larger than its slot");
  }
  std::unique_ptr<WeightStream> stream(new WeightStream(device, weights));
  for (auto* events : {&stream->read_, &stream->filled_}) {
    for (cudaEvent_t& event : *events) {
      if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) {
        return Fail(ErrorCode::kUnavailable, "CUDA gives no events");
      }
    }
  }
  return stream;
}

WeightStream::~WeightStream() {
  for (const auto* events : {&read_, &filled_}) {
    for (cudaEvent_t event : *events) {
      if (event != nullptr) {
        cudaEventDestroy(event);
      }
    }
  }
}

void WeightStream::Use(int part) {
  if (part != current_) {
    const int from = std::exchange(current_, part);
    device_.BetweenKernels([this, from, part] { schedule_.Switch(from, part, *this); });
  }
}

void WeightStream::MarkRead(int slot) {
  device_.NoteError(cudaEventRecord(read_[static_cast<std::size_t>(slot)], device_.stream()),
                    "marking streamed weights");
}

void WeightStream::Fill(int slot, int part) {
  const auto index = static_cast<std::size_t>(slot);
  const std::span<const std::byte> host = weights_.parts[static_cast<std::size_t>(part)];
  std::byte* const to = weights_.slots + index * weights_.slot_bytes;
  cudaStream_t copies = device_.copy_stream();
  // Of an event that was never recorded nothing is waited for: the slot's first content.
  cudaError_t error = cudaStreamWaitEvent(copies, read_[index], 0);
  for (std::size_t at = 0; at < host.size() && error == cudaSuccess; at += kPieceBytes) {
    error = cudaMemcpyAsync(to + at, host.data() + at, std::min(kPieceBytes, host.size() - at),
                            cudaMemcpyHostToDevice, copies);
  }
  if (error == cudaSuccess) {
    error = cudaEventRecord(filled_[index], copies);
  }
  device_.NoteError(error, "copying streamed weights");
}

void WeightStream::AwaitFilled(int slot) {
  device_.NoteError(
      cudaStreamWaitEvent(device_.stream(), filled_[static_cast<std::size_t>(slot)], 0),
      "waiting for streamed weights");
  // What follows may be a programmatic dependent launch, which begins before the kernel in front of
  // it is done and copies weights at once. Behind an empty kernel that is none, it cannot begin
  // before the wait above.
  device_.NoteError(LaunchBarrier(device_.stream()), "waiting for streamed weights");
}

}  // namespace nibble::cuda
