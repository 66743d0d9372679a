// Attention of sequences with one query each. A work item is (sequence, unit of 512 keys, KV head):
// its 64-key blocks stream through a ring of shared memory, split by split, keys first, then
// values. Four warps share the keys of a split (16 of each block), then the dimensions of the
// output. The query heads of one KV head are the 8 columns of the products. Sequences of several
// units leave partial results; the block that comes last merges them in order. Moves the cache of
// every sequence once; judge by GB/s. In a step that also has prefill it runs beside that kernel,
// which computes where this one waits for memory (AttentionArgs::beside).

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = (kWarps + 1) * 32;
// Blocks of an SM. With half the bytes the time between two items weighs double: a third block
// fills it.
template <KvType kType>
constexpr int kBlocksOfSm = kIsByte<kType> ? 3 : 2;
template <KvType kType>
constexpr int kRingBytes = (kIsByte<kType> ? 64 : 96) * 1024;  // keys or values in flight
constexpr int kWeightPitch = kKvSplit + 8;  // halves between heads: conflict-free fragments

__device__ __forceinline__ void WarpsSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory");
}

/// What an item's index means: its unit, and which heads.
struct Item {
  DecodeItem of;
  int kv_head;
  int part;        // of the query heads of the KV head
  int first_head;  // taken together
  int num_heads;
};

__device__ __forceinline__ Item ItemAt(const AttentionArgs& args, int index) {
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int parts = (group + kMaxGroup - 1) / kMaxGroup;
  const int heads = args.cache.num_kv_heads * parts;
  Item item;
  item.of = args.items[index / heads];
  item.kv_head = index % heads / parts;
  item.part = index % heads % parts;
  item.first_head = item.kv_head * group + item.part * kMaxGroup;
  item.num_heads = min(kMaxGroup, group - item.part * kMaxGroup);
  return item;
}

/// Blocks of a split that hold keys the query sees.
__device__ __forceinline__ void BlocksOf(const DecodeItem& item, int split, int& begin, int& end) {
  begin = max(split * kKvSplit, item.first_key) / kKvBlock;
  end = (min((split + 1) * kKvSplit, item.length) + kKvBlock - 1) / kKvBlock;
}
/// Keys of a block that exist.
__device__ __forceinline__ int KeysOf(const DecodeItem& item, int block) {
  return min(kKvBlock, item.length - block * kKvBlock);
}
__device__ __forceinline__ void SplitsOf(const DecodeItem& item, int& begin, int& end) {
  constexpr int kSplits = kKvUnit / kKvSplit;
  begin = max(item.unit * kSplits, item.first_key / kKvSplit);
  end = min((item.unit + 1) * kSplits, (item.length - 1) / kKvSplit + 1);
}

