// Products of 4-bit weights with activations of 8 bits, on the FP8 tensor cores of Hopper
//   y[m, n] = (sum_g scale[n, g] * (sum_{k in g} code[n, k] * x[m, k])) * x_scale[m] * factor[n]
//   code -8..7, exact in e4m3 (as code * 2^-9)    x e4m3, one scale a token (quantize_e4m3.cu)
//   g: the units of 128 columns. A unit is one chain of four wgmma from zero, whose sums have the
//   card's own precision; total = fma(chain, scale, total) in fp32, units in order (adr/0010).
// The skeleton of linear_large.cuh: blocks of 128 outputs (two warpgroups of 64) stay, one an SM,
// and take one tile of the result after the other; a third warpgroup copies; clusters of two along
// the outputs share the tokens. A stage is one unit: the codes and scales of 8 tiles, and 128
// columns of x, which are its 128 bytes a token under the 128-byte swizzle. Tiles of 16 and 32
// tokens are for decode steps; their chains are the same. 2 * rows * cols * tokens operations;
// judge by FLOP/s, few tokens by GB/s.

#include "kernels/cuda/linear_a8.h"
#include "kernels/cuda/linear_large.cuh"
#include "kernels/cuda/wgmma_e4m3.cuh"

namespace nibble::cuda {
namespace {

constexpr int kUnitBytes = 2 * 512 + kPairBytes;
// e4m3 bytes of codes are codes times 2^-9, scales are stored times 2^15.
constexpr float kCodeScale = 0x1p-6F;

struct A8KernelArgs {
  LargeArgs large;
  const float* x_scales;
};

template <int kTokens>
constexpr int kStageBytes = (kTokens * 128 + kLargeTiles * kUnitBytes + 1023) / 1024 * 1024;

/// ~a & b, and mask ? a : b: the compiler would take more instructions.
__device__ __forceinline__ std::uint32_t NotAnd(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, 0, 0x0c;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ std::uint32_t Select(std::uint32_t mask, std::uint32_t a,
                                                std::uint32_t b) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(r) : "r"(mask), "r"(a), "r"(b));
  return r;
}

/// Eight codes of two rows: e4m3 of four columns of row r, then of row r + 8. A code n is n - 8:
/// a sign, and a magnitude of 0 to 8, which as the low bits of e4m3 is itself times 2^-9.
__device__ __forceinline__ void DecodeWord(std::uint32_t codes, std::uint32_t& row,
                                           std::uint32_t& row8) {
  constexpr std::uint32_t kLow = 0x0f0f0f0f;
  const std::uint32_t negative = NotAnd(codes >> 3, 0x11111111);
  const std::uint32_t magnitude = ((codes ^ negative * 7) & 0x77777777) + negative;
  row = Select(kLow, magnitude, negative << 7);
  row8 = Select(kLow, magnitude >> 4, negative << 3);
}
/// The fragments of 64 columns, of two steps of 32.
__device__ __forceinline__ void DecodeHalf(const uint4& codes, std::uint32_t (&a)[2][4]) {
  DecodeWord(codes.x, a[0][0], a[0][1]);
  DecodeWord(codes.y, a[0][2], a[0][3]);
  DecodeWord(codes.z, a[1][0], a[1][1]);
  DecodeWord(codes.w, a[1][2], a[1][3]);
}

/// Has a fragment decoded here, not behind the wait that follows.
__device__ __forceinline__ void Keep(std::uint32_t (&a)[2][4]) {
  asm volatile(""
               : "+r"(a[0][0]), "+r"(a[0][1]), "+r"(a[0][2]), "+r"(a[0][3]), "+r"(a[1][0]),
                 "+r"(a[1][1]), "+r"(a[1][2]), "+r"(a[1][3]));
}

/// What the tokens' scales make of the sums.
template <int kTokens>
__device__ __forceinline__ void ScaleTokens(const float* scales, int token, int num_tokens,
                                            float (&total)[kTokens / 2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; i += 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = token + i / 4 * 8 + j;
      const float scale = at < num_tokens ? scales[at] : 0.0F;
      total[i + j] *= scale;
      total[i + 2 + j] *= scale;
    }
  }
}

/// Outputs of one warp's tile.
template <int kTokens>
__device__ __forceinline__ void WriteSums(const LinearArgs& linear, const Place& place,
                                          float (&total)[kTokens / 2]) {
  if constexpr (kTokens >= 64) {
    WriteTile<kTokens>(linear, place, total);
  } else {
    float before[2][kTokens / 4];
    if (linear.epilogue == Epilogue::kAdd) {
      place.Read(linear, before);
    }
    place.Scale(total);
    place.Write(linear, total, before);
  }
}

