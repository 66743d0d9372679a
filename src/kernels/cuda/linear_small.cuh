#pragma once

// y[n] = sum_k w[n,k] x[k]  for 1 to 8 tokens, weights streamed once (decode)
//   weights: A operand of mma.m16n8k16, tokens its 8 columns; codec.cuh says what w is.
//   K is cut into units (128 or 64 columns); unit u belongs to slice u % 8. A slice is one chain of
//   MMAs over its units in order; y = ((slice 0 + slice 1) + slice 2) + ...: the arithmetic of
//   every linear kernel here, so that a row's bits do not depend on which kernel computed it.
//
// One block an SM: 16 warps = 8 slices x 2 tiles of 16 outputs, and one that keeps a ring of shared
// memory full: a stage is 8 units of both tiles, two bulk copies. The outputs of a block are walked
// step by step of K (the fragments of x stay in registers over all its tiles), sums of all its
// tiles wait in shared memory. Weights never depend on the previous kernel: the ring fills before
// the wait. Moves rows * cols * bits / 8 bytes of weights once; judge by GB/s.

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/norm.cuh"

namespace nibble::cuda {

constexpr int kSmallWarps = 2 * kNumSlices;
constexpr int kSmallThreads = (kSmallWarps + 1) * 32;
constexpr int kSmallPairs = 6;  // pairs of tiles whose sums a block keeps at a time

struct SmallArgs {
  LinearArgs linear;
  int first_pair[kMaxParts + 1];  // of each part; kSwiGlu: pair p is tile p of both parts
  int num_stages = 0;
  int normed_at = 0;  // where in shared memory the normed input lies
};

__device__ __forceinline__ void ConsumersSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kSmallWarps * 32) : "memory");
}

