#pragma once

// The same products as linear_small.cuh for any number of tokens and any card from sm_80 on: one
// warp computes 16 outputs of 32 tokens, everything straight from global memory. The portable truth
// that the faster kernels are compared with; speed is not its aim.

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_output.cuh"

namespace nibble::cuda {

constexpr int kTileWarps = 4;
constexpr int kTileTokens = 32;

/// Sums of one tile for the tokens from `first_token` on.
template <Format kFormat, Grid kGrid>
__device__ __forceinline__ void SumTile(const LinearArgs& args, const LinearPart& part, int tile,
                                        int first_token, int lane,
                                        float (&total)[kTileTokens / 8][4]) {
  constexpr int kGroups = kTileTokens / 8;
  const WeightLayout& layout = args.layout;
  const int code_bytes = layout.unit_cols / kHalfCols * HalfCodes<kFormat>::kBytes;
  for (int slice = 0; slice < kNumSlices && slice < layout.num_units; ++slice) {
    float c[kGroups][4] = {};
    for (int unit = slice; unit < layout.num_units; unit += kNumSlices) {
      const std::uint8_t* at =
          part.weight +
          (static_cast<std::size_t>(tile) * layout.num_units + unit) * layout.unit_bytes;
      for (int half = 0; half < layout.unit_cols / kHalfCols; ++half) {
        HalfCodes<kFormat> codes;
        codes.Load(at + half * HalfCodes<kFormat>::kBytes, lane);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const int k16 = half * 4 + step;
          LaneScales scales;
          if constexpr (kHasScales<kFormat, kGrid>) {
            LoadScales<kFormat, kGrid>(
                at + code_bytes + k16 * 16 / layout.sub_cols * SubBytes<kFormat, kGrid>(), lane,
                scales);
          }
          std::uint32_t a[4];
          Fragment<kFormat, kGrid>(codes, step, scales, StaticTable<kFormat>(), a);
#pragma unroll
          for (int n = 0; n < kGroups; ++n) {
            const int token = first_token + n * 8 + lane / 4;
            const int k = unit * layout.unit_cols + k16 * 16 + 2 * (lane % 4);
            const std::uint16_t* x = args.x + static_cast<std::int64_t>(token) * args.x_stride + k;
            const bool real = token < args.num_tokens;
            const std::uint32_t b0 =
                real && k < layout.cols ? *reinterpret_cast<const std::uint32_t*>(x) : 0;
            const std::uint32_t b1 =
                real && k + 8 < layout.cols ? *reinterpret_cast<const std::uint32_t*>(x + 8) : 0;
            Mma16816(c[n], a, b0, b1);
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        total[n][j] = slice == 0 ? c[n][j] : total[n][j] + c[n][j];
      }
    }
  }
}

/// Outputs of part `part_index`; gated: of both parts.
template <Format kFormat, Grid kGrid>
__global__ __launch_bounds__(kTileWarps *
                             32) void LinearTile(const __grid_constant__ LinearArgs args,
                                                 int part_index) {
  LaunchDependents();
  FillTable<kFormat>(StaticTable<kFormat>(), static_cast<int>(threadIdx.x), kTileWarps * 32);
  if constexpr (TableBytes(kFormat) > 0) {
    __syncthreads();
  }
  WaitForPrevious();
  constexpr int kGroups = kTileTokens / 8;
  const LinearPart& part = args.parts[part_index];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tile = static_cast<int>(blockIdx.x) * kTileWarps + warp;
  if (tile >= part.num_tiles) {
    return;
  }
  const int first_token = static_cast<int>(blockIdx.y) * kTileTokens;
  const bool gated = args.epilogue == Epilogue::kSwiGlu;
  float total[kGroups][4] = {};
  float up[kGroups][4] = {};
  SumTile<kFormat, kGrid>(args, part, tile, first_token, lane, total);
  if (gated) {
    SumTile<kFormat, kGrid>(args, args.parts[1], tile, first_token, lane, up);
  }
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = first_token + n * 8 + 2 * (lane % 4) + j % 2;
      const int row = tile * kTileRows + lane / 4 + j / 2 * 8;
      if (token >= args.num_tokens || row >= part.rows) {
        continue;
      }
      const float unit = OutputUnit<kFormat>(j / 2);
      const float y = Output(part, row, total[n][j], part.factor[row] * unit, args.x_scale);
      if (gated) {
        const float product = SiluTimes(y, Output(args.parts[1], row, up[n][j],
                                                  args.parts[1].factor[row] * unit, args.x_scale));
        args.product[token * args.product_stride + row] =
            __half_as_ushort(__float2half_rn(product * args.product_scale));
        continue;
      }
      float* to = part.y + static_cast<std::int64_t>(token) * part.y_stride + row;
      *to = args.epilogue == Epilogue::kAdd ? *to + y : y;
    }
  }
}

template <Format kFormat, Grid kGrid>
int LaunchTile(const LinearArgs& args, cudaStream_t stream) {
  const int launches = args.epilogue == Epilogue::kSwiGlu ? 1 : args.num_parts;
  for (int p = 0; p < launches; ++p) {
    const dim3 grid(static_cast<unsigned>((args.parts[p].num_tiles + kTileWarps - 1) / kTileWarps),
                    static_cast<unsigned>((args.num_tokens + kTileTokens - 1) / kTileTokens));
    if (const int error =
            Launch(LinearTile<kFormat, kGrid>, grid, kTileWarps * 32, 0, stream, args, p);
        error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

template <Format kFormat>
int LaunchTileOf(const LinearArgs& args, cudaStream_t stream) {
  switch (args.layout.grid) {
    case Grid::kZeroPoints:
      return LaunchTile<kFormat, Grid::kZeroPoints>(args, stream);
    case Grid::kMinima:
      return LaunchTile<kFormat, Grid::kMinima>(args, stream);
    default:
      return LaunchTile<kFormat, Grid::kSymmetric>(args, stream);
  }
}

}  // namespace nibble::cuda
