#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "device/cuda_device.h"

namespace nibble::cuda {

/// A row-major matrix in the card's memory.
template <typename T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t pitch = 0;  // elements between rows

  /// Columns [begin, end).
  Matrix Columns(std::int64_t begin, std::int64_t end) const {
    return {data + begin, rows, end - begin, pitch};
  }
  /// Rows [begin, end).
  Matrix Rows(std::int64_t begin, std::int64_t end) const {
    return {data + begin * pitch, end - begin, cols, pitch};
  }
};

/// How exactly fp32 factors are multiplied.
enum class Precision : std::uint8_t { kF32, kTf32 };  // tf32: 11 bits of each

/// Products, Cholesky factors and triangular solves for the solvers, on the queue of the device's
/// steps: cuBLAS and cuSOLVER, found at run time. The same shapes give the same bits on the same
/// kind of card. Failures are noted with the device (Device::Health).
class DenseAlgebra {
 public:
  /// Whether both libraries are here. Errors: kUnavailable naming the one that is missing.
  static Result<void> Check();
  /// max_size: of a matrix to factorize. Errors: those of Check; kOutOfMemory.
  static Result<std::unique_ptr<DenseAlgebra>> Create(CudaDevice& device, std::int64_t max_size);
  virtual ~DenseAlgebra() = default;
  /// About what Create allocates.
  static std::uint64_t SizeBytes(std::int64_t max_size);

  /// c = a^T b: a [tokens, c.rows] and b [tokens, c.cols], bf16.
  virtual void TransposedProduct(const Matrix<const std::uint16_t>& a,
                                 const Matrix<const std::uint16_t>& b, const Matrix<float>& c) = 0;
  /// c = a b, or c += a b.
  virtual void Product(const Matrix<const float>& a, const Matrix<const float>& b,
                       const Matrix<float>& c, bool add, Precision precision) = 0;
  /// c = factor a b.
  virtual void Product(double factor, const Matrix<const double>& a, const Matrix<const double>& b,
                       const Matrix<double>& c) = 0;

  /// a = U^T U, U upper triangular in the place of a; what is below the diagonal is not read.
  /// Waits; false if a is not positive definite. Errors: kUnavailable.
  virtual Result<bool> Factorize(const Matrix<double>& a) = 0;
  /// x = x (U^T U)^-1.
  virtual void Solve(const Matrix<const double>& u, const Matrix<double>& x) = 0;
  /// x = x (I + N)^-1, N what n has above the diagonal.
  virtual void SolveUnit(const Matrix<const float>& n, const Matrix<float>& x) = 0;
};

}  // namespace nibble::cuda
