#pragma once

// The products of linear_small.cuh for 9 tokens and more, on the tensor cores of Hopper (prefill)
//   y^T = W x^T: weights are the register operand A of wgmma, unpacked while the products before
//   run; tokens are B, in shared memory. A block computes 128 outputs (two warpgroups of 64) of
//   kTokens tokens; a third warpgroup copies. K in the order of the slices, each slice one chain,
//   slices added in order: the bits of linear_small.cuh.
// Few tokens give few blocks; then a cluster of 8 blocks takes a slice each, and their sums meet in
// order through distributed shared memory.
// A stage is one unit: 8 tiles' codes and scales, and 64 or 128 columns of x under the 128-byte
// swizzle. 2 * rows * cols * tokens operations; judge by FLOP/s, below 64 tokens by GB/s of
// weights.

#include <cuda.h>

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/linear_small.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kLargeTiles = 8;                       // of a block
constexpr int kLargeRows = kLargeTiles * kTileRows;  // 128 outputs
constexpr int kLargeThreads = 384;
constexpr int kLargePitch = kLargeRows + 4;  // floats between tokens in the epilogue

struct LargeArgs {
  LinearArgs linear;
  int first_block[kMaxParts + 1];  // of each part, in blocks of 128 outputs; kSwiGlu: of 64 pairs
  int num_stages = 0;
};

__device__ __forceinline__ void TensorCopy(std::uint32_t smem, const CUtensorMap* map, int column,
                                           int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(smem),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ float LoadRemote(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t remote;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(remote) : "memory");
  return value;
}
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

