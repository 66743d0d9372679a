#pragma once

// What decoding and prefill share, so that a query's result does not depend on which computed it:
//
//   q, k, v in fp16 (k and v from the cache, exactly);  s = q k, one chain of MMAs over head_dim
//   per split of 128 absolute positions, over the keys that the query sees:
//     t = s * scale * log2 e;  m = max t;  p = fp16(2^(t - m))
//     o = sum p v,  l = sum p:  one chain of MMAs each, 16 keys a step, in order
//   splits in order:  M' = max(M, m);  O = fma(O, 2^(M - M'), o * 2^(m - M')),  L alike
//   four splits are a unit of 512 positions; units are merged in order in the same way
//   out = fp16(O * (1 / L))
//
// mma.m16n8k16 gives the same bits with its operands exchanged, so keys may be rows (decode) or
// columns (prefill). A block of the cache is 64 keys then 64 values of one head, rows of head_dim
// 16-bit numbers whose 16-byte chunks are swapped by the token (docs/formats/kv_block.md), so that
// reading a column of chunks meets every bank.

#include <cuda_bf16.h>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

/// Chunks that take part in the swap: a power of two that divides their number.
template <int kHeadDim>
constexpr int SwapMask() {
  constexpr int kChunks = kHeadDim / 8;
  return kChunks % 8 == 0 ? 7 : kChunks % 4 == 0 ? 3 : kChunks % 2 == 0 ? 1 : 0;
}

/// Byte of chunk `chunk` of token `token` in the keys or values of a block.
template <int kHeadDim>
__device__ __forceinline__ int ChunkAt(int token, int chunk) {
  return token * kHeadDim * 2 + (chunk ^ (token & SwapMask<kHeadDim>())) * 16;
}

/// Values of two neighbouring tokens, of which `tokens` exist: behind the last one lies what another
/// sequence left, and 0 times that may be NaN.
__device__ __forceinline__ std::uint32_t KeepValues(std::uint32_t pair, int tokens) {
  return tokens >= 2 ? pair : tokens == 1 ? pair & 0xffffU : 0;
}

/// Two numbers of the cache as fp16. bf16 to fp16 is exact above 2^-14, and rounds below.
template <KvType kType>
__device__ __forceinline__ std::uint32_t ToHalf2(std::uint32_t pair) {
  if constexpr (kType == KvType::kF16) {
    return pair;
  }
  return AsBits(
      __floats2half2_rn(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U)));
}
template <KvType kType>
__device__ __forceinline__ void ToHalf2(std::uint32_t (&r)[4]) {
  if constexpr (kType != KvType::kF16) {
#pragma unroll
    for (auto& pair : r) {
      pair = ToHalf2<kType>(pair);
    }
  }
}

/// RoPE of the pair (d, d + head_dim / 2).
__device__ __forceinline__ void Rotate(float& low, float& high, float cosine, float sine) {
  const float a = low;
  low = a * cosine - high * sine;
  high = high * cosine + a * sine;
}

struct Merged {
  float max = -INFINITY;
  float sum = 0.0F;
};
/// Weights of the old and the new part when a split joins: O = fma(O, keep, o * add).
__device__ __forceinline__ void Merge(Merged& merged, float max, float sum, float& keep,
                                      float& add) {
  const float new_max = fmaxf(merged.max, max);
  keep = Exp2(merged.max - new_max);
  add = Exp2(max - new_max);
  merged.max = new_max;
  merged.sum = fmaf(merged.sum, keep, sum * add);
}

/// First key that a query at `position` sees.
__device__ __forceinline__ int FirstKey(int position, int window) {
  return window > 0 ? max(0, position - window + 1) : 0;
}

}  // namespace nibble::cuda
