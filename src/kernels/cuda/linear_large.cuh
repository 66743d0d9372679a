#pragma once

// The products of linear_small.cuh for many tokens, on the tensor cores of Hopper (prefill)
//   y^T = W x^T: weights are the register operand A of wgmma, unpacked while the products before
//   run; tokens are B, in shared memory. A tile of the result is 128 outputs (two warpgroups of 64)
//   of 128 or 64 tokens; a third warpgroup copies. K in the order of the slices, each slice one
//   chain, slices added in order: the bits of linear_small.cuh.
// Blocks stay, one an SM, and take one tile after the other: the copies of the next one run while
// the outputs of the last one are written. If the tiles do not come out even, blocks have equal
// shares of slices instead: one leaves the running sum of a tile, with which it began, in memory,
// and the next block, which ends with that tile, goes on from there. Blocks go in clusters of two
// along the outputs: each fetches half of the tokens and sends it to both, as the L2 cache could
// not feed them otherwise. A stage is one unit: 8 tiles' codes and scales, and 64 or 128 columns of
// x under the 128-byte swizzle; it is free when both blocks have multiplied it. 2 * rows * cols *
// tokens operations; judge by FLOP/s.

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kLargeThreads = 384;  // two warpgroups multiply, one copies
constexpr int kLargeMultipliers = 256;

/// What one lane needs to decode 64 columns of its warp's tile, on the way from shared memory.
template <Format kFormat, Grid kGrid>
struct HalfUnit {
  HalfCodes<kFormat> codes;
  half2 scales[2];  // of 32 columns each: rows r and r + 8
  half2 extras[2];

  /// `scale_offsets` of the two within the unit's scales.
  __device__ __forceinline__ void Load(const std::uint8_t* codes_at, const std::uint8_t* scales_at,
                                       const int (&scale_offsets)[2], int lane) {
    codes.Load(codes_at, lane);
    if constexpr (kHasScales<kFormat, kGrid>) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scales[i] = LoadPair(scales_at + scale_offsets[i], lane);
        if constexpr (kHasExtras<kGrid>) {
          extras[i] = LoadPair(scales_at + scale_offsets[i] + kPairBytes, lane);
        }
      }
    }
  }
  __device__ __forceinline__ LaneScales Scales(int i) const {
    if constexpr (kHasScales<kFormat, kGrid>) {
      return Spread<kFormat, kGrid>(scales[i], extras[i]);
    }
    return {};
  }
};

/// c += the product of 64 columns of this warp's tile with kTokens tokens, asynchronously. `a` must
/// be free: no product that reads it may still run.
template <Format kFormat, Grid kGrid, int kTokens>
__device__ __forceinline__ void MultiplyHalf(float (&c)[kTokens / 2], std::uint32_t (&a)[4][4],
                                             const HalfUnit<kFormat, kGrid>& half,
                                             std::uint64_t descriptor) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Fragment<kFormat, kGrid>(half.codes, step, half.Scales(step / 2), StaticTable<kFormat>(),
                             a[step]);
  }
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Wgmma(c, a[step], descriptor + step * (32 >> 4));
  }
  WgmmaCommit();
}

struct LargeArgs {
  LinearArgs linear;
  int first_block[kMaxParts + 1];  // of each part; kSwiGlu: all blocks count as part 0
  int num_stages = 0;
  int sub_shift = 0;     // log2 of the layout's sub_cols
  int token_blocks = 0;  // so many tiles of the result that follow each other share weights
  int tiles = 0;         // of the result, of two blocks each
  bool splits = false;
};

/// Slices of a tile of the result.
struct Segment {
  int tile;
  int first_slice;
  int end_slice;
};
/// What a pair of blocks computes, in this order. A share of slices is at least a tile: the tile
/// that it shares with the next pair comes first, that of the pair before last, so that nobody
/// waits for long.
class Share {
 public:
  __device__ Share(const LargeArgs& args, int pair, int pairs)
      : pairs_(args.splits ? 1 : pairs), slices_(min(kNumSlices, args.linear.layout.num_units)) {
    if (args.splits) {
      const long long all = static_cast<long long>(args.tiles) * slices_;
      const int begin = static_cast<int>(all * pair / pairs);
      const int end = static_cast<int>(all * (pair + 1) / pairs);
      first_tile_ = (begin + slices_ - 1) / slices_;
      end_tile_ = end / slices_;
      given_ = end % slices_;
      taken_ = begin % slices_;
      count_ = end_tile_ - first_tile_ + (given_ > 0 ? 1 : 0) + (taken_ > 0 ? 1 : 0);
    } else {
      first_tile_ = pair;
      count_ = (args.tiles - pair - 1) / pairs + 1;
    }
  }
  __device__ int count() const { return count_; }
  __device__ Segment At(int i) const {
    if (given_ > 0 && i-- == 0) {
      return {.tile = end_tile_, .first_slice = 0, .end_slice = given_};
    }
    if (taken_ > 0 && i == end_tile_ - first_tile_) {
      return {.tile = first_tile_ - 1, .first_slice = taken_, .end_slice = slices_};
    }
    return {.tile = first_tile_ + i * pairs_, .first_slice = 0, .end_slice = slices_};
  }
  __device__ int slices() const { return slices_; }

