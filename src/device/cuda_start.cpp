#include "device/cuda_start.h"

#include <fmt/format.h>

#include "base/text.h"
#include "device/vendor_library.h"

namespace nibble {
namespace {

// cudaError_t and CUresult agree on these.
constexpr int kStubLibrary = 34;
constexpr int kInsufficientDriver = 35;
constexpr int kDevicesUnavailable = 46;
constexpr int kNoDevice = 100;
constexpr int kSystemNotReady = 802;
constexpr int kSystemDriverMismatch = 803;
constexpr int kNotSupportedOnDevice = 804;

}  // namespace

std::string ProblemOfDriver() {
  const VendorLibrary cuda(VendorLibrary::Name::kCuda);
  if (cuda.found() && cuda.Find<int(int*)>("cuDriverGetVersion") == nullptr) {
    return cuda.path() + ": there is no cuDriverGetVersion in it";
  }
  return cuda.problem();
}

std::string ExplainCudaStart(int error, int driver_version, const std::string& text,
                             const std::string& library) {
  if (!library.empty()) {
    return fmt::format(
        "libcuda.so.1 is here and cannot be used ({}): install the NVIDIA driver, version 580 or "
        "newer, again, or take the file out of the loader's way",
        Quote(library));
  }
  if (error == kStubLibrary) {
    return "the libcuda.so.1 that is found is the toolkit's stub and no driver: take its folder "
           "out of LD_LIBRARY_PATH";
  }
  if (driver_version == 0) {
    return "no NVIDIA driver is installed (libcuda.so.1 was not found): install one of version 580 "
           "or newer, or start the container with its GPUs (docker run --gpus all)";
  }
  if (error == kInsufficientDriver || driver_version < kCudaVersion) {
    return fmt::format(
        "the NVIDIA driver speaks CUDA {}.{} and nibble needs {}.{}: update the "
        "driver to version 580 or newer",
        driver_version / 1000, driver_version % 1000 / 10, kCudaVersion / 1000,
        kCudaVersion % 1000 / 10);
  }
  switch (error) {
    case kNoDevice:
      return "the NVIDIA driver is installed but shows no card: see whether nvidia-smi lists one, "
             "whether CUDA_VISIBLE_DEVICES hides it, and whether the container was given it "
             "(docker run --gpus all)";
    case kDevicesUnavailable:
      return "the card is busy or in exclusive mode: see which process nvidia-smi lists, and end "
             "it";
    case kSystemNotReady:
      return "the card waits for its system software: on machines with NVSwitch start "
             "nvidia-fabricmanager";
    case kSystemDriverMismatch:
    case kNotSupportedOnDevice:
      return "libcuda.so.1 is of another version than the kernel's driver: restart after an "
             "update, or remove the CUDA compatibility package from the container";
    default:
      return fmt::format("CUDA does not start: {} (CUDA error {})", text, error);
  }
}

}  // namespace nibble
