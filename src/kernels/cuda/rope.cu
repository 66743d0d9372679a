// RoPE, the norms of q and k before it (Qwen3), and the writes to the cache. A warp takes one head
// of one token; heads are q, then k, then v. Moves every value once.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;

__device__ __forceinline__ std::uint16_t ToCache(float x, KvType type) {
  return type == KvType::kF16 ? __half_as_ushort(__float2half_rn(x))
                              : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

/// Where dimension d of a token's keys or values lies.
__device__ __forceinline__ std::uint16_t* CacheAt(std::uint8_t* tile, int token, int d,
                                                  int head_dim, int swap_mask) {
  return reinterpret_cast<std::uint16_t*>(tile + token * head_dim * 2 +
                                          ((d / 8) ^ (token & swap_mask)) * 16 + d % 8 * 2);
}

__global__ __launch_bounds__(kWarps * 32) void RopeKernel(const __grid_constant__ RopeArgs args) {
  LaunchDependents();
  WaitForPrevious();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int index = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int kv_heads = args.cache.num_kv_heads;
  if (index >= args.num_heads + 2 * kv_heads) {
    return;
  }
  const std::int64_t token = blockIdx.x;
  const int head_dim = args.cache.head_dim;
  const int half = head_dim / 2;
  const int slot = args.tokens[token].kv_slot;
  const int place = slot % kKvBlock;
  const int chunks = head_dim / 8;
  const int swap_mask = chunks % 8 == 0 ? 7 : chunks % 4 == 0 ? 3 : chunks % 2 == 0 ? 1 : 0;
  const bool is_q = index < args.num_heads;
  const bool is_v = index >= args.num_heads + kv_heads;
  const int head = is_q ? index : (index - args.num_heads) % kv_heads;
  std::uint8_t* tile = args.cache.data +
                       static_cast<std::int64_t>(slot / kKvBlock) * args.cache.block_bytes +
                       head * args.cache.head_bytes;
  if (is_v) {
    const float* v = args.v + token * args.v_stride + head * head_dim;
    tile += kKvBlock * head_dim * 2;
    for (int d = lane; d < head_dim; d += 32) {
      *CacheAt(tile, place, d, head_dim, swap_mask) = ToCache(v[d], args.cache.type);
    }
    return;
  }
  const float* x = is_q ? args.q + token * args.q_stride + head * head_dim
                        : args.k + token * args.k_stride + head * head_dim;
  const float* norm = is_q ? args.q_norm : args.k_norm;
  float inverse = 1.0F;
  if (norm != nullptr) {
    float squares = 0.0F;
    for (int d = lane; d < head_dim; d += 32) {
      squares = fmaf(x[d], x[d], squares);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      squares += __shfl_xor_sync(0xffffffffU, squares, lanes);
    }
    inverse = 1.0F / sqrtf(squares / static_cast<float>(head_dim) + args.norm_eps);
  }
  const float* cosines =
      args.cos_sin + static_cast<std::int64_t>(args.tokens[token].position) * head_dim;
  for (int d = lane; d < half; d += 32) {
    float a = x[d];
    float b = x[d + half];
    if (norm != nullptr) {
      a = a * inverse * norm[d];
      b = b * inverse * norm[d + half];
    }
    const float c = cosines[d];
    const float s = cosines[d + half];
    const float low = a * c - b * s;
    const float high = b * c + a * s;
    if (is_q) {
      float* q = args.q + token * args.q_stride + head * head_dim;
      q[d] = low;
      q[d + half] = high;
    } else {
      *CacheAt(tile, place, d, head_dim, swap_mask) = ToCache(low, args.cache.type);
      *CacheAt(tile, place, d + half, head_dim, swap_mask) = ToCache(high, args.cache.type);
    }
  }
}

}  // namespace

int LaunchRopeAndCache(const RopeArgs& args, CUstream_st* stream) {
  const int heads = args.num_heads + 2 * args.cache.num_kv_heads;
  return Launch(RopeKernel,
                dim3(static_cast<unsigned>(args.num_tokens),
                     static_cast<unsigned>((heads + kWarps - 1) / kWarps)),
                kWarps * 32, 0, stream, args);
}

}  // namespace nibble::cuda
