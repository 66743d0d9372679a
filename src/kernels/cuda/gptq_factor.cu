// What stands between the large products of solve/cuda_solver.cpp: packing, sums in double, and the
// order of columns. Each value is moved once or twice; judge by GB/s. Blocks take rows; nothing is
// added up across blocks, so that results have one order.

#include <algorithm>

#include "kernels/cuda/gptq_kernel.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "tensor/float16.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;  // of a transposed copy
constexpr int kTileRows = kThreads / kTile;

__device__ __forceinline__ std::int64_t RowOfBlock() { return blockIdx.x; }
// The first column of this thread, and how far apart its columns are.
__device__ __forceinline__ std::int64_t FirstColumn() {
  return static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
}
__device__ __forceinline__ std::int64_t ColumnStep() {
  return static_cast<std::int64_t>(gridDim.y) * kThreads;
}

__device__ __forceinline__ float InputAt(const InputRows& x, std::int64_t row, std::int64_t i) {
  const std::int64_t at = row * x.stride + i;
  return x.is_f16 ? F16ToFloat(static_cast<const std::uint16_t*>(x.data)[at]) * x.scale
                  : static_cast<const float*>(x.data)[at] * x.scale;
}

__device__ __forceinline__ std::uint16_t PackedBf16(float value) {
  const bool tiny = (__float_as_uint(value) & 0x7fffffffU) < kTinyInputBits;
  return tiny ? std::uint16_t{0} : FloatToBF16(value);
}

__global__ __launch_bounds__(kThreads) void PackInputsKernel(
    const __grid_constant__ PackInputsArgs args) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock();
  for (std::int64_t i = FirstColumn(); i < args.width; i += ColumnStep()) {
    const float y = InputAt(args.y, row, i);
    args.out[row * args.pitch + i] = PackedBf16(y);
    if (args.x.data != nullptr) {
      args.moved[row * args.pitch + i] = PackedBf16(InputAt(args.x, row, i) - y);
    }
  }
}

__global__ __launch_bounds__(kThreads) void AddToSumsKernel(const float* product, double* sums,
                                                            std::int64_t n, bool upper_only) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock();
  for (std::int64_t i = FirstColumn(); i < n; i += ColumnStep()) {
    if (!upper_only || i >= row) {
      sums[row * n + i] += static_cast<double>(product[row * n + i]);
    }
  }
}

__global__ __launch_bounds__(kThreads) void DiagonalKernel(const double* a, std::int64_t n,
                                                           double* out) {
  WaitForPrevious();
  const std::int64_t i = RowOfBlock() * kThreads + threadIdx.x;
  if (i < n) {
    out[i] = a[i * n + i];
  }
}

__global__ __launch_bounds__(kThreads) void GatherSymmetricKernel(
    const __grid_constant__ GatherSymmetricArgs args) {
  WaitForPrevious();
  const std::int64_t n = args.n;
  const std::int64_t row = RowOfBlock();
  const std::int64_t i = args.order[n - 1 - row];
  for (std::int64_t to = FirstColumn(); to < n; to += ColumnStep()) {
    if (to >= row) {
      const std::int64_t j = args.order[n - 1 - to];
      const double value = i <= j ? args.h[i * n + j] : args.h[j * n + i];
      args.out[row * n + to] = to == row ? value + args.added : value;
    }
  }
}

