// The build without CUDA.
#include "device/cuda_start.h"
#include "device/device.h"

namespace nibble {

bool BuiltWithCuda() { return false; }

Result<std::unique_ptr<Device>> MakeCudaDevice(int, int) {
  return Fail(ErrorCode::kUnavailable,
              "this nibble was built without CUDA (NIBBLE_CUDA is off): build it with "
              "tools/build cuda-release, which needs nvcc 13; or run with --device cpu (nibble "
              "doctor shows what is here)");
}

}  // namespace nibble