/// Where the tiles of a pair lie. The second may not exist.
struct PairTiles {
  const std::uint8_t* tile[2];
};
__device__ __forceinline__ PairTiles TilesOf(const SmallArgs& args, int pair,
                                             std::size_t tile_bytes) {
  const LinearArgs& linear = args.linear;
  PairTiles tiles;
  if (linear.epilogue == Epilogue::kSwiGlu) {
    tiles.tile[0] = linear.parts[0].weight + static_cast<std::size_t>(pair) * tile_bytes;
    tiles.tile[1] = linear.parts[1].weight + static_cast<std::size_t>(pair) * tile_bytes;
    return tiles;
  }
  int part = 0;
  while (pair >= args.first_pair[part + 1]) {
    ++part;
  }
  const int tile = 2 * (pair - args.first_pair[part]);
  tiles.tile[0] = linear.parts[part].weight + static_cast<std::size_t>(tile) * tile_bytes;
  tiles.tile[1] = tile + 1 < linear.parts[part].num_tiles ? tiles.tile[0] + tile_bytes : nullptr;
  return tiles;
}

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
__global__ __launch_bounds__(kSmallThreads,
                             1) void LinearSmall(const __grid_constant__ SmallArgs args) {
#if __CUDA_ARCH__ >= 900  // bulk copies
  constexpr int kHalves = kUnitCols / kHalfCols;
  constexpr int kCodeBytes = kHalves * HalfCodes<kFormat>::kBytes;
  constexpr int kUnitBytes = kCodeBytes + kUnitCols / kSubCols * SubBytes<kFormat, kGrid>();
  constexpr int kTileStage = kNumSlices * kUnitBytes;
  constexpr int kStage = 2 * kTileStage;
  constexpr int kSteps = kUnitCols / 16;
  extern __shared__ __align__(128) std::uint8_t smem[];

  const LinearArgs& linear = args.linear;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_pairs = args.first_pair[linear.num_parts];
  const int pair_begin =
      static_cast<int>(static_cast<long long>(num_pairs) * blockIdx.x / gridDim.x);
  const int pair_end =
      static_cast<int>(static_cast<long long>(num_pairs) * (blockIdx.x + 1) / gridDim.x);
  const int num_units = linear.layout.num_units;
  const int num_steps = (num_units + kNumSlices - 1) / kNumSlices;
  const std::size_t tile_bytes = static_cast<std::size_t>(num_units) * kUnitBytes;
  const int num_stages = args.num_stages;
  float4* const sums = reinterpret_cast<float4*>(smem + num_stages * kStage);
  const int kept = min(kSmallPairs, pair_end - pair_begin);
  const std::uint32_t full =
      SmemAddress(smem) + num_stages * kStage + kept * kSmallWarps * 32 * sizeof(float4);
  const std::uint32_t empty = full + 8 * num_stages;

  if (threadIdx.x == 0) {
    for (int s = 0; s < num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kSmallWarps * kWarpArrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();

  const auto fill = [&](int pair, int step, int stage) {  // by a warp: a lane a tile
    const std::uint32_t bytes = min(kNumSlices, num_units - step * kNumSlices) * kUnitBytes;
    const PairTiles tiles = TilesOf(args, pair, tile_bytes);
    if (lane == 0) {
      BarrierExpect(full + 8 * stage, tiles.tile[1] != nullptr ? 2 * bytes : bytes);
    }
    __syncwarp();
    const std::uint8_t* const from = lane == 0 ? tiles.tile[0] : tiles.tile[1];
    if (lane < 2 && from != nullptr) {
      BulkCopy(SmemAddress(smem) + stage * kStage + lane * kTileStage,
               from + static_cast<std::size_t>(step) * kTileStage, bytes, full + 8 * stage,
               EvictFirst());
    }
  };
  // Weights do not depend on the kernel before: all warps help to fill the ring.
  const int first_pairs = min(kSmallPairs, pair_end - pair_begin);
  const int ahead = min(min(num_stages, kSmallWarps), first_pairs * num_steps);
  if (warp < ahead) {
    fill(pair_begin + warp % first_pairs, warp / first_pairs, warp);
  }
  if (warp == kSmallWarps) {  // the producer
    int stage = 0;
    std::uint32_t phase = 1;
    int skip = ahead;
    for (int first = pair_begin; first < pair_end; first += kSmallPairs) {
      const int last = min(first + kSmallPairs, pair_end);
      for (int step = 0; step < num_steps; ++step) {
        for (int pair = first; pair < last; ++pair) {
          if (--skip < 0) {
            BarrierWait(empty + 8 * stage, phase);
            fill(pair, step, stage);
          }
          if (++stage == num_stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    WaitForPrevious();
    return;
  }

  FillTable<kFormat>(static_cast<int>(threadIdx.x), kSmallWarps * 32);
  if constexpr (TableBytes<kFormat>() > 0) {
    ConsumersSync();
  }
  WaitForPrevious();
  const int slice = warp % kNumSlices;
  const int member = warp / kNumSlices;  // which tile of the pair
  const int group = lane / 4;
  const int column = 2 * (lane % 4);
  const std::uint16_t* x = linear.x;
  std::int64_t x_stride = linear.x_stride;
  if (linear.residual != nullptr) {  // 256 threads a token
    __shared__ float scratch[kMaxNormTokens][kNormWarps];
    auto* const normed = reinterpret_cast<std::uint16_t*>(smem + args.normed_at);
    const int token = warp / kNormWarps;
    const int thread = static_cast<int>(threadIdx.x) % kNormThreads;
    const int quads = token < linear.num_tokens ? linear.layout.cols / 4 : 0;
    const auto* row = reinterpret_cast<const float4*>(linear.residual) + token * quads;
    float squares = 0.0F;
    for (int i = thread; i < quads; i += kNormThreads) {
      AddSquares(row[i], squares);
    }
    const float inverse = InverseRms(squares, thread, linear.layout.cols, linear.norm_eps,
                                     scratch[token], [] { ConsumersSync(); });
    const auto* weight = reinterpret_cast<const float4*>(linear.norm_weight);
    for (int i = thread; i < quads; i += kNormThreads) {
      reinterpret_cast<uint2*>(normed)[token * quads + i] = Normed(row[i], inverse, weight[i]);
    }
    ConsumersSync();
    x = normed;
    x_stride = linear.layout.cols;
  }
  const std::uint16_t* x_row = x + group * x_stride;
  const bool real = group < linear.num_tokens;
  std::uint32_t x_now[2 * kSteps];
  std::uint32_t x_next[2 * kSteps];
  const auto load_x = [&](int unit) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int k = unit * kUnitCols + i * 8 + column;
      x_next[i] =
          real && k < linear.layout.cols ? *reinterpret_cast<const std::uint32_t*>(x_row + k) : 0;
    }
  };
  int stage = 0;
  std::uint32_t phase = 0;
  for (int first = pair_begin; first < pair_end; first += kSmallPairs) {
    const int last = min(first + kSmallPairs, pair_end);
    if (slice < num_units) {
      load_x(slice);
    }
    for (int step = 0; step < num_steps; ++step) {
      const int unit = step * kNumSlices + slice;
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        x_now[i] = x_next[i];
      }
      if (unit + kNumSlices < num_units) {
        load_x(unit + kNumSlices);
      }
      for (int pair = first; pair < last; ++pair) {
        float4* const kept_sum = sums + ((pair - first) * kSmallWarps + warp) * 32 + lane;
        float c[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        if (step > 0) {
          const float4 v = *kept_sum;
          c[0] = v.x;
          c[1] = v.y;
          c[2] = v.z;
          c[3] = v.w;
        }
        BarrierWait(full + 8 * stage, phase);
        if (unit < num_units) {
          const std::uint8_t* at = smem + stage * kStage + member * kTileStage + slice * kUnitBytes;
          HalfCodes<kFormat> codes[kHalves];
          LaneScales scales[kUnitCols / kSubCols];
#pragma unroll
          for (int h = 0; h < kHalves; ++h) {
            codes[h].Load(at + h * HalfCodes<kFormat>::kBytes, lane);
          }
          if constexpr (kHasScales<kFormat, kGrid>) {
#pragma unroll
            for (int s = 0; s < kUnitCols / kSubCols; ++s) {
              LoadScales<kGrid>(at + kCodeBytes + s * SubBytes<kFormat, kGrid>(), lane, scales[s]);
            }
          }
#pragma unroll
          for (int s = 0; s < kSteps; ++s) {
            std::uint32_t a[4];
            Fragment<kFormat, kGrid>(codes[s / 4], s % 4, scales[s * 16 / kSubCols], a);
            Mma16816(c, a, x_now[2 * s], x_now[2 * s + 1]);
          }
        }
        WarpArrive(empty + 8 * stage, lane);
        *kept_sum = make_float4(c[0], c[1], c[2], c[3]);
        if (++stage == num_stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    ConsumersSync();

    // Slices in order, then the epilogue: one thread an output and token.
    const int tokens = linear.num_tokens;
    const int num_slices = min(kNumSlices, num_units);
    const bool gated = linear.epilogue == Epilogue::kSwiGlu;
    const int per_pair = (gated ? 1 : 2) * kTileRows * tokens;
    const auto total = [&](int pair, int tile, int row, int token) {
      // The accumulator of (row, token) in the fragment of its lane.
      const int at = ((row % 8) * 4 + token / 2) * 4 + row / 8 * 2 + token % 2;
      const float* sum = reinterpret_cast<const float*>(sums) +
                         ((pair - first) * kSmallWarps + tile * kNumSlices) * 128 + at;
      float y = sum[0];
      for (int s = 1; s < num_slices; ++s) {
        y += sum[s * 128];
      }
      return y;
    };
    for (int i = static_cast<int>(threadIdx.x); i < (last - first) * per_pair;
         i += kSmallWarps * 32) {
      const int pair = first + i / per_pair;
      const int token = i % per_pair / (per_pair / tokens);
      const int r = i % (per_pair / tokens);
      if (gated) {
        const int row = pair * kTileRows + r;
        if (row < linear.parts[0].rows) {
          const float gate = Output(linear.parts[0], row, total(pair, 0, r, token), linear.x_scale);
          const float up = Output(linear.parts[1], row, total(pair, 1, r, token), linear.x_scale);
          linear.product[token * linear.product_stride + row] =
              __half_as_ushort(__float2half_rn(SiluTimes(gate, up) * linear.product_scale));
        }
        continue;
      }
      int part = 0;
      while (pair >= args.first_pair[part + 1]) {
        ++part;
      }
      const LinearPart& out = linear.parts[part];
      const int row = (pair - args.first_pair[part]) * 2 * kTileRows + r;
      if (row < out.rows) {
        const float y =
            Output(out, row, total(pair, r / kTileRows, r % kTileRows, token), linear.x_scale);
        float* to = out.y + token * out.y_stride + row;
        *to = linear.epilogue == Epilogue::kAdd ? *to + y : y;
      }
    }
    ConsumersSync();
  }
#endif
}

/// Chooses stages and launches one instantiation.
template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
int LaunchSmall(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  constexpr int kUnitBytes = kUnitCols / kHalfCols * HalfCodes<kFormat>::kBytes +
                             kUnitCols / kSubCols * SubBytes<kFormat, kGrid>();
  constexpr int kStage = 2 * kNumSlices * kUnitBytes;
  SmallArgs args{.linear = linear};
  for (int p = 0; p < linear.num_parts; ++p) {
    const int tiles = linear.parts[p].num_tiles;
    const bool gated = linear.epilogue == Epilogue::kSwiGlu;
    args.first_pair[p + 1] = gated ? tiles : args.first_pair[p] + (tiles + 1) / 2;
  }
  const int num_pairs = args.first_pair[linear.num_parts];
  const int grid = num_pairs < num_sms ? num_pairs : num_sms;
  const int most = (num_pairs + grid - 1) / grid;
  const int sums = (most < kSmallPairs ? most : kSmallPairs) * kSmallWarps * 512;
  constexpr int kWanted = 104 * 1024;  // in flight; more gained nothing
  constexpr int kMost = 216 * 1024 - TableBytes<kFormat>();
  int stages = (kWanted + kStage - 1) / kStage;
  const int normed = linear.residual != nullptr ? linear.num_tokens * linear.layout.cols * 2 : 0;
  while (stages > 2 && stages * kStage + sums + normed > kMost) {
    --stages;
  }
  args.num_stages = stages;
  args.normed_at = stages * kStage + sums + stages * 16;
  const int smem = args.normed_at + normed;
  auto* kernel = LinearSmall<kFormat, kGrid, kUnitCols, kSubCols>;
  static const cudaError_t configured = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 224 * 1024 - TableBytes<kFormat>());
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(kSmallThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(smem);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

int LaunchSmallW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallNf4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallFp8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
