#pragma once

// The products of linear_small.cuh for up to 32 tokens (decode of many sequences), by wgmma:
// weights stream once and every fragment of them meets all tokens. Two blocks share their tiles and
// split K: each has four of the eight slices. A slice has a warpgroup, whose warps take a tile each
// of every four of a pass, and a warp that keeps its ring of shared memory full: a stage is one
// unit of K, of x and of up to 12 tiles. Sums stay in registers; at the end of K each slice leaves
// its own where its last stage was, and all warps add them in order: those of the first block's
// slices, sent to the second block, then its own, and it writes the outputs. Moves rows * cols *
// bits / 8 bytes of weights once; judge by GB/s.

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/meeting.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kMediumSlices = kNumSlices / 2;  // of a block
constexpr int kMediumQuad = 4;                 // tiles that a warpgroup takes at a time, one a warp
constexpr int kMediumWarps = kMediumSlices * kMediumQuad;
constexpr int kMediumThreads = (kMediumWarps + kMediumSlices) * 32;
constexpr int kMediumSmem = 227 * 1024;
/// NF4's table is the wide one (codec.cuh), and the sums that come from the first block lie in the
/// gaps of its rows. Passes of the most tiles and tokens are tight even so: their rings have two
/// stages, whose scales are in the gaps, too, and half of the tokens' sums are added at a time.
template <Format kFormat, int kTokens, int kQuads>
inline constexpr bool kMediumIsTight = TableBytes(kFormat) > 0 && kTokens == 32 && kQuads == 3;
constexpr int kTightDepth = 2;
constexpr int kGapBytes = kWideTableStride - kTableStride;
constexpr int kTightScaleBytes = 2 * kPairBytes;  // of a unit and tile
constexpr int kTilesOfGap = kGapBytes / kTightScaleBytes;

struct MediumArgs {
  LinearArgs linear;
  int first_tile[kMaxParts + 1];  // of each part among all; kSwiGlu: gate and up count as one
  int tiles_per_pair = 0;
  int extra_tiles = 0;  // so many pairs have one more
  int stage_bytes = 0;
  int depth = 0;      // stages of a slice
  int sub_shift = 0;  // log2 of the layout's sub_cols
};

/// A tile of a pass: where it lies. `slot`: of the pass, which begins at `first`; kSwiGlu: gates,
/// then as many ups.
struct MediumTile {
  int part = 0;
  int tile = 0;
  bool exists = false;
  __device__ __forceinline__ MediumTile(const MediumArgs& args, int first, int end, int slot,
                                        int slots) {
    const bool gated = args.linear.epilogue == Epilogue::kSwiGlu;
    const bool is_up = gated && slot >= slots / 2;
    tile = first + (is_up ? slot - slots / 2 : slot);
    exists = slot < slots && tile < (gated && !is_up ? min(end, first + slots / 2) : end);
    if (is_up) {
      part = 1;
    } else if (exists) {
      while (tile >= args.first_tile[part + 1]) {
        ++part;
      }
      tile -= args.first_tile[part];
    }
  }
};

/// Where the outputs of a tile go, in shared memory.
struct MediumOutput {
  void* y;  // of the tile's first row and the first token: floats, or kSwiGlu fp16
  int stride;
  int rows;  // that exist
  bool has_bias;
};
/// What a warp writes of a tile at once, as its lanes hold it: rows r and r + 8 of two tokens, in
/// the order of a fragment.
struct MediumPiece {
  int at[4];
  bool exists[4];
  __device__ __forceinline__ MediumPiece(const MediumOutput& output, int num_tokens, int group,
                                         int lane) {
    const int row = lane / 4;
    const int token = group * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      at[i] = (token + i % 2) * output.stride + row + i / 2 * 8;
      exists[i] = row + i / 2 * 8 < output.rows && token + i % 2 < num_tokens;
    }
  }
};

