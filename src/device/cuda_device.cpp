#include "device/cuda_device.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/text.h"
#include "device/cuda_info.h"
#include "device/cuda_start.h"

namespace nibble {
namespace {

constexpr std::size_t kStagingBytes = Device::kMaxWriteBytes;
constexpr std::size_t kNumEvents = 64;  // more than steps can be in flight
constexpr std::int64_t kClearBytes = std::int64_t{8}
                                     << 20;  // of host memory, by a worker at a time

Error CudaError(cudaError_t error, const char* what) {
  return {error == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kUnavailable,
          fmt::format("{}: {} (CUDA error {})", what, cudaGetErrorString(error),
                      static_cast<int>(error))};
}

class CudaDeviceImpl final : public CudaDevice {
 public:
  CudaDeviceImpl(int ordinal, int num_threads)
      : ordinal_(ordinal),
        pool_(num_threads > 0 ? num_threads : UsableCpuCount(), ThreadPool::Pinning::kCores) {}

  ~CudaDeviceImpl() override {
    cudaSetDevice(ordinal_);
    cudaDeviceSynchronize();
    kernel_state().reset();
    for (const Recorded& step : steps_) {
      for (cudaGraphExec_t graph : step.pieces) {
        cudaGraphExecDestroy(graph);
      }
    }
    ReleaseStaging();
    for (cudaEvent_t event : events_) {
      if (event != nullptr) {
        cudaEventDestroy(event);
      }
    }
    for (cudaStream_t stream : {stream_, copy_stream_}) {
      if (stream != nullptr) {
        cudaStreamDestroy(stream);
      }
    }
  }

  Result<void> Open() {
    const auto attribute = [&](cudaDeviceAttr name) {
      int value = 0;
      cudaDeviceGetAttribute(&value, name, ordinal_);
      return value;
    };
    if (const cudaError_t error = cudaSetDevice(ordinal_); error != cudaSuccess) {
      return tl::unexpected(CudaError(error, "opening the CUDA device"));
    }
    num_sms_ = attribute(cudaDevAttrMultiProcessorCount);
    compute_capability_ = attribute(cudaDevAttrComputeCapabilityMajor) * 10 +
                          attribute(cudaDevAttrComputeCapabilityMinor);
    if (compute_capability_ < kLeastComputeCapability) {
      return Fail(
          ErrorCode::kUnavailable,
          fmt::format("CUDA device {} has compute capability {}.{}; nibble's attention needs "
                      "{}.{} (Hopper) or newer: use another card, or --device cpu",
                      ordinal_, compute_capability_ / 10, compute_capability_ % 10,
                      kLeastComputeCapability / 10, kLeastComputeCapability % 10));
    }
    cudaError_t error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (error == cudaSuccess) {
      error = cudaStreamCreateWithFlags(&copy_stream_, cudaStreamNonBlocking);
    }
    for (cudaEvent_t& event : events_) {
      if (error == cudaSuccess) {
        error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
      }
    }
    if (error != cudaSuccess) {
      return tl::unexpected(CudaError(error, "opening the CUDA device"));
    }
    return {};
  }

  ThreadPool& pool() override { return pool_; }
  CUstream_st* stream() const override { return stream_; }
  CUstream_st* copy_stream() const override { return copy_stream_; }
  int num_sms() const override { return num_sms_; }
  int compute_capability() const override { return compute_capability_; }
  bool capturing() const override { return capturing_; }

  void NoteError(int error, const char* what) override {
    if (error != cudaSuccess) {
      const std::lock_guard lock(mutex_);
      if (failure_.empty()) {
        failure_ = CudaError(static_cast<cudaError_t>(error), what).message;
      }
    }
  }

  Result<void> Health() override {
    NoteError(cudaPeekAtLastError(), "a kernel");
    const std::lock_guard lock(mutex_);
    return failure_.empty() ? Result<void>{} : Fail(ErrorCode::kUnavailable, failure_);
  }

  std::uint64_t AvailableBytes() const override {
    std::size_t free = 0;
    std::size_t total = 0;
    cudaSetDevice(ordinal_);
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
  }
  std::uint64_t TotalBytes() const override {
    std::size_t free = 0;
    std::size_t total = 0;
    cudaSetDevice(ordinal_);
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? total : 0;
  }

  Event Record() override {
    ++recorded_;
    NoteError(cudaEventRecord(events_[recorded_ % kNumEvents], stream_), "recording an event");
    return Event{recorded_};
  }
  bool IsComplete(Event event) override {
    return IsOld(event) || cudaEventQuery(EventAt(event)) != cudaErrorNotReady;
  }
  void Wait(Event event) override {
    if (!IsOld(event)) {
      NoteError(cudaEventSynchronize(EventAt(event)), "a step");
    }
  }

