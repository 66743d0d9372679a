// The build without CUDA.
#include "device/device.h"

namespace nibble {

Result<std::unique_ptr<Device>> MakeCudaDevice(int, int) {
  return Fail(
      ErrorCode::kUnavailable,
      "this nibble was built without CUDA; build the preset cuda (needs nvcc 13) or run with "
      "--device cpu");
}

}  // namespace nibble
