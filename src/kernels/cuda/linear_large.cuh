#pragma once

// The products of linear_small.cuh for many tokens, on the tensor cores of Hopper (prefill)
//   y^T = W x^T: weights are the register operand A of wgmma, unpacked while the products before
//   run; tokens are B, in shared memory. A block computes 128 outputs (two warpgroups of 64) of 128
//   tokens; a third warpgroup copies. K in the order of the slices, each slice one chain, slices
//   added in order: the bits of linear_small.cuh.
// Blocks go in clusters of two along the outputs: each fetches half of the tokens and sends it to
// both, as the L2 cache could not feed them otherwise. A stage is one unit: 8 tiles' codes and
// scales, and 64 or 128 columns of x under the 128-byte swizzle; it is free when both blocks have
// multiplied it. 2 * rows * cols * tokens operations; judge by FLOP/s.

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

/// Floats between tokens whose sums of `tiles` tiles lie in shared memory.
constexpr int SumPitch(int tiles) { return tiles * kTileRows + 4; }

/// The first kThreads threads: those that multiply.
template <int kThreads>
__device__ __forceinline__ void MultipliersSync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// c += the product of one unit of this warp's tile with kTokens tokens. `codes_at` is the unit,
/// `x` the shared memory of its columns (a box of 64 columns after the other). The products of the
/// last half may still run when it returns; `previous_done` is called once those of the unit before
/// are done. Which buffer of fragments is used is known at compile time: a branch would make the
/// compiler move sums that the tensor cores still work on.
template <Format kFormat, Grid kGrid, int kHalves, int kTokens, typename PreviousDone>
__device__ __forceinline__ void MultiplyUnit(float (&c)[kTokens / 2],
                                             std::uint32_t (&a)[kHalves][4][4],
                                             const std::uint8_t* codes_at, int sub_shift,
                                             std::uint32_t x, int lane,
                                             PreviousDone previous_done) {
  const std::uint8_t* scales_at = codes_at + kHalves * HalfCodes<kFormat>::kBytes;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    WgmmaWait<kHalves - 1>();  // the group that read this buffer is done
    if (half == kHalves - 1) {
      previous_done();
    }
    HalfCodes<kFormat> codes;
    codes.Load(codes_at + half * HalfCodes<kFormat>::kBytes, lane);
    LaneScales scales;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // No branch here: the compiler would wait for the products under way.
      if (kHasScales<kFormat, kGrid> && step % 2 == 0) {
        LoadScales<kGrid>(
            scales_at + ((half * 64 + step * 16) >> sub_shift) * SubBytes<kFormat, kGrid>(), lane,
            scales);
      }
      Fragment<kFormat, kGrid>(codes, step, scales, a[half][step]);
    }
    WgmmaFence();
    const std::uint64_t descriptor = SwizzledDescriptor(x + half * kTokens * 128);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma(c, a[half][step], descriptor + step * (32 >> 4));
    }
    WgmmaCommit();
  }
}

/// This thread's accumulators to shared memory [kTokens][pitch]: `row` is the first of its warp's
/// tile.
template <int kTokens>
__device__ __forceinline__ void StoreSums(const float (&c)[kTokens / 2], float* sums, int pitch,
                                          int row, int lane) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    sums[token * pitch + row + lane / 4 + i / 2 % 2 * 8] = c[i];
  }
}

struct LargeArgs {
  LinearArgs linear;
  int first_block[kMaxParts + 1];  // of each part; kSwiGlu: all blocks count as part 0
  int num_stages = 0;
  int sub_shift = 0;  // log2 of the layout's sub_cols
};

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
  /// Outputs of a token in fours.
  __device__ int quads() const { return (gated ? kTiles / 2 : kTiles) * kTileRows / 4; }
};