  Result<void> FinishWrites() override {
    NoteError(cudaStreamSynchronize(copy_stream_), "copying to the device");
    const std::lock_guard lock(mutex_);
    NIBBLE_CHECK(open_writes_ == 0, "FinishWrites while a write is open");
    if (!keeps_staging_) {
      ReleaseStaging();
    }
    return failure_.empty() ? Result<void>{} : Fail(ErrorCode::kUnavailable, failure_);
  }

  void KeepStaging() override {
    if (!keeps_staging_) {
      ledger().Plan("staging (host)", MaxStaging() * kStagingBytes, MemoryPlace::kHost);
    }
    keeps_staging_ = true;
  }

  Result<void> Read(std::byte* host, const std::byte* device, std::size_t bytes) override {
    NoteError(cudaStreamSynchronize(stream_), "reading from the device");
    NoteError(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "reading from the device");
    return Health();
  }

  void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    NoteError(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "a copy");
  }

  bool CanCaptureSteps() const override { return true; }
  void BeginCapture() override {
    capturing_ = true;
    recorded_step_error_ = cudaSuccess;
    steps_.emplace_back();
    BeginPiece();
  }
  void BetweenKernels(std::function<void()> work) override {
    if (!capturing_) {
      work();
      return;
    }
    EndPiece();
    steps_.back().between.push_back(std::move(work));
    BeginPiece();
  }
  Result<CapturedStep> EndCapture() override {
    EndPiece();
    capturing_ = false;
    if (recorded_step_error_ != cudaSuccess) {
      return tl::unexpected(CudaError(recorded_step_error_, "recording a step"));
    }
    return CapturedStep{static_cast<std::int32_t>(steps_.size() - 1)};
  }
  void Replay(CapturedStep step) override {
    const Recorded& recorded = steps_[static_cast<std::size_t>(step)];
    for (std::size_t i = 0; i < recorded.pieces.size(); ++i) {
      if (i > 0) {
        recorded.between[i - 1]();
      }
      NoteError(cudaGraphLaunch(recorded.pieces[i], stream_), "replaying a step");
    }
  }

 protected:
  Result<std::span<std::byte>> Map(std::size_t bytes, Place place) override {
    void* data = nullptr;
    cudaSetDevice(ordinal_);
    const cudaError_t error = place == Place::kHost
                                  ? cudaHostAlloc(&data, bytes, cudaHostAllocDefault)
                                  : cudaMalloc(&data, bytes);
    if (error != cudaSuccess) {
      cudaGetLastError();  // not sticky: the next call must not find it
      return tl::unexpected(
          CudaError(error, place == Place::kHost ? "cudaHostAlloc" : "cudaMalloc"));
    }
    if (place == Place::kHost) {
      auto* const begin_of_all = static_cast<std::byte*>(data);
      pool_.For(static_cast<std::int64_t>(bytes), kClearBytes,
                [&](std::int64_t begin, std::int64_t end, int) {
                  std::memset(begin_of_all + begin, 0, static_cast<std::size_t>(end - begin));
                });
      const std::lock_guard lock(mutex_);
      host_memory_.emplace_back(begin_of_all, bytes);
    } else {
      NoteError(cudaMemsetAsync(data, 0, bytes, stream_), "clearing memory");
      NoteError(cudaStreamSynchronize(stream_), "clearing memory");
    }
    return std::span(static_cast<std::byte*>(data), bytes);
  }

  void Unmap(std::span<std::byte> memory, Place place) override {
    cudaSetDevice(ordinal_);
    cudaStreamSynchronize(copy_stream_);
    cudaStreamSynchronize(stream_);
    if (place == Place::kHost) {
      {
        const std::lock_guard lock(mutex_);
        std::erase_if(host_memory_, [&](const std::span<std::byte> kept) {
          return kept.data() == memory.data();
        });
      }
      cudaFreeHost(memory.data());
    } else {
      cudaFree(memory.data());
    }
  }

  std::byte* OpenWrite(std::byte* destination, std::size_t bytes) override {
    cudaSetDevice(ordinal_);
    std::unique_lock lock(mutex_);
    if (IsHostMemory(destination)) {
      return destination;
    }
    NIBBLE_CHECK(bytes <= kStagingBytes, "a write larger than a staging buffer");
    ++open_writes_;
    if (free_.empty() && num_staging_ < MaxStaging()) {
      Staging staging;
      ++num_staging_;
      lock.unlock();
      // Without pinned memory a load is slower, and no less right.
      staging.pinned =
          cudaHostAlloc(&staging.data, kStagingBytes, cudaHostAllocDefault) == cudaSuccess;
      if (!staging.pinned) {
        cudaGetLastError();  // not sticky: the next call must not find it
        staging.data = ::operator new(kStagingBytes);
      }
      NoteError(cudaEventCreateWithFlags(&staging.event, cudaEventDisableTiming),
                "an event of a staging buffer");
      lock.lock();
      open_.push_back(staging);
      return static_cast<std::byte*>(staging.data);
    }
    has_staging_.wait(lock, [&] { return !free_.empty(); });
    Staging staging = free_.front();
    free_.pop_front();
    open_.push_back(staging);
    lock.unlock();
    cudaEventSynchronize(staging.event);  // its last content has left
    return static_cast<std::byte*>(staging.data);
  }