template <int kTokens>
__global__ __launch_bounds__(kLargeThreads,
                             1) void LinearA8(const __grid_constant__ A8KernelArgs args,
                                              const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const LargeArgs& large = args.large;
  const LinearArgs& linear = large.linear;
  const int num_units = linear.layout.num_units;
  const std::size_t tile_bytes = linear.layout.tile_bytes();
  constexpr int kXBytes = kTokens * 128;
  constexpr int kStage = kStageBytes<kTokens>;
  const std::uint32_t base = SmemAddress(smem);
  float4* const sums = reinterpret_cast<float4*>(smem + large.num_stages * kStage);
  const std::uint32_t full = SmemAddress(sums) + kLargeSums<kTokens>;
  const std::uint32_t empty = full + 8 * large.num_stages;
  const auto rank = static_cast<std::uint32_t>(blockIdx.x % 2);
  const int warpgroup = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 128, 0);
  const int pair = static_cast<int>(blockIdx.x / 2);
  const int pairs = static_cast<int>(gridDim.x / 2);
  const auto place_of = [&](int tile) {
    return BlockPlace<kLargeTiles>(large, tile / large.token_blocks * 2 + static_cast<int>(rank));
  };

  if (threadIdx.x == 0) {
    for (int s = 0; s < large.num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 4 * kWarpgroupArrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  ClusterArrive();
  ClusterWait();
  LaunchDependents();

  if (warpgroup == 2) {
    GiveRegisters<40>();
    // Four warps share the stages; a lane a tile, and one for x, of which each block of the cluster
    // fetches half of the tokens for both.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int producer = static_cast<int>(threadIdx.x) / 32 % 4;
    WaitForPrevious();
    int stage = 0;
    std::uint32_t phase = 1;
    const auto next_stage = [&] {
      if (++stage == large.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    };
    for (int tile = pair; tile < large.tiles; tile += pairs) {
      const BlockPlace<kLargeTiles> place = place_of(tile);
      const int row = tile % large.token_blocks * kTokens + static_cast<int>(rank) * (kTokens / 2);
      const int bytes = kXBytes + place.CountTiles(large) * kUnitBytes;
      const bool has_tile = lane < kLargeTiles && place.HasTile(large, lane);
      const std::uint8_t* units = has_tile ? place.Tile(large, lane, tile_bytes) : nullptr;
      for (int unit = 0; unit < num_units; ++unit) {
        if (stage % 4 == producer) {
          const std::uint32_t at = base + stage * kStage;
          const std::uint32_t barrier = full + 8 * stage;
          BarrierWait(empty + 8 * stage, phase);
          if (lane == 0) {
            BarrierExpect(barrier, bytes);
          }
          __syncwarp();
          if (lane == kLargeTiles) {  // the map counts pairs of bytes
            TensorCopyToBoth(at + rank * (kXBytes / 2), &x_map, unit * 64, row, barrier);
          }
          if (has_tile) {
            BulkCopyShared(at + kXBytes + lane * kUnitBytes, units + unit * kUnitBytes, kUnitBytes,
                           barrier);
          }
        }
        next_stage();
      }
    }
    // The last arrivals of the partner may still be on their way: they must find this block here,
    // not the next kernel's.
    for (int s = 0; s < large.num_stages; ++s) {
      if (stage % 4 == producer) {
        BarrierWait(empty + 8 * stage, phase);
      }
      next_stage();
    }
  } else {
    TakeRegisters<232>();
    WaitForPrevious();
    const int warp = static_cast<int>(threadIdx.x) / 32;  // also its tile of the block
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Of the stage that is multiplied; of its codes half is decoded already. `left`: units to come.
    const std::uint8_t* const first = smem + kXBytes + warp * kUnitBytes;
    const std::uint8_t* at = first;
    const auto codes = [&](int half) {
      return *reinterpret_cast<const uint4*>(at + half * 512 + lane * 16);
    };
    int stage = 0;
    std::uint32_t phase = 0;
    int left = ((large.tiles - pair - 1) / pairs + 1) * num_units;
    const ArrivalAtBoth empty_barriers(empty);
    float total[kTokens / 2];
    float c[kTokens / 2] = {};
    std::uint32_t a[2][2][4];
    BarrierWait(full, 0);
    DecodeHalf(codes(0), a[0]);
    for (int tile = pair; tile < large.tiles; tile += pairs) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        total[i] = 0.0F;
      }
      for (int unit = 0; unit < num_units; ++unit) {
        const std::uint64_t descriptor = SwizzledDescriptor(base + stage * kStage);
        WgmmaFence();
        WgmmaE4M3<false>(c, a[0][0], descriptor);
        WgmmaE4M3<true>(c, a[0][1], descriptor + 2);
        WgmmaCommit();
        const half2 scales = LoadPair(at + 1024, lane);
        DecodeHalf(codes(1), a[1]);
        WgmmaFence();
        WgmmaE4M3<true>(c, a[1][0], descriptor + 4);
        WgmmaE4M3<true>(c, a[1][1], descriptor + 6);
        WgmmaCommit();
        const int multiplied = stage;
        if (++stage == large.num_stages) {
          stage = 0;
          phase ^= 1;
        }
        at = first + stage * kStage;
        // Behind the last unit of all there is nothing to wait for: the phase before is over.
        BarrierWait(full + 8 * stage, --left > 0 ? phase : phase ^ 1);
        const uint4 next = codes(0);
        WgmmaWait<1>();  // the products that read a[0] are done
        DecodeHalf(next, a[0]);
        Keep(a[0]);
        WgmmaWait<0>();
        empty_barriers.Arrive(multiplied);
        const float scale = __low2float(scales);
        const float scale8 = __high2float(scales);
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          total[i] = fmaf(c[i], i / 2 % 2 == 0 ? scale : scale8, total[i]);
        }
      }
      const BlockPlace<kLargeTiles> block = place_of(tile);
      const int first_token = tile % large.token_blocks * kTokens;
      const int weight_tile = block.first_tile + (block.gated ? warp % (kLargeTiles / 2) : warp);
      const Place place(linear, block.gated ? warpgroup : block.part, weight_tile, first_token,
                        lane);
      ScaleTokens<kTokens>(args.x_scales, place.token, linear.num_tokens, total);
      if (block.gated) {
        WriteGatedTile<kTokens>(linear, place, total, sums);
      } else {
        WriteSums<kTokens>(linear, place, total);
      }
    }
  }
  // The partner sends to this block's memory until it has copied all.
  ClusterArrive();
  ClusterWait();
