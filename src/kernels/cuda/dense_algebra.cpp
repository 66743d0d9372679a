// cuBLAS and cuSOLVER count columns first: what is row-major here is the transposed matrix there,
// so c = a b is c^T = b^T a^T, and an upper triangle is a lower one.
#include "kernels/cuda/dense_algebra.h"

#include <cublas_v2.h>
#include <cusolverDn.h>
#include <fmt/format.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "device/vendor_library.h"

namespace nibble::cuda {
namespace {

constexpr std::size_t kBlasBytes = std::size_t{64} << 20;  // cuBLAS advises 32 MiB on Hopper
constexpr const char* kLine = "solver";

// cublasGemmEx has an overload, for older programs, that decltype cannot pass by.
using GemmEx = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n,
                              int k, const void* alpha, const void* a, cudaDataType, int lda,
                              const void* b, cudaDataType, int ldb, const void* beta, void* c,
                              cudaDataType, int ldc, cublasComputeType_t, cublasGemmAlgo_t);

// What is used of the two libraries.
struct Functions {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  decltype(&cublasSetWorkspace_v2) set_workspace = nullptr;
  GemmEx* gemm = nullptr;
  decltype(&cublasDgemm_v2) dgemm = nullptr;
  decltype(&cublasStrsm_v2) strsm = nullptr;
  decltype(&cublasDtrsm_v2) dtrsm = nullptr;
  decltype(&cusolverDnCreate) solver_create = nullptr;
  decltype(&cusolverDnDestroy) solver_destroy = nullptr;
  decltype(&cusolverDnSetStream) solver_set_stream = nullptr;
  decltype(&cusolverDnDpotrf_bufferSize) potrf_size = nullptr;
  decltype(&cusolverDnDpotrf) potrf = nullptr;
};

// Of one library, whose name an error tells.
class Finder {
 public:
  explicit Finder(VendorLibrary::Name name) : name_(name), library_(name) {}

  template <typename Function>
  void Look(const char* symbol, Function& function) {
    function = library_.Find<std::remove_pointer_t<Function>>(symbol);
    complete_ = complete_ && function != nullptr;
  }
  Result<void> Check() const {
    return complete_ ? Result<void>{}
                     : Fail(ErrorCode::kUnavailable,
                            fmt::format("GPTQ on a card needs {} of CUDA 13, which {}: install it, "
                                        "or quantize with --device cpu",
                                        VendorLibrary::FileName(name_),
                                        library_.found() ? "lacks functions" : "was not found"));
  }

 private:
  VendorLibrary::Name name_;
  VendorLibrary library_;
  bool complete_ = true;
};

Result<Functions> FindFunctions() {
  Functions at;
  Finder blas(VendorLibrary::Name::kCublas);
  blas.Look("cublasCreate_v2", at.create);
  blas.Look("cublasDestroy_v2", at.destroy);
  blas.Look("cublasSetStream_v2", at.set_stream);
  blas.Look("cublasSetWorkspace_v2", at.set_workspace);
  blas.Look("cublasGemmEx", at.gemm);
  blas.Look("cublasDgemm_v2", at.dgemm);
  blas.Look("cublasStrsm_v2", at.strsm);
  blas.Look("cublasDtrsm_v2", at.dtrsm);
  NIBBLE_TRY_VOID(blas.Check());
  Finder solver(VendorLibrary::Name::kCusolver);
  solver.Look("cusolverDnCreate", at.solver_create);
  solver.Look("cusolverDnDestroy", at.solver_destroy);
  solver.Look("cusolverDnSetStream", at.solver_set_stream);
  solver.Look("cusolverDnDpotrf_bufferSize", at.potrf_size);
  solver.Look("cusolverDnDpotrf", at.potrf);
  NIBBLE_TRY_VOID(solver.Check());
  return at;
}

class VendorAlgebra final : public DenseAlgebra {
 public:
  VendorAlgebra(CudaDevice& device, const Functions& functions) : device_(device), at_(functions) {}
  VendorAlgebra(const VendorAlgebra&) = delete;
  VendorAlgebra& operator=(const VendorAlgebra&) = delete;
  ~VendorAlgebra() override {
    if (solver_ != nullptr) {
      at_.solver_destroy(solver_);
    }
    if (blas_ != nullptr) {
      at_.destroy(blas_);
    }
  }

  Result<void> Open(std::int64_t max_size) {
    NIBBLE_TRY(workspace, device_.Allocate(kLine, kBlasBytes));
    blas_workspace_ = std::move(workspace);
    // A new stream takes the workspace away, so that comes last.
    NIBBLE_TRY_VOID(Opened("cuBLAS", at_.create(&blas_)));
    NIBBLE_TRY_VOID(Opened("cuBLAS", at_.set_stream(blas_, device_.stream())));
    NIBBLE_TRY_VOID(Opened("cuBLAS", at_.set_workspace(blas_, blas_workspace_.data(), kBlasBytes)));
    NIBBLE_TRY_VOID(Opened("cuSOLVER", at_.solver_create(&solver_)));
    NIBBLE_TRY_VOID(Opened("cuSOLVER", at_.solver_set_stream(solver_, device_.stream())));
    // The size asked for does not depend on what lies in the matrix.
    const auto size = static_cast<int>(max_size);
    NIBBLE_TRY_VOID(Opened("cuSOLVER", at_.potrf_size(solver_, CUBLAS_FILL_MODE_LOWER, size,
                                                      nullptr, size, &num_doubles_)));
    NIBBLE_TRY(factor, device_.Allocate(kLine, static_cast<std::size_t>(std::max(num_doubles_, 1)) *
                                                   sizeof(double)));
    factor_workspace_ = std::move(factor);
    NIBBLE_TRY(info, device_.Allocate(kLine, sizeof(int)));
    info_ = std::move(info);
    return {};
  }