  void CloseWrite(std::byte* data, std::byte* destination, std::size_t bytes) override {
    if (data == destination) {
      return;  // host memory
    }
    std::unique_lock lock(mutex_);
    std::size_t at = 0;
    while (open_[at].data != data) {
      ++at;
    }
    const Staging staging = open_[at];
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(at));
    lock.unlock();
    cudaError_t error =
        cudaMemcpyAsync(destination, data, bytes, cudaMemcpyHostToDevice, copy_stream_);
    if (error == cudaSuccess) {
      error = cudaEventRecord(staging.event, copy_stream_);
    }
    NoteError(error, "copying to the device");
    lock.lock();
    free_.push_back(staging);
    --open_writes_;
    lock.unlock();
    has_staging_.notify_one();
  }

 private:
  struct Staging {
    void* data = nullptr;
    bool pinned = true;
    cudaEvent_t event = nullptr;
  };
  // A step as graphs, and what the host does between one and the next.
  struct Recorded {
    std::vector<cudaGraphExec_t> pieces;
    std::vector<std::function<void()>> between;
  };

  void BeginPiece() {
    NoteError(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
              "beginning to record a step");
  }
  void EndPiece() {
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamEndCapture(stream_, &graph);
    cudaGraphExec_t executable = nullptr;
    if (error == cudaSuccess) {
      error = cudaGraphInstantiate(&executable, graph, 0);
      cudaGraphDestroy(graph);
    }
    NoteError(error, "recording a step");
    if (error == cudaSuccess) {
      steps_.back().pieces.push_back(executable);
    } else if (recorded_step_error_ == cudaSuccess) {
      recorded_step_error_ = error;
    }
  }

  bool IsHostMemory(const std::byte* at) const {
    return std::ranges::any_of(host_memory_, [&](const std::span<std::byte> memory) {
      return at >= memory.data() && at < memory.data() + memory.size();
    });
  }
  bool IsOld(Event event) const {
    return static_cast<std::uint64_t>(event) + kNumEvents <= recorded_;
  }
  cudaEvent_t EventAt(Event event) const {
    return events_[static_cast<std::uint64_t>(event) % kNumEvents];
  }
  std::size_t MaxStaging() const { return static_cast<std::size_t>(pool_.num_workers()) * 2; }
  void ReleaseStaging() {
    for (const Staging& staging : free_) {
      if (staging.pinned) {
        cudaFreeHost(staging.data);
      } else {
        ::operator delete(staging.data);
      }
      cudaEventDestroy(staging.event);
    }
    free_.clear();
    num_staging_ = 0;
  }

  const int ordinal_;
  ThreadPool pool_;
  int num_sms_ = 0;
  int compute_capability_ = 0;
  bool capturing_ = false;
  cudaStream_t stream_ = nullptr;
  cudaStream_t copy_stream_ = nullptr;
  std::array<cudaEvent_t, kNumEvents> events_{};
  std::uint64_t recorded_ = 0;
  std::vector<Recorded> steps_;                    // by CapturedStep
  cudaError_t recorded_step_error_ = cudaSuccess;  // of the step that is being recorded

  std::mutex mutex_;  // of everything below
  std::condition_variable has_staging_;
  std::deque<Staging> free_;
  std::vector<Staging> open_;
  std::vector<std::span<std::byte>> host_memory_;  // of AllocateHost
  std::size_t num_staging_ = 0;
  int open_writes_ = 0;
  bool keeps_staging_ = false;
  std::string failure_;
};

}  // namespace

bool BuiltWithCuda() { return true; }

Result<std::unique_ptr<Device>> MakeCudaDevice(int ordinal, int num_threads) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return Fail(
        ErrorCode::kUnavailable,
        fmt::format("{}; or run with --device cpu (nibble doctor shows what is here)",
                    ExplainCudaStart(error, driver, cudaGetErrorString(error), ProblemOfDriver())));
  }
  if (ordinal < 0 || ordinal >= count) {
    return Fail(ErrorCode::kUnavailable,
                fmt::format("there is no CUDA device {}: this machine has {}", ordinal, count));
  }
  auto device = std::make_unique<CudaDeviceImpl>(ordinal, num_threads);
  NIBBLE_TRY_VOID(device->Open());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace nibble
