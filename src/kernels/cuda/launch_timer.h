#pragma once

#include <functional>

#include "base/result.h"
#include "device/cuda_device.h"

namespace nibble::cuda {

struct LaunchTiming {
  double seconds = 0.0;  // the median of the runs
  double fastest = 0.0;
  int num_runs = 0;
};

/// Times what `launch` puts on the device's stream (it returns a cudaError_t): recorded once as a
/// graph, so that the host takes no part, then replayed between two events, at least 10 times and
/// for about `seconds`. Errors: kUnavailable.
Result<LaunchTiming> TimeLaunches(CudaDevice& device, const std::function<int()>& launch,
                                  double seconds = 0.1);

}  // namespace nibble::cuda
