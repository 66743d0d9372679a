// Attention of sequences with many queries. A block takes a tile of 128 rows, (token, query head)
// pairs that share a KV head, 16 a warp, and walks the keys split by split; 64-key blocks stream
// through a ring of shared memory. Per split all scores stay in registers
// until its maximum is known: the arithmetic of attention.cuh, which knows no tile. 4 * rows * keys
// * head_dim operations; judge by FLOP/s.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

// A block: warps with 16 rows each, and a warpgroup of which one lane copies and that gives its
// registers to them (sm_90a; elsewhere its warps merely end).
constexpr int kWarps = kPrefillRows / 16;
constexpr int kCopyWarps = 4;
constexpr int kThreads = (kWarps + kCopyWarps) * 32;
constexpr int kStages = 4;
constexpr int kBlocks = kKvSplit / kKvBlock;

/// Byte of a chunk of 8 dimensions of a query, as of keys in fp16.
template <int kHeadDim>
__device__ __forceinline__ int QueryAt(int row, int chunk) {
  return ChunkAt<kHeadDim, KvType::kF16>(row, chunk);
}

__device__ __forceinline__ uint4 ToHalves(const float (&x)[8]) {
  return make_uint4(AsBits(__floats2half2_rn(x[0], x[1])), AsBits(__floats2half2_rn(x[2], x[3])),
                    AsBits(__floats2half2_rn(x[4], x[5])), AsBits(__floats2half2_rn(x[6], x[7])));
}

