#pragma once

// y[n] = sum_k w[n,k] x[k]  for 1 to 8 tokens, weights streamed once (decode)
//   weights: A operand of mma.m16n8k16, tokens its 8 columns; codec.cuh says what w is.
//   K is cut into units (128 or 64 columns); unit u belongs to slice u % 8. A slice is one chain of
//   MMAs over its units in order; y = ((slice 0 + slice 1) + slice 2) + ...: the arithmetic of
//   every linear kernel here, so that a row's bits do not depend on which kernel computed it.
//
// One block an SM: 16 warps = 8 slices x 2 tiles of 16 outputs, and one that keeps a ring of shared
// memory full: a stage is 8 units of both tiles, two bulk copies. The outputs of a block are walked
// step by step of K: the fragments of x stay in registers over all its tiles, and so do the sums.
// All of x lies in shared memory. Weights never depend on the previous kernel: the ring fills
// before the wait. Moves rows * cols * bits / 8 bytes of weights once; judge by GB/s.

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/norm.cuh"

namespace nibble::cuda {

constexpr int kSmallWarps = 2 * kNumSlices;
constexpr int kSmallThreads = (kSmallWarps + 1) * 32;

struct SmallArgs {
  LinearArgs linear;
  SmallShape shape;
  bool x_in_chunks = false;  // rows of x may be copied in chunks of 16 bytes
};
struct SmallOutput {
  int part;
  int row;
};

/// Brings the arguments to the SM, all at once: a block of a new launch misses each line of them.
__device__ __forceinline__ void TouchArgs(const SmallArgs& args, int thread) {
  if (thread * 64 < static_cast<int>(sizeof(SmallArgs))) {
    asm volatile("" ::"r"(reinterpret_cast<const int*>(&args)[thread * 16]));
  }
}

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
  while (pair >= args.shape.first_pair[part + 1]) {
    ++part;
  }
  const int tile = 2 * (pair - args.shape.first_pair[part]);
  tiles.tile[0] = linear.parts[part].weight + static_cast<std::size_t>(tile) * tile_bytes;
  tiles.tile[1] = tile + 1 < linear.parts[part].num_tiles ? tiles.tile[0] + tile_bytes : nullptr;
  return tiles;
}

/// A lane's codes and scales of a unit, as they lie in shared memory.
template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
struct UnitCodes {
  static constexpr int kHalves = kUnitCols / kHalfCols;
  static constexpr int kSubs = kUnitCols / kSubCols;
  HalfCodes<kFormat> codes[kHalves];
  half2 scales[kSubs];
  half2 extras[kSubs];