/// Rotates the one new key of an item's sequence, writes it and the value to their place in the
/// cache, and to the copies of their block in `tiles` (keys, values): these were made from memory
/// before it was written. `landed` counts the bytes of the copies, `full` is told when they are
/// whole. For a warp.
template <int kHeadDim, KvType kType>
__device__ __forceinline__ void AddNewToken(const AttentionArgs& args, const Item& item, int block,
                                            std::uint8_t* const (&tiles)[2], std::uint32_t landed,
                                            std::uint32_t parity, const std::uint32_t (&full)[2],
                                            int lane) {
  constexpr int kTileBytes = KvTileBytes(kType, kHeadDim);
  constexpr int kHalf = kHeadDim / 2;
  constexpr int kPairs = (kHalf + 31) / 32;  // of a lane
  const int position = item.of.length - 1;
  const int place = position % kKvBlock;
  std::uint8_t* const keys =
      args.cache.data + block * args.cache.block_bytes + item.kv_head * args.cache.head_bytes;
  const float* k = args.k + item.of.row * args.k_stride + item.kv_head * kHeadDim;
  const float* v = args.v + item.of.row * args.v_stride + item.kv_head * kHeadDim;
  const float* cosines = args.cos_sin + static_cast<std::int64_t>(position) * kHeadDim;
  float x[2][kPairs][2] = {};  // keys and values, of d and d + kHalf
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int d = i * 32 + lane;
    if (d < kHalf) {
      x[0][i][0] = k[d];
      x[0][i][1] = k[d + kHalf];
      Rotate(x[0][i][0], x[0][i][1], cosines[d], cosines[d + kHalf]);
      x[1][i][0] = v[d];
      x[1][i][1] = v[d + kHalf];
    }
  }
  float inverse[2] = {1.0F, 1.0F};
  __half scales[2] = {};  // int8
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    if constexpr (kType == KvType::kInt8) {
      float top = 0.0F;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        top = fmaxf(top, fmaxf(fabsf(x[which][i][0]), fabsf(x[which][i][1])));
      }
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, lanes));
      }
      scales[which] = Int8Scale(top);
      inverse[which] = InverseOf(__half2float(scales[which]));
    } else if constexpr (kType == KvType::kFp8) {
      inverse[which] = InverseOf(HeadScale(args.cache, item.kv_head, which == 1));
    }
  }
  const auto store = [&](std::uint8_t* tile, int which) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int d = i * 32 + lane;
      if (d < kHalf) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          std::uint8_t* const to = tile + DimAt<kHeadDim, kType>(place, d + h * kHalf, which == 1);
          const float value = x[which][i][h];
          if constexpr (kIsByte<kType>) {
            *to = static_cast<std::uint8_t>(ToByte<kType>(value * inverse[which]));
          } else {
            *reinterpret_cast<std::uint16_t*>(to) =
                kType == KvType::kF16 ? __half_as_ushort(__float2half_rn(value))
                                      : __bfloat16_as_ushort(__float2bfloat16_rn(value));
          }
        }
      }
    }
    if (kType == KvType::kInt8 && lane == 0) {
      reinterpret_cast<__half*>(tile)[place] = scales[which];
    }
  };
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    store(keys + which * kTileBytes, which);
    BarrierWait(landed + 8 * which, parity);
    store(tiles[which], which);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // a later copy overwrites it
    WarpArrive(full[which], lane);
  }
}

