// Activations of 8 bits: the largest magnitude of a row, then its values as e4m3, in the order that
// linear_a8.cu wants. One block a row; each value is read once (rows of more than 16,384 columns:
// twice) and written once; judge by GB/s.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_a8.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kLargest = 448.0F;

/// 16 columns, as they lie in memory.
struct Columns {
  uint4 words[2];

  __device__ __forceinline__ float At(int column) const {
    const uint4& half = words[column / 8];
    const int i = column % 8 / 2;
    const half2 two = AsHalf2(i == 0 ? half.x : i == 1 ? half.y : i == 2 ? half.z : half.w);
    return __half2float(column % 2 == 0 ? __low2half(two) : __high2half(two));
  }
};

__device__ __forceinline__ std::uint32_t TwoE4M3(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t two;
  asm("{\n"
      ".reg .b16 both;\n"
      "cvt.rn.satfinite.e4m3x2.f32 both, %2, %1;\n"
      "cvt.u32.u16 %0, both;\n"
      "}"
      : "=r"(two)
      : "f"(low), "f"(high));
  return two;
#else
  return 0;  // never launched there
#endif
}

__global__ __launch_bounds__(kThreads) void QuantizeE4M3(
    const __grid_constant__ QuantizeArgs args) {
  __shared__ float largest_of[kWarps];
  LaunchDependents();
  WaitForPrevious();
  const std::int64_t row = blockIdx.x;
  const int vectors = args.cols / 16;
  const auto* const x = reinterpret_cast<const uint4*>(args.x + row * args.x_stride);
  auto* const out = reinterpret_cast<uint4*>(args.out + row * args.cols);
  constexpr int kKept = 4;  // vectors of a thread that stay in registers
  Columns kept[kKept];
  float largest = 0.0F;
  const auto take = [&](int i) {
    const Columns columns = {{x[2 * i], x[2 * i + 1]}};
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      largest = fmaxf(largest, fabsf(columns.At(k)));
    }
    return columns;
  };
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (const int i = thread + j * kThreads; i < vectors) {
      kept[j] = take(i);
    }
  }
  for (int i = thread + kKept * kThreads; i < vectors; i += kThreads) {
    take(i);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, lanes));
  }
  if (thread % 32 == 0) {
    largest_of[thread / 32] = largest;
  }
  __syncthreads();
  largest = largest_of[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
    largest = fmaxf(largest, largest_of[w]);
  }
  const float inverse = largest == 0.0F ? 0.0F : kLargest / largest;
  if (thread == 0) {
    args.scales[row] = largest / kLargest;
  }
  const auto give = [&](int i, const Columns& columns) {
    std::uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const auto at = [&](int column) { return columns.At(column) * inverse; };
      words[t] = TwoE4M3(at(2 * t), at(2 * t + 8)) | TwoE4M3(at(2 * t + 1), at(2 * t + 9)) << 16;
    }
    out[i] = make_uint4(words[0], words[1], words[2], words[3]);
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (const int i = thread + j * kThreads; i < vectors) {
      give(i, kept[j]);
    }
  }
  for (int i = thread + kKept * kThreads; i < vectors; i += kThreads) {
    give(i, {{x[2 * i], x[2 * i + 1]}});
  }
}

}  // namespace

int LaunchQuantizeE4M3(const QuantizeArgs& args, CUstream_st* stream) {
  return Launch(QuantizeE4M3, dim3(static_cast<unsigned>(args.num_tokens)), kThreads, 0, stream,
                args);
}

}  // namespace nibble::cuda
