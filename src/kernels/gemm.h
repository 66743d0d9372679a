#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/gemm_kernel.h"

namespace nibble {

// Products of fp32 matrices, for solvers that need gradients. Every element of c is made of chains
// of kGemmChain fma, added in order: results depend neither on the ISA nor on the number of
// threads.

/// A matrix in memory: element (i, j) is data[i * row_stride + j * col_stride].
struct MatrixRef {
  const float* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;

  MatrixRef Transposed() const { return {data, col_stride, row_stride}; }
};

struct GemmShape {
  std::int64_t rows = 0;   // of a and c
  std::int64_t cols = 0;   // of b and c
  std::int64_t depth = 0;  // columns of a, rows of b
};

enum class GemmOutput : std::uint8_t { kWrite, kAdd };

/// Panels of the operands; grows to the largest product it has seen. One a thread that multiplies.
struct GemmScratch {
  std::vector<float> a, b;
};

/// c [rows, cols], row stride c_stride, = or += a b, on all workers of the pool.
void Gemm(ThreadPool& pool, const GemmShape& shape, const MatrixRef& a, const MatrixRef& b,
          GemmOutput output, float* c, std::int64_t c_stride, GemmScratch& scratch);

/// The same on the calling thread, with the same bits.
void GemmHere(const GemmShape& shape, const MatrixRef& a, const MatrixRef& b, GemmOutput output,
              float* c, std::int64_t c_stride, GemmScratch& scratch);

}  // namespace nibble