template <Format kFormat, Grid kGrid, int kHalves, int kTokens, bool kSplit>
__global__ __launch_bounds__(kLargeThreads,
                             1) void LinearLarge(const __grid_constant__ LargeArgs args,
                                                 const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) std::uint8_t smem[];
  const LinearArgs& linear = args.linear;
  const WeightLayout& layout = linear.layout;
  const int num_units = layout.num_units;
  const std::size_t tile_bytes = layout.tile_bytes();
  // Per stage: x first (its boxes are aligned to 1024 bytes), then the units of 8 tiles.
  constexpr int x_bytes = kHalves * kTokens * 128;
  const int stage_bytes = (x_bytes + kLargeTiles * layout.unit_bytes + 1023) / 1024 * 1024;
  const std::uint32_t base = SmemAddress(smem);
  const std::uint32_t full = base + args.num_stages * stage_bytes;
  const std::uint32_t empty = full + 8 * args.num_stages;

  int part = 0;
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  const int block = static_cast<int>(kSplit ? blockIdx.x / kNumSlices : blockIdx.x);
  while (block >= args.first_block[part + 1]) {
    ++part;
  }
  // Tiles 0..3 of a gated block are gate, 4..7 are up.
  const int first_tile = (block - args.first_block[part]) * (gated ? kLargeTiles / 2 : kLargeTiles);
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int slice_begin = kSplit ? static_cast<int>(blockIdx.x % kNumSlices) : 0;
  const int slice_end = kSplit ? slice_begin + 1 : kNumSlices;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  int num_tiles = 0;  // that exist
  for (int i = 0; i < kLargeTiles; ++i) {
    num_tiles += first_tile + (gated ? i % 4 : i) < linear.parts[gated ? i / 4 : part].num_tiles;
  }

  if (threadIdx.x == 0) {
    for (int s = 0; s < args.num_stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 2);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();

  if (warpgroup == 2) {  // copies, by one thread
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) {
      const std::uint64_t policy = EvictFirst();
      WaitForPrevious();
      int stage = 0;
      std::uint32_t phase = 1;
      for (int slice = slice_begin; slice < slice_end; ++slice) {
        for (int unit = slice; unit < num_units; unit += kNumSlices) {
          const std::uint32_t at = base + stage * stage_bytes;
          const std::uint32_t barrier = full + 8 * stage;
          BarrierWait(empty + 8 * stage, phase);
          BarrierExpect(barrier, x_bytes + num_tiles * layout.unit_bytes);
          for (int h = 0; h < kHalves; ++h) {
            TensorCopy(at + h * kTokens * 128, &x_map, unit * layout.unit_cols + h * kHalfCols,
                       first_token, barrier);
          }
          for (int i = 0; i < kLargeTiles; ++i) {
            const LinearPart& from = linear.parts[gated ? i / 4 : part];
            const int tile = first_tile + (gated ? i % 4 : i);
            if (tile < from.num_tiles) {
              BulkCopy(at + x_bytes + i * layout.unit_bytes,
                       from.weight + static_cast<std::size_t>(tile) * tile_bytes +
                           static_cast<std::size_t>(unit) * layout.unit_bytes,
                       layout.unit_bytes, barrier, policy);
            }
          }
          if (++stage == args.num_stages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  WaitForPrevious();
  const int warp = static_cast<int>(threadIdx.x) / 32;  // also the tile of the block
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kCodeBytes = kHalves * HalfCodes<kFormat>::kBytes;
  constexpr int kSums = kTokens / 2;
  float total[kSums];
  float c[kSums];
  // Fragments: one buffer is multiplied while the other is unpacked. Which one is known at compile
  // time: a branch here would make the compiler move sums that the tensor cores still work on.
  std::uint32_t a[kHalves][4][4];
  const auto release = [&](int& done) {
    if (done >= 0 && threadIdx.x % 128 == 0) {
      BarrierArrive(empty + 8 * done);
    }
    done = -1;
  };
  int issued = -1;  // stage whose last products may still run
  int stage = 0;
  std::uint32_t phase = 0;
  for (int slice = slice_begin; slice < slice_end && slice < num_units; ++slice) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      c[i] = 0.0F;
    }
    for (int unit = slice; unit < num_units; unit += kNumSlices) {
      BarrierWait(full + 8 * stage, phase);
      const std::uint8_t* codes_at =
          smem + stage * stage_bytes + x_bytes + warp * layout.unit_bytes;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        // The group before the newest read this buffer: it is done when at most one still runs.
        WgmmaWait<kHalves - 1>();
        if (half == 1 || kHalves == 1) {
          release(issued);  // of the stage before this one
        }
        HalfCodes<kFormat> codes;
        codes.Load(codes_at + half * HalfCodes<kFormat>::kBytes, lane);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          LaneScales scales;
          if constexpr (kFormat != Format::kF16) {
            LoadScales<kGrid>(
                codes_at + kCodeBytes +
                    (half * 4 + step) * 16 / layout.sub_cols * SubBytes<kFormat, kGrid>(),
                lane, scales);
          }
          Fragment<kFormat, kGrid>(codes, step, scales, a[half][step]);
        }
        WgmmaFence();
        const std::uint64_t x =
            SwizzledDescriptor(base + stage * stage_bytes + half * kTokens * 128);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          Wgmma(c, a[half][step], x + step * (32 >> 4));
        }
        WgmmaCommit();
      }
      issued = stage;
      if (++stage == args.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    WgmmaWait<0>();
    release(issued);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      total[i] = slice == slice_begin ? c[i] : total[i] + c[i];
    }
  }

  // All products of both warpgroups are done: the stages' memory holds the sums now.
  const auto sync = [] { asm volatile("bar.sync 1, 256;" ::: "memory"); };
  sync();
  float* const sums = reinterpret_cast<float*>(smem);  // [kTokens][kLargePitch]
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    const int row = warp * kTileRows + lane / 4 + i / 2 % 2 * 8;
    sums[token * kLargePitch + row] = total[i];
  }
  if constexpr (kSplit) {
    ClusterSync();
  } else {
    sync();
  }
  const int rank = kSplit ? static_cast<int>(blockIdx.x % kNumSlices) : 0;
  constexpr int kOwnTokens = kSplit ? kTokens / kNumSlices : kTokens;
  const int num_slices = kSplit ? min(kNumSlices, num_units) : 1;
  const auto sum_at = [&](int token, int row) {
    const int at = token * kLargePitch + row;
    if constexpr (!kSplit) {
      return sums[at];
    } else {
      const std::uint32_t address = base + at * static_cast<int>(sizeof(float));
      float y = LoadRemote(address, 0);
      for (int s = 1; s < num_slices; ++s) {
        y += LoadRemote(address, static_cast<std::uint32_t>(s));
      }
      return y;
    }
  };
  const int outputs = gated ? kLargeRows / 2 : kLargeRows;
  for (int i = static_cast<int>(threadIdx.x); i < outputs * kOwnTokens; i += 256) {
    const int local = rank * kOwnTokens + i / outputs;
    const int token = first_token + local;
    const int r = i % outputs;
    const int row = first_tile * kTileRows + r;
    if (token >= linear.num_tokens || row >= linear.parts[part].rows) {
      continue;
    }
    if (gated) {
      const float gate = sum_at(local, r) * linear.parts[0].factor[row] * linear.x_scale;
      const float up =
          sum_at(local, kLargeRows / 2 + r) * linear.parts[1].factor[row] * linear.x_scale;
      linear.product[token * linear.product_stride + row] =
          __half_as_ushort(__float2half_rn(SiluTimes(gate, up) * linear.product_scale));
      continue;
    }
    const LinearPart& out = linear.parts[part];
    const float y = sum_at(local, r) * out.factor[row] * linear.x_scale;
    float* to = out.y + token * out.y_stride + row;
    *to = linear.epilogue == Epilogue::kAdd ? *to + y : y;
  }
  if constexpr (kSplit) {
    ClusterSync();  // nobody leaves while others read its sums
  }
