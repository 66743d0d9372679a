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
//   fp8: scale is times the head's scale of keys, 1 / L times that of values
//   int8: k are the codes, s is times the key's scale; v = fp16(code * scale of the value)
//
// mma.m16n8k16 gives the same bits with its operands exchanged, so keys may be rows (decode) or
// columns (prefill). docs/formats/kv_block.md has the bytes of a block: for each head a tile of
// keys and a tile of values, 64 rows whose 16-byte chunks are swapped by the token, so that reading
// a column of chunks meets every bank.

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

/// Which chunks of a row are swapped: rows that share 128 bytes of shared memory alike, the next
/// ones otherwise, so that eight rows' chunks of one number meet every bank.
__device__ __forceinline__ int SwapOf(int row_bytes, int token) {
  const int rows_of_line = row_bytes < 128 ? 128 / row_bytes : 1;
  const int chunks = row_bytes < 128 ? row_bytes / 16 : 8;
  return token / rows_of_line & (chunks - 1);
}

/// Byte of chunk `chunk` (16 bytes) of token `token` in a tile of the cache.
template <int kHeadDim, KvType kType>
__device__ __forceinline__ int ChunkAt(int token, int chunk) {
  constexpr int kRowBytes = KvRowBytes(kType, kHeadDim);
  constexpr int kFirst = KvScaleBytes(kType);
  return kFirst + token * kRowBytes + (chunk ^ SwapOf(kRowBytes, token)) * 16;
}

template <KvType kType>
constexpr bool kIsByte = kType == KvType::kFp8 || kType == KvType::kInt8;

/// Byte of dimension `dim`. Rows of bytes mix the two eights of a chunk as the fragments want them:
/// of keys a lane gets 2t, 2t + 1, 2t + 8, 2t + 9, of values g, g + 8.
template <int kHeadDim, KvType kType>
__device__ __forceinline__ int DimAt(int token, int dim, bool is_value) {
  if constexpr (kIsByte<kType>) {
    const int d = dim % 8;
    const int high = dim / 8 % 2;
    return ChunkAt<kHeadDim, kType>(token, dim / 16) +
           (is_value ? 2 * d + high : d / 2 * 4 + high * 2 + d % 2);
  }
  return ChunkAt<kHeadDim, kType>(token, dim / 8) + dim % 8 * 2;
}

/// Two neighbouring tokens, of which `tokens` exist: behind the last one lies what another sequence
/// left, and 0 times that may be NaN.
__device__ __forceinline__ std::uint32_t KeepTokens(std::uint32_t pair, int tokens) {
  return tokens >= 2 ? pair : tokens == 1 ? pair & 0xffffU : 0;
}

/// Two 16-bit numbers of the cache as fp16. bf16 to fp16 is exact above 2^-14, and rounds below.
template <KvType kType>
__device__ __forceinline__ std::uint32_t ToHalf2(std::uint32_t pair) {
  if constexpr (kType == KvType::kF16) {
    return pair;
  }
  return AsBits(
      __floats2half2_rn(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U)));
}

/// Four bytes as fp16, exactly: e4m3, or code - 128. low: bytes 0 and kStride, high: the others.
template <KvType kType, int kStride>
__device__ __forceinline__ void BytesToHalf2(std::uint32_t word, std::uint32_t& low,
                                             std::uint32_t& high) {
  constexpr unsigned kSecond = kStride == 1 ? 1 : 2;
  constexpr unsigned kThird = kStride == 1 ? 2 : 1;
  if constexpr (kType == KvType::kInt8) {
    const auto half = [&](unsigned first, unsigned second) {
      const std::uint32_t biased =  // 1024 + code
          __byte_perm(word, 0x64646464U, first | 0x40U | second << 8 | 0x4000U);
      return AsBits(__hsub2(AsHalf2(biased), AsHalf2(0x64806480U)));
    };
    low = half(0, kSecond);
    high = half(kThird, 3);
  } else {
    if constexpr (kStride == 2) {
      word = __byte_perm(word, 0, 0x3120);
    }
    low = HalvesOfE4M3(word);
    high = HalvesOfE4M3(word >> 16);
  }
}

/// 16 dimensions that one matrix load brings of 16 tokens.
template <int kHeadDim, KvType kType>
constexpr int kStepsOfLoad = kIsByte<kType>&& kHeadDim >= 32 ? 2 : 1;

