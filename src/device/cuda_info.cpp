#include "device/cuda_info.h"

#include <array>

#include "device/cuda_start.h"
#include "device/vendor_library.h"

// Declarations of the driver's and NVML's functions as their documentation gives them. Both keep
// their binary interface, and CUDA's headers are not there in a build without CUDA.
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

struct NvmlMemory {
  unsigned long long total, free, used;
};

template <typename Function, typename... Args>
int Call(const VendorLibrary& library, const char* symbol, Args... args) {
  constexpr int kNoFunction = -1;
  Function* function = library.Find<Function>(symbol);
  return function == nullptr ? kNoFunction : function(args...);
}

// The driver's version and the cards' free memory, where NVML is there.
class Nvml {
 public:
  Nvml() : library_(VendorLibrary::Name::kNvml) {
    started_ = Call<int()>(library_, "nvmlInit_v2") == 0;
  }
  ~Nvml() {
    if (started_) {
      Call<int()>(library_, "nvmlShutdown");
    }
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::string DriverVersion() const {
    std::array<char, 96> text{};
    const bool known =
        started_ && Call<int(char*, unsigned)>(library_, "nvmlSystemGetDriverVersion", text.data(),
                                               static_cast<unsigned>(text.size())) == 0;
    return known ? text.data() : "";
  }
  std::uint64_t FreeBytes(const char* bus_id) const {
    void* device = nullptr;
    NvmlMemory memory{};
    const bool known =
        started_ &&
        Call<int(const char*, void**)>(library_, "nvmlDeviceGetHandleByPciBusId_v2", bus_id,
                                       &device) == 0 &&
        Call<int(void*, NvmlMemory*)>(library_, "nvmlDeviceGetMemoryInfo", device, &memory) == 0;
    return known ? memory.free : 0;
  }

 private:
  VendorLibrary library_;
  bool started_ = false;
};

CudaCard Describe(const VendorLibrary& cuda, const Nvml& nvml, int device) {
  CudaCard card;
  std::array<char, 128> text{};
  if (Call<int(char*, int, int)>(cuda, "cuDeviceGetName", text.data(),
                                 static_cast<int>(text.size()), device) == 0) {
    card.name = text.data();
  }
  const auto attribute = [&](Attribute which) {
    int value = 0;
    Call<int(int*, int, int)>(cuda, "cuDeviceGetAttribute", &value, static_cast<int>(which),
                              device);
    return value;
  };
  card.compute_capability = attribute(kMajor) * 10 + attribute(kMinor);
  card.num_sms = attribute(kNumSms);
  card.clock_mhz = attribute(kClockKhz) / 1000;
  card.memory_clock_mhz = attribute(kMemoryClockKhz) / 1000;
  card.memory_bus_bits = attribute(kMemoryBusBits);
  card.l2_bytes = static_cast<std::uint64_t>(attribute(kL2Bytes));
  std::size_t total = 0;
  Call<int(std::size_t*, int)>(cuda, "cuDeviceTotalMem_v2", &total, device);
  card.total_bytes = total;
  text = {};
  if (Call<int(char*, int, int)>(cuda, "cuDeviceGetPCIBusId", text.data(),
                                 static_cast<int>(text.size()), device) == 0) {
    card.free_bytes = nvml.FreeBytes(text.data());
  }
  return card;
}

}  // namespace

CudaInfo ProbeCuda() {
  using Name = VendorLibrary::Name;
  CudaInfo info;
  info.built_in = BuiltWithCuda();
  const VendorLibrary cuda(Name::kCuda);
  if (cuda.found()) {
    Call<int(int*)>(cuda, "cuDriverGetVersion", &info.cuda_version);
    const Nvml nvml;
    info.driver_version = nvml.DriverVersion();
    int error = Call<int(unsigned)>(cuda, "cuInit", 0U);
    int count = 0;
    if (error == 0) {
      error = Call<int(int*)>(cuda, "cuDeviceGetCount", &count);
    }
    for (int i = 0; i < count; ++i) {
      int device = 0;
      if (Call<int(int*, int)>(cuda, "cuDeviceGet", &device, i) == 0) {
        info.cards.push_back(Describe(cuda, nvml, device));
      }
    }
    constexpr int kNoDevice = 100;
    if (error == 0 && count == 0) {
      error = kNoDevice;
    }
    if (error != 0 || info.cuda_version < kCudaVersion) {
      info.problem = ExplainCudaStart(error, info.cuda_version, "unknown error");
    }
  } else {
    info.problem = ExplainCudaStart(0, 0, "");
  }
  const auto look = [&](Name name, const char* used_for) {
    info.libraries.push_back({VendorLibrary::FileName(name), VendorLibrary(name).path(), used_for});
  };
  info.libraries.push_back({VendorLibrary::FileName(Name::kCuda), cuda.path(), "--device cuda"});
  look(Name::kNvml, "free memory and versions in this report");
  look(Name::kCudart, "nothing: nibble brings its own");
  look(Name::kCublasLt, "the limits of dense products that nibble bench prints");
  look(Name::kNccl, "several cards");
  return info;
}

}  // namespace nibble
