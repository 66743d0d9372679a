#pragma once

#include <functional>
#include <memory>

#include "device/device.h"

struct CUstream_st;

namespace nibble {

/// What kernels/cuda needs to know of the device it runs on. This header includes nothing of CUDA.
class CudaDevice : public Device {
 public:
  DeviceKind kind() const final { return DeviceKind::kCuda; }

  /// The queue of all steps.
  virtual CUstream_st* stream() const = 0;
  /// The queue of copies of weights: to load them, and those of streamed weights (weight_stream.h).
  virtual CUstream_st* copy_stream() const = 0;
  virtual int num_sms() const = 0;
  /// 80, 90, ...
  virtual int compute_capability() const = 0;
  /// Remembers the first failure of a CUDA call (a cudaError_t); Health tells it.
  virtual void NoteError(int error, const char* what) = 0;
  /// True between BeginCapture and EndCapture.
  virtual bool capturing() const = 0;
  /// Runs `work`, host code that puts marks, waits and copies into the queues. While capturing it
  /// is run by every replay instead, at this place: the recorded step is cut there.
  virtual void BetweenKernels(std::function<void()> work) = 0;

  /// State that the kernels keep with the device: handles, step inputs, tables of tensors.
  std::shared_ptr<void>& kernel_state() { return kernel_state_; }

 private:
  std::shared_ptr<void> kernel_state_;
};

}  // namespace nibble