/// Keys of 16 tokens, kCount steps of 16 dimensions:
/// {tokens g, dims 2t}, {g, 2t + 8}, {g + 8, 2t}, {g + 8, 2t + 8}.
template <int kHeadDim, KvType kType, int kCount>
__device__ __forceinline__ void LoadKeys(std::uint32_t (&k)[kCount][4], std::uint32_t tile,
                                         int token, int step, int lane) {
  if constexpr (kIsByte<kType>) {
    std::uint32_t r[2 * kCount];
    LoadMatrices(r, tile + ChunkAt<kHeadDim, kType>(token + lane % 16,
                                                    step + (kCount == 2 ? lane / 16 : 0)));
#pragma unroll
    for (int i = 0; i < 2 * kCount; ++i) {
      BytesToHalf2<kType, 1>(r[i], k[i / 2][i % 2 * 2], k[i / 2][i % 2 * 2 + 1]);
    }
  } else {
    static_assert(kCount == 1);
    LoadMatrices(k[0], tile + ChunkAt<kHeadDim, kType>(token + lane % 8 + lane / 16 * 8,
                                                       step * 2 + lane / 8 % 2));
#pragma unroll
    for (auto& pair : k[0]) {
      pair = ToHalf2<kType>(pair);
    }
  }
}

/// Values of 16 tokens, of which `tokens` exist, kCount steps of 16 dimensions, kStride apart:
/// {dims g, tokens 2t}, {g, 2t + 8}, {g + 8, 2t}, {g + 8, 2t + 8}.
/// scales: of int8, from LoadValueScales.
template <int kHeadDim, KvType kType, int kStride, int kCount>
__device__ __forceinline__ void LoadValues(std::uint32_t (&v)[kCount][4], std::uint32_t tile,
                                           const std::uint32_t (&scales)[2], int token, int step,
                                           int tokens, int lane) {
  const int first = 2 * (lane % 4);
  if constexpr (kIsByte<kType>) {
    std::uint32_t r[2 * kCount];
    LoadMatricesTransposed(
        r, tile + ChunkAt<kHeadDim, kType>(token + lane % 16,
                                           step + (kCount == 2 ? lane / 16 * kStride : 0)));
    if (kType == KvType::kFp8 && tokens < 16) {  // one branch, not a selection a register
#pragma unroll
      for (int i = 0; i < 2 * kCount; ++i) {
        r[i] = KeepTokens(r[i], tokens - first - i % 2 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kCount; ++i) {
      std::uint32_t(&to)[4] = v[i / 2];
      const int j = i % 2;
      BytesToHalf2<kType, 2>(r[i], to[j], to[j + 2]);
      if constexpr (kType == KvType::kInt8) {
        to[j] = AsBits(__hmul2(AsHalf2(to[j]), AsHalf2(scales[j])));
        to[j + 2] = AsBits(__hmul2(AsHalf2(to[j + 2]), AsHalf2(scales[j])));
      }
    }
  } else {
    static_assert(kCount == 1);
    LoadMatricesTransposed(
        v[0], tile + ChunkAt<kHeadDim, kType>(token + lane % 16, step * 2 + lane / 16));
    if (tokens < 16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[0][j] = KeepTokens(v[0][j], tokens - first - j % 2 * 8);
      }
    }
#pragma unroll
    for (auto& pair : v[0]) {
      pair = ToHalf2<kType>(pair);
    }
  }
}

/// int8: the scales of the values that LoadValues takes, those of tokens that do not exist as 0.
template <KvType kType>
__device__ __forceinline__ void LoadValueScales(std::uint32_t (&scales)[2], std::uint32_t tile,
                                                int token, int tokens, int lane) {
  if constexpr (kType == KvType::kInt8) {
    const int first = 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      scales[j] =
          KeepTokens(LoadShared32(tile + 2 * (token + first + j * 8)), tokens - first - j * 8);
    }
  }
}

/// A number over its scale as a byte: e4m3 that saturates at 448, or 128 plus -127..127.
template <KvType kType>
__device__ __forceinline__ std::uint32_t ToByte(float x) {
  if constexpr (kType == KvType::kInt8) {
    return static_cast<std::uint32_t>(128 + __float2int_rn(fmaxf(fminf(x, 127.0F), -127.0F)));
  }
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

/// int8: the scale of a token whose largest magnitude is `top`, as fp16.
__device__ __forceinline__ __half Int8Scale(float top) {
  return __float2half_rn(fminf(top / 127.0F, 65504.0F));
}
__device__ __forceinline__ float InverseOf(float scale) {
  return scale > 0.0F ? 1.0F / scale : 0.0F;
}
/// fp8: the scale of a head's keys or values.
__device__ __forceinline__ float HeadScale(const KvView& cache, int kv_head, bool is_value) {
  return cache.scales == nullptr ? 1.0F
                                 : cache.scales[(is_value ? cache.num_kv_heads : 0) + kv_head];
}

/// Eight neighbouring dimensions, or what turns them.
__device__ __forceinline__ void Load8(const float* from, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x;
  x[1] = a.y;
  x[2] = a.z;
  x[3] = a.w;
  x[4] = b.x;
  x[5] = b.y;
  x[6] = b.z;
  x[7] = b.w;
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
