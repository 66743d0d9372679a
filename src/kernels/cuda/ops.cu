// Norm, bias, gate, embedding, gather. One block a row; every sum has an order that depends on the
// width alone. All of them move each value once; judge by GB/s.

#include <algorithm>

#include "kernels/cuda/codec.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_output.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kRowThreads = kNormThreads;

__device__ __forceinline__ std::uint32_t PackHalf2(float a, float b) {
  return AsBits(__floats2half2_rn(a, b));
}

__global__ __launch_bounds__(kRowThreads) void AddRmsNormKernel(
    const __grid_constant__ NormArgs args) {
  __shared__ float scratch[kNormWarps];
  LaunchDependents();
  WaitForPrevious();
  const std::int64_t row = blockIdx.x;
  const int vectors = args.width / 4;
  auto* residual = reinterpret_cast<float4*>(args.residual + row * args.width);
  const auto* delta = args.delta == nullptr
                          ? nullptr
                          : reinterpret_cast<const float4*>(args.delta + row * args.width);
  constexpr int kKept = 8;  // vectors of a thread that stay in registers: widths up to 8192
  float4 kept[kKept];
  float squares = 0.0F;
  const auto take = [&](int i) {
    float4 v = residual[i];
    if (delta != nullptr) {
      const float4 d = delta[i];
      v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
      residual[i] = v;
    }
    AddSquares(v, squares);
    return v;
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * kRowThreads;
    if (i < vectors) {
      kept[j] = take(i);
    }
  }
  for (int i = static_cast<int>(threadIdx.x) + kKept * kRowThreads; i < vectors; i += kRowThreads) {
    take(i);
  }
  if (args.out == nullptr) {
    return;
  }
  LeaveSquares(squares, static_cast<int>(threadIdx.x), scratch);
  __syncthreads();
  const float inverse = InverseRms(scratch, args.width, args.eps);
  const auto* weight = reinterpret_cast<const float4*>(args.weight);
  auto* out = reinterpret_cast<uint2*>(args.out + row * args.out_stride);
  const auto give = [&](int i, float4 v) {
    const float4 w = weight[i];
    out[i] = Normed(v, inverse, w);
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * kRowThreads;
    if (i < vectors) {
      give(i, kept[j]);
    }
  }
  for (int i = static_cast<int>(threadIdx.x) + kKept * kRowThreads; i < vectors; i += kRowThreads) {
    give(i, residual[i]);
  }
}

__global__ __launch_bounds__(kRowThreads) void AddBiasKernel(float* x, std::int64_t stride,
                                                             const float* bias, int width) {
  LaunchDependents();
  WaitForPrevious();
  float* row = x + static_cast<std::int64_t>(blockIdx.x) * stride;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kRowThreads) {
    row[i] += bias[i];
  }
}

__global__ __launch_bounds__(kRowThreads) void SwiGluKernel(
    const __grid_constant__ SwiGluArgs args) {
  LaunchDependents();
  WaitForPrevious();
  const std::int64_t row = blockIdx.x;
  const auto* gate = reinterpret_cast<const float4*>(args.gate + row * args.gate_stride);
  const auto* up = reinterpret_cast<const float4*>(args.up + row * args.up_stride);
  auto* out = reinterpret_cast<uint2*>(args.out + row * args.out_stride);
  for (int i = static_cast<int>(threadIdx.x); i < args.width / 4; i += kRowThreads) {
    const float4 g = gate[i];
    const float4 u = up[i];
    out[i] =
        make_uint2(PackHalf2(SiluTimes(g.x, u.x) * args.scale, SiluTimes(g.y, u.y) * args.scale),
                   PackHalf2(SiluTimes(g.z, u.z) * args.scale, SiluTimes(g.w, u.w) * args.scale));
  }
}

__device__ __forceinline__ float HalfAt(const std::uint8_t* p) {
  return __half2float(*reinterpret_cast<const __half*>(p));
}

/// Element k of row `row` of a packed table, where one lane of the linear kernels would find it.
__device__ float TableValue(const WeightLayout& layout, const std::uint8_t* tile, int row, int k) {
  const int unit_col = k % layout.unit_cols;
  const int half = unit_col / kHalfCols;
  const int step = unit_col % kHalfCols / 16;
  const int in_step = unit_col % 16;
  const int lane = row % 8 * 4 + in_step % 8 / 2;
  const int e = in_step / 8 * 4 + row / 8 * 2 + in_step % 2;
  const std::uint8_t* unit =
      tile + static_cast<std::size_t>(k / layout.unit_cols) * layout.unit_bytes;
  const int halves = layout.unit_cols / kHalfCols;
  if (layout.format == Format::kF16) {
    return HalfAt(unit + ((half * 4 + step) * 32 + lane) * 16 + e * 2);
  }
  const bool w4 = layout.format == Format::kW4;
  const int half_bytes = w4 ? 512 : 1024;
  const std::uint8_t* codes = unit + half * half_bytes;
  float value;
  if (w4) {
    const std::uint32_t word =
        *reinterpret_cast<const std::uint32_t*>(codes + lane * 16 + step * 4);
    value = static_cast<float>(word >> (e / 2 * 4 + e % 2 * 16) & 15U);
  } else {
    value = static_cast<float>(codes[step / 2 * 512 + lane * 16 + step % 2 * 8 + e]);
  }
  const int sub_bytes = layout.grid == Grid::kSymmetric ? kPairBytes : 2 * kPairBytes;
  const std::uint8_t* extra = unit + halves * half_bytes + unit_col / layout.sub_cols * sub_bytes;
  const int pair = row % 8 * 4 + row / 8 * 2;
  const float scale = HalfAt(extra + pair) * (w4 ? 0x1p-15F : 1.0F);
  if (layout.grid == Grid::kSymmetric) {
    return (value - (w4 ? 8.0F : 128.0F)) * scale;
  }
  const float stored = HalfAt(extra + kPairBytes + pair);
  if (layout.grid == Grid::kMinima) {
    return fmaf(value, scale, stored * (!w4 ? 1.0F : row < 8 ? 0x1p9F : 0x1p5F));
  }
  return (value + (!w4 ? stored + 1024.0F : stored * (row < 8 ? 0x1p24F : 0x1p20F))) * scale;
}