 private:
  int pairs_;
  int slices_;
  int first_tile_ = 0;  // of the whole ones
  int end_tile_ = 0;
  int given_ = 0;  // slices of the first segment: the next pair goes on
  int taken_ = 0;  // slice at which the last segment begins
  int count_ = 0;
};

/// Bytes of a stage.
template <int kHalves, int kTokens>
__host__ __device__ constexpr int LargeStageBytes(const WeightLayout& layout) {
  return (kHalves * kTokens * 128 + kLargeTiles * layout.unit_bytes + 1023) / 1024 * 1024;
}
/// Bytes of the sums that the two warpgroups of gated outputs exchange.
template <int kTokens>
inline constexpr int kLargeSums = kLargeMultipliers* kTokens / 4 * static_cast<int>(sizeof(float));

/// A block of kTiles tiles of one part, or, gated, the first half of them gate and the others up.
template <int kTiles>
struct BlockPlace {
  int part = 0;
  int first_tile = 0;
  bool gated = false;

  __device__ BlockPlace(const LargeArgs& args, int block)
      : gated(args.linear.epilogue == Epilogue::kSwiGlu) {
    while (part + 1 < args.linear.num_parts && block >= args.first_block[part + 1]) {
      ++part;
    }
    first_tile = (block - args.first_block[part]) * (gated ? kTiles / 2 : kTiles);
  }
  __device__ bool HasTile(const LargeArgs& args, int i) const {
    return first_tile + (gated ? i % (kTiles / 2) : i) <
           args.linear.parts[gated ? i / (kTiles / 2) : part].num_tiles;
  }
  const __device__ std::uint8_t* Tile(const LargeArgs& args, int i, std::size_t tile_bytes) const {
    return args.linear.parts[gated ? i / (kTiles / 2) : part].weight +
           static_cast<std::size_t>(first_tile + (gated ? i % (kTiles / 2) : i)) * tile_bytes;
  }
  __device__ int CountTiles(const LargeArgs& args) const {
    int count = 0;
    for (int i = 0; i < kTiles; ++i) {
      count += HasTile(args, i) ? 1 : 0;
    }
    return count;
  }
};

inline int Log2(int power) {
  int log = 0;
  while (1 << log < power) {
    ++log;
  }
  return log;
}

/// The multipliers of a block meet.
__device__ __forceinline__ void MultipliersSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kLargeMultipliers) : "memory");
}

/// The running sum of a tile that two blocks share, [kTokens / 8][256 threads] of float4.
template <int kTokens>
__device__ __forceinline__ void LeaveSum(std::byte* shared, int block,
                                         const float (&total)[kTokens / 2]) {
  auto* const to =
      reinterpret_cast<float4*>(shared + kSharedFlagBytes + block * kSharedSumBytes) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens / 2; i += 4) {
    __stcg(to + i / 4 * kLargeMultipliers,
           make_float4(total[i], total[i + 1], total[i + 2], total[i + 3]));
  }
  __threadfence();
  MultipliersSync();
  if (threadIdx.x == 0) {
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(shared + block * 4) : "memory");
  }
}
template <int kTokens>
__device__ __forceinline__ void TakeSum(std::byte* shared, int block, float (&total)[kTokens / 2]) {
  if (threadIdx.x == 0) {
    WaitForFlag(shared + block * 4, [](std::uint32_t there) { return there != 0; });
    asm volatile("st.relaxed.gpu.global.u32 [%0], 0;" ::"l"(shared + block * 4) : "memory");
  }
  MultipliersSync();
  const auto* const from =
      reinterpret_cast<const float4*>(shared + kSharedFlagBytes + block * kSharedSumBytes) +
      threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens / 2; i += 4) {
    const float4 v = __ldcg(from + i / 4 * kLargeMultipliers);
    total[i] = v.x;
    total[i + 1] = v.y;
    total[i + 2] = v.z;
    total[i + 3] = v.w;
  }
}