  __device__ __forceinline__ void Load(const std::uint8_t* at, int lane) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      codes[h].Load(at + h * HalfCodes<kFormat>::kBytes, lane);
    }
    if constexpr (kHasScales<kFormat, kGrid>) {
#pragma unroll
      for (int s = 0; s < kSubs; ++s) {
        const std::uint8_t* const sub =
            at + kHalves * HalfCodes<kFormat>::kBytes + s * SubBytes<kFormat, kGrid>();
        scales[s] = LoadPair(sub, lane);
        if constexpr (kHasExtras<kGrid>) {
          extras[s] = LoadPair(sub + kPairBytes, lane);
        }
      }
    }
  }
  /// c += the unit's products with `x`, its fragments.
  __device__ __forceinline__ void Multiply(float (&c)[4], const std::uint32_t (&x)[kUnitCols / 8],
                                           const std::uint8_t* table) const {
#pragma unroll
    for (int s = 0; s < kUnitCols / 16; ++s) {
      LaneScales spread;
      if constexpr (kHasScales<kFormat, kGrid>) {
        spread = Spread<kFormat, kGrid>(scales[s * 16 / kSubCols], extras[s * 16 / kSubCols]);
      }
      std::uint32_t a[4];
      Fragment<kFormat, kGrid>(codes[s / 4], s % 4, spread, table, a);
      Mma16816(c, a, x[2 * s], x[2 * s + 1]);
    }
  }
};

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
__global__ __launch_bounds__(kSmallThreads,
                             1) void LinearSmall(const __grid_constant__ SmallArgs args) {
#if __CUDA_ARCH__ >= 900  // bulk copies
  constexpr int kUnitBytes = kUnitCols / kHalfCols * HalfCodes<kFormat>::kBytes +
                             kUnitCols / kSubCols * SubBytes<kFormat, kGrid>();
  constexpr int kTileStage = kNumSlices * kUnitBytes;
  constexpr int kStage = 2 * kTileStage;
  // Here, and not in static memory, its address is no addition at every look.
  extern __shared__ __align__(128) std::uint8_t table[];
  std::uint8_t* const smem = table + TableBytes(kFormat);

  const LinearArgs& linear = args.linear;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tokens = linear.num_tokens;
  const SmallShape& shape = args.shape;
  const auto block = static_cast<int>(blockIdx.x);
  const int pair_begin = block * shape.pairs_per_block + min(block, shape.extra_pairs);
  const int pair_end = pair_begin + shape.pairs_per_block + (block < shape.extra_pairs ? 1 : 0);
  const int num_units = linear.layout.num_units;
  const int num_steps = (num_units + kNumSlices - 1) / kNumSlices;
  const std::size_t tile_bytes = static_cast<std::size_t>(num_units) * kUnitBytes;
  const int num_stages = shape.num_stages;
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  const bool adds = linear.epilogue == Epilogue::kAdd;
  auto* const factors = reinterpret_cast<float*>(smem + shape.factors_at);  // [pair][row]
  auto* const before = reinterpret_cast<float*>(smem + shape.before_at);    // [token][pair][row]
  auto* const sums = reinterpret_cast<float*>(smem + shape.sums_at);  // [pair][token][warp][row]
  std::uint8_t* const x = smem + shape.x_at;  // [token][x_pitch], then zeros for missing tokens
  const int x_pitch = shape.x_pitch;
  const std::uint32_t full = SmemAddress(smem) + shape.barriers_at;
  const std::uint32_t empty = full + 8 * num_stages;

  TouchArgs(args, static_cast<int>(threadIdx.x));
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
  if (warp < num_stages) {
    if (lane == 0) {
      BarrierInit(full + 8 * warp, 1);
      BarrierInit(empty + 8 * warp, kSmallWarps * kWarpArrivals);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
    if (warp < ahead) {
      fill(pair_begin + warp % first_pairs, warp / first_pairs, warp);
    }
  }
  __syncthreads();
  LaunchDependents();
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

  FillTable<kFormat>(table, static_cast<int>(threadIdx.x), kSmallWarps * 32);
  const int slice = warp % kNumSlices;
  const int member = warp / kNumSlices;  // which tile of the pair
  // Row `r` of a pair of outputs: where it lies.
  const auto output_at = [&](int pair, int r) -> SmallOutput {
    if (gated) {
      return {.part = r / kTileRows, .row = pair * kTileRows + r % kTileRows};
    }
    int part = 0;
    while (pair >= args.shape.first_pair[part + 1]) {
      ++part;
    }
    return {.part = part, .row = (pair - args.shape.first_pair[part]) * kPairRows + r};
  };
  // What outputs need comes while the sums are made; factors change as little as weights do.
  const auto load_factors = [&](int first, int count) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < count * kPairRows) {
      const SmallOutput at = output_at(first + i / kPairRows, i % kPairRows);
      const LinearPart& part = linear.parts[at.part];
      CopyWord(SmemAddress(factors + i), part.factor + min(at.row, part.rows - 1));
    }
  };
  const auto load_before = [&](int first, int count) {
    const int i = static_cast<int>(threadIdx.x) % 256;
    if (i < count * kPairRows) {
      const SmallOutput at = output_at(first + i / kPairRows, i % kPairRows);
      const LinearPart& part = linear.parts[at.part];
      for (int token = static_cast<int>(threadIdx.x) / 256; token < tokens; token += 2) {
        CopyWord(SmemAddress(before + token * kSmallPairs * kPairRows + i),
                 part.y + token * part.y_stride + min(at.row, part.rows - 1));
      }
    }
  };
  load_factors(pair_begin, first_pairs);
  if (threadIdx.x < 4) {
    reinterpret_cast<std::uint32_t*>(x + tokens * x_pitch)[threadIdx.x] = 0;
  }
  const int cols = linear.layout.cols;
  const int padded = num_units * kUnitCols;
  if (linear.residual != nullptr) {  // 256 threads a token
    __shared__ float scratch[kMaxNormTokens][kNormWarps];
    constexpr int kMostQuads = kMaxNormWidth / 4 / kNormThreads;  // of a thread
    const int token = warp / kNormWarps;
    const int thread = static_cast<int>(threadIdx.x) % kNormThreads;
    const int quads = token < tokens ? cols / 4 : 0;
    const auto* weight = reinterpret_cast<const float4*>(linear.norm_weight);
    float4 values[kMostQuads];
    for (int i = thread; i < quads; i += kNormThreads) {
      PrefetchL1(weight + i);
    }
    WaitForPrevious();
    if (adds) {
      load_before(pair_begin, first_pairs);
    }
    const auto* row = reinterpret_cast<const float4*>(linear.residual) + token * quads;
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      if (thread + i * kNormThreads < quads) {
        values[i] = row[thread + i * kNormThreads];
      }
    }
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      if (thread + i * kNormThreads < quads) {
        AddSquares(values[i], squares);
      }
    }
    const float inverse =
        InverseRms(squares, thread, cols, linear.norm_eps, scratch[token], [] { ConsumersSync(); });
    auto* const to = reinterpret_cast<uint2*>(x + token * x_pitch);
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      if (thread + i * kNormThreads < quads) {
        to[thread + i * kNormThreads] =
            Normed(values[i], inverse, weight[thread + i * kNormThreads]);
      }
    }
    if (token < tokens) {
      for (int i = cols / 4 + thread; i < padded / 4; i += kNormThreads) {
        to[i] = make_uint2(0, 0);
      }
    }
  } else {
    WaitForPrevious();
    // In chunks of 16 bytes, or of 4 where they do not lie at multiples of 16.
    const int width = args.x_in_chunks ? 8 : 2;
    for (int token = 0; token < tokens; ++token) {
      const std::uint16_t* const row = linear.x + token * linear.x_stride;
      const std::uint32_t to = SmemAddress(x) + token * x_pitch;
#pragma unroll 1
      for (int k = static_cast<int>(threadIdx.x) * width; k < padded;
           k += kSmallWarps * 32 * width) {
        const bool exists = k < cols;
        if (args.x_in_chunks) {
          CopyChunk(to + k * 2, row + (exists ? k : 0), exists ? 16 : 0);
        } else {
          CopyWord(to + k * 2, row + (exists ? k : 0), exists ? 4 : 0);
        }
      }
    }
    if (adds) {
      load_before(pair_begin, first_pairs);
    }
  }
  WaitForChunks();
  ConsumersSync();

  // Of LoadMatrices: lanes of a token that does not exist read the zeros behind the last.
  const std::uint32_t x_at =
      SmemAddress(x) + (lane % 8 < tokens ? lane % 8 * x_pitch + lane / 8 * 16 : tokens * x_pitch);
  const int x_step = lane % 8 < tokens ? 1 : 0;
  int stage = 0;
  std::uint32_t phase = 0;
  for (int first = pair_begin; first < pair_end; first += kSmallPairs) {
    const int count = min(kSmallPairs, pair_end - first);
    if (first > pair_begin) {
      load_factors(first, count);
      if (adds) {
        load_before(first, count);
      }
    }
    float c[kSmallPairs][4] = {};
    for (int step = 0; step < num_steps; ++step) {
      const int unit = step * kNumSlices + slice;
      const bool exists = unit < num_units;
      std::uint32_t b[kUnitCols / 8];
      if (exists) {
#pragma unroll
        for (int i = 0; i < kUnitCols / 32; ++i) {
          std::uint32_t four[4];
          LoadMatrices(four, x_at + x_step * (unit * kUnitCols + i * 32) * 2);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            b[4 * i + k] = four[k];
          }
        }
      }
#pragma unroll
      for (int p = 0; p < kSmallPairs; ++p) {
        if (p >= count) {
          break;
        }
        BarrierWait(full + 8 * stage, phase);
        if (exists) {
          UnitCodes<kFormat, kGrid, kUnitCols, kSubCols> codes;
          codes.Load(smem + stage * kStage + member * kTileStage + slice * kUnitBytes, lane);
          codes.Multiply(c[p], b, table);
        }
        WarpArrive(empty + 8 * stage, lane);
        if (++stage == num_stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kSmallPairs; ++p) {
      if (p >= count) {
        break;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // rows lane / 4 and 8 behind, two tokens
        const int token = lane % 4 * 2 + i % 2;
        if (token < tokens) {
          sums[((p * tokens + token) * kSmallWarps + warp) * kTileRows + lane / 4 + i / 2 * 8] =
              c[p][i];
        }
      }
    }
    WaitForChunks();
    ConsumersSync();

    // Slices in order, then the epilogue: one thread an output and token.
    const int num_slices = min(kNumSlices, num_units);
    const auto total = [&](int p, int tile, int row, int token) {
      const float* sum =
          sums + ((p * tokens + token) * kSmallWarps + tile * kNumSlices) * kTileRows + row;
      float y = sum[0];
#pragma unroll
      for (int s = 1; s < kNumSlices; ++s) {
        if (s < num_slices) {
          y += sum[s * kTileRows];
        }
      }
      return y;
    };
    const int rows = gated ? kTileRows : kPairRows;
    const int threads = gated ? 128 : 256;  // a token; kSmallPairs * rows of them work
    const int i = static_cast<int>(threadIdx.x) % threads;
    if (i < count * rows) {
      const int p = i / rows;
      const int r = i % rows;
      const SmallOutput at = output_at(first + p, r);
      const LinearPart& part = linear.parts[at.part];
      const float unit = OutputUnit<kFormat>(r / 8 % 2);
      if (at.row < part.rows) {
        for (int token = static_cast<int>(threadIdx.x) / threads; token < tokens;
             token += kSmallWarps * 32 / threads) {
          const float y = Output(part, at.row, total(p, r / kTileRows, r % kTileRows, token),
                                 factors[p * kPairRows + r] * unit, linear.x_scale);
          if (gated) {
            const float up = Output(linear.parts[1], at.row, total(p, 1, r, token),
                                    factors[p * kPairRows + kTileRows + r] * unit, linear.x_scale);
            linear.product[token * linear.product_stride + at.row] =
                __half_as_ushort(__float2half_rn(SiluTimes(y, up) * linear.product_scale));
          } else {
            part.y[token * part.y_stride + at.row] =
                adds ? before[token * kSmallPairs * kPairRows + i] + y : y;
          }
        }
      }
    }
    ConsumersSync();
  }
#endif
}

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
int LaunchSmall(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  SmallArgs args{.linear = linear, .shape = ShapeOfSmall(linear, num_sms)};
  args.x_in_chunks = linear.layout.cols % 8 == 0 && linear.x_stride % 8 == 0 &&
                     reinterpret_cast<std::uintptr_t>(linear.x) % 16 == 0;
  auto* kernel = LinearSmall<kFormat, kGrid, kUnitCols, kSubCols>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmallSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  if (args.shape.num_stages == 0) {
    return cudaErrorInvalidConfiguration;
  }
  return Launch(kernel, dim3(static_cast<unsigned>(args.shape.num_blocks)), kSmallThreads,
                args.shape.size_bytes, stream, args);
}

int LaunchSmallW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallNf4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallFp8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchSmallF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
