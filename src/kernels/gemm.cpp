#include "kernels/gemm.h"

#include <algorithm>

#include "kernels/isa.h"

namespace nibble {
namespace {

// A part of c that one worker fills, in panels: its panels of a chain's depth stay in L2.
constexpr std::int64_t kPartRows = 8;
constexpr std::int64_t kPartCols = 6;

const GemmKernels& Kernels() { return ForCurrentIsa(kRefGemm, kAvx2Gemm, kAvx512Gemm); }

std::int64_t NumPanels(std::int64_t count, std::int64_t width) {
  return (count + width - 1) / width;
}

// Rows [first, first + kWidth) of a matrix [num_rows, depth] -> [depth][kWidth], zeros beyond.
template <std::int64_t kWidth>
void PackPanel(const MatrixRef& matrix, std::int64_t num_rows, std::int64_t depth,
               std::int64_t first, float* to) {
  const std::int64_t count = std::min(kWidth, num_rows - first);
  const float* from = matrix.data + first * matrix.row_stride;
  if (count < kWidth) {
    std::fill_n(to, kWidth * depth, 0.0F);
  }
  if (matrix.row_stride == 1) {
    for (std::int64_t t = 0; t < depth; ++t) {
      std::copy_n(from + t * matrix.col_stride, count, to + t * kWidth);
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = from + i * matrix.row_stride;
    for (std::int64_t t = 0; t < depth; ++t) {
      to[t * kWidth + i] = row[t * matrix.col_stride];
    }
  }
}

class Product {
 public:
  Product(const GemmShape& shape, const MatrixRef& a, const MatrixRef& b, GemmOutput output,
          float* c, std::int64_t c_stride, GemmScratch& scratch)
      : kernels_(Kernels()),
        shape_(shape),
        a_(a),
        b_(b.Transposed()),
        output_(output),
        c_(c),
        c_stride_(c_stride),
        scratch_(scratch),
        a_panels_(NumPanels(shape.rows, kGemmRows)),
        b_panels_(NumPanels(shape.cols, kGemmCols)) {
    Grow(scratch.a, a_panels_ * kGemmRows * shape.depth);
    Grow(scratch.b, b_panels_ * kGemmCols * shape.depth);
  }

  std::int64_t num_panels() const { return a_panels_ + b_panels_; }
  void Pack(std::int64_t panel) {
    const std::int64_t depth = shape_.depth;
    if (panel < a_panels_) {
      PackPanel<kGemmRows>(a_, shape_.rows, depth, panel * kGemmRows,
                           scratch_.a.data() + panel * kGemmRows * depth);
    } else {
      panel -= a_panels_;
      PackPanel<kGemmCols>(b_, shape_.cols, depth, panel * kGemmCols,
                           scratch_.b.data() + panel * kGemmCols * depth);
    }
  }

  std::int64_t num_parts() const {
    return NumPanels(a_panels_, kPartRows) * NumPanels(b_panels_, kPartCols);
  }
  void Multiply(std::int64_t part) {
    const std::int64_t across = NumPanels(b_panels_, kPartCols);
    const std::int64_t i0 = part / across * kPartRows;
    const std::int64_t j0 = part % across * kPartCols;
    for (std::int64_t t = 0; t < shape_.depth; t += kGemmChain) {
      for (std::int64_t j = j0; j < std::min(b_panels_, j0 + kPartCols); ++j) {
        for (std::int64_t i = i0; i < std::min(a_panels_, i0 + kPartRows); ++i) {
          MultiplyTile(i, j, t);
        }
      }
    }
  }

 private:
  static void Grow(std::vector<float>& buffer, std::int64_t count) {
    if (buffer.size() < static_cast<std::size_t>(count)) {
      buffer.resize(static_cast<std::size_t>(count));
    }
  }

  void MultiplyTile(std::int64_t i, std::int64_t j, std::int64_t t) {
    GemmCall call;
    call.a = scratch_.a.data() + (i * shape_.depth + t) * kGemmRows;
    call.b = scratch_.b.data() + (j * shape_.depth + t) * kGemmCols;
    call.depth = std::min(kGemmChain, shape_.depth - t);
    call.add = output_ == GemmOutput::kAdd || t > 0;
    const std::int64_t rows = std::min(kGemmRows, shape_.rows - i * kGemmRows);
    const std::int64_t cols = std::min(kGemmCols, shape_.cols - j * kGemmCols);
    float* c = c_ + i * kGemmRows * c_stride_ + j * kGemmCols;
    if (rows == kGemmRows && cols == kGemmCols) {
      call.c = c;
      call.c_stride = c_stride_;
      kernels_.tile(call);
      return;
    }
    float edge[kGemmRows * kGemmCols] = {};
    call.c = edge;
    call.c_stride = kGemmCols;
    for (std::int64_t r = 0; call.add && r < rows; ++r) {
      std::copy_n(c + r * c_stride_, cols, edge + r * kGemmCols);
    }
    kernels_.tile(call);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(edge + r * kGemmCols, cols, c + r * c_stride_);
    }
  }

  const GemmKernels& kernels_;
  GemmShape shape_;
  MatrixRef a_, b_;  // b transposed: both are packed by rows
  GemmOutput output_;
  float* c_;
  std::int64_t c_stride_;
  GemmScratch& scratch_;
  std::int64_t a_panels_, b_panels_;
};

}  // namespace

void Gemm(ThreadPool& pool, const GemmShape& shape, const MatrixRef& a, const MatrixRef& b,
          GemmOutput output, float* c, std::int64_t c_stride, GemmScratch& scratch) {
  Product product(shape, a, b, output, c, c_stride, scratch);
  pool.For(product.num_panels(), 2, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t panel = begin; panel < end; ++panel) {
      product.Pack(panel);
    }
  });
  pool.For(product.num_parts(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t part = begin; part < end; ++part) {
      product.Multiply(part);
    }
  });
}

void GemmHere(const GemmShape& shape, const MatrixRef& a, const MatrixRef& b, GemmOutput output,
              float* c, std::int64_t c_stride, GemmScratch& scratch) {
  Product product(shape, a, b, output, c, c_stride, scratch);
  for (std::int64_t panel = 0; panel < product.num_panels(); ++panel) {
    product.Pack(panel);
  }
  for (std::int64_t part = 0; part < product.num_parts(); ++part) {
    product.Multiply(part);
  }
}

}  // namespace nibble