template <int kHeadDim, KvType kType>
__global__ __launch_bounds__(kThreads, kBlocksOfSm<kType>) void DecodeKernel(
    const __grid_constant__ AttentionArgs args, int num_stages) {
#if __CUDA_ARCH__ >= 900  // bulk copies
  constexpr int kTileBytes = KvTileBytes(kType, kHeadDim);
  constexpr int kScaleBytes = KvScaleBytes(kType);
  constexpr int kRowBytes = KvRowBytes(kType, kHeadDim);
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
  const std::uint32_t landed = empty + 8 * num_stages;  // the block of the new key, and its values
  if (threadIdx.x == 0) {
    for (int s = 0; s < num_stages; ++s) {
      BarrierInit(full + 8 * s, kWarpArrivals);
      BarrierInit(empty + 8 * s, kWarps * kWarpArrivals);
    }
    BarrierInit(landed, 1);
    BarrierInit(landed + 8, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();
  // What the host wrote for this step and what earlier steps wrote to the cache may be read before
  // the previous kernel is done.
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int parts = (group + kMaxGroup - 1) / kMaxGroup;
  const int num_items = *args.num_items * args.cache.num_kv_heads * parts;
  int stage = 0;

  if (warp == kWarps) {  // copies
    const bool adds = args.k != nullptr;
    const std::uint64_t policy = EvictFirst();
    std::uint32_t phase = 1;
    std::uint32_t landed_phase = 0;
    if (!adds && !args.beside) {
      WaitForPrevious();  // it may have written the cache
    }
    for (int index = static_cast<int>(blockIdx.x); index < num_items;
         index += static_cast<int>(gridDim.x)) {
      const Item item = ItemAt(args, index);
      const std::int32_t* table =
          args.sequences.block_tables +
          static_cast<std::int64_t>(item.of.sequence) * args.sequences.table_stride;
      const int last = (item.of.length - 1) / kKvBlock;
      const bool is_new = adds && item.of.unit == (item.of.length - 1) / kKvUnit;
      int new_stages[2] = {0, 0};
      int split_begin;
      int split_end;
      SplitsOf(item.of, split_begin, split_end);
      for (int split = split_begin; split < split_end; ++split) {
        int begin;
        int end;
        BlocksOf(item.of, split, begin, end);
        for (int i = 0; i < 2 * (end - begin); ++i) {  // keys, then values
          const int values = i >= end - begin ? 1 : 0;
          const int block = begin + i - values * (end - begin);
          const bool changes = is_new && block == last;
          if (lane == 0) {
            const std::uint8_t* from = args.cache.data + table[block] * args.cache.block_bytes +
                                       item.kv_head * args.cache.head_bytes + values * kTileBytes;
            const std::uint32_t barrier = changes ? landed + 8 * values : full + 8 * stage;
            const int bytes =
                kScaleBytes + (KeysOf(item.of, block) - (changes ? 1 : 0)) * kRowBytes;
            BarrierWait(empty + 8 * stage, phase);
            BarrierExpect(barrier, bytes);
            if (bytes > 0) {
              BulkCopy(ring + stage * kTileBytes, from, bytes, barrier, policy);
            }
          } else if constexpr (kWarpArrivals > 1) {  // each lane counts
            BarrierWait(empty + 8 * stage, phase);
            if (!changes) {
              BarrierArrive(full + 8 * stage);
            }
          }
          if (changes) {
            new_stages[values] = stage;
          }
          if (++stage == num_stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
      __syncwarp();
      if (is_new) {
        WaitForPrevious();
        AddNewToken<kHeadDim, kType>(
            args, item, table[last],
            {smem + new_stages[0] * kTileBytes, smem + new_stages[1] * kTileBytes}, landed,
            landed_phase, {full + 8 * new_stages[0], full + 8 * new_stages[1]}, lane);
        landed_phase ^= 1;
      }
    }
    return;
  }

  std::uint32_t phase = 0;
  const auto next_stage = [&] {
    WarpArrive(empty + 8 * stage, lane);
    if (++stage == num_stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  if (args.beside) {
    __threadfence();  // the queries, from kernels that prefill waited for
  }
  for (int index = static_cast<int>(blockIdx.x); index < num_items;
       index += static_cast<int>(gridDim.x)) {
    const Item item = ItemAt(args, index);
    // The queries: column g of the products is head g.
    float2 cosines[kSteps];  // eights of the first half, and of what they turn with
    float2 sines[kSteps];
    if (args.cos_sin != nullptr) {
      const float* table =
          args.cos_sin + static_cast<std::int64_t>(item.of.length - 1) * kHeadDim + 2 * t;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        cosines[i] = *reinterpret_cast<const float2*>(table + i * 8);
        sines[i] = *reinterpret_cast<const float2*>(table + kHeadDim / 2 + i * 8);
      }
    }
    if (!args.beside) {
      WaitForPrevious();
    }
    const float* q_head = args.q + item.of.row * args.q_stride + (item.first_head + g) * kHeadDim;
    float2 raw[kSteps][2];
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      raw[i / 2][i % 2] = g < item.num_heads
                              ? *reinterpret_cast<const float2*>(q_head + i * 8 + 2 * t)
                              : make_float2(0.0F, 0.0F);
    }
    if (args.cos_sin != nullptr) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        float2& low = raw[i / 2][i % 2];
        float2& high = raw[(i + kSteps) / 2][(i + kSteps) % 2];
        Rotate(low.x, high.x, cosines[i].x, sines[i].x);
        Rotate(low.y, high.y, cosines[i].y, sines[i].y);
      }
    }
    std::uint32_t q[kSteps][2];
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const float2 v = raw[i / 2][i % 2];
      q[i / 2][i % 2] = AsBits(__floats2half2_rn(v.x, v.y));
    }

    constexpr int kPair = kStepsOfLoad<kHeadDim, kType>;
    constexpr int kTiles = (kSteps + kWarps - 1) / kWarps;  // of 16 dimensions, of a warp
    constexpr int kTilesOfLoad = kTiles < kPair ? kTiles : kPair;
    float sum[kTiles][4] = {};
    Merged merged[2];  // of heads 2t and 2t + 1
    float score_scale = args.scale_log2;
    float out_scale = 1.0F;
    if constexpr (kType == KvType::kFp8) {
      score_scale *= HeadScale(args.cache, item.kv_head, false);
      out_scale = HeadScale(args.cache, item.kv_head, true);
    }
    int split_begin;
    int split_end;
    SplitsOf(item.of, split_begin, split_end);
    for (int split = split_begin; split < split_end; ++split) {
      int begin;
      int end;
      BlocksOf(item.of, split, begin, end);
      float scores[kBlocks][4];
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int block = split * kBlocks + b;
        float c[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        const bool walked = block >= begin && block < end;
        if (walked) {
          BarrierWait(full + 8 * stage, phase);
          const std::uint32_t tile = ring + stage * kTileBytes;
#pragma unroll
          for (int s = 0; s < kSteps; s += kPair) {
            std::uint32_t k[kPair][4];
            LoadKeys<kHeadDim, kType>(k, tile, warp * 16, s, lane);
#pragma unroll
            for (int i = 0; i < kPair; ++i) {
              const std::uint32_t a[4] = {k[i][0], k[i][2], k[i][1], k[i][3]};
              Mma16816(c, a, q[s + i][0], q[s + i][1]);
            }
          }
          if constexpr (kType == KvType::kInt8) {
            const auto* scales = reinterpret_cast<const __half*>(smem + stage * kTileBytes);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              c[j] *= __half2float(scales[warp * 16 + g + j / 2 * 8]);
            }
          }
          next_stage();
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = block * kKvBlock + warp * 16 + g + j / 2 * 8;
          const bool seen = walked && key >= item.of.first_key && key < item.of.length;
          scores[b][j] = seen ? c[j] * score_scale : -INFINITY;
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

      constexpr std::uint32_t kOnes = 0x3c003c00;
      const std::uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
      float o[kTiles][4] = {};
      float l[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int block = split * kBlocks + b;
        if (block >= begin && block < end) {
          BarrierWait(full + 8 * stage, phase);
          const std::uint32_t tile = ring + stage * kTileBytes;
          const int keys = KeysOf(item.of, block);
#pragma unroll
          for (int s = 0; s < kKvBlock / 16; ++s) {
            if (s * 16 >= keys) {
              break;
            }
            const __half* w = &weights[g][b * kKvBlock + s * 16 + 2 * t];
            const std::uint32_t b0 = *reinterpret_cast<const std::uint32_t*>(w);
            const std::uint32_t b1 = *reinterpret_cast<const std::uint32_t*>(w + 8);
            Mma16816(l, ones, b0, b1);
            std::uint32_t scales[2] = {};
            LoadValueScales<kType>(scales, tile, s * 16, keys - s * 16, lane);
#pragma unroll
            for (int i = 0; i < kTiles; i += kTilesOfLoad) {
              const int step = i * kWarps + warp;
              if (step < kSteps) {
                std::uint32_t v[kTilesOfLoad][4];
                LoadValues<kHeadDim, kType, kWarps>(v, tile, scales, s * 16, step, keys - s * 16,
                                                    lane);
#pragma unroll
                for (int j = 0; j < kTilesOfLoad; ++j) {
                  const std::uint32_t a[4] = {v[j][0], v[j][2], v[j][1], v[j][3]};
                  Mma16816(o[i + j], a, b0, b1);
                }
              }
            }
          }
          next_stage();
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float keep;
        float add;
        Merge(merged[h], top[h], l[h], keep, add);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int j = h; j < 4; j += 2) {
            sum[i][j] = fmaf(sum[i][j], keep, o[i][j] * add);
          }
        }
      }
    }

    std::uint16_t* out = args.out + item.of.row * args.out_stride;
    // Calls give(head, dimension, j % 2, value) for this thread's results.
    const auto each = [&](auto give) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int dim = (i * kWarps + warp) * 16 + g + j / 2 * 8;
          const int head = 2 * t + j % 2;
          if (dim < kHeadDim && head < item.num_heads) {
            give(head, dim, j % 2, sum[i][j]);
          }
        }
      }
    };
    if (item.of.num_units == 1) {
      const float inverse[2] = {1.0F / merged[0].sum * out_scale, 1.0F / merged[1].sum * out_scale};
      each([&](int head, int dim, int h, float value) {
        out[(item.first_head + head) * kHeadDim + dim] =
            __half_as_ushort(__float2half_rn(value * inverse[h]));
      });
      continue;
    }
    constexpr int kPartial = kHeadDim + 2;
    const int first_unit = item.of.first_key / kKvUnit;
    const auto partial_of = [&](int unit, int head) {
      return args.partial + (static_cast<std::int64_t>(item.of.first_item + unit) * args.num_heads +
                             item.first_head + head) *
                                kPartial;
    };
    each([&](int head, int dim, int, float value) {
      partial_of(item.of.unit - first_unit, head)[dim] = value;
    });
    if (warp == 0 && g == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (2 * t + h < item.num_heads) {
          float* partial = partial_of(item.of.unit - first_unit, 2 * t + h);
          partial[kHeadDim] = merged[h].max;
          partial[kHeadDim + 1] = merged[h].sum;
        }
      }
    }
    __threadfence();
    WarpsSync();
    if (threadIdx.x == 0) {
      std::int32_t* arrived = args.arrived +
                              (item.of.sequence * args.cache.num_kv_heads + item.kv_head) * parts +
                              item.part;
      is_last = atomicAdd(arrived, 1) == item.of.num_units - 1;
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
        Merged all;
        float total = 0.0F;
        for (int unit = 0; unit < item.of.num_units; ++unit) {
          const float* partial = partial_of(unit, head);
          float keep;
          float add;
          Merge(all, __ldcg(partial + kHeadDim), __ldcg(partial + kHeadDim + 1), keep, add);
          total = fmaf(total, keep, __ldcg(partial + dim) * add);
        }
        out[(item.first_head + head) * kHeadDim + dim] =
            __half_as_ushort(__float2half_rn(total * (1.0F / all.sum * out_scale)));
      }
    }
    WarpsSync();  // is_last is read before the next item may write it
  }
  WaitForPrevious();  // blocks without items, too: the next kernel relies on it
