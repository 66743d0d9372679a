#include "device/nvml.h"

#include <array>

// Declarations of NVML's and the driver's functions as their documentation gives them. Both keep
// their binary interface, and CUDA's headers are not there in a build without CUDA.
namespace nibble {
namespace {

struct NvmlMemory {
  unsigned long long total, free, used;
};

}  // namespace

Nvml::Nvml() : library_(VendorLibrary::Name::kNvml) {
  started_ = library_.Call<int()>("nvmlInit_v2") == 0;
}

Nvml::~Nvml() {
  if (started_) {
    library_.Call<int()>("nvmlShutdown");
  }
}

std::string Nvml::DriverVersion() const {
  std::array<char, 96> text{};
  const bool known =
      started_ && library_.Call<int(char*, unsigned)>("nvmlSystemGetDriverVersion", text.data(),
                                                      static_cast<unsigned>(text.size())) == 0;
  return known ? text.data() : "";
}

void* Nvml::Card(const std::string& bus_id) const {
  void* card = nullptr;
  const bool known =
      started_ && library_.Call<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2",
                                                          bus_id.c_str(), &card) == 0;
  return known ? card : nullptr;
}

std::optional<std::uint64_t> Nvml::FreeBytes(const std::string& bus_id) const {
  void* card = Card(bus_id);
  NvmlMemory memory{};
  if (card == nullptr ||
      library_.Call<int(void*, NvmlMemory*)>("nvmlDeviceGetMemoryInfo", card, &memory) != 0) {
    return std::nullopt;
  }
  return memory.free;
}

std::optional<double> Nvml::Joules(const std::string& bus_id) const {
  void* card = Card(bus_id);
  unsigned long long millijoules = 0;
  if (card == nullptr || library_.Call<int(void*, unsigned long long*)>(
                             "nvmlDeviceGetTotalEnergyConsumption", card, &millijoules) != 0) {
    return std::nullopt;
  }
  return static_cast<double>(millijoules) * 1e-3;
}

std::string PciBusId(int ordinal) {
  const VendorLibrary cuda(VendorLibrary::Name::kCuda);
  int device = 0;
  std::array<char, 32> text{};
  const bool known = cuda.Call<int(unsigned)>("cuInit", 0U) == 0 &&
                     cuda.Call<int(int*, int)>("cuDeviceGet", &device, ordinal) == 0 &&
                     cuda.Call<int(char*, int, int)>("cuDeviceGetPCIBusId", text.data(),
                                                     static_cast<int>(text.size()), device) == 0;
  return known ? text.data() : "";
}

}  // namespace nibble