// Reads rows of U, writes rows of the ratios: each is the other's column, reversed.
__global__ __launch_bounds__(kThreads) void RatiosKernel(const __grid_constant__ RatiosArgs args) {
  __shared__ float tile[kTile][kTile + 1];  // [i][j]
  WaitForPrevious();
  const std::int64_t n = args.n;
  const std::int64_t j_begin = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t i_begin = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const int x = static_cast<int>(threadIdx.x) % kTile;
  const int y = static_cast<int>(threadIdx.x) / kTile;
  for (int k = y; k < kTile; k += kTileRows) {
    const std::int64_t i = i_begin + k;
    const std::int64_t j = j_begin + x;
    float ratio = 0.0F;
    if (i < n && j <= i) {
      const double* row = args.u + (n - 1 - i) * n;
      const double pivot = row[n - 1 - i];
      if (j < i) {
        ratio = static_cast<float>(row[n - 1 - j] / pivot);
      } else {
        const double square = pivot * pivot;
        args.curvature[i] = square;
        args.curvature_f32[i] = static_cast<float>(square);
        args.column_curvature[args.order[i]] = static_cast<float>(square);
      }
    }
    tile[k][x] = ratio;
  }
  __syncthreads();
  for (int k = y; k < kTile; k += kTileRows) {
    const std::int64_t j = j_begin + k;
    const std::int64_t i = i_begin + x;
    if (j < n && i < n) {
      args.ratios[j * n + i] = tile[x][k];
    }
  }
}

__global__ __launch_bounds__(kThreads) void FindNotFiniteKernel(const float* x, std::int64_t count,
                                                                unsigned long long* first) {
  WaitForPrevious();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = RowOfBlock() * kThreads + threadIdx.x; i < count; i += step) {
    if ((__float_as_uint(x[i]) & 0x7f800000U) == 0x7f800000U) {
      atomicMin(first, static_cast<unsigned long long>(i));
    }
  }
}

__global__ __launch_bounds__(kThreads) void WidenKernel(const float* x, double* y,
                                                        std::int64_t count) {
  WaitForPrevious();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = RowOfBlock() * kThreads + threadIdx.x; i < count; i += step) {
    y[i] = static_cast<double>(x[i]);
  }
}

__global__ __launch_bounds__(kThreads) void GatherBackwardsKernel(const double* x,
                                                                  const std::int32_t* order,
                                                                  double* y, std::int64_t n) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock() * n;
  for (std::int64_t i = FirstColumn(); i < n; i += ColumnStep()) {
    y[row + i] = x[row + order[n - 1 - i]];
  }
}

__global__ __launch_bounds__(kThreads) void ScatterAddBackwardsKernel(const double* x,
                                                                      const std::int32_t* order,
                                                                      float* weights,
                                                                      std::int64_t n) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock() * n;
  for (std::int64_t i = FirstColumn(); i < n; i += ColumnStep()) {
    weights[row + order[n - 1 - i]] += static_cast<float>(x[row + i]);
  }
}

__global__ __launch_bounds__(kThreads) void GatherColumnsKernel(const float* x,
                                                                const std::int32_t* order, float* y,
                                                                std::int64_t n) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock() * n;
  for (std::int64_t i = FirstColumn(); i < n; i += ColumnStep()) {
    y[row + i] = x[row + order[i]];
  }
}

__global__ __launch_bounds__(kThreads) void CopyColumnsKernel(const float* x, float* y, int cols,
                                                              std::int64_t n) {
  WaitForPrevious();
  const std::int64_t row = RowOfBlock() * n;
  for (std::int64_t i = FirstColumn(); i < cols; i += ColumnStep()) {
    y[row + i] = x[row + i];
  }
}

__global__ __launch_bounds__(kThreads) void SquareRowsKernel(
    const __grid_constant__ SquareRowsArgs args) {
  __shared__ double sums[kThreads];
  WaitForPrevious();
  const std::int64_t row = RowOfBlock() * args.n;
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (std::int64_t i = thread; i < args.n; i += kThreads) {
    const double t = static_cast<double>(args.a[row + i]) + static_cast<double>(args.b[row + i]);
    sum += args.curvature[i] * t * t;
  }
  sums[thread] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      sums[thread] += sums[thread + half];
    }
  }
  if (thread == 0) {
    args.out[RowOfBlock()] = sums[0];
  }
}

