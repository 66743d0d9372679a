#include "kernels/cuda/launch_timer.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace nibble::cuda {
namespace {

// What a measurement holds, given back however it ends.
struct Held {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  ~Held() {
    if (executable != nullptr) {
      cudaGraphExecDestroy(executable);
    }
    if (graph != nullptr) {
      cudaGraphDestroy(graph);
    }
    for (cudaEvent_t event : {begin, end}) {
      if (event != nullptr) {
        cudaEventDestroy(event);
      }
    }
  }
};

}  // namespace

Result<LaunchTiming> TimeLaunches(CudaDevice& device, const std::function<int()>& launch,
                                  double seconds) {
  constexpr std::size_t kLeastRuns = 10;
  constexpr std::size_t kMostRuns = 1000;
  constexpr double kRunSeconds = 2e-3;
  Held held;
  cudaStream_t stream = device.stream();
  cudaError_t error = cudaEventCreate(&held.begin);
  const auto then = [&](auto&& call) {
    if (error == cudaSuccess) {
      error = call();
    }
  };
  then([&] { return cudaEventCreate(&held.end); });
  // Once as it is: the code of kernels is loaded when they are first launched.
  then([&] { return static_cast<cudaError_t>(launch()); });
  then([&] { return cudaStreamSynchronize(stream); });
  then([&] { return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal); });
  if (error == cudaSuccess) {
    error = static_cast<cudaError_t>(launch());
    const cudaError_t ended = cudaStreamEndCapture(stream, &held.graph);  // also after a failure
    error = error == cudaSuccess ? ended : error;
  }
  then([&] { return cudaGraphInstantiate(&held.executable, held.graph, 0); });
  std::vector<double> times;
  double spent = 0.0;
  // Seconds of one replay, the mean of `count` behind each other.
  const auto replay = [&](int count) {
    float milliseconds = 0.0F;
    then([&] { return cudaEventRecord(held.begin, stream); });
    for (int i = 0; i < count; ++i) {
      then([&] { return cudaGraphLaunch(held.executable, stream); });
    }
    then([&] { return cudaEventRecord(held.end, stream); });
    then([&] { return cudaEventSynchronize(held.end); });
    then([&] { return cudaEventElapsedTime(&milliseconds, held.begin, held.end); });
    return 1e-3 * static_cast<double>(milliseconds) / count;
  };
  replay(1);
  // So long that what the host needs to start the first does not count.
  const int count =
      static_cast<int>(std::clamp(kRunSeconds / std::max(replay(1), 1e-6), 1.0, 100.0));
  while (error == cudaSuccess && times.size() < kMostRuns &&
         (times.size() < kLeastRuns || spent < seconds)) {
    times.push_back(replay(count));
    spent += times.back() * count;
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return Fail(ErrorCode::kUnavailable,
                fmt::format("measuring on the card: {} (CUDA error {})", cudaGetErrorString(error),
                            static_cast<int>(error)));
  }
  std::ranges::sort(times);
  return LaunchTiming{times[times.size() / 2], times.front(), static_cast<int>(times.size())};
}

}  // namespace nibble::cuda
