#pragma once

// The products of linear_small.cuh for up to 32 tokens (decode of many sequences), by wgmma:
// weights stream once and every fragment of them meets all tokens. Two blocks share their tiles and
// split K: each has four of the eight slices. A slice has a warpgroup, whose warps take a tile each
// of every four of a pass, and a warp that keeps its ring of shared memory full: a stage is one
// unit of K, of x and of up to 12 tiles. Sums stay in registers; at the end of K they pass from
// slice to slice in order, tile by tile, from the first block to the second, and the last slice
// writes the outputs. Moves rows * cols * bits / 8 bytes of weights once; judge by GB/s.

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kMediumSlices = kNumSlices / 2;  // of a block
constexpr int kMediumQuad = 4;                 // tiles that a warpgroup takes at a time, one a warp
constexpr int kMediumWarps = kMediumSlices * kMediumQuad;
constexpr int kMediumThreads = (kMediumWarps + kMediumSlices) * 32;
constexpr int kMediumSmem = 227 * 1024;

struct MediumArgs {
  LinearArgs linear;
  int first_tile[kMaxParts + 1];  // of each part among all; kSwiGlu: gate and up count as one
  int tiles_per_pair = 0;
  int extra_tiles = 0;  // so many pairs have one more
  int stage_bytes = 0;
  int depth = 0;      // stages of a slice
  int sub_shift = 0;  // log2 of the layout's sub_cols
};

/// Of a tile in a pass: where it lies. kSwiGlu: the first quad holds gates, the second their ups.
struct MediumTile {
  int part;
  int tile;
};
__device__ __forceinline__ MediumTile MediumTileAt(const MediumArgs& args, int first, int quad,
                                                   int member) {
  if (args.linear.epilogue == Epilogue::kSwiGlu) {
    return {.part = quad, .tile = first + member};
  }
  const int i = first + quad * kMediumQuad + member;
  int part = 0;
  while (i >= args.first_tile[part + 1]) {
    ++part;
  }
  return {.part = part, .tile = i - args.first_tile[part]};
}