/// Writes a thread's outputs: four rows of one part, of many tokens. What belongs to the rows is
/// read once.
class QuadWriter {
 public:
  __device__ QuadWriter(const LinearArgs& linear, int part, int first_row)
      : linear_(linear), part_(part), row_(first_row) {
    const LinearPart& to = linear.parts[part];
    rows_ = max(0, min(4, to.rows - first_row));
    const bool gated = linear.epilogue == Epilogue::kSwiGlu;
    whole_ = rows_ == 4 && (gated ? linear.product_stride : to.y_stride) % 4 == 0;
    Read(linear.parts[part], factor_, bias_);
    if (gated) {
      Read(linear.parts[1], up_factor_, up_bias_);
    }
  }
  __device__ bool adds() const { return linear_.epilogue == Epilogue::kAdd; }
  __device__ float4 Before(int token) const {
    float v[4] = {};
    if (token < linear_.num_tokens) {
      const float* y = At(token);
      if (whole_) {
        return *reinterpret_cast<const float4*>(y);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = i < rows_ ? y[i] : 0.0F;
      }
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
  __device__ void Write(int token, float4 sum, float4 before) const {
    if (token >= linear_.num_tokens) {
      return;
    }
    const float4 y = Scaled(sum, factor_, bias_, linear_.parts[part_].bias != nullptr);
    const float v[4] = {adds() ? before.x + y.x : y.x, adds() ? before.y + y.y : y.y,
                        adds() ? before.z + y.z : y.z, adds() ? before.w + y.w : y.w};
    float* const to = At(token);
    if (whole_) {
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < rows_) {
        to[i] = v[i];
      }
    }
  }
  __device__ void WriteGated(int token, float4 gate_sum, float4 up_sum) const {
    if (token >= linear_.num_tokens) {
      return;
    }
    const float4 gate = Scaled(gate_sum, factor_, bias_, linear_.parts[0].bias != nullptr);
    const float4 up = Scaled(up_sum, up_factor_, up_bias_, linear_.parts[1].bias != nullptr);
    const float scale = linear_.product_scale;
    const half2 low = __halves2half2(__float2half_rn(SiluTimes(gate.x, up.x) * scale),
                                     __float2half_rn(SiluTimes(gate.y, up.y) * scale));
    const half2 high = __halves2half2(__float2half_rn(SiluTimes(gate.z, up.z) * scale),
                                      __float2half_rn(SiluTimes(gate.w, up.w) * scale));
    std::uint16_t* const to = linear_.product + token * linear_.product_stride + row_;
    if (whole_) {
      *reinterpret_cast<uint2*>(to) = make_uint2(AsBits(low), AsBits(high));
      return;
    }
    const std::uint32_t pairs[2] = {AsBits(low), AsBits(high)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < rows_) {
        to[i] = static_cast<std::uint16_t>(pairs[i / 2] >> (i % 2 * 16));
      }
    }
  }

 private:
  __device__ float* At(int token) const {
    const LinearPart& part = linear_.parts[part_];
    return part.y + token * part.y_stride + row_;
  }
  __device__ void Read(const LinearPart& part, float (&factor)[4], float (&bias)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      factor[i] = i < rows_ ? part.factor[row_ + i] * linear_.x_scale : 0.0F;
      bias[i] = i < rows_ && part.bias != nullptr ? part.bias[row_ + i] : 0.0F;
    }
  }
  static __device__ float4 Scaled(float4 sum, const float (&factor)[4], const float (&bias)[4],
                                  bool has_bias) {
    float4 y =
        make_float4(sum.x * factor[0], sum.y * factor[1], sum.z * factor[2], sum.w * factor[3]);
    if (has_bias) {
      y = make_float4(y.x + bias[0], y.y + bias[1], y.z + bias[2], y.w + bias[3]);
    }
    return y;
  }

  const LinearArgs& linear_;
  int part_;
  int row_;
  int rows_ = 0;        // that exist
  bool whole_ = false;  // four rows, and every token's aligned
  float factor_[4] = {};
  float bias_[4] = {};
  float up_factor_[4] = {};
  float up_bias_[4] = {};
};

