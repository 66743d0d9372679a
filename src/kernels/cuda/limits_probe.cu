// Probes of a card's limits. They compute nothing; judge them by what they reach.
//   read stream   size_bytes read, nothing written
//   empty         a launch and nothing else
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/limits_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kFillThreads = 256;

__device__ std::uint32_t Scramble(std::uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<std::uint32_t>(x ^ (x >> 31));
}

__global__ void Fill(uint4* data, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kFillThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  const auto word = [&](int k) {  // two halves: random signs and mantissas, exponent -7
    return (Scramble(static_cast<std::uint64_t>(4 * i + k)) & 0x83FF83FFU) | 0x20002000U;
  };
  data[i] = make_uint4(word(0), word(1), word(2), word(3));
}

__device__ __forceinline__ uint4 LoadOnce(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// A block reads 64 KB: neighbouring threads 16 bytes each, kLoads of them under way at once.
template <int kLoads>
__global__ void __launch_bounds__(kReadGrain / 16 / kLoads) ReadByLoads(uint4* data) {
  const uint4* from = data + std::int64_t{blockIdx.x} * (kReadGrain / 16) + threadIdx.x;
  uint4 loaded[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    loaded[i] = LoadOnce(from + i * (kReadGrain / 16 / kLoads));
  }
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    sum ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
  }
  if (sum == 0x5EED5EEDU) {  // so rarely that it costs nothing; without it nothing would be read
    data->x = sum;
  }
}

constexpr int kStages = 12;
constexpr int kStageBytes = 16 * 1024;

// One thread of an SM keeps kStages copies under way; nobody looks at what arrives.
__global__ void __launch_bounds__(32) ReadByCopies(const std::uint8_t* data, int num_chunks) {
  extern __shared__ __align__(128) std::uint8_t stages[];
  __shared__ __align__(8) std::uint64_t full[kStages];
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x != 0) {
    return;
  }
  for (int s = 0; s < kStages; ++s) {
    BarrierInit(SmemAddress(&full[s]), 1);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const std::uint64_t policy = EvictFirst();
  const auto grid = static_cast<int>(gridDim.x);
  const auto first = static_cast<int>(blockIdx.x);
  const int mine = first < num_chunks ? (num_chunks - 1 - first) / grid + 1 : 0;
  for (int i = 0; i < mine + kStages; ++i) {
    const int stage = i % kStages;
    if (i >= kStages && i - kStages < mine) {
      BarrierWait(SmemAddress(&full[stage]), static_cast<std::uint32_t>((i / kStages - 1) & 1));
    }
    if (i < mine) {
      BarrierExpect(SmemAddress(&full[stage]), kStageBytes);
      BulkCopy(SmemAddress(stages + stage * kStageBytes),
               data + (std::int64_t{first} + std::int64_t{i} * grid) * kStageBytes, kStageBytes,
               SmemAddress(&full[stage]), policy);
    }
  }
#endif
}

__global__ void Empty() {
  LaunchDependents();
  WaitForPrevious();
}

}  // namespace

int LaunchFill(void* data, std::int64_t size_bytes, CUstream_st* stream) {
  const std::int64_t count = size_bytes / 16;
  const auto blocks = static_cast<unsigned>((count + kFillThreads - 1) / kFillThreads);
  Fill<<<blocks, kFillThreads, 0, stream>>>(static_cast<uint4*>(data), count);
  return cudaGetLastError();
}

int LaunchReadStream(ReadMethod method, void* data, std::int64_t size_bytes, int num_sms,
                     CUstream_st* stream) {
  const auto blocks = static_cast<unsigned>(size_bytes / kReadGrain);
  switch (method) {
    case ReadMethod::kLoads4:
      ReadByLoads<4><<<blocks, kReadGrain / 16 / 4, 0, stream>>>(static_cast<uint4*>(data));
      break;
    case ReadMethod::kLoads8:
      ReadByLoads<8><<<blocks, kReadGrain / 16 / 8, 0, stream>>>(static_cast<uint4*>(data));
      break;
    case ReadMethod::kCopies: {
      constexpr int kSmem = kStages * kStageBytes;
      if (const cudaError_t error = cudaFuncSetAttribute(
              ReadByCopies, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
          error != cudaSuccess) {
        return error;
      }
      ReadByCopies<<<static_cast<unsigned>(num_sms), 32, kSmem, stream>>>(
          static_cast<const std::uint8_t*>(data), static_cast<int>(size_bytes / kStageBytes));
      break;
    }
  }
  return cudaGetLastError();
}

int LaunchEmpty(bool dependent, int num_sms, CUstream_st* stream) {
  if (dependent) {
    return Launch(Empty, dim3(static_cast<unsigned>(num_sms)), 128, 0, stream);
  }
  Empty<<<static_cast<unsigned>(num_sms), 128, 0, stream>>>();
  return cudaGetLastError();
}

}  // namespace nibble::cuda