/// c += the products of 64 columns of kQuads tiles with kTokens tokens, asynchronously. `codes` and
/// `scales` are of the first tile, those of the next quad `quad_bytes` behind; `x` is a box of 64
/// columns.
template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kQuads>
__device__ __forceinline__ void MultiplyHalf(float (&c)[kQuads][kTokens / 2],
                                             std::uint32_t (&a)[2][2][4], const std::uint8_t* codes,
                                             const std::uint8_t* scales, int quad_bytes,
                                             std::uint32_t x, int lane) {
  const std::uint64_t descriptor = SwizzledDescriptor(x);
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    HalfCodes<kFormat> half;
    if constexpr (kFormat != Format::kF16) {
      half.Load(codes + quad * quad_bytes, lane);
    }
    LaneScales scale;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of steps
      if (kHasScales<kFormat, kGrid> && (pair == 0 || kFineScales)) {
        LoadScales<kFormat, kGrid>(scales + quad * quad_bytes + pair * SubBytes<kFormat, kGrid>(),
                                   lane, scale);
      }
      WgmmaWait<1>();  // the products that read these registers last are done
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kFormat == Format::kF16) {  // a word a step: not all held at once
          half.LoadWord(codes + quad * quad_bytes, pair * 2 + i, lane);
        }
        Fragment<kFormat, kGrid>(half, pair * 2 + i, scale, StaticTable<kFormat>(), a[pair][i]);
      }
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Wgmma(c[quad], a[pair][i], descriptor + (pair * 2 + i) * (32 >> 4));
      }
      WgmmaCommit();
    }
  }
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kQuads>
__global__ __launch_bounds__(kMediumThreads,
                             1) void LinearMedium(const __grid_constant__ MediumArgs args,
                                                  const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kBoxBytes = kTokens * 128;
  constexpr int kGroups = kTokens / 8;
  constexpr int kTiles = kQuads * kMediumQuad;
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const LinearArgs& linear = args.linear;
  const WeightLayout& layout = linear.layout;
  // The compiler sees that it is the same in a warp, and keeps what follows from it in uniform
  // registers, where wgmma wants its descriptors.
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto rank = static_cast<int>(blockIdx.x % 2);
  const int halves = layout.unit_cols / kHalfCols;
  const int unit_bytes = layout.unit_bytes;
  const int num_units = layout.num_units;
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  const int tiles_per_pass = gated ? kMediumQuad : kTiles;
  // The tiles of this pair of blocks.
  const int pair = static_cast<int>(blockIdx.x / 2);
  const int tile_begin = pair * args.tiles_per_pair + min(pair, args.extra_tiles);
  const int tile_end = tile_begin + args.tiles_per_pair + (pair < args.extra_tiles ? 1 : 0);

  // Shared memory: a ring a slice, the sums on their way, barriers.
  const int depth = args.depth;
  const bool produces = warp >= kMediumWarps;
  const int slice = produces ? warp - kMediumWarps : warp / kMediumQuad;  // of the block's
  const int first_unit = rank * kMediumSlices + slice;
  std::uint8_t* const ring = smem + slice * depth * args.stage_bytes;
  auto* const sums = reinterpret_cast<float4*>(smem + kMediumSlices * depth * args.stage_bytes);
  const std::uint32_t barriers = SmemAddress(sums + kTiles * kGroups * 32);
  const std::uint32_t full = barriers + 8 * slice * depth;
  const std::uint32_t empty = full + 8 * kMediumSlices * depth;
  // Of a tile's sums: a slice has added its own (the last one of the first block: has sent them);
  // the first block's have come; the second block has used them.
  const std::uint32_t passed = barriers + 8 * 2 * kMediumSlices * depth;  // [slice][tile]
  const std::uint32_t arrived = passed + 8 * kMediumSlices * kTiles;
  const std::uint32_t drained = arrived + 8 * kTiles;

  if (produces) {
    GiveRegisters<32>();  // 96 a thread at launch: 4 x 112 + 32 = 5 x 96
    if (lane == 0) {
      PrefetchMap(&x_map);
    }
    const std::uint64_t policy = EvictFirst();
    const std::uint8_t* tile = nullptr;  // of the lane
    int tiles = 0;
    bool has_tile = false;
    const auto begin_pass = [&](int first) {
      const int quad = lane / kMediumQuad;
      const int member = lane % kMediumQuad;
      has_tile = quad < kQuads && first + (gated ? member : lane) < tile_end;
      if (has_tile) {
        const MediumTile at = MediumTileAt(args, first, quad, member);
        tile =
            linear.parts[at.part].weight + static_cast<std::size_t>(at.tile) * layout.tile_bytes();
      }
      tiles = __popc(__ballot_sync(0xffffffffU, has_tile));
    };
    const auto copy_weights = [&](int unit, int stage) {
      if (lane == 0) {
        BarrierExpect(full + 8 * stage, halves * kBoxBytes + tiles * unit_bytes);
      }
      __syncwarp();
      if (has_tile) {
        BulkCopy(
            SmemAddress(ring) + stage * args.stage_bytes + halves * kBoxBytes + lane * unit_bytes,
            tile + static_cast<std::size_t>(unit) * unit_bytes, unit_bytes, full + 8 * stage,
            policy);
      }
    };
    const int half = lane - kTiles;  // a lane each for the boxes of x
    const auto copy_x = [&](int unit, int stage) {
      if (half >= 0 && half < halves) {
        TensorCopy(SmemAddress(ring) + stage * args.stage_bytes + half * kBoxBytes, &x_map,
                   unit * layout.unit_cols + half * kHalfCols, 0, full + 8 * stage);
      }
    };
    if (lane < depth) {
      BarrierInit(full + 8 * lane, 1);
      BarrierInit(empty + 8 * lane, kMediumQuad * kWarpArrivals);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
    // Weights do not depend on the kernel before, x does.
    begin_pass(tile_begin);
    int stage = 0;
    int ahead = first_unit;
    for (; stage < depth && ahead < num_units; ++stage, ahead += kNumSlices) {
      copy_weights(ahead, stage);
    }
    ClusterArrive();
    ClusterWait();
    LaunchDependents();
    WaitForPrevious();
    for (int i = 0; i < stage; ++i) {
      copy_x(first_unit + i * kNumSlices, i);
    }
    std::uint32_t phase = stage == depth ? 0 : 1;
    stage %= depth;
    for (int first = tile_begin; first < tile_end; first += tiles_per_pass) {
      if (first > tile_begin) {
        begin_pass(first);
      }
      for (int unit = first == tile_begin ? ahead : first_unit; unit < num_units;
           unit += kNumSlices) {
        BarrierWait(empty + 8 * stage, phase);
        copy_weights(unit, stage);
        copy_x(unit, stage);
        if (++stage == depth) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
  } else {
    TakeRegisters<112>();
    FillTable<kFormat>(StaticTable<kFormat>(), static_cast<int>(threadIdx.x), kMediumWarps * 32);
    if constexpr (TableBytes(kFormat) > 0) {
      asm volatile("bar.sync 1, %0;" ::"n"(kMediumWarps * 32) : "memory");
    }
    if (threadIdx.x < kMediumSlices * kTiles) {
      BarrierInit(passed + 8 * threadIdx.x, kWarpArrivals);
    }
    if (threadIdx.x < 2 * kTiles) {  // arrived and drained
      BarrierInit(arrived + 8 * threadIdx.x, threadIdx.x < kTiles ? 1 : kWarpArrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    ClusterArrive();
    ClusterWait();
    LaunchDependents();
    WaitForPrevious();
    const int member = warp % kMediumQuad;
    const int last_slice = min(kNumSlices, num_units) - 1;  // of both blocks
    const bool sends = rank == 0 && slice == kMediumSlices - 1 && last_slice >= kMediumSlices;
    const bool writes = first_unit == last_slice;
    int stage = 0;
    std::uint32_t phase = 0;
    std::uint32_t parity = 0;  // of the pass
    for (int first = tile_begin; first < tile_end && first_unit <= last_slice;
         first += tiles_per_pass, parity ^= 1) {
      if (rank == 1 && slice == 0 && lane < kQuads) {
        BarrierExpect(arrived + 8 * (lane * kMediumQuad + member), kGroups * 512);
      }
      float c[kQuads][kTokens / 2] = {};
      std::uint32_t a[2][2][4];
      for (int unit = first_unit; unit < num_units; unit += kNumSlices) {
        BarrierWait(full + 8 * stage, phase);
        const std::uint8_t* const at = ring + stage * args.stage_bytes;
        const std::uint8_t* const units = at + halves * kBoxBytes + member * unit_bytes;
        const std::uint8_t* const scales = units + halves * HalfCodes<kFormat>::kBytes;
        for (int half = 0; half < halves; ++half) {
          MultiplyHalf<kFormat, kGrid, kFineScales, kTokens, kQuads>(
              c, a, units + half * HalfCodes<kFormat>::kBytes,
              scales + (half * kHalfCols >> args.sub_shift) * SubBytes<kFormat, kGrid>(),
              kMediumQuad * unit_bytes, SmemAddress(at) + half * kBoxBytes, lane);
        }
        WgmmaWait<0>();  // it brings the warp together
        if (ArrivesForWarp(lane)) {
          BarrierArrive(empty + 8 * stage);
        }
        if (++stage == depth) {
          stage = 0;
          phase ^= 1;
        }
      }

      // What the outputs need, read while the sums are on their way.
      Place place[kQuads];
      if (writes) {
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          if (first + (gated ? member : quad * kMediumQuad + member) < tile_end) {
            const MediumTile at = MediumTileAt(args, first, quad, member);
            place[quad] = Place(linear, at.part, at.tile, 0, lane);
            place[quad].Multiply(OutputUnit<kFormat>(0), OutputUnit<kFormat>(1));
          }
        }
      }
      // Slice after slice adds its sums to those before, and the last one has the totals.
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const int tile = quad * kMediumQuad + member;
        float4* const waiting = sums + tile * kGroups * 32 + lane;
        float before[2][kTokens / 4];
        if (writes && linear.epilogue == Epilogue::kAdd) {
          place[quad].Read(linear, before);
        }
        if (slice > 0) {
          BarrierWait(passed + 8 * ((slice - 1) * kTiles + tile), parity);
        } else if (rank == 1) {
          BarrierWait(arrived + 8 * tile, parity);
        } else if (first > tile_begin) {  // the sums of the last pass are on their way
          BarrierWait(passed + 8 * (min(last_slice, kMediumSlices - 1) * kTiles + tile),
                      parity ^ 1);
        }
        if (first_unit > 0) {
#pragma unroll
          for (int t = 0; t < kGroups; ++t) {
            const float4 v = waiting[t * 32];
            c[quad][t * 4] = v.x + c[quad][t * 4];
            c[quad][t * 4 + 1] = v.y + c[quad][t * 4 + 1];
            c[quad][t * 4 + 2] = v.z + c[quad][t * 4 + 2];
            c[quad][t * 4 + 3] = v.w + c[quad][t * 4 + 3];
          }
        }
        if (sends && first > tile_begin) {
          BarrierWait(drained + 8 * tile, parity ^ 1);
        }
        if (!writes) {
#pragma unroll
          for (int t = 0; t < kGroups; ++t) {
            const float4 v = make_float4(c[quad][t * 4], c[quad][t * 4 + 1], c[quad][t * 4 + 2],
                                         c[quad][t * 4 + 3]);
            if (sends) {
              SendTo(1, &waiting[t * 32], v, arrived + 8 * tile);
            } else {
              waiting[t * 32] = v;
            }
          }
        }
        __syncwarp();
        if (ArrivesForWarp(lane)) {
          if (writes && rank == 1) {  // nobody comes after it
            ArriveAt(drained + 8 * tile, 0);
          } else {
            BarrierArrive(passed + 8 * (slice * kTiles + tile));
          }
        }
        if (!writes) {
          continue;
        }
        place[quad].Scale(c[quad]);
        if (!gated) {
          place[quad].Write(linear, c[quad], before);
        } else if (quad == 1) {
          place[quad].WriteGated(linear, c[0], c[quad]);
        }
      }
    }
  }
  // Nobody leaves while the other sends. Both sides end here, or the compiler would not give those
  // that multiply the registers that they take.
  ClusterArrive();
  ClusterWait();
#endif
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kQuads>
int LaunchMediumAs(MediumArgs args, int pairs, cudaStream_t stream) {
  constexpr int kTiles = kQuads * kMediumQuad;
  constexpr int kRest = kTiles * kTokens / 8 * 512 + (kMediumSlices + 2) * kTiles * 8;
  constexpr int kMostDepth = 4;
  constexpr int kSmem = kMediumSmem - TableBytes(kFormat);
  const LinearArgs& linear = args.linear;
  args.stage_bytes =
      (linear.layout.unit_cols * kTokens * 2 + kTiles * linear.layout.unit_bytes + 1023) / 1024 *
      1024;
  const int slot = kMediumSlices * (args.stage_bytes + 16);
  args.depth = (kSmem - kRest) / slot > kMostDepth ? kMostDepth : (kSmem - kRest) / slot;
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, linear.x, linear.layout.cols, linear.num_tokens,
                                        linear.x_stride * 2, kTokens);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearMedium<kFormat, kGrid, kFineScales, kTokens, kQuads>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(kMediumThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(args.depth * slot + kRest);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = 2;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, args, map);
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens>
int LaunchMediumTokens(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  MediumArgs args{.linear = linear};
  while (1 << args.sub_shift < linear.layout.sub_cols) {
    ++args.sub_shift;
  }
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < kMaxParts; ++p) {
    args.first_tile[p + 1] =
        args.first_tile[p] + (p < (gated ? 1 : linear.num_parts) ? linear.parts[p].num_tiles : 0);
  }
  const int tiles = args.first_tile[kMaxParts];
  const int quads = (tiles + kMediumQuad - 1) / kMediumQuad;
  const int pairs = quads < num_sms / 2 ? quads : num_sms / 2;
  args.tiles_per_pair = tiles / pairs;
  args.extra_tiles = tiles % pairs;
  // Quads of a pass, so many that registers and a ring of two stages suffice.
  constexpr int kMost = kFormat == Format::kW4 ? 3 : kFormat == Format::kF16 ? 1 : 2;
  const int most = ((tiles + pairs - 1) / pairs + kMediumQuad - 1) / kMediumQuad;  // of a pair
  const int passes = (most + kMost - 1) / kMost;
  const int of_pass = gated ? 2 : (most + passes - 1) / passes;
  const auto launch = [&]<int kQuads>() {
    return LaunchMediumAs<kFormat, kGrid, kFineScales, kTokens, kQuads>(args, pairs, stream);
  };
  if constexpr (kMost >= 3) {
    if (of_pass == 3) {
      return launch.template operator()<3>();
    }
  }
  return of_pass == 2 ? launch.template operator()<2>() : launch.template operator()<1>();
}

/// Launches as often as the tokens need.
template <Format kFormat, Grid kGrid, bool kFineScales>
int LaunchMedium(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  for (int first = 0; first < linear.num_tokens; first += kMediumTokens) {
    LinearArgs part = linear;
    part.num_tokens =
        linear.num_tokens - first < kMediumTokens ? linear.num_tokens - first : kMediumTokens;
    part.x += first * linear.x_stride;
    if (part.product != nullptr) {
      part.product += first * linear.product_stride;
    }
    for (int p = 0; p < linear.num_parts; ++p) {
      part.parts[p].y += first * linear.parts[p].y_stride;
    }
    // Few rows are for 4-bit weights; others take the next wider kernel.
    constexpr int kFewest = kFormat == Format::kW4 || kFormat == Format::kNf4 ? 8 : 16;
    const int error =
        part.num_tokens <= kFewest
            ? LaunchMediumTokens<kFormat, kGrid, kFineScales, kFewest>(part, num_sms, stream)
        : part.num_tokens <= 16
            ? LaunchMediumTokens<kFormat, kGrid, kFineScales, 16>(part, num_sms, stream)
            : LaunchMediumTokens<kFormat, kGrid, kFineScales, 32>(part, num_sms, stream);
    if (error != 0) {
      return error;
    }
  }
  return 0;
}

int LaunchMediumW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumNf4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumFp8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