unsigned Blocks(std::int64_t count, std::int64_t of) {
  return static_cast<unsigned>((count + of - 1) / of);
}
// A block for so many columns of one row.
dim3 RowsAndColumns(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kColumns = 4 * kThreads;
  return dim3(static_cast<unsigned>(rows), Blocks(cols, kColumns));
}
// Blocks that stride over `count` numbers.
unsigned Strides(std::int64_t count) {
  constexpr std::int64_t kMostBlocks = 4096;
  return static_cast<unsigned>(std::min<std::int64_t>(kMostBlocks, Blocks(count, 4 * kThreads)));
}

}  // namespace

int LaunchPackInputs(const PackInputsArgs& args, CUstream_st* stream) {
  return Launch(PackInputsKernel, RowsAndColumns(args.rows, args.width), kThreads, 0, stream, args);
}

int LaunchAddToSums(const float* product, double* sums, std::int64_t n, bool upper_only,
                    CUstream_st* stream) {
  return Launch(AddToSumsKernel, RowsAndColumns(n, n), kThreads, 0, stream, product, sums, n,
                upper_only);
}

int LaunchDiagonal(const double* a, std::int64_t n, double* out, CUstream_st* stream) {
  return Launch(DiagonalKernel, dim3(Blocks(n, kThreads)), kThreads, 0, stream, a, n, out);
}

int LaunchGatherSymmetric(const GatherSymmetricArgs& args, CUstream_st* stream) {
  return Launch(GatherSymmetricKernel, RowsAndColumns(args.n, args.n), kThreads, 0, stream, args);
}

int LaunchRatios(const RatiosArgs& args, CUstream_st* stream) {
  const unsigned tiles = Blocks(args.n, kTile);
  return Launch(RatiosKernel, dim3(tiles, tiles), kThreads, 0, stream, args);
}

int LaunchFindNotFinite(const float* x, std::int64_t count, unsigned long long* first,
                        CUstream_st* stream) {
  const cudaError_t error = cudaMemsetAsync(first, 0xff, sizeof(*first), stream);
  return error != cudaSuccess ? error
                              : Launch(FindNotFiniteKernel, dim3(Strides(count)), kThreads, 0,
                                       stream, x, count, first);
}

int LaunchClear(void* data, std::int64_t size_bytes, CUstream_st* stream) {
  return cudaMemsetAsync(data, 0, static_cast<std::size_t>(size_bytes), stream);
}

int LaunchWiden(const float* x, double* y, std::int64_t count, CUstream_st* stream) {
  return Launch(WidenKernel, dim3(Strides(count)), kThreads, 0, stream, x, y, count);
}

int LaunchGatherBackwards(const double* x, const std::int32_t* order, double* y, int rows,
                          std::int64_t n, CUstream_st* stream) {
  return Launch(GatherBackwardsKernel, RowsAndColumns(rows, n), kThreads, 0, stream, x, order, y,
                n);
}

int LaunchScatterAddBackwards(const double* x, const std::int32_t* order, float* weights, int rows,
                              std::int64_t n, CUstream_st* stream) {
  return Launch(ScatterAddBackwardsKernel, RowsAndColumns(rows, n), kThreads, 0, stream, x, order,
                weights, n);
}

int LaunchGatherColumns(const float* x, const std::int32_t* order, float* y, int rows,
                        std::int64_t n, CUstream_st* stream) {
  return Launch(GatherColumnsKernel, RowsAndColumns(rows, n), kThreads, 0, stream, x, order, y, n);
}

int LaunchCopyColumns(const float* x, float* y, int rows, int cols, std::int64_t n,
                      CUstream_st* stream) {
  return Launch(CopyColumnsKernel, RowsAndColumns(rows, cols), kThreads, 0, stream, x, y, cols, n);
}

int LaunchSquareRows(const SquareRowsArgs& args, CUstream_st* stream) {
  return Launch(SquareRowsKernel, dim3(static_cast<unsigned>(args.rows)), kThreads, 0, stream,
                args);
}

}  // namespace nibble::cuda
