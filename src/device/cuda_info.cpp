#include "device/cuda_info.h"

#include <array>

#include "device/cuda_start.h"
#include "device/nvml.h"
#include "device/vendor_library.h"

// Declarations of the driver's functions as its documentation gives them. It keeps its binary
// interface, and CUDA's headers are not there in a build without CUDA.
namespace nibble {
namespace {

enum Attribute : int {
  kClockKhz = 13,
  kNumSms = 16,
  kMemoryClockKhz = 36,
  kMemoryBusBits = 37,
  kL2Bytes = 38,
  kMajor = 75,
  kMinor = 76
};

CudaCard Describe(const VendorLibrary& cuda, const Nvml& nvml, int ordinal, int device) {
  CudaCard card;
  std::array<char, 128> text{};
  if (cuda.Call<int(char*, int, int)>("cuDeviceGetName", text.data(), static_cast<int>(text.size()),
                                      device) == 0) {
    card.name = text.data();
  }
  const auto attribute = [&](Attribute which) {
    int value = 0;
    cuda.Call<int(int*, int, int)>("cuDeviceGetAttribute", &value, static_cast<int>(which), device);
    return value;
  };
  card.compute_capability = attribute(kMajor) * 10 + attribute(kMinor);
  card.num_sms = attribute(kNumSms);
  card.clock_mhz = attribute(kClockKhz) / 1000;
  card.memory_clock_mhz = attribute(kMemoryClockKhz) / 1000;
  card.memory_bus_bits = attribute(kMemoryBusBits);
  card.l2_bytes = static_cast<std::uint64_t>(attribute(kL2Bytes));
  std::size_t total = 0;
  cuda.Call<int(std::size_t*, int)>("cuDeviceTotalMem_v2", &total, device);
  card.total_bytes = total;
  card.free_bytes = nvml.FreeBytes(PciBusId(ordinal)).value_or(0);
  return card;
}

}  // namespace

CudaInfo ProbeCuda() {
  using Name = VendorLibrary::Name;
  CudaInfo info;
  info.built_in = BuiltWithCuda();
  const VendorLibrary cuda(Name::kCuda);
  if (cuda.found()) {
    cuda.Call<int(int*)>("cuDriverGetVersion", &info.cuda_version);
    const Nvml nvml;
    info.driver_version = nvml.DriverVersion();
    int error = cuda.Call<int(unsigned)>("cuInit", 0U);
    int count = 0;
    if (error == 0) {
      error = cuda.Call<int(int*)>("cuDeviceGetCount", &count);
    }
    for (int i = 0; i < count; ++i) {
      int device = 0;
      if (cuda.Call<int(int*, int)>("cuDeviceGet", &device, i) == 0) {
        info.cards.push_back(Describe(cuda, nvml, i, device));
      }
    }
    constexpr int kNoDevice = 100;
    if (error == 0 && count == 0) {
      error = kNoDevice;
    }
    if (error != 0 || info.cuda_version < kCudaVersion) {
      info.problem = ExplainCudaStart(error, info.cuda_version, "unknown error", ProblemOfDriver());
    }
  } else {
    info.problem = ExplainCudaStart(0, 0, "", ProblemOfDriver());
  }
  const auto look = [&](Name name, const char* used_for) {
    info.libraries.push_back({VendorLibrary::FileName(name), VendorLibrary(name).path(), used_for});
  };
  info.libraries.push_back({VendorLibrary::FileName(Name::kCuda), cuda.path(), "--device cuda"});
  look(Name::kNvml, "free memory and versions in this report");
  look(Name::kCudart, "nothing: nibble brings its own");
  look(Name::kCublasLt, "the limits of dense products that nibble bench prints");
  look(Name::kCublas, "nibble quantize by GPTQ on a card");
  look(Name::kCusolver, "nibble quantize by GPTQ on a card");
  look(Name::kNccl, "several cards");
  return info;
}

}  // namespace nibble
