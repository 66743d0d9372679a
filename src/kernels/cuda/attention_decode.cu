// Attention of sequences with one query each. A work item is (sequence, split of 256 keys, KV
// head): its four 64-key blocks stream through a ring of shared memory, keys first, then values.
// Four warps share the keys (16 of each block), then the dimensions of the output. The query heads
// of one KV head are the 8 columns of the products. Sequences of several splits leave partial
// results; the block that comes last merges them in order. Moves the cache of every sequence once;
// judge by GB/s.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = (kWarps + 1) * 32;
constexpr int kRing = 12;                   // blocks of keys or values in flight at head_dim 128
constexpr int kWeightPitch = kKvSplit + 8;  // halves between heads: conflict-free fragments

__device__ __forceinline__ void WarpsSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory");
}

struct Item {
  int sequence;
  int split;
  int kv_head;
  int first_head;  // of the query heads taken together
  int num_heads;
  int length;     // keys in the cache, the query's own included
  int first_key;  // that the query sees
  int block_begin, block_end;
};

__device__ __forceinline__ Item ItemAt(const AttentionArgs& args, int index) {
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int parts = (group + kMaxGroup - 1) / kMaxGroup;
  const int heads = args.cache.num_kv_heads * parts;
  Item item;
  item.sequence = args.items[index / heads * 2];
  item.split = args.items[index / heads * 2 + 1];
  item.kv_head = index % heads / parts;
  const int part = index % heads % parts;
  item.first_head = item.kv_head * group + part * kMaxGroup;
  item.num_heads = min(kMaxGroup, group - part * kMaxGroup);
  const int position = args.sequences.first_position[item.sequence];
  item.length = position + 1;
  item.first_key = FirstKey(position, args.window);
  const int begin = max(item.split * kKvSplit, item.first_key);
  const int end = min((item.split + 1) * kKvSplit, item.length);
  item.block_begin = begin / kKvBlock;
  item.block_end = (end + kKvBlock - 1) / kKvBlock;
  return item;
}