/// Outputs of one warp's tile: `total` [tokens of the block] as wgmma leaves them. Some at a time:
/// what they add to takes registers.
template <int kTokens>
__device__ __forceinline__ void WriteTile(const LinearArgs& linear, Place place,
                                          float (&total)[kTokens / 2]) {
  constexpr int kPart = 64;  // tokens
#pragma unroll
  for (int first = 0; first < kTokens; first += kPart) {
    float part[kPart / 2];
    float before[2][kPart / 4];
    if (linear.epilogue == Epilogue::kAdd) {
      place.Read(linear, before);
    }
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) {
      part[i] = total[first / 2 + i];
    }
    place.Scale(part);
    place.Write(linear, part, before);
    place.Skip(kPart);
  }
}

/// Gated outputs: the warpgroup with the gates gets the ups of the first half of the tokens, the
/// other one gets the gates of the second half. `sums` [2 warpgroups][kTokens / 16][128 threads].
template <int kTokens>
__device__ __forceinline__ void WriteGatedTile(const LinearArgs& linear, Place place,
                                               float (&total)[kTokens / 2], float4* sums) {
  constexpr int kHalf = kTokens / 4;  // a thread's sums of half of the tokens
  const int thread = static_cast<int>(threadIdx.x) % 128;
  float4* const gates = sums + thread;
  float4* const ups = gates + kHalf / 4 * 128;
  place.Scale(total);
  MultipliersSync();  // what the last tile exchanged has been read
  const auto put = [&]<bool kHasGates>() {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      const float* const away = &total[kHasGates ? kHalf + i : i];
      (kHasGates ? gates : ups)[i / 4 * 128] = make_float4(away[0], away[1], away[2], away[3]);
    }
  };
  const auto take = [&]<bool kHasGates>() {
    float mine[kHalf];
    float other[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      const float4 v = (kHasGates ? ups : gates)[i / 4 * 128];
      other[i] = v.x;
      other[i + 1] = v.y;
      other[i + 2] = v.z;
      other[i + 3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      mine[i] = total[kHasGates ? i : kHalf + i];
    }
    if constexpr (kHasGates) {
      place.WriteGated(linear, mine, other);
    } else {
      place.Skip(kTokens / 2);
      place.WriteGated(linear, other, mine);
    }
  };
  // Both warpgroups meet at one instruction: synccheck takes two for a divergent barrier.
  if (threadIdx.x < 128) {
    put.template operator()<true>();
  } else {
    put.template operator()<false>();
  }
  MultipliersSync();
  if (threadIdx.x < 128) {
    take.template operator()<true>();
  } else {
    take.template operator()<false>();
  }
}