inline int Log2(int power) {
  int log = 0;
  while (1 << log < power) {
    ++log;
  }
  return log;
}

/// Fills first_block for blocks of `block_tiles` tiles; returns how many there are.
inline int CountBlocks(LargeArgs& args, int block_tiles) {
  const bool gated = args.linear.epilogue == Epilogue::kSwiGlu;
  const int tiles = gated ? block_tiles / 2 : block_tiles;
  for (int p = 0; p < kMaxParts; ++p) {
    const bool counted = p < (gated ? 1 : args.linear.num_parts);
    args.first_block[p + 1] =
        args.first_block[p] + (counted ? (args.linear.parts[p].num_tiles + tiles - 1) / tiles : 0);
  }
  return args.first_block[kMaxParts];
}

constexpr int kLargeTokens = 128;
constexpr int kLargeTiles = 8;
constexpr int kLargeThreads = 384;  // two warpgroups multiply, one copies
constexpr int kLargePitch = SumPitch(kLargeTiles);

template <Format kFormat, Grid kGrid, int kHalves>
__global__ __launch_bounds__(kLargeThreads,
                             1) void LinearLarge(const __grid_constant__ LargeArgs args,
                                                 const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const WeightLayout& layout = args.linear.layout;
  const int num_units = layout.num_units;
  const std::size_t tile_bytes = layout.tile_bytes();
  // Per stage: x first (its boxes are aligned to 1024 bytes), then the units of 8 tiles.
  constexpr int kBoxBytes = kLargeTokens * 128;
  constexpr int kXBytes = kHalves * kBoxBytes;
  const int stage_bytes = (kXBytes + kLargeTiles * layout.unit_bytes + 1023) / 1024 * 1024;
  const std::uint32_t base = SmemAddress(smem);
  const std::uint32_t full = base + args.num_stages * stage_bytes;
  const std::uint32_t empty = full + 8 * args.num_stages;
  // An odd last block has a partner without tiles, which only copies and releases.
  const BlockPlace<kLargeTiles> place(args, static_cast<int>(blockIdx.y * 2 + blockIdx.x % 2));
  const int first_token = static_cast<int>(blockIdx.x / 2) * kLargeTokens;
  const auto rank = static_cast<std::uint32_t>(blockIdx.x % 2);
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;

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

  if (warpgroup == 2) {  // copies, by one thread
    GiveRegisters<40>();
    // Four warps share the stages: one could not start copies fast enough. A lane a tile, and one
    // each for the boxes of x.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int bytes = kXBytes + place.CountTiles(args) * layout.unit_bytes;
    const bool has_tile = lane < kLargeTiles && place.HasTile(args, lane);
    const std::uint8_t* const tile = has_tile ? place.Tile(args, lane, tile_bytes) : nullptr;
    const int half = lane - kLargeTiles;
    WaitForPrevious();
    const int producer = static_cast<int>(threadIdx.x) / 32 % 4;
    int stage = 0;
    std::uint32_t phase = 1;
    for (int slice = 0; slice < kNumSlices; ++slice) {
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
                             first_token + static_cast<int>(rank) * (kLargeTokens / 2), barrier);
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
    // The partner sends to this block's memory until it has copied all.
    ClusterArrive();
    ClusterWait();
    return;
  }

  TakeRegisters<232>();
  FillTable<kFormat>(static_cast<int>(threadIdx.x), 256);
  if constexpr (TableBytes<kFormat>() > 0) {
    MultipliersSync<256>();
  }
  WaitForPrevious();
  const int warp = static_cast<int>(threadIdx.x) / 32;  // also the tile of the block
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float total[kLargeTokens / 2];
  float c[kLargeTokens / 2];
  std::uint32_t a[kHalves][4][4];
  int issued = -1;  // stage whose last products may still run
  const auto release = [&] {
    if (issued >= 0 && ArrivesForWarpgroup()) {
      ArriveAtBoth(empty + 8 * issued);
    }
    issued = -1;
  };
  int stage = 0;
  std::uint32_t phase = 0;
  for (int slice = 0; slice < kNumSlices && slice < num_units; ++slice) {
#pragma unroll
    for (int i = 0; i < kLargeTokens / 2; ++i) {
      c[i] = 0.0F;
    }
    for (int unit = slice; unit < num_units; unit += kNumSlices) {
      BarrierWait(full + 8 * stage, phase);
      MultiplyUnit<kFormat, kGrid, kHalves, kLargeTokens>(
          c, a, smem + stage * stage_bytes + kXBytes + warp * layout.unit_bytes, args.sub_shift,
          base + stage * stage_bytes, lane, release);
      issued = stage;
      if (++stage == args.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    WgmmaWait<0>();
    release();
#pragma unroll
    for (int i = 0; i < kLargeTokens / 2; ++i) {
      total[i] = slice == 0 ? c[i] : total[i] + c[i];
    }
  }

  // Both blocks have multiplied and received everything: the stages' memory holds the sums now.
  ClusterArrive();
  ClusterWait();
  MultipliersSync<256>();
  float* const sums = reinterpret_cast<float*>(smem);
  StoreSums<kLargeTokens>(total, sums, kLargePitch, warp * kTileRows, lane);
  const int quads = place.quads();  // 32 or 16: a thread's rows are the same for all its tokens
  const int row = static_cast<int>(threadIdx.x) % quads * 4;
  const int step = 256 / quads;
  const QuadWriter writer(args.linear, place.gated ? 0 : place.part,
                          place.first_tile * kTileRows + row);
  MultipliersSync<256>();
  constexpr int kBatch = 4;
  for (int token = static_cast<int>(threadIdx.x) / quads; token < kLargeTokens;
       token += kBatch * step) {
    float4 before[kBatch] = {};
    if (writer.adds()) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        before[i] = writer.Before(first_token + token + i * step);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float* sum = sums + (token + i * step) * kLargePitch + row;
      const float4 first = *reinterpret_cast<const float4*>(sum);
      if (place.gated) {
        writer.WriteGated(first_token + token + i * step, first,
                          *reinterpret_cast<const float4*>(sum + kLargeTiles / 2 * kTileRows));
      } else {
        writer.Write(first_token + token + i * step, first, before[i]);
      }
    }
  }
#endif
}

template <Format kFormat, Grid kGrid, int kHalves>
int LaunchLarge(const LinearArgs& linear, cudaStream_t stream) {
  LargeArgs args{.linear = linear, .sub_shift = Log2(linear.layout.sub_cols)};
  const int blocks = CountBlocks(args, kLargeTiles);
  const int stage_bytes =
      (kHalves * kLargeTokens * 128 + kLargeTiles * linear.layout.unit_bytes + 1023) / 1024 * 1024;
  constexpr int kSums = kLargeTokens * kLargePitch * static_cast<int>(sizeof(float));
  args.num_stages = (224 * 1024 - TableBytes<kFormat>()) / stage_bytes;
  static_assert(kSums <= 2 * 128 * 1024);
  const int smem_bytes = args.num_stages * (stage_bytes + 16);
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, linear.x, linear.layout.cols, linear.num_tokens,
                                        linear.x_stride * 2, kLargeTokens / 2);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearLarge<kFormat, kGrid, kHalves>;
  static const cudaError_t configured = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024 - TableBytes<kFormat>());
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>((linear.num_tokens + kLargeTokens - 1) / kLargeTokens * 2),
           static_cast<unsigned>((blocks + 1) / 2));
  config.blockDim = dim3(kLargeThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(smem_bytes);
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

int LaunchLargeW4(const LinearArgs& args, cudaStream_t stream);
int LaunchLargeW8(const LinearArgs& args, cudaStream_t stream);
int LaunchLargeNf4(const LinearArgs& args, cudaStream_t stream);
int LaunchLargeFp8(const LinearArgs& args, cudaStream_t stream);
int LaunchLargeF16(const LinearArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