template <int kHeadDim, KvType kType>
__global__ __launch_bounds__(kThreads,
                             1) void DecodeKernel(const __grid_constant__ AttentionArgs args,
                                                  int num_stages) {
  constexpr int kTileBytes = kKvBlock * kHeadDim * 2;
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kBlocks = kKvSplit / kKvBlock;
  extern __shared__ __align__(1024) std::uint8_t smem[];
  __shared__ float maxima[kWarps][kMaxGroup];
  __shared__ __half weights[kMaxGroup][kWeightPitch];
  __shared__ int is_last;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const std::uint32_t ring = SmemAddress(smem);
  const std::uint32_t full = ring + num_stages * kTileBytes;
  const std::uint32_t empty = full + 8 * num_stages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();
  WaitForPrevious();
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int parts = (group + kMaxGroup - 1) / kMaxGroup;
  const int num_items = *args.num_items * args.cache.num_kv_heads * parts;
  int stage = 0;

  if (warp == kWarps) {  // copies
    if (lane == 0) {
      const std::uint64_t policy = EvictFirst();
      std::uint32_t phase = 1;
      for (int index = static_cast<int>(blockIdx.x); index < num_items;
           index += static_cast<int>(gridDim.x)) {
        const Item item = ItemAt(args, index);
        const std::int32_t* table =
            args.sequences.block_tables +
            static_cast<std::int64_t>(item.sequence) * args.sequences.table_stride;
        for (int values = 0; values < 2; ++values) {
          for (int b = item.block_begin; b < item.block_end; ++b) {
            const std::uint8_t* from = args.cache.data + table[b] * args.cache.block_bytes +
                                       item.kv_head * args.cache.head_bytes + values * kTileBytes;
            BarrierWait(empty + 8 * stage, phase);
            BarrierExpect(full + 8 * stage, kTileBytes);
            BulkCopy(ring + stage * kTileBytes, from, kTileBytes, full + 8 * stage, policy);
            if (++stage == num_stages) {
              stage = 0;
              phase ^= 1;
            }
          }
        }
      }
    }
    return;
  }

  std::uint32_t phase = 0;
  const auto next_stage = [&] {
    __syncwarp();
    if (lane == 0) {
      BarrierArrive(empty + 8 * stage);
    }
    if (++stage == num_stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  for (int index = static_cast<int>(blockIdx.x); index < num_items;
       index += static_cast<int>(gridDim.x)) {
    const Item item = ItemAt(args, index);
    const int row = args.sequences.first_row[item.sequence];
    // The queries: column g of the products is head g.
    std::uint32_t q[kSteps][2];
    const float* q_head = args.q + row * args.q_stride + (item.first_head + g) * kHeadDim;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        q[s][h] = 0;
        if (g < item.num_heads) {
          const float2 v = *reinterpret_cast<const float2*>(q_head + s * 16 + h * 8 + 2 * t);
          q[s][h] = AsBits(__floats2half2_rn(v.x, v.y));
        }
      }
    }
    const int split_block = item.split * kBlocks;
    float scores[kBlocks][4];
    float top[2] = {-INFINITY, -INFINITY};  // of heads 2t and 2t + 1
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int block = split_block + b;
      float c[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      const bool walked = block >= item.block_begin && block < item.block_end;
      if (walked) {
        BarrierWait(full + 8 * stage, phase);
        const std::uint32_t tile = ring + stage * kTileBytes;
        const int token = warp * 16 + lane % 16;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          std::uint32_t a[4];
          LoadMatrices(a, tile + ChunkAt<kHeadDim>(token, s * 2 + lane / 16));
          ToHalf2<kType>(a);
          Mma16816(c, a, q[s][0], q[s][1]);
        }
        next_stage();
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = block * kKvBlock + warp * 16 + g + j / 2 * 8;
        const bool seen = walked && key >= item.first_key && key < item.length;
        scores[b][j] = seen ? c[j] * args.scale_log2 : -INFINITY;
        top[j % 2] = fmaxf(top[j % 2], scores[b][j]);
      }
    }
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      top[0] = fmaxf(top[0], __shfl_xor_sync(0xffffffffU, top[0], lanes));
      top[1] = fmaxf(top[1], __shfl_xor_sync(0xffffffffU, top[1], lanes));
    }
    if (g == 0) {
      maxima[warp][2 * t] = top[0];
      maxima[warp][2 * t + 1] = top[1];
    }
    WarpsSync();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      top[0] = fmaxf(top[0], maxima[w][2 * t]);
      top[1] = fmaxf(top[1], maxima[w][2 * t + 1]);
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        weights[2 * t + j % 2][b * kKvBlock + warp * 16 + g + j / 2 * 8] =
            __float2half_rn(Exp2(scores[b][j] - top[j % 2]));
      }
    }
    WarpsSync();

    constexpr int kTiles = (kSteps + kWarps - 1) / kWarps;  // of 16 dimensions, of a warp
    constexpr std::uint32_t kOnes = 0x3c003c00;
    const std::uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    float o[kTiles][4] = {};
    float l[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int block = split_block + b;
      if (block >= item.block_begin && block < item.block_end) {
        BarrierWait(full + 8 * stage, phase);
        const std::uint32_t tile = ring + stage * kTileBytes;
#pragma unroll
        for (int s = 0; s < kKvBlock / 16; ++s) {
          const __half* w = &weights[g][b * kKvBlock + s * 16 + 2 * t];
          const std::uint32_t b0 = *reinterpret_cast<const std::uint32_t*>(w);
          const std::uint32_t b1 = *reinterpret_cast<const std::uint32_t*>(w + 8);
          Mma16816(l, ones, b0, b1);
          const int token = s * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            const int dims = (i * kWarps + warp) * 16;
            if (dims < kHeadDim) {
              std::uint32_t a[4];
              LoadMatricesTransposed(a, tile + ChunkAt<kHeadDim>(token, dims / 8 + lane / 8 % 2));
              ToHalf2<kType>(a);
              Mma16816(o[i], a, b0, b1);
            }
          }
        }
        next_stage();
      }
    }

    const int first_split = item.first_key / kKvSplit;
    const int num_splits = (item.length - 1) / kKvSplit - first_split + 1;
    std::uint16_t* out = args.out + row * args.out_stride;
    if (num_splits == 1) {
      const float inverse[2] = {1.0F / l[0], 1.0F / l[1]};
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int dim = (i * kWarps + warp) * 16 + g + j / 2 * 8;
          const int head = 2 * t + j % 2;
          if (dim < kHeadDim && head < item.num_heads) {
            out[(item.first_head + head) * kHeadDim + dim] =
                __half_as_ushort(__float2half_rn(o[i][j] * inverse[j % 2]));
          }
        }
      }
      continue;
    }
    constexpr int kPartial = kHeadDim + 2;
    const int base_item = args.first_item[item.sequence];
    const auto partial_of = [&](int split, int head) {
      return args.partial + (static_cast<std::int64_t>(base_item + split) * args.num_heads +
                             item.first_head + head) *
                                kPartial;
    };
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int dim = (i * kWarps + warp) * 16 + g + j / 2 * 8;
        const int head = 2 * t + j % 2;
        if (dim < kHeadDim && head < item.num_heads) {
          partial_of(item.split - first_split, head)[dim] = o[i][j];
        }
      }
    }
    if (warp == 0 && g == 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (2 * t + j < item.num_heads) {
          float* partial = partial_of(item.split - first_split, 2 * t + j);
          partial[kHeadDim] = top[j];
          partial[kHeadDim + 1] = l[j];
        }
      }
    }
    __threadfence();
    WarpsSync();
    std::int32_t* arrived = args.arrived + item.sequence * args.cache.num_kv_heads * parts +
                            item.kv_head * parts +
                            (item.first_head - item.kv_head * group) / kMaxGroup;
    if (threadIdx.x == 0) {
      is_last = atomicAdd(arrived, 1) == num_splits - 1;
      if (is_last != 0) {
        *arrived = 0;
      }
    }
    WarpsSync();
    if (is_last != 0) {
      __threadfence();
      for (int i = static_cast<int>(threadIdx.x); i < item.num_heads * kHeadDim; i += kWarps * 32) {
        const int head = i / kHeadDim;
        const int dim = i % kHeadDim;
        Merged merged;
        float sum = 0.0F;
        for (int s = 0; s < num_splits; ++s) {
          const float* partial = partial_of(s, head);
          float keep;
          float add;
          Merge(merged, __ldcg(partial + kHeadDim), __ldcg(partial + kHeadDim + 1), keep, add);
          sum = fmaf(sum, keep, __ldcg(partial + dim) * add);
        }
        out[(item.first_head + head) * kHeadDim + dim] =
            __half_as_ushort(__float2half_rn(sum * (1.0F / merged.sum)));
      }
    }
    WarpsSync();  // is_last is read before the next item may write it
  }
}