template <int kHeadDim, KvType kType>
__global__ __launch_bounds__(kThreads,
                             1) void PrefillKernel(const __grid_constant__ AttentionArgs args) {
#if __CUDA_ARCH__ >= 900  // bulk copies
  constexpr int kTileBytes = KvTileBytes(kType, kHeadDim);
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kDimTiles = kHeadDim / 8;
  constexpr int kPair = kStepsOfLoad<kHeadDim, kType>;
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const std::uint32_t queries = SmemAddress(smem);  // [rows][head_dim] fp16, chunks swapped
  constexpr int kRing = kPrefillRows * kHeadDim * 2;
  const std::uint32_t ring = queries + kRing;
  // The merged units, each thread its own fragments: [warp][dims / 8][lane] of four floats.
  auto* const before =
      reinterpret_cast<float4*>(smem + kRing + kStages * kTileBytes + kStages * 16) +
      warp * kDimTiles * 32 + lane;
  const std::uint32_t full = ring + kStages * kTileBytes;
  const std::uint32_t empty = full + 8 * kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kWarps * kWarpArrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (!args.beside) {
    LaunchDependents();
  }

  // What the host wrote for this step may be read before the kernel before this is done.
  // Long tiles first, of all heads: the last tiles of a prompt see the most keys.
  const int tile = args.num_tiles - 1 - static_cast<int>(blockIdx.y);
  const int kv_head = static_cast<int>(blockIdx.x);
  const int sequence = args.tiles[tile * 2];
  const int group = args.num_heads / args.cache.num_kv_heads;
  const int first_token = args.tiles[tile * 2 + 1];
  const int num_tokens = min(PrefillTokens(group), args.sequences.num_rows[sequence] - first_token);
  const int first_row = args.sequences.first_row[sequence] + first_token;
  const int first_position = args.sequences.first_position[sequence] + first_token;
  const int last_position = first_position + num_tokens - 1;
  const int num_rows = num_tokens * group;
  const std::int32_t* table = args.sequences.block_tables +
                              static_cast<std::int64_t>(sequence) * args.sequences.table_stride;
  const int first_key = FirstKey(first_position, args.window);
  const int split_begin = first_key / kKvSplit;
  const int split_end = last_position / kKvSplit + 1;
  const auto blocks_of = [&](int split, int& begin, int& end) {
    begin = max(split * kBlocks, first_key / kKvBlock);
    end = min((split + 1) * kBlocks, last_position / kKvBlock + 1);
  };
  int stage = 0;

  if (warp >= kWarps) {  // copies
    GiveRegisters<56>();
    if (warp == kWarps && lane == 0) {
      const int first_new = args.sequences.first_position[sequence];  // key that this step writes
      bool waited = false;
      std::uint32_t phase = 1;
      for (int split = split_begin; split < split_end; ++split) {
        int begin;
        int end;
        blocks_of(split, begin, end);
        for (int values = 0; values < 2; ++values) {
          for (int b = begin; b < end; ++b) {
            const std::uint8_t* from = args.cache.data + table[b] * args.cache.block_bytes +
                                       kv_head * args.cache.head_bytes + values * kTileBytes;
            if (!waited && (b + 1) * kKvBlock > first_new) {
              WaitForPrevious();
              waited = true;
            }
            BarrierWait(empty + 8 * stage, phase);
            BarrierExpect(full + 8 * stage, kTileBytes);
            BulkCopyShared(ring + stage * kTileBytes, from, kTileBytes, full + 8 * stage);
            if (++stage == kStages) {
              stage = 0;
              phase ^= 1;
            }
          }
        }
      }
    }
    return;
  }
  TakeRegisters<224>();

  // The warp's own 16 rows of the queries, as fp16: eights of the first half, and what they turn
  // with.
  WaitForPrevious();
  if (args.beside) {
    LaunchDependents();  // decode: what it reads is complete now
  }
  constexpr int kEights = kDimTiles / 2;
#pragma unroll 4
  for (int i = lane; i < 16 * kEights; i += 32) {
    const int r = warp * 16 + i / kEights;
    const int chunk = i % kEights;
    float low[8] = {};
    float high[8] = {};
    if (r < num_rows) {
      const float* q = args.q + (first_row + r / group) * args.q_stride +
                       (kv_head * group + r % group) * kHeadDim + chunk * 8;
      Load8(q, low);
      Load8(q + kHeadDim / 2, high);
      if (args.cos_sin != nullptr) {
        const float* cosines = args.cos_sin +
                               static_cast<std::int64_t>(first_position + r / group) * kHeadDim +
                               chunk * 8;
        float c[8];
        float s[8];
        Load8(cosines, c);
        Load8(cosines + kHeadDim / 2, s);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          Rotate(low[j], high[j], c[j], s[j]);
        }
      }
    }
    *reinterpret_cast<uint4*>(smem + QueryAt<kHeadDim>(r, chunk)) = ToHalves(low);
    *reinterpret_cast<uint4*>(smem + QueryAt<kHeadDim>(r, kEights + chunk)) = ToHalves(high);
  }
  __syncwarp();

  // Rows g and g + 8 of the warp; behind the last row they repeat it.
  int position[2];
  int lowest_key[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = warp * 16 + g + h * 8;
    position[h] = first_position + min(r, num_rows - 1) / group;
    lowest_key[h] = FirstKey(position[h], args.window);
  }
  // Keys that all rows of the warp see, and the end of those that any does.
  const int highest_row = first_position + min(warp * 16 + 15, num_rows - 1) / group;
  const int all_begin = FirstKey(highest_row, args.window);
  const int all_end = first_position + min(warp * 16, num_rows - 1) / group + 1;
  const int any_end = highest_row + 1;
  float score_scale = args.scale_log2;
  float out_scale = 1.0F;
  if constexpr (kType == KvType::kFp8) {
    score_scale *= HeadScale(args.cache, kv_head, false);
    out_scale = HeadScale(args.cache, kv_head, true);
  }
  Merged merged[2];
  float sum[kDimTiles][4] = {};
  Merged units[2];  // those before
  const int first_unit = first_key / kKvUnit;
  std::uint32_t phase = 0;
  const auto next_stage = [&] {
    WarpArrive(empty + 8 * stage, lane);
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  };
  for (int split = split_begin; split < split_end; ++split) {
    int begin;
    int end;
    blocks_of(split, begin, end);
    float scores[kBlocks][8][4];
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int block = split * kBlocks + b;
      const bool walked = block >= begin && block < end;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores[b][n][j] = 0.0F;
        }
      }
      if (walked) {
        BarrierWait(full + 8 * stage, phase);
        if (block * kKvBlock < any_end) {
          const std::uint32_t keys = ring + stage * kTileBytes;
#pragma unroll
          for (int s = 0; s < kSteps; ++s) {
            std::uint32_t a[4];
            LoadMatrices(a, queries + QueryAt<kHeadDim>(warp * 16 + lane % 16, s * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < 4; ++n) {  // 16 keys a load
              std::uint32_t k[1][4];
              LoadKeys<kHeadDim, kType>(k, keys, n * 16, s, lane);
              Mma16816(scores[b][2 * n], a, k[0][0], k[0][1]);
              Mma16816(scores[b][2 * n + 1], a, k[0][2], k[0][3]);
            }
          }
          if constexpr (kType == KvType::kInt8) {
            const auto* scales =
                reinterpret_cast<const __half2*>(smem + kRing + stage * kTileBytes) + t;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
              const float2 scale = __half22float2(scales[n * 4]);
              scores[b][n][0] *= scale.x;
              scores[b][n][1] *= scale.y;
              scores[b][n][2] *= scale.x;
              scores[b][n][3] *= scale.y;
            }
          }
        }
        next_stage();
      }
      if (block * kKvBlock >= all_begin && (block + 1) * kKvBlock <= all_end) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            scores[b][n][j] *= score_scale;
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int key = block * kKvBlock + n * 8 + 2 * t + j % 2;
            const bool seen = walked && key <= position[j / 2] && key >= lowest_key[j / 2];
            scores[b][n][j] = seen ? scores[b][n][j] * score_scale : -INFINITY;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          top[j / 2] = fmaxf(top[j / 2], scores[b][n][j]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffU, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffU, top[h], 2));
    }
    // A row that sees nothing of this split: weights of zero, and no merge below.
    const float shift[2] = {top[0] == -INFINITY ? 0.0F : top[0],
                            top[1] == -INFINITY ? 0.0F : top[1]};
    std::uint32_t weights[kBlocks][8][2];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          weights[b][n][h] = AsBits(__floats2half2_rn(Exp2(scores[b][n][2 * h] - shift[h]),
                                                      Exp2(scores[b][n][2 * h + 1] - shift[h])));
        }
      }
    }
    float o[kDimTiles][4] = {};
    float l[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int block = split * kBlocks + b;
      if (block >= begin && block < end) {
        BarrierWait(full + 8 * stage, phase);
        const std::uint32_t values = ring + stage * kTileBytes;
        const auto add_values = [&](int s, int tokens) {  // of 16, those that exist
          const std::uint32_t a[4] = {weights[b][2 * s][0], weights[b][2 * s][1],
                                      weights[b][2 * s + 1][0], weights[b][2 * s + 1][1]};
          constexpr std::uint32_t kOnes = 0x3c003c00;
          Mma16816(l, a, kOnes, kOnes);
          std::uint32_t scales[2] = {};
          LoadValueScales<kType>(scales, values, s * 16, tokens, lane);
#pragma unroll
          for (int n = 0; n < kSteps; n += kPair) {
            std::uint32_t v[kPair][4];
            LoadValues<kHeadDim, kType, 1>(v, values, scales, s * 16, n, tokens, lane);
#pragma unroll
            for (int i = 0; i < kPair; ++i) {
              Mma16816(o[2 * (n + i)], a, v[i][0], v[i][1]);
              Mma16816(o[2 * (n + i) + 1], a, v[i][2], v[i][3]);
            }
          }
        };
        // Without a branch, so that loads run ahead of the products; weights of 0 add nothing.
        if ((block + 1) * kKvBlock <= any_end) {
#pragma unroll
          for (int s = 0; s < kKvBlock / 16; ++s) {
            add_values(s, 16);
          }
        } else {
          const int keys = last_position + 1 - block * kKvBlock;
#pragma unroll
          for (int s = 0; s < kKvBlock / 16; ++s) {
            if (block * kKvBlock + s * 16 >= any_end) {
              break;
            }
            if (keys - s * 16 >= 16) {
              add_values(s, 16);
            } else {
              add_values(s, keys - s * 16);
            }
          }
        }
        next_stage();
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (top[h] != -INFINITY) {
        float keep;
        float add;
        Merge(merged[h], top[h], l[2 * h], keep, add);
#pragma unroll
        for (int n = 0; n < kDimTiles; ++n) {
#pragma unroll
          for (int j = 2 * h; j < 2 * h + 2; ++j) {
            sum[n][j] = fmaf(sum[n][j], keep, o[n][j] * add);
          }
        }
      }
    }
    const int unit = split * kKvSplit / kKvUnit;
    const bool unit_ends = split + 1 == split_end || (split + 1) * kKvSplit / kKvUnit != unit;
    if (unit_ends && split_end * kKvSplit > (first_unit + 1) * kKvUnit) {  // not the only one
      float keep[2] = {1.0F, 1.0F};
      float add[2] = {0.0F, 0.0F};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (merged[h].max != -INFINITY) {  // else the row sees nothing of this unit
          Merge(units[h], merged[h].max, merged[h].sum, keep[h], add[h]);
        }
        merged[h] = Merged();
      }
      const bool first = unit == first_unit;
      const bool last = split + 1 == split_end;
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        const float4 old = first ? make_float4(0.0F, 0.0F, 0.0F, 0.0F) : before[n * 32];
        const float4 joined = make_float4(
            fmaf(old.x, keep[0], sum[n][0] * add[0]), fmaf(old.y, keep[0], sum[n][1] * add[0]),
            fmaf(old.z, keep[1], sum[n][2] * add[1]), fmaf(old.w, keep[1], sum[n][3] * add[1]));
        if (last) {
          sum[n][0] = joined.x;
          sum[n][1] = joined.y;
          sum[n][2] = joined.z;
          sum[n][3] = joined.w;
        } else {
          before[n * 32] = joined;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sum[n][j] = 0.0F;
          }
        }
      }
      if (last) {
        merged[0] = units[0];
        merged[1] = units[1];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = warp * 16 + g + h * 8;
    if (r < num_rows) {
      const float inverse = 1.0F / merged[h].sum * out_scale;
      std::uint16_t* out = args.out + (first_row + r / group) * args.out_stride +
                           (kv_head * group + r % group) * kHeadDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        *reinterpret_cast<std::uint32_t*>(out + n * 8) =
            AsBits(__floats2half2_rn(sum[n][2 * h] * inverse, sum[n][2 * h + 1] * inverse));
      }
    }
  }