#endif
}

template <int kHeadDim, KvType kType>
int LaunchDecode(const AttentionArgs& args, int num_sms, cudaStream_t stream) {
  constexpr int kTileBytes = KvTileBytes(kType, kHeadDim);
  constexpr int kStages = kRingBytes<kType> / kTileBytes < 16 ? kRingBytes<kType> / kTileBytes : 16;
  constexpr int kSmem = kStages * (kTileBytes + 16) + 16;
  auto* kernel = DecodeKernel<kHeadDim, kType>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int most = args.max_items * args.cache.num_kv_heads * ((group + kMaxGroup - 1) / kMaxGroup);
  const int wanted = kBlocksOfSm<kType> * num_sms;
  return Launch(kernel, dim3(static_cast<unsigned>(most < wanted ? most : wanted)), kThreads, kSmem,
                stream, args, kStages);
}

template <int kHeadDim>
int LaunchDecodeOf(const AttentionArgs& args, int num_sms, cudaStream_t stream) {
  switch (args.cache.type) {
    case KvType::kF16:
      return LaunchDecode<kHeadDim, KvType::kF16>(args, num_sms, stream);
    case KvType::kBF16:
      return LaunchDecode<kHeadDim, KvType::kBF16>(args, num_sms, stream);
    case KvType::kFp8:
      return LaunchDecode<kHeadDim, KvType::kFp8>(args, num_sms, stream);
    case KvType::kInt8:
      return LaunchDecode<kHeadDim, KvType::kInt8>(args, num_sms, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool HasAttention(int head_dim) {
  return head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 128;
}

int LaunchDecodeAttention(const AttentionArgs& args, int num_sms, CUstream_st* stream) {
  switch (args.cache.head_dim) {
    case 16:
      return LaunchDecodeOf<16>(args, num_sms, stream);
    case 32:
      return LaunchDecodeOf<32>(args, num_sms, stream);
    case 64:
      return LaunchDecodeOf<64>(args, num_sms, stream);
    case 128:
      return LaunchDecodeOf<128>(args, num_sms, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace nibble::cuda
