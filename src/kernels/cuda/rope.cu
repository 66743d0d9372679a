// RoPE, the norms of q and k before it (Qwen3), and the writes to the cache. head_dim / 16 lanes
// take one head of one token, each 8 dimensions of its first half and the 8 that they turn with;
// heads of a token are q (if any), then k, then v. Bytes are written by 16 dimensions: lane pairs
// exchange eights. Moves every value once.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

template <KvType kType>
__device__ __forceinline__ std::uint32_t ToPair(float a, float b) {
  if constexpr (kType == KvType::kF16) {
    return AsBits(__floats2half2_rn(a, b));
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

/// Eight dimensions as a chunk of 16-bit numbers.
template <KvType kType>
__device__ __forceinline__ uint4 ToChunk(const float (&x)[8]) {
  return make_uint4(ToPair<kType>(x[0], x[1]), ToPair<kType>(x[2], x[3]), ToPair<kType>(x[4], x[5]),
                    ToPair<kType>(x[6], x[7]));
}

/// Eight dimensions as bytes.
template <KvType kType>
__device__ __forceinline__ uint2 ToBytes(const float (&x)[8], float inverse_scale) {
  std::uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    words[i / 4] |= ToByte<kType>(x[i] * inverse_scale) << 8 * (i % 4);
  }
  return make_uint2(words[0], words[1]);
}

/// A chunk of bytes from its two eights, in the order of DimAt.
__device__ __forceinline__ uint4 MixEights(uint2 a, uint2 b, bool is_value) {
  const unsigned even = is_value ? 0x5140 : 0x5410;
  const unsigned odd = is_value ? 0x7362 : 0x7632;
  return make_uint4(__byte_perm(a.x, b.x, even), __byte_perm(a.x, b.x, odd),
                    __byte_perm(a.y, b.y, even), __byte_perm(a.y, b.y, odd));
}

__device__ __forceinline__ void Store8(float* to, const float (&x)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

template <KvType kType>
__global__ __launch_bounds__(kThreads) void RopeKernel(const __grid_constant__ RopeArgs args) {
  LaunchDependents();
  const int head_dim = args.cache.head_dim;
  const int half = head_dim / 2;
  const int lanes = half / 8;  // of a head: a power of two, as head_dim is
  const int flat = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int chunk = flat % lanes;
  const int kv_heads = args.cache.num_kv_heads;
  const int heads = args.num_heads + 2 * kv_heads;  // of a token
  const int index = flat / lanes % heads;
  // Lanes without a head stay: the sums below go over whole warps.
  const bool real = flat / lanes / heads < args.num_tokens;
  const std::int64_t token = real ? flat / lanes / heads : 0;
  const int slot = args.tokens[token].kv_slot;
  const int place = slot % kKvBlock;
  const bool is_q = index < args.num_heads;
  const bool is_v = index >= args.num_heads + kv_heads;
  const int head = is_q ? index : (index - args.num_heads) % kv_heads;
  const float* x = is_q   ? args.q + token * args.q_stride + head * head_dim
                   : is_v ? args.v + token * args.v_stride + head * head_dim
                          : args.k + token * args.k_stride + head * head_dim;
  const float* norm = is_q ? args.q_norm : is_v ? nullptr : args.k_norm;
  // What no kernel writes: read before the one before this is done.
  float c[8] = {};
  float s[8] = {};
  if (real && !is_v) {
    const float* cosines =
        args.cos_sin + static_cast<std::int64_t>(args.tokens[token].position) * head_dim;
    Load8(cosines + chunk * 8, c);
    Load8(cosines + half + chunk * 8, s);
  }
  WaitForPrevious();
  float low[8] = {};
  float high[8] = {};
  if (real) {
    Load8(x + chunk * 8, low);
    Load8(x + half + chunk * 8, high);
  }
  if (args.q_norm != nullptr) {
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      squares = fmaf(low[i], low[i], squares);
      squares = fmaf(high[i], high[i], squares);
    }
    for (int other = lanes / 2; other > 0; other /= 2) {
      squares += __shfl_xor_sync(0xffffffffU, squares, other);
    }
    const float inverse = 1.0F / sqrtf(squares / static_cast<float>(head_dim) + args.norm_eps);
    if (real && norm != nullptr) {
      float w[8];
      Load8(norm + chunk * 8, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        low[i] = low[i] * inverse * w[i];
      }
      Load8(norm + half + chunk * 8, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        high[i] = high[i] * inverse * w[i];
      }
    }
  }
  if (real && !is_v) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      Rotate(low[i], high[i], c[i], s[i]);
    }
  }
  if (real && is_q) {
    float* q = args.q + token * args.q_stride + head * head_dim;
    Store8(q + chunk * 8, low);
    Store8(q + half + chunk * 8, high);
  }
  const bool cached = real && !is_q;
  std::uint8_t* tile = args.cache.data +
                       static_cast<std::int64_t>(slot / kKvBlock) * args.cache.block_bytes +
                       head * args.cache.head_bytes + (is_v ? args.cache.head_bytes / 2 : 0);
  constexpr int kScaleBytes = KvScaleBytes(kType);
  const int row_bytes = kIsByte<kType> ? head_dim : 2 * head_dim;
  const int swap = SwapOf(row_bytes, place);
  auto* const row = reinterpret_cast<uint4*>(tile + kScaleBytes + place * row_bytes);
  if constexpr (!kIsByte<kType>) {
    if (cached) {
      row[chunk ^ swap] = ToChunk<kType>(low);
      row[(lanes + chunk) ^ swap] = ToChunk<kType>(high);
    }
    return;
  }
  float inverse = 1.0F;
  if constexpr (kType == KvType::kFp8) {
    inverse = InverseOf(HeadScale(args.cache, is_q ? 0 : head, is_v));
  } else {
    float top = 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      top = fmaxf(top, fmaxf(fabsf(low[i]), fabsf(high[i])));
    }
    for (int other = lanes / 2; other > 0; other /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, other));
    }
    const __half scale = Int8Scale(top);
    inverse = InverseOf(__half2float(scale));
    if (cached && chunk == 0) {
      reinterpret_cast<__half*>(tile)[place] = scale;
    }
  }
  // Of two lanes the even one takes the chunk of the first half, the odd one that of the second.
  const uint2 a = ToBytes<kType>(low, inverse);
  const uint2 b = ToBytes<kType>(high, inverse);
  const bool odd = chunk % 2 != 0;
  const uint2 given = odd ? a : b;
  const uint2 taken = make_uint2(__shfl_xor_sync(0xffffffffU, given.x, 1),
                                 __shfl_xor_sync(0xffffffffU, given.y, 1));
  if (cached && lanes == 1) {
    row[0] = MixEights(a, b, is_v);
  } else if (cached) {
    const int at = (odd ? lanes + chunk : chunk) / 2;
    row[at ^ swap] = odd ? MixEights(taken, b, is_v) : MixEights(a, taken, is_v);
  }
}

template <KvType kType>
int LaunchRope(const RopeArgs& args, cudaStream_t stream) {
  const int lanes =
      args.num_tokens * (args.num_heads + 2 * args.cache.num_kv_heads) * (args.cache.head_dim / 16);
  return Launch(RopeKernel<kType>, dim3(static_cast<unsigned>((lanes + kThreads - 1) / kThreads)),
                kThreads, 0, stream, args);
}

}  // namespace

int LaunchRopeAndCache(const RopeArgs& args, CUstream_st* stream) {
  switch (args.cache.type) {
    case KvType::kF16:
      return LaunchRope<KvType::kF16>(args, stream);
    case KvType::kBF16:
      return LaunchRope<KvType::kBF16>(args, stream);
    case KvType::kFp8:
      return LaunchRope<KvType::kFp8>(args, stream);
    case KvType::kInt8:
      return LaunchRope<KvType::kInt8>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibble::cuda
