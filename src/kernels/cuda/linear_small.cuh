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
// A launch is a chain of products, each of which may read what those before it wrote: all blocks
// meet between two of them, while the ring fills with weights of the next one.

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/meeting.cuh"
#include "kernels/cuda/norm.cuh"

namespace nibble::cuda {

constexpr int kSmallWarps = 2 * kNumSlices;
constexpr int kSmallThreads = (kSmallWarps + 4) * 32;  // registers go by warpgroups

struct SmallProduct {
  LinearArgs linear;
  SmallSplit split;
  bool x_in_chunks = false;  // rows of x may be copied in chunks of 16 bytes
};
struct SmallArgs {
  SmallProduct products[kMaxChain];
  int count = 0;
  SmallMemory memory;
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

/// What a block does of a product: pairs [begin, end).
struct SmallShare {
  int begin;
  int end;
  int num_units;
  int num_steps;
  __device__ __forceinline__ SmallShare(const SmallProduct& product, int block)
      : num_units(product.linear.layout.num_units),
        num_steps((product.linear.layout.num_units + kNumSlices - 1) / kNumSlices) {
    const SmallSplit& split = product.split;
    begin = block * split.pairs_per_block + min(block, split.extra_pairs);
    end = begin + split.pairs_per_block + (block < split.extra_pairs ? 1 : 0);
    if (block >= split.num_blocks) {
      end = begin;
    }
  }
};

/// Where the tiles of a pair lie. The second may not exist.
struct PairTiles {
  const std::uint8_t* tile[2];
};
__device__ __forceinline__ PairTiles TilesOf(const SmallProduct& product, int pair,
                                             std::size_t tile_bytes) {
  const LinearArgs& linear = product.linear;
  PairTiles tiles;
  if (linear.epilogue == Epilogue::kSwiGlu) {
    tiles.tile[0] = linear.parts[0].weight + static_cast<std::size_t>(pair) * tile_bytes;
    tiles.tile[1] = linear.parts[1].weight + static_cast<std::size_t>(pair) * tile_bytes;
    return tiles;
  }
  int part = 0;
  while (pair >= product.split.first_pair[part + 1]) {
    ++part;
  }
  const int tile = 2 * (pair - product.split.first_pair[part]);
  tiles.tile[0] = linear.parts[part].weight + static_cast<std::size_t>(tile) * tile_bytes;
  tiles.tile[1] = tile + 1 < linear.parts[part].num_tiles ? tiles.tile[0] + tile_bytes : nullptr;
  return tiles;
}

/// x = the normed rows of the residual (norm.cuh), by all threads that multiply: 256 a row, half of
/// the rows each, kRows of them at once, so that their loads are under way together. `sync` joins
/// them all.
template <int kRows, int kQuads, typename Sync>
__device__ __forceinline__ void NormRows(const LinearArgs& linear, std::uint8_t* x, int x_pitch,
                                         int padded, float (*scratch)[kNormWarps], Sync sync) {
  const int thread = static_cast<int>(threadIdx.x) % kNormThreads;
  const int half = static_cast<int>(threadIdx.x) / kNormThreads;
  const int tokens = linear.num_tokens;
  const int quads = linear.layout.cols / 4;
  const auto* const rows = reinterpret_cast<const float4*>(linear.residual);
  const auto* const weight = reinterpret_cast<const float4*>(linear.norm_weight);
  for (int first = 0; first < tokens; first += 2 * kRows) {
    float4 values[kRows][kQuads] = {};  // zeros, or they would stay alive between products
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int token = first + 2 * r + half;
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (token < tokens && thread + i * kNormThreads < quads) {
          values[r][i] = rows[token * quads + thread + i * kNormThreads];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float squares = 0.0F;
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        AddSquares(values[r][i], squares);  // those of a zero change nothing
      }
      LeaveSquares(squares, thread, scratch[2 * r + half]);
    }
    sync();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int token = first + 2 * r + half;
      if (token < tokens) {
        const float inverse =
            InverseRms(scratch[2 * r + half], linear.layout.cols, linear.norm_eps);
        auto* const to = reinterpret_cast<uint2*>(x + token * x_pitch);
#pragma unroll
        for (int i = 0; i < kQuads; ++i) {
          const int at = thread + i * kNormThreads;
          if (at < quads) {
            to[at] = Normed(values[r][i], inverse, weight[at]);
          }
        }
        for (int i = quads + thread; i < padded / 4; i += kNormThreads) {
          to[i] = make_uint2(0, 0);
        }
      }
    }
    if (first + 2 * kRows < tokens) {
      sync();
    }
  }
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
  template <int kStride>
  __device__ __forceinline__ void Multiply(float (&c)[4], const std::uint32_t (&x)[kUnitCols / 8],
                                           const std::uint8_t* table) const {
#pragma unroll
    for (int s = 0; s < kUnitCols / 16; ++s) {
      LaneScales spread;
      if constexpr (kHasScales<kFormat, kGrid>) {
        spread = Spread<kFormat, kGrid>(scales[s * 16 / kSubCols], extras[s * 16 / kSubCols]);
      }
      std::uint32_t a[4];
      Fragment<kFormat, kGrid, kStride>(codes[s / 4], s % 4, spread, table, a);
      Mma16816(c, a, x[2 * s], x[2 * s + 1]);
    }
  }
};

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols, int kStride>
__global__ __launch_bounds__(kSmallThreads,
                             1) void LinearSmall(const __grid_constant__ SmallArgs args) {
#if __CUDA_ARCH__ >= 900  // bulk copies
  constexpr int kUnitBytes = kUnitCols / kHalfCols * HalfCodes<kFormat>::kBytes +
                             kUnitCols / kSubCols * SubBytes<kFormat, kGrid>();
  constexpr int kTileStage = kNumSlices * kUnitBytes;
  constexpr int kStage = 2 * kTileStage;
  // Here, and not in static memory, its address is no addition at every look.
  extern __shared__ __align__(128) std::uint8_t table[];
  std::uint8_t* const smem = table + TableBytes(kFormat) * (kStride / kTableStride);

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tokens = args.products[0].linear.num_tokens;
  const auto block = static_cast<int>(blockIdx.x);
  const SmallMemory& memory = args.memory;
  const int num_stages = memory.num_stages;
  auto* const factors = reinterpret_cast<float*>(smem + memory.factors_at);  // [pair][row]
  auto* const before = reinterpret_cast<float*>(smem + memory.before_at);    // [token][pair][row]
  auto* const sums = reinterpret_cast<float*>(smem + memory.sums_at);  // [pair][token] [warp][row]
  std::uint8_t* const x = smem + memory.x_at;                          // [token][x_pitch]
  const std::uint32_t full = SmemAddress(smem) + memory.barriers_at;
  const std::uint32_t empty = full + 8 * num_stages;

  TouchArgs(args, static_cast<int>(threadIdx.x));
  // By a warp: a lane a tile.
  const auto fill = [&](const SmallProduct& product, int num_units, int pair, int step, int stage) {
    const std::uint32_t bytes = min(kNumSlices, num_units - step * kNumSlices) * kUnitBytes;
    const PairTiles tiles =
        TilesOf(product, pair, static_cast<std::size_t>(num_units) * kUnitBytes);
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
  int ahead = 0;
  {
    const SmallShare share(args.products[0], block);
    const int first_pairs = min(kSmallPairs, share.end - share.begin);
    ahead = min(min(num_stages, kSmallWarps), first_pairs * share.num_steps);
    if (warp < num_stages) {
      if (lane == 0) {
        BarrierInit(full + 8 * warp, 1);
        BarrierInit(empty + 8 * warp, kSmallWarps * kWarpArrivals);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      }
      __syncwarp();
      if (warp < ahead) {
        fill(args.products[0], share.num_units, share.begin + warp % first_pairs,
             warp / first_pairs, warp);
      }
    }
  }
  __syncthreads();
  LaunchDependents();
  int stage = 0;
  std::uint32_t phase = 0;
  const auto next_stage = [&] {
    if (++stage == num_stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  if (warp >= kSmallWarps) {
    GiveRegisters<32>();  // 96 a thread at launch: 4 x 112 + 32 = 5 x 96
    // The producer: it does not wait for products to be done.
    for (int i = 0; i < (warp == kSmallWarps ? args.count : 0); ++i) {
      const SmallProduct& product = args.products[i];
      const SmallShare share(product, block);
      for (int first = share.begin; first < share.end; first += kSmallPairs) {
        const int last = min(first + kSmallPairs, share.end);
        for (int step = 0; step < share.num_steps; ++step) {
          for (int pair = first; pair < last; ++pair) {
            if (--ahead < 0) {
              BarrierWait(empty + 8 * stage, phase ^ 1);
              fill(product, share.num_units, pair, step, stage);
            }
            next_stage();
          }
        }
      }
    }
    WaitForPrevious();
  } else {
    TakeRegisters<112>();
    FillTable<kFormat, kStride>(table, static_cast<int>(threadIdx.x), kSmallWarps * 32);
    const int slice = warp % kNumSlices;
    const int member = warp / kNumSlices;  // which tile of the pair
    Meeting meeting(args.products[0].linear.shared);
    for (int i_product = 0; i_product < args.count; ++i_product) {
      const SmallProduct& product = args.products[i_product];
      const LinearArgs& linear = product.linear;
      const SmallShare share(product, block);
      const int num_units = share.num_units;
      const int x_pitch = product.split.x_pitch;
      const bool gated = linear.epilogue == Epilogue::kSwiGlu;
      const bool adds = linear.epilogue == Epilogue::kAdd;
      const int first_pairs = min(kSmallPairs, share.end - share.begin);
      const auto wait = [&] {  // until the inputs are there
        if (i_product == 0) {
          WaitForPrevious();
          return;
        }
        if (threadIdx.x == 0) {
          meeting.Wait();
        }
        ConsumersSync();
      };
      const bool is_last = i_product + 1 == args.count;
      if (share.begin == share.end) {  // this one has no part of it, and copies nothing
        wait();
        if (!is_last && threadIdx.x == 0) {
          meeting.Arrive();
        }
        continue;
      }
      // Row `r` of a pair of outputs: where it lies.
      const auto output_at = [&](int pair, int r) -> SmallOutput {
        if (gated) {
          return {.part = r / kTileRows, .row = pair * kTileRows + r % kTileRows};
        }
        int part = 0;
        while (pair >= product.split.first_pair[part + 1]) {
          ++part;
        }
        return {.part = part, .row = (pair - product.split.first_pair[part]) * kPairRows + r};
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
      load_factors(share.begin, first_pairs);
      const int cols = linear.layout.cols;
      const int padded = num_units * kUnitCols;
      int second_half = 0;  // the step that needs it
      if (linear.residual != nullptr) {
        __shared__ float scratch[kMaxSmallTokens][kNormWarps];
        const auto prefetch = [&] {
          for (int i = static_cast<int>(threadIdx.x); i < cols / 4; i += kSmallWarps * 32) {
            PrefetchL1(reinterpret_cast<const float4*>(linear.norm_weight) + i);
          }
        };
        if (i_product == 0) {
          prefetch();
        }
        wait();
        if (i_product > 0) {  // waiting for other blocks empties the L1 cache
          prefetch();
        }
        if (adds) {
          load_before(share.begin, first_pairs);
        }
        const auto sync = [] { ConsumersSync(); };
        if (cols <= 4 * 4 * kNormThreads) {
          NormRows<2, 4>(linear, x, x_pitch, padded, scratch, sync);
        } else {
          NormRows<1, 8>(linear, x, x_pitch, padded, scratch, sync);
        }
      } else {
        wait();
        // In chunks of 16 bytes, or of 4 where they do not lie at multiples of 16.
        const int width = product.x_in_chunks ? 8 : 2;
        const auto copy = [&](int from, int end) {
          for (int token = 0; token < tokens; ++token) {
            const std::uint16_t* const row = linear.x + token * linear.x_stride;
            const std::uint32_t to = SmemAddress(x) + token * x_pitch;
#pragma unroll 1
            for (int k = from + static_cast<int>(threadIdx.x) * width; k < end;
                 k += kSmallWarps * 32 * width) {
              const bool exists = k < cols;
              if (product.x_in_chunks) {
                CopyChunk(to + k * 2, row + (exists ? k : 0), exists ? 16 : 0);
              } else {
                CopyWord(to + k * 2, row + (exists ? k : 0), exists ? 4 : 0);
              }
            }
          }
        };
        // Products with the first half of many tokens begin while the second comes.
        if (tokens > 2 && share.num_steps > 1) {
          second_half = share.num_steps / 2;
        }
        const int middle = second_half * kNumSlices * kUnitCols;
        if (second_half > 0) {
          copy(0, middle);
          CommitChunks();
        }
        copy(middle, padded);
        if (adds) {
          load_before(share.begin, first_pairs);
        }
        CommitChunks();
      }
      if (second_half > 0) {
        WaitForFirstChunks();
      } else {
        WaitForChunks();
      }
      ConsumersSync();

      // Of LoadMatrices. Lanes of a token that does not exist read the first one's: what they make
      // is not looked at.
      const std::uint32_t x_at =
          SmemAddress(x) + (lane % 8 < tokens ? lane % 8 * x_pitch : 0) + lane / 8 * 16;
      for (int first = share.begin; first < share.end; first += kSmallPairs) {
        const int count = min(kSmallPairs, share.end - first);
        if (first > share.begin) {
          load_factors(first, count);
          if (adds) {
            load_before(first, count);
          }
        }
        float c[kSmallPairs][4] = {};
        for (int step = 0; step < share.num_steps; ++step) {
          if (step == second_half && step > 0 && first == share.begin) {
            WaitForChunks();
            ConsumersSync();
          }
          const int unit = step * kNumSlices + slice;
          const bool exists = unit < num_units;
          std::uint32_t b[kUnitCols / 8];
          const std::uint32_t b_at = x_at + min(unit, num_units - 1) * kUnitCols * 2;
#pragma unroll
          for (int i = 0; i < kUnitCols / 32; ++i) {
            std::uint32_t four[4];
            LoadMatrices(four, b_at + i * 64);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              b[4 * i + k] = four[k];
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
              codes.template Multiply<kStride>(c[p], b, table);
            }
            if (ArrivesForWarp(lane)) {  // the products brought the warp together
              BarrierArrive(empty + 8 * stage);
            }
            next_stage();
          }
        }
        if (memory.sums_over_x) {
          ConsumersSync();  // all have read x
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
              sums[(p * tokens + token) * kSmallSums + warp * kTileRows + lane / 4 + i / 2 * 8] =
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
              sums + (p * tokens + token) * kSmallSums + tile * kNumSlices * kTileRows + row;
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
                const float up =
                    Output(linear.parts[1], at.row, total(p, 1, r, token),
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
      if (!is_last && threadIdx.x == 0) {
        meeting.Arrive();
      }
    }
  }
#endif
}

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols, int kStride>
int LaunchSmallAs(std::span<const LinearArgs> chain, const SmallMemory& memory, int num_sms,
                  cudaStream_t stream) {
  SmallArgs args{.count = static_cast<int>(chain.size()), .memory = memory};
  int num_blocks = 0;
  for (std::size_t i = 0; i < chain.size(); ++i) {
    SmallProduct& product = args.products[i];
    product.linear = chain[i];
    product.split = SplitOfSmall(chain[i], num_sms);
    product.x_in_chunks = chain[i].layout.cols % 8 == 0 && chain[i].x_stride % 8 == 0 &&
                          reinterpret_cast<std::uintptr_t>(chain[i].x) % 16 == 0;
    num_blocks = max(num_blocks, product.split.num_blocks);
  }
  auto* kernel = LinearSmall<kFormat, kGrid, kUnitCols, kSubCols, kStride>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmallSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  return Launch(kernel, dim3(static_cast<unsigned>(num_blocks)), kSmallThreads,
                args.memory.size_bytes, stream, args);
}

template <Format kFormat, Grid kGrid, int kUnitCols, int kSubCols>
int LaunchSmall(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream) {
  const SmallMemory memory = MemoryOfSmall(chain, num_sms);
  if (memory.num_stages == 0) {
    return cudaErrorInvalidConfiguration;
  }
  if constexpr (TableBytes(kFormat) > 0) {
    if (memory.has_wide_table) {
      return LaunchSmallAs<kFormat, kGrid, kUnitCols, kSubCols, kWideTableStride>(chain, memory,
                                                                                  num_sms, stream);
    }
  }
  return LaunchSmallAs<kFormat, kGrid, kUnitCols, kSubCols, kTableStride>(chain, memory, num_sms,
                                                                          stream);
}

int LaunchSmallW4(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream);
int LaunchSmallW8(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream);
int LaunchSmallNf4(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream);
int LaunchSmallFp8(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream);
int LaunchSmallF16(std::span<const LinearArgs> chain, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
