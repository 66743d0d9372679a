// What a card can do at most, measured as limits_probe.h promises.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "kernels/cuda/dense_limit.h"
#include "kernels/cuda/launch_timer.h"
#include "kernels/cuda/limits_kernel.h"
#include "kernels/limits_probe.h"

namespace nibble {
namespace {

constexpr std::int64_t kReadBytes = std::int64_t{2} << 30;  // many times any L2
constexpr std::int64_t kLeastBytes = std::int64_t{512} << 20;
constexpr std::int64_t kCopyBytes = std::int64_t{256} << 20;
constexpr std::int64_t kDenseSize = 8192;
constexpr int kGraphNodes = 200;

// Beside the ledger: it is there for the time of the measurement, and the engine may be sealed.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) {
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      cudaGetLastError();
      data_ = nullptr;
    }
  }
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

class PinnedScratch {
 public:
  explicit PinnedScratch(std::size_t bytes) {
    if (cudaHostAlloc(&data_, bytes, cudaHostAllocDefault) != cudaSuccess) {
      cudaGetLastError();
      data_ = nullptr;
    }
  }
  ~PinnedScratch() { cudaFreeHost(data_); }
  PinnedScratch(const PinnedScratch&) = delete;
  PinnedScratch& operator=(const PinnedScratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

}  // namespace

Result<CardLimits> MeasureCardLimits(Device& any_device) {
  using cuda::ReadMethod;
  using cuda::TimeLaunches;
  auto& device = static_cast<CudaDevice&>(any_device);
  CardLimits limits;
  int ordinal = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&ordinal) == cudaSuccess &&
      cudaGetDeviceProperties(&properties, ordinal) == cudaSuccess) {
    limits.name = properties.name;
  }
  limits.num_sms = device.num_sms();
  const std::int64_t room =
      static_cast<std::int64_t>(device.AvailableBytes()) - (std::int64_t{128} << 20);
  const std::int64_t bytes = std::min(kReadBytes, room) / cuda::kReadGrain * cuda::kReadGrain;
  if (bytes < kLeastBytes) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("measuring the card's limits takes {} of its memory and {} are free; "
                            "lower --gpu-memory-utilization",
                            HumanBytes(static_cast<double>(kReadBytes)),
                            HumanBytes(static_cast<double>(device.AvailableBytes()))));
  }
  const Scratch memory(static_cast<std::size_t>(bytes));
  if (memory.data() == nullptr) {
    return Fail(ErrorCode::kOutOfMemory, "no memory on the card to measure its limits with");
  }
  // Streamed weights of the next step may still be on their way.
  device.NoteError(cudaStreamSynchronize(device.copy_stream()), "copying to the device");
  device.NoteError(cuda::LaunchFill(memory.data(), bytes, device.stream()), "filling memory");
  for (const ReadMethod method : {ReadMethod::kLoads4, ReadMethod::kLoads8, ReadMethod::kCopies}) {
    if (method == ReadMethod::kCopies &&
        (device.compute_capability() < 90 || device.compute_capability() >= 120)) {
      continue;  // its shared memory is smaller than the ring
    }
    NIBBLE_TRY(time, TimeLaunches(device, [&] {
                 return cuda::LaunchReadStream(method, memory.data(), bytes, device.num_sms(),
                                               device.stream());
               }));
    limits.read_gb_per_s =
        std::max(limits.read_gb_per_s, 1e-9 * static_cast<double>(bytes) / time.seconds);
  }
  if (const PinnedScratch host(kCopyBytes); host.data() != nullptr) {
    NIBBLE_TRY(time, TimeLaunches(device, [&] {
                 return static_cast<int>(cudaMemcpyAsync(memory.data(), host.data(), kCopyBytes,
                                                         cudaMemcpyHostToDevice, device.stream()));
               }));
    limits.copy_gb_per_s = 1e-9 * static_cast<double>(kCopyBytes) / time.seconds;
  }
  for (const bool dependent : {false, true}) {
    NIBBLE_TRY(time, TimeLaunches(device, [&] {
                 int error = 0;
                 for (int i = 0; i < kGraphNodes && error == 0; ++i) {
                   error = cuda::LaunchEmpty(dependent, device.num_sms(), device.stream());
                 }
                 return error;
               }));
    (dependent ? limits.dependent_node_us : limits.graph_node_us) =
        1e6 * time.seconds / kGraphNodes;
  }
  if (static_cast<std::size_t>(bytes) < cuda::DenseF16Bytes(kDenseSize)) {
    limits.f16_missing = "too little memory is free";
  } else if (const auto rate = cuda::DenseF16Rate(device, memory.data(), kDenseSize)) {
    limits.f16_gflop_per_s = 1e-9 * *rate;
  } else {
    limits.f16_missing = rate.error().message;
  }
  return limits;
}

}  // namespace nibble