__device__ __forceinline__ void MediumSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kMediumWarps * 32) : "memory");
}
/// The warps of a slice.
__device__ __forceinline__ void SliceSync(int slice) {
  asm volatile("bar.sync %0, %1;" ::"r"(2 + slice), "n"(kMediumQuad * 32) : "memory");
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/// x = the normed rows of the residual (norm.cuh): a block norms one or two of them for all, by all
/// threads that multiply.
__device__ __forceinline__ void NormRows(const LinearArgs& linear, float (*scratch)[kNormWarps]) {
  constexpr int kKept = kMaxNormWidth / 4 / kNormThreads;  // vectors of a thread
  const int thread = static_cast<int>(threadIdx.x) % kNormThreads;
  const int half = static_cast<int>(threadIdx.x) / kNormThreads;
  const auto blocks = static_cast<int>(gridDim.x);
  const int vectors = linear.layout.cols / 4;
  for (int first = static_cast<int>(blockIdx.x); first < linear.num_tokens; first += 2 * blocks) {
    const int row = first + half * blocks;
    const bool exists = row < linear.num_tokens;
    const auto* const from =
        reinterpret_cast<const float4*>(linear.residual) + static_cast<std::int64_t>(row) * vectors;
    float4 kept[kKept] = {};
    float squares = 0.0F;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int i = thread + j * kNormThreads;
      if (exists && i < vectors) {
        kept[j] = from[i];
        AddSquares(kept[j], squares);
      }
    }
    LeaveSquares(squares, thread, scratch[half]);
    MediumSync();
    const float inverse = InverseRms(scratch[half], linear.layout.cols, linear.norm_eps);
    const auto* const weight = reinterpret_cast<const float4*>(linear.norm_weight);
    auto* const to = reinterpret_cast<uint2*>(linear.normed + row * linear.x_stride);
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int i = thread + j * kNormThreads;
      if (exists && i < vectors) {
        to[i] = Normed(kept[j], inverse, weight[i]);
      }
    }
    FenceForCopies();
    MediumSync();
  }
}