template <int kHeadDim, KvType kType>
int LaunchDecode(const AttentionArgs& args, int num_sms, cudaStream_t stream) {
  constexpr int kTileBytes = kKvBlock * kHeadDim * 2;
  const int stages = kHeadDim >= 128 ? kRing * 128 / kHeadDim : kRing;
  const int smem = stages * kTileBytes + stages * 16;
  auto* kernel = DecodeKernel<kHeadDim, kType>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 216 * 1024);
  if (configured != cudaSuccess) {
    return configured;
  }
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int most = args.max_items * args.cache.num_kv_heads * ((group + kMaxGroup - 1) / kMaxGroup);
  return Launch(kernel, dim3(static_cast<unsigned>(most < num_sms ? most : num_sms)), kThreads,
                smem, stream, args, stages);
}

}  // namespace

bool HasAttention(int head_dim) {
  return head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 128;
}

int LaunchDecodeAttention(const AttentionArgs& args, int num_sms, CUstream_st* stream) {
  const bool bf16 = args.cache.type == KvType::kBF16;
  switch (args.cache.head_dim) {
    case 16:
      return bf16 ? LaunchDecode<16, KvType::kBF16>(args, num_sms, stream)
                  : LaunchDecode<16, KvType::kF16>(args, num_sms, stream);
    case 32:
      return bf16 ? LaunchDecode<32, KvType::kBF16>(args, num_sms, stream)
                  : LaunchDecode<32, KvType::kF16>(args, num_sms, stream);
    case 64:
      return bf16 ? LaunchDecode<64, KvType::kBF16>(args, num_sms, stream)
                  : LaunchDecode<64, KvType::kF16>(args, num_sms, stream);
    case 128:
      return bf16 ? LaunchDecode<128, KvType::kBF16>(args, num_sms, stream)
                  : LaunchDecode<128, KvType::kF16>(args, num_sms, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace nibble::cuda
