#pragma once

// RMSNorm as every kernel here computes it: 256 threads sum the squares of a row, each over vectors
// of four, 256 vectors apart, then lanes by a butterfly, then warps in order. x = fp16(v * inverse
// * w).

#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

constexpr int kNormThreads = 256;
constexpr int kNormWarps = kNormThreads / 32;

__device__ __forceinline__ void AddSquares(float4 v, float& squares) {
  squares = fmaf(v.x, v.x, squares);
  squares = fmaf(v.y, v.y, squares);
  squares = fmaf(v.z, v.z, squares);
  squares = fmaf(v.w, v.w, squares);
}

/// Each warp's sum of a row's squares, for InverseRms once all 256 threads have met.
__device__ __forceinline__ void LeaveSquares(float squares, int thread, float* scratch) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    squares += __shfl_xor_sync(0xffffffffU, squares, lanes);
  }
  if (thread % 32 == 0) {
    scratch[thread / 32] = squares;
  }
}
/// 1 / rms of a row.
__device__ __forceinline__ float InverseRms(const float* scratch, int width, float eps) {
  float sum = scratch[0];
#pragma unroll
  for (int w = 1; w < kNormWarps; ++w) {
    sum += scratch[w];
  }
  return 1.0F / sqrtf(sum / static_cast<float>(width) + eps);
}

/// Four normed values as fp16.
__device__ __forceinline__ uint2 Normed(float4 v, float inverse, float4 weight) {
  return {AsBits(__floats2half2_rn(v.x * inverse * weight.x, v.y * inverse * weight.y)),
          AsBits(__floats2half2_rn(v.z * inverse * weight.z, v.w * inverse * weight.w))};
}

}  // namespace nibble::cuda