  void TransposedProduct(const Matrix<const std::uint16_t>& a, const Matrix<const std::uint16_t>& b,
                         const Matrix<float>& c) override {
    constexpr float kOne = 1.0F;
    constexpr float kZero = 0.0F;
    Note(at_.gemm(blas_, CUBLAS_OP_N, CUBLAS_OP_T, Int(c.cols), Int(c.rows), Int(a.rows), &kOne,
                  b.data, CUDA_R_16BF, Int(b.pitch), a.data, CUDA_R_16BF, Int(a.pitch), &kZero,
                  c.data, CUDA_R_32F, Int(c.pitch), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
         "a product of bf16 matrices");
  }

  void Product(const Matrix<const float>& a, const Matrix<const float>& b, const Matrix<float>& c,
               bool add, Precision precision) override {
    constexpr float kOne = 1.0F;
    const float beta = add ? 1.0F : 0.0F;
    Note(at_.gemm(blas_, CUBLAS_OP_N, CUBLAS_OP_N, Int(c.cols), Int(c.rows), Int(a.cols), &kOne,
                  b.data, CUDA_R_32F, Int(b.pitch), a.data, CUDA_R_32F, Int(a.pitch), &beta, c.data,
                  CUDA_R_32F, Int(c.pitch),
                  precision == Precision::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                  CUBLAS_GEMM_DEFAULT),
         "a product of fp32 matrices");
  }

  void Product(double factor, const Matrix<const double>& a, const Matrix<const double>& b,
               const Matrix<double>& c) override {
    constexpr double kZero = 0.0;
    Note(at_.dgemm(blas_, CUBLAS_OP_N, CUBLAS_OP_N, Int(c.cols), Int(c.rows), Int(a.cols), &factor,
                   b.data, Int(b.pitch), a.data, Int(a.pitch), &kZero, c.data, Int(c.pitch)),
         "a product of double matrices");
  }

  Result<bool> Factorize(const Matrix<double>& a) override {
    const int status = at_.potrf(solver_, CUBLAS_FILL_MODE_LOWER, Int(a.rows), a.data, Int(a.pitch),
                                 factor_workspace_.as<double>(), num_doubles_, info_.as<int>());
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return Fail(ErrorCode::kUnavailable,
                  fmt::format("cuSOLVER factorizes nothing (status {})", status));
    }
    int info = 0;
    NIBBLE_TRY_VOID(device_.Read(reinterpret_cast<std::byte*>(&info), info_.data(), sizeof(info)));
    if (info < 0) {
      return Fail(ErrorCode::kInternal,
                  fmt::format("cuSOLVER does not take argument {} of a factor", -info));
    }
    return info == 0;
  }

  void Solve(const Matrix<const double>& u, const Matrix<double>& x) override {
    constexpr double kOne = 1.0;
    // (L L^T) x^T, L = U^T.
    for (const cublasOperation_t operation : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      Note(at_.dtrsm(blas_, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, operation,
                     CUBLAS_DIAG_NON_UNIT, Int(x.cols), Int(x.rows), &kOne, u.data, Int(u.pitch),
                     x.data, Int(x.pitch)),
           "a triangular solve");
    }
  }

  void SolveUnit(const Matrix<const float>& n, const Matrix<float>& x) override {
    constexpr float kOne = 1.0F;
    Note(at_.strsm(blas_, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_UNIT,
                   Int(x.cols), Int(x.rows), &kOne, n.data, Int(n.pitch), x.data, Int(x.pitch)),
         "a triangular solve");
  }

 private:
  static int Int(std::int64_t value) { return static_cast<int>(value); }
  static Result<void> Opened(const char* library, int status) {
    return status == 0 ? Result<void>{}
                       : Fail(ErrorCode::kUnavailable,
                              fmt::format("{} does not start (status {})", library, status));
  }
  void Note(int status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS) {
      device_.NoteError(cudaErrorUnknown, what);
    }
  }

  CudaDevice& device_;
  const Functions at_;
  cublasHandle_t blas_ = nullptr;
  cusolverDnHandle_t solver_ = nullptr;
  DeviceBuffer blas_workspace_, factor_workspace_, info_;
  int num_doubles_ = 0;  // of factor_workspace_
};

}  // namespace

Result<void> DenseAlgebra::Check() {
  NIBBLE_TRY_VOID(FindFunctions());
  return {};
}

Result<std::unique_ptr<DenseAlgebra>> DenseAlgebra::Create(CudaDevice& device,
                                                           std::int64_t max_size) {
  NIBBLE_TRY(functions, FindFunctions());
  auto algebra = std::make_unique<VendorAlgebra>(device, functions);
  NIBBLE_TRY_VOID(algebra->Open(max_size));
  return std::unique_ptr<DenseAlgebra>(std::move(algebra));
}

std::uint64_t DenseAlgebra::SizeBytes(std::int64_t max_size) {
  // cuSOLVER's own is not known before it is asked: some hundred columns of the matrix.
  constexpr std::uint64_t kColumns = 512;
  return kBlasBytes + kColumns * static_cast<std::uint64_t>(max_size) * sizeof(double);
}

}  // namespace nibble::cuda