#endif
}

template <int kHeadDim, KvType kType>
int LaunchPrefill(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kSmem = kPrefillRows * kHeadDim * 2 + kStages * KvTileBytes(kType, kHeadDim) +
                        kStages * 16 + kPrefillRows * kHeadDim * 4;
  auto* kernel = PrefillKernel<kHeadDim, kType>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  return Launch(
      kernel,
      dim3(static_cast<unsigned>(args.cache.num_kv_heads), static_cast<unsigned>(args.num_tiles)),
      kThreads, kSmem, stream, args);
}

template <int kHeadDim>
int LaunchPrefillOf(const AttentionArgs& args, cudaStream_t stream) {
  switch (args.cache.type) {
    case KvType::kF16:
      return LaunchPrefill<kHeadDim, KvType::kF16>(args, stream);
    case KvType::kBF16:
      return LaunchPrefill<kHeadDim, KvType::kBF16>(args, stream);
    case KvType::kFp8:
      return LaunchPrefill<kHeadDim, KvType::kFp8>(args, stream);
    case KvType::kInt8:
      return LaunchPrefill<kHeadDim, KvType::kInt8>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int LaunchPrefillAttention(const AttentionArgs& args, CUstream_st* stream) {
  switch (args.cache.head_dim) {
    case 16:
      return LaunchPrefillOf<16>(args, stream);
    case 32:
      return LaunchPrefillOf<32>(args, stream);
    case 64:
      return LaunchPrefillOf<64>(args, stream);
    case 128:
      return LaunchPrefillOf<128>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace nibble::cuda