#endif
}

/// An encoder of tensor maps (cuTensorMapEncodeTiled), from the driver.
CUresult EncodeTensorMap(CUtensorMap* map, const void* data, std::uint64_t columns,
                         std::uint64_t rows, std::uint64_t row_bytes, std::uint32_t box_rows);

template <Format kFormat, Grid kGrid, int kHalves, int kTokens, bool kSplit>
int LaunchLarge(const LinearArgs& linear, cudaStream_t stream) {
  const WeightLayout& layout = linear.layout;
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  LargeArgs args{.linear = linear};
  const int num_parts = gated ? 1 : linear.num_parts;
  for (int p = 0; p < num_parts; ++p) {
    const int tiles = gated ? kLargeTiles / 2 : kLargeTiles;
    args.first_block[p + 1] = args.first_block[p] + (linear.parts[p].num_tiles + tiles - 1) / tiles;
  }
  for (int p = num_parts; p < kMaxParts; ++p) {
    args.first_block[p + 1] = args.first_block[p];
  }
  const int stage_bytes =
      (kHalves * kTokens * 128 + kLargeTiles * layout.unit_bytes + 1023) / 1024 * 1024;
  constexpr int kMost = 220 * 1024;
  // A split block walks few stages: leave room for a second block on the SM.
  const int sums = kTokens * kLargePitch * static_cast<int>(sizeof(float));
  const int walked = (layout.num_units + kNumSlices - 1) / kNumSlices * (kSplit ? 1 : kNumSlices);
  int stages = (kSplit ? 100 * 1024 : kMost) / stage_bytes;
  stages = stages < 3 ? 3 : stages;  // a stage comes free two halves after it was used
  stages = stages > walked ? walked : stages;
  if (stages * stage_bytes < sums) {  // the barriers lie behind the stages, clear of the sums
    stages = (sums + stage_bytes - 1) / stage_bytes;
  }
  args.num_stages = stages;
  const int smem_bytes = stages * stage_bytes + stages * 16;
  CUtensorMap map;
  if (EncodeTensorMap(&map, linear.x, static_cast<std::uint64_t>(layout.cols),
                      static_cast<std::uint64_t>(linear.num_tokens),
                      static_cast<std::uint64_t>(linear.x_stride) * 2, kTokens) != CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  auto* kernel = LinearLarge<kFormat, kGrid, kHalves, kTokens, kSplit>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024);
  if (configured != cudaSuccess) {
    return configured;
  }
  const auto blocks = static_cast<unsigned>(args.first_block[kMaxParts]);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kSplit ? blocks * kNumSlices : blocks,
                        static_cast<unsigned>((linear.num_tokens + kTokens - 1) / kTokens));
  config.blockDim = dim3(kLargeThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(smem_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kNumSlices;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = kSplit ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, args, map);
}

template <Format kFormat, Grid kGrid>
int LaunchLargeOf(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  int blocks = 0;
  for (int p = 0; p < linear.num_parts; ++p) {
    blocks += (linear.parts[p].num_tiles + kLargeTiles - 1) / kLargeTiles;
  }
  // Enough blocks for the card without splitting K?
  const bool split = blocks * ((linear.num_tokens + 127) / 128) * 2 < 3 * num_sms;
  const int tokens = linear.num_tokens;
  if (linear.layout.unit_cols == 64) {  // odd widths: small models
    return tokens <= 32 ? LaunchLarge<kFormat, kGrid, 1, 32, true>(linear, stream)
           : split      ? LaunchLarge<kFormat, kGrid, 1, 128, true>(linear, stream)
                        : LaunchLarge<kFormat, kGrid, 1, 128, false>(linear, stream);
  }
  return tokens <= 16   ? LaunchLarge<kFormat, kGrid, 2, 16, true>(linear, stream)
         : tokens <= 32 ? LaunchLarge<kFormat, kGrid, 2, 32, true>(linear, stream)
         : tokens <= 64 ? LaunchLarge<kFormat, kGrid, 2, 64, true>(linear, stream)
         : split        ? LaunchLarge<kFormat, kGrid, 2, 128, true>(linear, stream)
                        : LaunchLarge<kFormat, kGrid, 2, 128, false>(linear, stream);
}

int LaunchLargeW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchLargeF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
