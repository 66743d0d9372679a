// RoPE, the norms of q and k before it (Qwen3), and the writes to the cache. head_dim / 16 lanes
// take one head of one token, each 8 dimensions of its first half and the 8 that they turn with;
// heads are q, then k, then v. Moves every value once.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ std::uint32_t ToCache(float a, float b, KvType type) {
  if (type == KvType::kF16) {
    return AsBits(__floats2half2_rn(a, b));
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

/// Chunk `chunk` (8 dimensions) of a token's keys or values.
__device__ __forceinline__ void StoreChunk(std::uint8_t* tile, int token, int chunk, int head_dim,
                                           int swap_mask, const float (&x)[8], KvType type) {
  *reinterpret_cast<uint4*>(tile + token * head_dim * 2 + (chunk ^ (token & swap_mask)) * 16) =
      make_uint4(ToCache(x[0], x[1], type), ToCache(x[2], x[3], type), ToCache(x[4], x[5], type),
                 ToCache(x[6], x[7], type));
}

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
__device__ __forceinline__ void Store8(float* to, const float (&x)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__global__ __launch_bounds__(kThreads) void RopeKernel(const __grid_constant__ RopeArgs args) {
  LaunchDependents();
  WaitForPrevious();
  const int head_dim = args.cache.head_dim;
  const int half = head_dim / 2;
  const int lanes = half / 8;  // of a head: a power of two, as head_dim is
  const int index =
      (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) / lanes;
  const int chunk = static_cast<int>(threadIdx.x) % lanes;
  const int kv_heads = args.cache.num_kv_heads;
  // Lanes without a head stay: the sums below go over whole warps.
  const bool real = index < args.num_heads + 2 * kv_heads;
  const std::int64_t token = blockIdx.x;
  const int slot = args.tokens[token].kv_slot;
  const int place = slot % kKvBlock;
  const int chunks = head_dim / 8;
  const int swap_mask = chunks % 8 == 0 ? 7 : chunks % 4 == 0 ? 3 : chunks % 2 == 0 ? 1 : 0;
  const bool is_q = index < args.num_heads;
  const bool is_v = index >= args.num_heads + kv_heads;
  const int head = is_q ? index : (index - args.num_heads) % kv_heads;
  const float* x = is_q   ? args.q + token * args.q_stride + head * head_dim
                   : is_v ? args.v + token * args.v_stride + head * head_dim
                          : args.k + token * args.k_stride + head * head_dim;
  const float* norm = is_q ? args.q_norm : is_v ? nullptr : args.k_norm;
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
  if (!real) {
    return;
  }
  if (!is_v) {
    const float* cosines =
        args.cos_sin + static_cast<std::int64_t>(args.tokens[token].position) * head_dim;
    float c[8];
    float s[8];
    Load8(cosines + chunk * 8, c);
    Load8(cosines + half + chunk * 8, s);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      Rotate(low[i], high[i], c[i], s[i]);
    }
  }
  if (is_q) {
    float* q = args.q + token * args.q_stride + head * head_dim;
    Store8(q + chunk * 8, low);
    Store8(q + half + chunk * 8, high);
    return;
  }
  std::uint8_t* tile = args.cache.data +
                       static_cast<std::int64_t>(slot / kKvBlock) * args.cache.block_bytes +
                       head * args.cache.head_bytes + (is_v ? kKvBlock * head_dim * 2 : 0);
  StoreChunk(tile, place, chunk, head_dim, swap_mask, low, args.cache.type);
  StoreChunk(tile, place, lanes + chunk, head_dim, swap_mask, high, args.cache.type);
}

}  // namespace

int LaunchRopeAndCache(const RopeArgs& args, CUstream_st* stream) {
  const int lanes = (args.num_heads + 2 * args.cache.num_kv_heads) * (args.cache.head_dim / 16);
  return Launch(RopeKernel,
                dim3(static_cast<unsigned>(args.num_tokens),
                     static_cast<unsigned>((lanes + kThreads - 1) / kThreads)),
                kThreads, 0, stream, args);
}

}  // namespace nibble::cuda