#endif
}

template <int kTokens>
int LaunchTokens(A8KernelArgs args, const std::uint8_t* x, int pairs, cudaStream_t stream) {
  constexpr int kSmem = 227 * 1024;
  constexpr int kStage = kStageBytes<kTokens>;
  LargeArgs& large = args.large;
  const LinearArgs& linear = large.linear;
  large.num_stages = (kSmem - kLargeSums<kTokens>) / (kStage + 16);
  large.token_blocks = (linear.num_tokens + kTokens - 1) / kTokens;
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, x, linear.layout.cols / 2, linear.num_tokens,
                                        linear.layout.cols, kTokens / 2);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearA8<kTokens>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(kLargeThreads);
  config.dynamicSmemBytes =
      static_cast<std::size_t>(large.num_stages * (kStage + 16) + kLargeSums<kTokens>);
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

}  // namespace

int LaunchLinearA8(const LinearArgs& args, const E4M3Rows& rows, int num_sms, CUstream_st* stream,
                   int tile_tokens) {
  A8KernelArgs launch{};
  launch.x_scales = rows.scales;
  LargeArgs& large = launch.large;
  large.linear = args;
  large.linear.x_scale *= kCodeScale;
  const bool gated = large.linear.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < kMaxParts; ++p) {
    const bool counted = p < (gated ? 1 : large.linear.num_parts);
    large.first_block[p + 1] = large.first_block[p] + (counted ? LargeBlocks(args, p) : 0);
  }
  const A8Shape shape = ShapeOfA8(args, num_sms, tile_tokens);
  large.tiles = shape.tiles;
  switch (shape.tokens) {
    case 16:
      return LaunchTokens<16>(launch, rows.x, shape.pairs, stream);
    case 32:
      return LaunchTokens<32>(launch, rows.x, shape.pairs, stream);
    case 64:
      return LaunchTokens<64>(launch, rows.x, shape.pairs, stream);
    default:
      return LaunchTokens<128>(launch, rows.x, shape.pairs, stream);
  }
}

}  // namespace nibble::cuda