template <Format kFormat, Grid kGrid, int kHalves, int kTokens>
__global__ __launch_bounds__(kLargeThreads,
                             1) void LinearLarge(const __grid_constant__ LargeArgs args,
                                                 const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const WeightLayout& layout = args.linear.layout;
  const int num_units = layout.num_units;
  const std::size_t tile_bytes = layout.tile_bytes();
  // Per stage: x first (its boxes are aligned to 1024 bytes), then the units of 8 tiles.
  constexpr int kBoxBytes = kTokens * 128;
  constexpr int kXBytes = kHalves * kBoxBytes;
  const int stage_bytes = LargeStageBytes<kHalves, kTokens>(layout);
  const std::uint32_t base = SmemAddress(smem);
  float4* const sums = reinterpret_cast<float4*>(smem + args.num_stages * stage_bytes);
  const std::uint32_t full = SmemAddress(sums) + kLargeSums<kTokens>;
  const std::uint32_t empty = full + 8 * args.num_stages;
  const auto rank = static_cast<std::uint32_t>(blockIdx.x % 2);
  const int warpgroup = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 128, 0);
  const Share share(args, static_cast<int>(blockIdx.x / 2), static_cast<int>(gridDim.x / 2));
  // An odd last block has a partner without tiles, which only copies and releases.
  const auto place_of = [&](int tile) {
    return BlockPlace<kLargeTiles>(args, tile / args.token_blocks * 2 + static_cast<int>(rank));
  };

  if (threadIdx.x == 0) {
    for (int s = 0; s < args.num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 4 * kWarpgroupArrivals);  // two warpgroups of each block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  ClusterArrive();
  ClusterWait();
  LaunchDependents();

  if (warpgroup == 2) {
    GiveRegisters<40>();
    // Four warps share the stages: one could not start copies fast enough. A lane a tile, and one
    // each for the boxes of x.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int half = lane - kLargeTiles;
    const int producer = static_cast<int>(threadIdx.x) / 32 % 4;
    WaitForPrevious();
    int stage = 0;
    std::uint32_t phase = 1;
    for (int i = 0; i < share.count(); ++i) {
      const Segment segment = share.At(i);
      const BlockPlace<kLargeTiles> place = place_of(segment.tile);
      const int first_token = segment.tile % args.token_blocks * kTokens;
      const int bytes = kXBytes + place.CountTiles(args) * layout.unit_bytes;
      const bool has_tile = lane < kLargeTiles && place.HasTile(args, lane);
      const std::uint8_t* const tile = has_tile ? place.Tile(args, lane, tile_bytes) : nullptr;
      for (int slice = segment.first_slice; slice < segment.end_slice; ++slice) {
        for (int unit = slice; unit < num_units; unit += kNumSlices) {
          if (stage % 4 == producer) {
            const std::uint32_t at = base + stage * stage_bytes;
            const std::uint32_t barrier = full + 8 * stage;
            BarrierWait(empty + 8 * stage, phase);
            if (lane == 0) {
              BarrierExpect(barrier, bytes);
            }
            __syncwarp();
            if (half >= 0 && half < kHalves) {  // half of the tokens, for both
              TensorCopyToBoth(at + half * kBoxBytes + rank * (kBoxBytes / 2), &x_map,
                               unit * layout.unit_cols + half * kHalfCols,
                               first_token + static_cast<int>(rank) * (kTokens / 2), barrier);
            }
            if (has_tile) {
              BulkCopyShared(at + kXBytes + lane * layout.unit_bytes,
                             tile + static_cast<std::size_t>(unit) * layout.unit_bytes,
                             layout.unit_bytes, barrier);
            }
          }
          if (++stage == args.num_stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    // The partner's last arrivals come to this block's memory, too: it stays until then.
    for (int i = 0; i < args.num_stages; ++i) {
      if (stage % 4 == producer) {
        BarrierWait(empty + 8 * stage, phase);
      }
      if (++stage == args.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    }
  } else {
    TakeRegisters<232>();
    FillTable<kFormat>(StaticTable<kFormat>(), static_cast<int>(threadIdx.x), kLargeMultipliers);
    if constexpr (TableBytes(kFormat) > 0) {
      MultipliersSync();
    }
    WaitForPrevious();
    const int warp = static_cast<int>(threadIdx.x) / 32;  // also its tile of the block
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int scale_offsets[kHalves][2];
#pragma unroll
    for (int i = 0; i < 2 * kHalves; ++i) {
      scale_offsets[i / 2][i % 2] = (i * 32 >> args.sub_shift) * SubBytes<kFormat, kGrid>();
    }
    // Of the stage whose codes are read, one ahead of the products; `left`: units to come.
    const std::uint8_t* const units = smem + kXBytes + warp * layout.unit_bytes;
    const std::uint8_t* at = units;
    HalfUnit<kFormat, kGrid> next;
    int stage = 0;
    std::uint32_t phase = 0;
    int left = 0;
    for (int i = 0; i < share.count(); ++i) {
      const Segment segment = share.At(i);
      for (int slice = segment.first_slice; slice < segment.end_slice; ++slice) {
        left += (num_units - slice - 1) / kNumSlices + 1;
      }
    }
    const auto load = [&](int half) {
      next.Load(at + half * HalfCodes<kFormat>::kBytes, at + kHalves * HalfCodes<kFormat>::kBytes,
                scale_offsets[half], lane);
    };
    // Not where the codes are the fragments: products under way still read them.
    constexpr bool kAhead = kFormat != Format::kF16;
    BarrierWait(full, 0);
    if constexpr (kAhead) {
      load(0);
    }
    float total[kTokens / 2];
    float c[kTokens / 2];
    std::uint32_t a[kHalves][4][4];
    int issued = -1;  // stage whose last products may still run
    const ArrivalAtBoth empty_barriers(empty);
    const auto release = [&] {
      if (issued >= 0) {
        empty_barriers.Arrive(issued);
      }
      issued = -1;
    };
    for (int s = 0; s < share.count(); ++s) {
      const Segment segment = share.At(s);
      if (segment.first_slice == 0) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          total[i] = -0.0F;  // what it is added to stays what it is, its sign too
        }
      } else {
        TakeSum<kTokens>(args.linear.shared, static_cast<int>(blockIdx.x) - 2, total);
      }
      for (int slice = segment.first_slice; slice < segment.end_slice; ++slice) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          c[i] = 0.0F;
        }
        for (int unit = slice; unit < num_units; unit += kNumSlices) {
          const std::uint64_t descriptor = SwizzledDescriptor(base + stage * stage_bytes);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            WgmmaWait<kHalves - 1>();  // the products that read a[half] are done
            if (half == kHalves - 1) {
              release();
            }
            if constexpr (!kAhead) {
              load(half);
            }
            MultiplyHalf<kFormat, kGrid, kTokens>(c, a[half], next,
                                                  descriptor + half * (kBoxBytes >> 4));
            if (kAhead && half + 1 < kHalves) {
              load(half + 1);
            }
          }
          issued = stage;
          if (++stage == args.num_stages) {
            stage = 0;
            phase ^= 1;
          }
          at = units + stage * stage_bytes;
          // Behind the last unit of all there is nothing to wait for: the phase before is over.
          BarrierWait(full + 8 * stage, --left > 0 ? phase : phase ^ 1);
          if constexpr (kAhead) {
            load(0);
          }
        }
        WgmmaWait<0>();
        release();
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          total[i] += c[i];
        }
      }
      if (segment.end_slice < share.slices()) {
        LeaveSum<kTokens>(args.linear.shared, static_cast<int>(blockIdx.x), total);
        continue;
      }
      const BlockPlace<kLargeTiles> block = place_of(segment.tile);
      const int first_token = segment.tile % args.token_blocks * kTokens;
      const int tile = block.first_tile + (block.gated ? warp % (kLargeTiles / 2) : warp);
      Place place(args.linear, block.gated ? warpgroup : block.part, tile, first_token, lane);
      place.Multiply(OutputUnit<kFormat>(0), OutputUnit<kFormat>(1));
      if (block.gated) {
        WriteGatedTile<kTokens>(args.linear, place, total, sums);
      } else {
        WriteTile<kTokens>(args.linear, place, total);
      }
    }
  }
  // The partner sends to this block's memory until it has copied all.
  ClusterArrive();
  ClusterWait();