__global__ __launch_bounds__(kRowThreads) void EmbeddingKernel(
    const __grid_constant__ EmbeddingArgs args) {
  LaunchDependents();
  WaitForPrevious();
  const int token = static_cast<int>(blockIdx.y);
  const TokenRecord& record = args.tokens[token];
  const int id = record.from_slot >= 0 ? args.slot_tokens[record.from_slot] : record.id;
  const std::uint8_t* tile =
      args.table + static_cast<std::size_t>(id / kTileRows) * args.layout.tile_bytes();
  const float factor = args.factor[id];
  float* out = args.out + static_cast<std::int64_t>(token) * args.layout.cols;
  for (int k = static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x); k < args.layout.cols;
       k += static_cast<int>(gridDim.x) * kRowThreads) {
    out[k] = TableValue(args.layout, tile, id % kTileRows, k) * factor;
  }
}

__global__ __launch_bounds__(kRowThreads) void StepInputsKernel(
    const __grid_constant__ StepInputArgs args) {
  constexpr int kPieces = StepInputArgs::kMaxPieces;
  bool more = true;
  for (std::uint32_t i = blockIdx.x * kRowThreads + threadIdx.x; more;
       i += gridDim.x * kRowThreads) {
    std::uint32_t at[kPieces];
    std::uint32_t words[kPieces];  // a word of each piece is on the bus at a time
    more = false;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const StepInputArgs::Piece& piece = args.pieces[p];
      at[p] = ~0U;
      if (i < piece.words * piece.rows) {
        at[p] = piece.at + i / piece.words * piece.pitch + i % piece.words;
        words[p] = args.from[at[p]];
        more = true;
      }
    }
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if (at[p] != ~0U) {
        args.to[at[p]] = words[p];
      }
    }
  }
  __threadfence();  // later kernels may read it before they wait for those between
}

__global__ __launch_bounds__(kRowThreads) void GatherKernel(const float* x, std::int64_t x_stride,
                                                            const SampleRecord* records, float* out,
                                                            int width) {
  LaunchDependents();
  WaitForPrevious();
  const auto* from = reinterpret_cast<const float4*>(x + records[blockIdx.x].logit_row * x_stride);
  auto* to = reinterpret_cast<float4*>(out + static_cast<std::int64_t>(blockIdx.x) * width);
  for (int i = static_cast<int>(threadIdx.x); i < width / 4; i += kRowThreads) {
    to[i] = from[i];
  }
}

__global__ void BarrierKernel() {}

dim3 Rows(int rows) { return dim3(static_cast<unsigned>(rows)); }

}  // namespace

int LaunchAddRmsNorm(const NormArgs& args, CUstream_st* stream) {
  return Launch(AddRmsNormKernel, Rows(args.tokens), kRowThreads, 0, stream, args);
}

int LaunchAddBias(float* x, std::int64_t stride, const float* bias, int tokens, int width,
                  CUstream_st* stream) {
  return Launch(AddBiasKernel, Rows(tokens), kRowThreads, 0, stream, x, stride, bias, width);
}

int LaunchSwiGlu(const SwiGluArgs& args, CUstream_st* stream) {
  return Launch(SwiGluKernel, Rows(args.tokens), kRowThreads, 0, stream, args);
}

int LaunchEmbedding(const EmbeddingArgs& args, CUstream_st* stream) {
  // Few tokens: a row by several blocks, as each value takes a chain of loads.
  constexpr int kFew = 64;
  const int of_row = (args.layout.cols - 1) / kRowThreads + 1;
  const dim3 grid(static_cast<unsigned>(args.num_tokens <= kFew ? of_row : 1),
                  static_cast<unsigned>(args.num_tokens));
  return Launch(EmbeddingKernel, grid, kRowThreads, 0, stream, args);
}

int LaunchStepInputs(const StepInputArgs& args, CUstream_st* stream) {
  std::int64_t words = 0;
  for (int p = 0; p < args.num_pieces; ++p) {
    words += std::int64_t{args.pieces[p].words} * args.pieces[p].rows;
  }
  if (words == 0) {
    return cudaSuccess;
  }
  constexpr std::int64_t kMostBlocks = 64;  // they wait for the bus
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (words - 1) / kRowThreads + 1));
  // No dependent launch: it overwrites what the step before reads, and the next must see all of it.
  StepInputsKernel<<<blocks, kRowThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

int LaunchBarrier(CUstream_st* stream) {
  BarrierKernel<<<1, 1, 0, stream>>>();  // no dependent launch, and none may begin before its end
  return cudaGetLastError();
}

int LaunchGather(const float* x, std::int64_t x_stride, const SampleRecord* records, float* out,
                 int num_rows, int width, CUstream_st* stream) {
  return Launch(GatherKernel, Rows(num_rows), kRowThreads, 0, stream, x, x_stride, records, out,
                width);
}

}  // namespace nibble::cuda