/// c += the products of 64 columns of kQuads tiles with kTokens tokens, asynchronously. `codes` and
/// `scales` are of the first tile, those of the next quad so many bytes behind; `descriptor` is of
/// x, a box of 64 columns.
template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kQuads>
__device__ __forceinline__ void MultiplyHalf(float (&c)[kQuads][kTokens / 2],
                                             std::uint32_t (&a)[2][2][4], const std::uint8_t* table,
                                             const std::uint8_t* codes, int code_bytes,
                                             const std::uint8_t* scales, int scale_bytes,
                                             std::uint64_t descriptor, int lane) {
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    HalfCodes<kFormat> half;
    if constexpr (kFormat != Format::kF16) {
      half.Load(codes + quad * code_bytes, lane);
    }
    LaneScales scale;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of steps
      if (kHasScales<kFormat, kGrid> && (pair == 0 || kFineScales)) {
        LoadScales<kFormat, kGrid>(scales + quad * scale_bytes + pair * SubBytes<kFormat, kGrid>(),
                                   lane, scale);
      }
      WgmmaWait<1>();  // the products that read these registers last are done
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kFormat == Format::kF16) {  // a word a step: not all held at once
          half.LoadWord(codes + quad * code_bytes, pair * 2 + i, lane);
        }
        Fragment<kFormat, kGrid, kWideTableStride>(half, pair * 2 + i, scale, table, a[pair][i]);
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
  constexpr bool kTight = kMediumIsTight<kFormat, kTokens, kQuads>;
  constexpr bool kHasTable = TableBytes(kFormat) > 0;
  constexpr int kTurns = kTight ? 2 : 1;
  constexpr int kTurnGroups = kGroups / kTurns;
  constexpr int kTurnPieces = kTiles * kTurnGroups;
  // Pieces of outputs that a warp writes in a turn; kSwiGlu: gates with their ups.
  constexpr int kRounds = (kTiles * kTurnGroups - 1) / kMediumWarps + 1;
  constexpr int kGatedRounds = (kTiles / 2 * kTurnGroups - 1) / kMediumWarps + 1;
  constexpr float4 kNoSum{-0.0F, -0.0F, -0.0F, -0.0F};  // -0 + x is x, its sign too
  extern __shared__ __align__(1024) std::uint8_t table[];
  std::uint8_t* const smem = table + (kHasTable ? kWideTableBytes : 0);
  const LinearArgs& linear = args.linear;
  const WeightLayout& layout = linear.layout;
  // The compiler sees that it is the same in a warp, and keeps what follows from it in uniform
  // registers, where wgmma wants its descriptors.
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto rank = static_cast<int>(blockIdx.x % 2);
  const int halves = layout.unit_cols / kHalfCols;
  const int unit_bytes = layout.unit_bytes;
  // What a tile has of a stage.
  const int stage_unit_bytes = kTight ? halves * HalfCodes<kFormat>::kBytes : unit_bytes;
  const int num_units = layout.num_units;
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  const int tiles_per_pass = gated ? kTiles / 2 : kTiles;  // kSwiGlu: gates; then their ups
  // The tiles of this pair of blocks.
  const int pair = static_cast<int>(blockIdx.x / 2);
  const int tile_begin = pair * args.tiles_per_pair + min(pair, args.extra_tiles);
  const int tile_end = tile_begin + args.tiles_per_pair + (pair < args.extra_tiles ? 1 : 0);

  // Shared memory: the table, a ring a slice, the sums on their way, barriers.
  const int depth = args.depth;
  const bool produces = warp >= kMediumWarps;
  const int slice = produces ? warp - kMediumWarps : warp / kMediumQuad;  // of the block's
  const int first_unit = rank * kMediumSlices + slice;
  std::uint8_t* const ring = smem + slice * depth * args.stage_bytes;
  std::uint8_t* const behind = smem + kMediumSlices * depth * args.stage_bytes;
  // Sums that come from the first block: [turn][tile][eight tokens][lane].
  constexpr int kReceived = kTiles * kGroups * 32;
  const auto received = [&](int i) {
    constexpr int kOfGap = kGapBytes / static_cast<int>(sizeof(float4));
    return kHasTable
               ? reinterpret_cast<float4*>(table + i / kOfGap * kWideTableStride + kTableStride) +
                     i % kOfGap
               : reinterpret_cast<float4*>(behind) + i;
  };
  // kTight: the scales of a stage.
  const auto scales_at = [&](int stage, int tile) {
    constexpr int kFirst = kReceived * static_cast<int>(sizeof(float4)) / kGapBytes;
    static_assert(!kTight || kFirst + kMediumSlices * kTightDepth * kTiles / kTilesOfGap <=
                                 kWideTableBytes / kWideTableStride);
    const int gap = kFirst + ((slice * kTightDepth + stage) * kTiles + tile) / kTilesOfGap;
    return table + gap * kWideTableStride + kTableStride + tile % kTilesOfGap * kTightScaleBytes;
  };
  // Of outputs: factors and biases [tile][row], where they go, by the parity of the pass.
  auto* const factors =
      reinterpret_cast<float*>(behind + (kHasTable ? 0 : kReceived * sizeof(float4)));
  float* const biases = factors + kTiles * kTileRows;
  auto* const outputs = reinterpret_cast<MediumOutput*>(biases + kTiles * kTileRows);
  auto* const places = reinterpret_cast<int4*>(outputs + 2 * kTiles);  // of the slices' sums
  auto* const scratch = reinterpret_cast<float(*)[kNormWarps]>(places + 1);
  const std::uint32_t barriers = SmemAddress(scratch + 2);
  const std::uint32_t full = barriers + 8 * slice * depth;
  const std::uint32_t empty = full + 8 * kMediumSlices * depth;
  // Of a pass: the second block has read the sums of the first; those in the last stages have been
  // read (racecheck alone looks at it); of each turn: the sums of the first block have come.
  const std::uint32_t drained = barriers + 8 * 2 * kMediumSlices * depth;
  const std::uint32_t added = drained + 8;
  const std::uint32_t normed = added + 8;  // x is
  const std::uint32_t arrived = normed + 8;

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
      const MediumTile at(args, first, tile_end, lane, kTiles);
      has_tile = at.exists;
      if (has_tile) {
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
        const std::uint8_t* const from = tile + static_cast<std::size_t>(unit) * unit_bytes;
        BulkCopy(SmemAddress(ring) + stage * args.stage_bytes + halves * kBoxBytes +
                     lane * stage_unit_bytes,
                 from, stage_unit_bytes, full + 8 * stage, policy);
        if constexpr (kTight) {
          BulkCopy(SmemAddress(scales_at(stage, lane)), from + stage_unit_bytes,
                   unit_bytes - stage_unit_bytes, full + 8 * stage, policy);
        }
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
    // Weights do not depend on the kernel before, x does: but x comes behind all copies that began
    // before, so only one does.
    begin_pass(tile_begin);
    if (first_unit < num_units) {
      copy_weights(first_unit, 0);
    }
    ClusterArrive();
    ClusterWait();
    LaunchDependents();
    WaitForPrevious();
    if (linear.residual != nullptr) {
      BarrierWait(normed, 0);
      FenceForCopies();
    }
    int stage = 0;
    int ahead = first_unit;
    for (; stage < depth && ahead < num_units; ++stage, ahead += kNumSlices) {
      if (stage > 0) {
        copy_weights(ahead, stage);
      }
      copy_x(ahead, stage);
    }
    std::uint32_t phase = stage == depth ? 0 : 1;
    stage %= depth;
    std::uint32_t parity = 0;  // of the pass before
    for (int first = tile_begin; first < tile_end; first += tiles_per_pass) {
      if (first > tile_begin) {
        begin_pass(first);
        // Warps of all slices have read what lay in the last stage when those of its slice say that
        // it is empty; racecheck wants to see each of them itself. Without units to copy nothing
        // holds the others up, and the phase would be another one's by the time it is looked at.
        if (kForRacecheck && first_unit < num_units) {
          BarrierWait(added, parity);
          parity ^= 1;
        }
      }
#pragma unroll 1
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
    FillTable<kFormat, kWideTableStride>(table, static_cast<int>(threadIdx.x), kMediumWarps * 32);
    if constexpr (TableBytes(kFormat) > 0) {
      MediumSync();
    }
    if (threadIdx.x == 0) {
      for (int turn = 0; turn < kTurns; ++turn) {
        BarrierInit(arrived + 8 * turn, 1);
      }
      BarrierInit(drained, kMediumWarps * kWarpArrivals);
      BarrierInit(normed, 1);
      BarrierInit(added, kMediumWarps * kWarpArrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    ClusterArrive();
    ClusterWait();
    LaunchDependents();
    // Slices that have units: all, or those of the first block and some, or some of its.
    const int num_here = min(max(num_units - rank * kMediumSlices, 0), kMediumSlices);
    const bool sends = rank == 0 && num_units > kMediumSlices;
    const bool writes = num_here > 0 && !sends;
    // What outputs need changes as little as weights do.
    const auto load_factors = [&](int first) {
      const auto i = static_cast<int>(threadIdx.x);
      const MediumTile at(args, first, tile_end, i / kTileRows, kTiles);
      if (writes && at.exists) {
        const LinearPart& part = linear.parts[at.part];
        const int row = at.tile * kTileRows + i % kTileRows;
        CopyWord(SmemAddress(factors + i), part.factor + row);
        if (part.bias != nullptr) {
          CopyWord(SmemAddress(biases + i), part.bias + min(row, part.rows - 1));
        }
      }
    };
    const auto place_outputs = [&](int first, std::uint32_t parity) {
      const auto i = static_cast<int>(threadIdx.x);
      const MediumTile at(args, first, tile_end, i, kTiles);
      if (writes && at.exists) {
        const LinearPart& part = linear.parts[at.part];
        const int row = at.tile * kTileRows;
        outputs[parity * kTiles + i] = {
            .y = gated ? static_cast<void*>(linear.product + row) : part.y + row,
            .stride = static_cast<int>(gated ? linear.product_stride : part.y_stride),
            .rows = part.rows - row,
            .has_bias = part.bias != nullptr};
      }
    };
    load_factors(tile_begin);
    place_outputs(tile_begin, 0);
    if (linear.residual != nullptr && static_cast<int>(blockIdx.x) < linear.num_tokens) {
      for (int i = static_cast<int>(threadIdx.x); i < linear.layout.cols / 4;
           i += kMediumWarps * 32) {
        PrefetchL1(reinterpret_cast<const float4*>(linear.norm_weight) + i);
      }
    }
    MediumSync();  // all see them
    WaitForPrevious();
    if (linear.residual != nullptr) {
      NormRows(linear, scratch);
      MediumSync();
      if (threadIdx.x == 0) {
        Meeting meeting(linear.shared);
        meeting.Arrive();
        meeting.Wait();
        BarrierArrive(normed);
      }
    }
    const int member = warp % kMediumQuad;
    int stage = 0;
    std::uint32_t phase = 0;
    std::uint32_t parity = 0;  // of the pass
    for (int first = tile_begin; first < tile_end && num_here > 0;
         first += tiles_per_pass, parity ^= 1) {
      const int count = min(tiles_per_pass, tile_end - first);
      if (first > tile_begin) {
        load_factors(first);
      }
      if (rank == 1 && threadIdx.x == 0) {
        for (int turn = 0; turn < kTurns; ++turn) {
          BarrierExpect(arrived + 8 * turn, (gated ? 2 * count : count) * kTurnGroups * 512);
        }
      }
      // Of the pieces that this warp writes, if this block does and adds.
      float before[kRounds][4] = {};  // zeros, or they would stay alive between passes
      const auto piece_at = [&](int turn, int piece) {
        return MediumPiece(outputs[parity * kTiles + piece / kTurnGroups], linear.num_tokens,
                           turn * kTurnGroups + piece % kTurnGroups, lane);
      };
      const auto read_before = [&](int turn) {
#pragma unroll
        for (int j = 0; j < kRounds; ++j) {
          const int piece = j * kMediumWarps + warp;
          if (piece < count * kTurnGroups) {
            const auto* const y =
                static_cast<const float*>(outputs[parity * kTiles + piece / kTurnGroups].y);
            const MediumPiece at = piece_at(turn, piece);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              before[j][i] = at.exists[i] ? y[at.at[i]] : 0.0F;
            }
          }
        }
      };
      const bool adds = writes && linear.epilogue == Epilogue::kAdd;
      if (kQuads == 1 && adds) {  // there are registers for it
        read_before(0);
      }
      float c[kQuads][kTokens / 2];
#pragma unroll
      for (int i = 0; i < kQuads * kTokens / 2; ++i) {
        c[i / (kTokens / 2)][i % (kTokens / 2)] = slice < num_here ? 0.0F : -0.0F;
      }
      if (slice < num_here) {
        std::uint32_t a[2][2][4];
        for (int unit = first_unit;;) {
          BarrierWait(full + 8 * stage, phase);
          const std::uint8_t* const at = ring + stage * args.stage_bytes;
          const std::uint64_t x = SwizzledDescriptor(SmemAddress(at));
          const std::uint8_t* const units = at + halves * kBoxBytes + member * stage_unit_bytes;
          const std::uint8_t* const scales =
              kTight ? scales_at(stage, member) : units + halves * HalfCodes<kFormat>::kBytes;
          for (int half = 0; half < halves; ++half) {
            MultiplyHalf<kFormat, kGrid, kFineScales, kTokens, kQuads>(
                c, a, table, units + half * HalfCodes<kFormat>::kBytes,
                kMediumQuad * stage_unit_bytes,
                scales + (half * kHalfCols >> args.sub_shift) * SubBytes<kFormat, kGrid>(),
                kTight ? kMediumQuad / kTilesOfGap * kWideTableStride : kMediumQuad * unit_bytes,
                x + half * (kBoxBytes >> 4), lane);
          }
          WgmmaWait<0>();  // it brings the warp together
          unit += kNumSlices;
          if (unit >= num_units) {
            break;
          }
          if (ArrivesForWarp(lane)) {
            BarrierArrive(empty + 8 * stage);
          }
          if (++stage == depth) {
            stage = 0;
            phase ^= 1;
          }
        }
        SliceSync(slice);
      } else if constexpr (kForRacecheck) {
        SliceSync(slice);  // else it takes sums of the others, a barrier ahead, for unordered
      }
      // The last stage is kept until its place, which the sums take now, is free again.
      const auto leave_sums = [&](int turn) {
        const int place = slice * depth * args.stage_bytes + stage * args.stage_bytes;
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
#pragma unroll
          for (int t = 0; t < kTurnGroups; ++t) {
            const float* const v = c[quad] + (turn * kTurnGroups + t) * 4;
            reinterpret_cast<float4*>(
                smem + place)[((quad * kMediumQuad + member) * kTurnGroups + t) * 32 + lane] =
                make_float4(v[0], v[1], v[2], v[3]);
          }
        }
        if (member == 0 && lane == 0) {
          reinterpret_cast<int*>(places)[slice] = place;
        }
      };

      // A piece is a tile's outputs for eight tokens. Its sum over the slices of this block, behind
      // those of the first one:
      const auto sum_of = [&](int piece, float4 v) {
        const int4 at = *places;
        const int i = piece * 32 + lane;
        const auto sum = [&](int place) {
          return reinterpret_cast<const float4*>(smem + place)[i];
        };
        return v + sum(at.x) + sum(at.y) + sum(at.z) + sum(at.w);
      };
      const int pieces = count * kTurnGroups;  // kSwiGlu: of gates
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        if (turn > 0) {
          MediumSync();  // the sums of the turn before have been read
        }
        leave_sums(turn);
        if (sends) {
          MediumSync();
          // Only a warp that sends waits: the next phase cannot end without its sums.
          const int sent = (gated ? 2 : 1) * pieces;
          if (turn == 0 && first > tile_begin && warp < sent) {
            BarrierWait(drained, parity ^ 1);
          }
          for (int i = warp; i < sent; i += kMediumWarps) {
            const int piece = i < pieces ? i : i - pieces + tiles_per_pass * kTurnGroups;
            SendTo(1, received((turn * kTurnPieces + piece) * 32 + lane), sum_of(piece, kNoSum),
                   arrived + 8 * turn);
          }
        } else {
          if (kQuads > 1 && adds) {
            read_before(turn);
          }
          WaitForChunks();
          MediumSync();
          if (rank == 1) {
            BarrierWait(arrived + 8 * turn, parity);
          }
          const auto output = [&](int piece, float(&y)[4]) {
            const float4 v = sum_of(
                piece, rank == 1 ? *received((turn * kTurnPieces + piece) * 32 + lane) : kNoSum);
            const int row = piece / kTurnGroups * kTileRows + lane / 4;
            const bool has_bias = outputs[parity * kTiles + piece / kTurnGroups].has_bias;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float factor = factors[row + i / 2 * 8] * linear.x_scale *
                                   (i < 2 ? OutputUnit<kFormat>(0) : OutputUnit<kFormat>(1));
              y[i] = (i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w) * factor;
              y[i] = has_bias ? y[i] + biases[row + i / 2 * 8] : y[i];
            }
          };
          if (gated) {
#pragma unroll
            for (int j = 0; j < kGatedRounds; ++j) {
              const int piece = j * kMediumWarps + warp;
              if (piece < pieces) {
                float gate[4];
                float up[4];
                output(piece, gate);
                output(piece + tiles_per_pass * kTurnGroups, up);
                auto* const product =
                    static_cast<std::uint16_t*>(outputs[parity * kTiles + piece / kTurnGroups].y);
                const MediumPiece at = piece_at(turn, piece);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  if (at.exists[i]) {
                    product[at.at[i]] = __half_as_ushort(
                        __float2half_rn(SiluTimes(gate[i], up[i]) * linear.product_scale));
                  }
                }
              }
            }
          } else {
#pragma unroll
            for (int j = 0; j < kRounds; ++j) {
              const int piece = j * kMediumWarps + warp;
              if (piece < pieces) {
                float v[4];
                output(piece, v);
                auto* const y =
                    static_cast<float*>(outputs[parity * kTiles + piece / kTurnGroups].y);
                const MediumPiece at = piece_at(turn, piece);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  if (at.exists[i]) {
                    y[at.at[i]] = adds ? before[j][i] + v[i] : v[i];
                  }
                }
              }
            }
          }
          // Only what the first block waits for: it may have left when others arrive.
          if (rank == 1 && turn + 1 == kTurns && first + tiles_per_pass < tile_end) {
            __syncwarp();
            if (ArrivesForWarp(lane)) {
              ArriveAt(drained, 0);
            }
          }
        }
      }
      if (writes) {
        place_outputs(first + tiles_per_pass, parity ^ 1);
      }
      if (first + tiles_per_pass < tile_end) {
        if constexpr (kForRacecheck) {
          WarpArrive(added, lane);
        }
        MediumSync();
        if (slice < num_here) {
          if (ArrivesForWarp(lane)) {
            BarrierArrive(empty + 8 * stage);
          }
          if (++stage == depth) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
  }
  // All that one block sends the other has waited for: this barrier is relaxed and orders nothing
  // that is on its way. Both sides end here, or the compiler would not give those that multiply the
  // registers that they take.
  ClusterArrive();
  ClusterWait();
#endif
}

}  // namespace nibble::cuda