#endif
}

template <Format kFormat, Grid kGrid, int kHalves, int kTokens>
int LaunchLargeTokens(LargeArgs args, int pairs, cudaStream_t stream) {
  const LinearArgs& linear = args.linear;
  const int stage_bytes = LargeStageBytes<kHalves, kTokens>(linear.layout);
  constexpr int kSmem = 227 * 1024 - TableBytes(kFormat);
  args.num_stages = (kSmem - kLargeSums<kTokens>) / (stage_bytes + 16);
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, linear.x, linear.layout.cols, linear.num_tokens,
                                        linear.x_stride * 2, kTokens / 2);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearLarge<kFormat, kGrid, kHalves, kTokens>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  args.token_blocks = (linear.num_tokens + kTokens - 1) / kTokens;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(kLargeThreads);
  config.dynamicSmemBytes =
      static_cast<std::size_t>(args.num_stages * (stage_bytes + 16) + kLargeSums<kTokens>);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = 2;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, args, map);
}

template <Format kFormat, Grid kGrid, int kHalves>
int LaunchLarge(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  LargeArgs args{.linear = linear, .sub_shift = Log2(linear.layout.sub_cols)};
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < kMaxParts; ++p) {
    const bool counted = p < (gated ? 1 : linear.num_parts);
    args.first_block[p + 1] = args.first_block[p] + (counted ? LargeBlocks(linear, p) : 0);
  }
  const LargeShape shape = ShapeOfLarge(linear, num_sms);
  args.tiles = shape.tiles;
  args.splits = shape.splits;
  return shape.tokens == 128
             ? LaunchLargeTokens<kFormat, kGrid, kHalves, 128>(args, shape.pairs, stream)
             : LaunchLargeTokens<kFormat, kGrid, kHalves, 64>(args, shape.pairs, stream);
}

int LaunchLargeW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeNf4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeFp8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
