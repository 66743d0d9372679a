#pragma once

// The products of linear_small.cuh for 9 to 32 tokens (decode of many sequences): weights stream
// once and every fragment of them meets all tokens.
// A block has two warps for each slice of K, and four that keep a ring of shared memory full: a
// stage is one unit of K, of x and of up to six tiles, and belongs to the two warps of its slice,
// which share the tiles. A warp keeps their sums in registers; at the end of K they pass from slice
// to slice in order, and all warps write the outputs. Blocks work in pairs: each fetches half of
// the tokens of x and sends them to both, as the L2 cache could not feed them otherwise. Moves rows
// * cols * bits / 8 bytes of weights once; judge by GB/s.

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/tensor_map.h"

namespace nibble::cuda {

constexpr int kMediumTokens = 32;
constexpr int kMediumTiles = 6;   // at most, of a pass over K
constexpr int kMediumShares = 2;  // of the tiles: the warps of a slice
constexpr int kMediumWarps = kMediumShares * kNumSlices;
constexpr int kMediumWorkers = kMediumWarps * 32;
constexpr int kMediumProducers = 4;  // warps
constexpr int kMediumThreads = kMediumWorkers + kMediumProducers * 32;

struct MediumArgs {
  LinearArgs linear;
  int first_tile[kMaxParts + 1];  // of each part among all; kSwiGlu: gate and up take turns
  int stage_bytes = 0;
  int num_stages = 0;
  int sub_shift = 0;  // log2 of the layout's sub_cols
};

/// The tile with index `i` among all of a launch.
struct MediumTile {
  int part;
  int tile;
};
__device__ __forceinline__ MediumTile MediumTileAt(const MediumArgs& args, int i) {
  if (args.linear.epilogue == Epilogue::kSwiGlu) {
    return {.part = i % 2, .tile = i / 2};
  }
  int part = 0;
  while (i >= args.first_tile[part + 1]) {
    ++part;
  }
  return {.part = part, .tile = i - args.first_tile[part]};
}

/// c += the products of 64 columns of kTiles tiles with kTokens tokens. `codes` and `scales` are of
/// the first tile, those of the next `unit_bytes` behind; `x` is a box of 64 columns.
template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kTiles>
__device__ __forceinline__ void MultiplyHalf(float (&c)[kTiles][kTokens / 8][4],
                                             const std::uint8_t* codes, const std::uint8_t* scales,
                                             int unit_bytes, std::uint32_t x, int lane) {
  // Rows of a matrix are tokens; the chunks of a row are swapped by the token (TMA's 128-byte
  // swizzle).
  std::uint32_t b[4][kTokens / 16][4];
  const std::uint32_t row = x + (lane % 8 + lane / 16 * 8) * 128;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int t = 0; t < kTokens / 16; ++t) {
      LoadMatrices(b[step][t],
                   row + t * 16 * 128 + (((2 * step + lane / 8 % 2) ^ (lane % 8)) << 4));
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    HalfCodes<kFormat> half;
    half.Load(codes + j * unit_bytes, lane);
    LaneScales scale;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if (kFormat != Format::kF16 && (step == 0 || (kFineScales && step == 2))) {
        LoadScales<kGrid>(scales + j * unit_bytes + step / 2 * SubBytes<kFormat, kGrid>(), lane,
                          scale);
      }
      std::uint32_t a[4];
      Fragment<kFormat, kGrid>(half, step, scale, a);
#pragma unroll
      for (int t = 0; t < kTokens / 8; ++t) {
        Mma16816(c[j][t], a, b[step][t / 2][t % 2 * 2], b[step][t / 2][t % 2 * 2 + 1]);
      }
    }
  }
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kTiles>
__global__ __launch_bounds__(kMediumThreads,
                             1) void LinearMedium(const __grid_constant__ MediumArgs args,
                                                  const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH__ >= 900
  constexpr int kBoxBytes = kTokens * 128;
  constexpr int kGroups = kTokens / 8;
  constexpr int kOwnTiles = kTiles / kMediumShares;  // of a warp
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const LinearArgs& linear = args.linear;
  const WeightLayout& layout = linear.layout;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto rank = static_cast<std::uint32_t>(blockIdx.x % 2);
  const int halves = layout.unit_cols / kHalfCols;
  const int unit_bytes = layout.unit_bytes;
  const int num_units = layout.num_units;
  // Tiles of this pair of blocks, then of this block; gate and up stay together.
  const int turn = linear.epilogue == Epilogue::kSwiGlu ? 2 : 1;
  const long long all = args.first_tile[kMaxParts] / turn;
  const int pair_begin = static_cast<int>(all * (blockIdx.x / 2) / (gridDim.x / 2));
  const int pair_end = static_cast<int>(all * (blockIdx.x / 2 + 1) / (gridDim.x / 2));
  const int middle = (pair_begin + pair_end + 1) / 2;
  const int tile_begin = (rank == 0 ? pair_begin : middle) * turn;
  const int tile_end = (rank == 0 ? middle : pair_end) * turn;
  const int num_passes = ((middle - pair_begin) * turn + kTiles - 1) / kTiles;  // of both

  const int num_stages = args.num_stages;
  const std::uint32_t ring = SmemAddress(smem);
  auto* const sums = reinterpret_cast<float4*>(smem + num_stages * args.stage_bytes);
  const std::uint32_t full = SmemAddress(sums + kTiles * kGroups * 32);
  const std::uint32_t empty = full + 8 * num_stages;
  const std::uint32_t passed = empty + 8 * num_stages;      // [warp]: it has added its sums
  const std::uint32_t drained = passed + 8 * kMediumWarps;  // all warps have read the sums
  if (threadIdx.x == 0) {
    for (int s = 0; s < num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 2 * kMediumShares);  // the warps of a slice, of both blocks
    }
    for (int i = 0; i < kMediumWarps; ++i) {
      BarrierInit(passed + 8 * i, 1);
    }
    BarrierInit(drained, kMediumWarps);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  ClusterArrive();
  ClusterWait();
  LaunchDependents();

  if (warp >= kMediumWarps) {  // producers share the stages: one could not start copies fast enough
    GiveRegisters<32>();       // 96 a thread at launch: 4 x 112 + 32 = 5 x 96
    const int producer = warp - kMediumWarps;
    const std::uint64_t policy = EvictFirst();
    const std::uint8_t* tile = nullptr;  // of the lane
    int tiles = 0;
    const auto begin_pass = [&](int pass) {
      const int first = tile_begin + pass * kTiles;
      tiles = max(0, min(kTiles, tile_end - first));
      if (lane < tiles) {
        const MediumTile at = MediumTileAt(args, first + lane);
        tile =
            linear.parts[at.part].weight + static_cast<std::size_t>(at.tile) * layout.tile_bytes();
      }
    };
    const auto copy_weights = [&](int unit, std::uint32_t to, std::uint32_t barrier) {
      if (lane == 0) {
        BarrierExpect(barrier, halves * kBoxBytes + tiles * unit_bytes);
      }
      __syncwarp();
      if (lane < tiles) {
        BulkCopy(to + halves * kBoxBytes + lane * unit_bytes, tile + unit * unit_bytes, unit_bytes,
                 barrier, policy);
      }
    };
    const int half = lane - kMediumTiles;  // a lane each for the boxes of x
    const auto copy_x = [&](int unit, std::uint32_t to, std::uint32_t barrier) {
      if (half >= 0 && half < halves) {
        TensorCopyToBoth(to + half * kBoxBytes + rank * (kBoxBytes / 2), &x_map,
                         unit * layout.unit_cols + half * kHalfCols,
                         static_cast<int>(rank) * (kTokens / 2), barrier);
      }
    };
    // Weights do not depend on the kernel before, x does.
    const int ahead = min(num_units, num_stages);
    begin_pass(0);
    for (int i = producer; i < ahead; i += kMediumProducers) {
      copy_weights(i, ring + i * args.stage_bytes, full + 8 * i);
    }
    WaitForPrevious();
    for (int i = producer; i < ahead; i += kMediumProducers) {
      copy_x(i, ring + i * args.stage_bytes, full + 8 * i);
    }
    int stage = ahead % num_stages;
    std::uint32_t phase = ahead == num_stages ? 0 : 1;
    for (int pass = 0; pass < num_passes; ++pass) {
      if (pass > 0) {
        begin_pass(pass);
      }
      for (int unit = pass == 0 ? ahead : 0; unit < num_units; ++unit) {
        if (stage % kMediumProducers == producer) {
          BarrierWait(empty + 8 * stage, phase);
          copy_weights(unit, ring + stage * args.stage_bytes, full + 8 * stage);
          copy_x(unit, ring + stage * args.stage_bytes, full + 8 * stage);
        }
        if (++stage == num_stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    ClusterArrive();  // nobody leaves while the other sends and releases
    ClusterWait();
    return;
  }

  TakeRegisters<112>();
  for (int i = tile_begin + static_cast<int>(threadIdx.x); i < tile_end; i += kMediumWorkers) {
    const MediumTile at = MediumTileAt(args, i);
    PrefetchL2(linear.parts[at.part].factor + at.tile * kTileRows);
  }
  WaitForPrevious();
  const int last_slice = min(kNumSlices, num_units) - 1;
  const int out_row = static_cast<int>(threadIdx.x) % kTileRows;  // of the outputs to write
  const int out_token = static_cast<int>(threadIdx.x) / kTileRows;
  const int slice = warp % kNumSlices;
  const int share = warp / kNumSlices;
  int stage = slice % num_stages;
  std::uint32_t phase = slice / num_stages & 1;
  for (int pass = 0; pass < num_passes; ++pass) {
    const int first = tile_begin + pass * kTiles;
    const std::uint32_t parity = pass & 1;
    float c[kOwnTiles][kGroups][4] = {};
    for (int unit = slice; unit < num_units; unit += kNumSlices) {
      BarrierWait(full + 8 * stage, phase);
      const std::uint8_t* const units =
          smem + stage * args.stage_bytes + halves * kBoxBytes + share * kOwnTiles * unit_bytes;
      const std::uint8_t* const scales = units + halves * HalfCodes<kFormat>::kBytes;
      for (int half = 0; half < halves; ++half) {
        MultiplyHalf<kFormat, kGrid, kFineScales, kTokens, kOwnTiles>(
            c, units + half * HalfCodes<kFormat>::kBytes,
            scales + (half * kHalfCols >> args.sub_shift) * SubBytes<kFormat, kGrid>(), unit_bytes,
            ring + stage * args.stage_bytes + half * kBoxBytes, lane);
      }
      __syncwarp();
      if (lane < 2) {
        ArriveAt(empty + 8 * stage, lane);
      }
      // On to the warp's next unit, or to the first of its next pass.
      stage += unit + kNumSlices < num_units ? kNumSlices : num_units - unit + slice;
      while (stage >= num_stages) {
        stage -= num_stages;
        phase ^= 1;
      }
    }

    // Slice after slice adds its sums to those before.
    if (slice <= last_slice) {
      if (slice > 0) {
        BarrierWait(passed + 8 * (warp - 1), parity);
      } else if (pass > 0) {
        BarrierWait(drained, parity ^ 1);
      }
#pragma unroll
      for (int j = 0; j < kOwnTiles; ++j) {
#pragma unroll
        for (int t = 0; t < kGroups; ++t) {
          float4& sum = sums[((share * kOwnTiles + j) * kGroups + t) * 32 + lane];
          float4 v = make_float4(c[j][t][0], c[j][t][1], c[j][t][2], c[j][t][3]);
          if (slice > 0) {
            const float4 before = sum;
            v = make_float4(before.x + v.x, before.y + v.y, before.z + v.z, before.w + v.w);
          }
          sum = v;
        }
      }
      __syncwarp();
      if (lane == 0) {
        BarrierArrive(passed + 8 * warp);
      }
    }

    // Outputs: a thread has one row of each tile, and one token, or half of them one.
    const bool writes = out_token < linear.num_tokens;
    float factor[kTiles];
    float before[kTiles];
    struct Place {
      const LinearPart* part;
      int row;
      bool exists;
    };
    const auto place_of = [&](int j) {
      const MediumTile at = MediumTileAt(args, min(first + j, tile_end - 1));
      const LinearPart* part = &linear.parts[at.part];
      const int row = at.tile * kTileRows + out_row;
      return Place{
          .part = part, .row = row, .exists = writes && first + j < tile_end && row < part->rows};
    };
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {  // read while the sums arrive
      factor[j] = 0.0F;
      before[j] = 0.0F;
      if (const Place place = place_of(j); place.exists) {
        factor[j] = place.part->factor[place.row] * linear.x_scale;
        if (linear.epilogue == Epilogue::kAdd) {
          before[j] = place.part->y[out_token * place.part->y_stride + place.row];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMediumShares; ++i) {
      BarrierWait(passed + 8 * (i * kNumSlices + last_slice), parity);
    }
    const auto total = [&](int j) {  // of the fragment that holds it
      const int at =
          ((j * kGroups + out_token / 8) * 32 + out_row % 8 * 4 + out_token % 8 / 2) * 4 +
          out_row / 8 * 2 + out_token % 2;
      const LinearPart& part = *place_of(j).part;
      const float y = reinterpret_cast<const float*>(sums)[at] * factor[j];
      return part.bias == nullptr ? y : y + part.bias[place_of(j).row];
    };
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Place place = place_of(j);
      if (!place.exists || (turn == 2 && j % 2 == 1)) {
        continue;
      }
      const float y = total(j);
      if (turn == 2) {
        linear.product[out_token * linear.product_stride + place.row] =
            __half_as_ushort(__float2half_rn(SiluTimes(y, total(j | 1)) * linear.product_scale));
      } else {
        place.part->y[out_token * place.part->y_stride + place.row] =
            linear.epilogue == Epilogue::kAdd ? before[j] + y : y;
      }
    }
    __syncwarp();
    if (lane == 0) {
      BarrierArrive(drained);
    }
  }
  ClusterArrive();
  ClusterWait();
#endif
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kTiles>
int LaunchMediumAs(MediumArgs args, int blocks, cudaStream_t stream) {
  constexpr int kMost = 226 * 1024;
  constexpr int kSumBytes = kTiles * kTokens / 8 * 512;
  constexpr int kBarriers = (kMediumWarps + 1) * 8;
  const LinearArgs& linear = args.linear;
  args.stage_bytes =
      (linear.layout.unit_cols * kTokens * 2 + kTiles * linear.layout.unit_bytes + 1023) / 1024 *
      1024;
  // A multiple of the slices, so that a stage has one owner, who cannot be a whole turn of the ring
  // ahead of it: the parity of a barrier tells only the last two phases apart.
  args.num_stages = 2 * kNumSlices * (args.stage_bytes + 16) + kSumBytes + kBarriers <= kMost
                        ? 2 * kNumSlices
                        : kNumSlices;
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, linear.x, linear.layout.cols, linear.num_tokens,
                                        linear.x_stride * 2, kTokens / 2);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearMedium<kFormat, kGrid, kFineScales, kTokens, kTiles>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024);
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kMediumThreads);
  config.dynamicSmemBytes =
      static_cast<std::size_t>(args.num_stages * (args.stage_bytes + 16) + kSumBytes + kBarriers);
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
  for (int p = 0; p < kMaxParts; ++p) {
    args.first_tile[p + 1] =
        args.first_tile[p] + (p < linear.num_parts ? linear.parts[p].num_tiles : 0);
  }
  const int turn = linear.epilogue == Epilogue::kSwiGlu ? 2 : 1;
  const int turns = args.first_tile[kMaxParts] / turn;
  const int pairs = turns < num_sms ? (turns + 1) / 2 : num_sms / 2;
  const int most = ((turns + pairs - 1) / pairs + 1) / 2 * turn;     // of a block
  constexpr int kMost = kFormat == Format::kF16 ? 4 : kMediumTiles;  // so that the ring fits
  const int passes = (most + kMost - 1) / kMost;
  const int tiles = (most + passes - 1) / passes;
  const auto launch = [&]<int kTiles>() {
    return LaunchMediumAs<kFormat, kGrid, kFineScales, kTokens, kTiles>(args, 2 * pairs, stream);
  };
  if (tiles <= 2) {
    return launch.template operator()<2>();
  }
  if (kMost == 4 || tiles <= 4) {
    return launch.template operator()<4>();
  }
  return launch.template operator()<kMost>();
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
    const int error =
        part.num_tokens <= 16
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
int LaunchMediumF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
