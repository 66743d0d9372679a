#pragma once

#include <utility>
#include <vector>

#include "device/cuda_device.h"

struct CUevent_st;

namespace nibble::cuda {

/// Time that work takes on the queue of the device's steps, measured there: the host waits only
/// when it asks.
class StreamTimer {
 public:
  explicit StreamTimer(CudaDevice& device) : device_(device) {}
  StreamTimer(const StreamTimer&) = delete;
  StreamTimer& operator=(const StreamTimer&) = delete;
  ~StreamTimer();

  /// Around what is submitted.
  void Begin();
  void End();
  /// Seconds of what was timed since the last call; waits for it.
  double Take();

 private:
  using Pair = std::pair<CUevent_st*, CUevent_st*>;
  CudaDevice& device_;
  std::vector<Pair> pairs_;
  std::size_t num_used_ = 0;
};

}  // namespace nibble::cuda
