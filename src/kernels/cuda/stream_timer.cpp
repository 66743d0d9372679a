#include "kernels/cuda/stream_timer.h"

#include <cuda_runtime_api.h>

namespace nibble::cuda {

StreamTimer::~StreamTimer() {
  for (const Pair& pair : pairs_) {
    cudaEventDestroy(pair.first);
    cudaEventDestroy(pair.second);
  }
}

void StreamTimer::Begin() {
  if (num_used_ == pairs_.size()) {
    Pair pair{};
    device_.NoteError(cudaEventCreate(&pair.first), "creating an event");
    device_.NoteError(cudaEventCreate(&pair.second), "creating an event");
    pairs_.push_back(pair);
  }
  device_.NoteError(cudaEventRecord(pairs_[num_used_].first, device_.stream()),
                    "recording an event");
}

void StreamTimer::End() {
  device_.NoteError(cudaEventRecord(pairs_[num_used_].second, device_.stream()),
                    "recording an event");
  ++num_used_;
}

double StreamTimer::Take() {
  double seconds = 0.0;
  for (; num_used_ > 0; --num_used_) {
    const Pair& pair = pairs_[num_used_ - 1];
    float milliseconds = 0.0F;
    device_.NoteError(cudaEventSynchronize(pair.second), "waiting for an event");
    device_.NoteError(cudaEventElapsedTime(&milliseconds, pair.first, pair.second),
                      "timing an event");
    seconds += 1e-3 * static_cast<double>(milliseconds);
  }
  return seconds;
}

}  // namespace nibble::cuda
