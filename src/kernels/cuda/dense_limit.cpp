// The only user of cuBLASLt: a bar that our own products are held against. Opened at run time;
// the program neither links to it nor needs it.
#include "kernels/cuda/dense_limit.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "device/vendor_library.h"
#include "kernels/cuda/launch_timer.h"

namespace nibble::cuda {
namespace {

struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

template <typename Function>
void Look(const VendorLibrary& library, const char* symbol, Function& function) {
  function = library.Find<std::remove_pointer_t<Function>>(symbol);
}

bool Look(const VendorLibrary& library, Functions& at) {
  Look(library, "cublasLtCreate", at.create);
  Look(library, "cublasLtDestroy", at.destroy);
  Look(library, "cublasLtMatmulDescCreate", at.desc_create);
  Look(library, "cublasLtMatmulDescDestroy", at.desc_destroy);
  Look(library, "cublasLtMatmulDescSetAttribute", at.desc_set);
  Look(library, "cublasLtMatrixLayoutCreate", at.layout_create);
  Look(library, "cublasLtMatrixLayoutDestroy", at.layout_destroy);
  Look(library, "cublasLtMatmulPreferenceCreate", at.preference_create);
  Look(library, "cublasLtMatmulPreferenceDestroy", at.preference_destroy);
  Look(library, "cublasLtMatmulPreferenceSetAttribute", at.preference_set);
  Look(library, "cublasLtMatmulAlgoGetHeuristic", at.heuristic);
  Look(library, "cublasLtMatmul", at.matmul);
  return at.create != nullptr && at.destroy != nullptr && at.desc_create != nullptr &&
         at.desc_destroy != nullptr && at.desc_set != nullptr && at.layout_create != nullptr &&
         at.layout_destroy != nullptr && at.preference_create != nullptr &&
         at.preference_destroy != nullptr && at.preference_set != nullptr &&
         at.heuristic != nullptr && at.matmul != nullptr;
}

// The library's objects, given back however the measurement ends.
struct Product {
  explicit Product(const Functions& functions) : at(functions) {}
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    if (preference != nullptr) {
      at.preference_destroy(preference);
    }
    if (layout != nullptr) {
      at.layout_destroy(layout);
    }
    if (desc != nullptr) {
      at.desc_destroy(desc);
    }
    if (handle != nullptr) {
      at.destroy(handle);
    }
  }
  const Functions& at;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;  // all three matrices are square
  cublasLtMatmulPreference_t preference = nullptr;
};

}  // namespace

Result<double> DenseF16Rate(CudaDevice& device, std::byte* memory, std::int64_t size) {
  const VendorLibrary library(VendorLibrary::Name::kCublasLt);
  Functions functions{};
  if (!Look(library, functions)) {
    return Fail(
        ErrorCode::kNotFound,
        fmt::format("{} was not found", VendorLibrary::FileName(VendorLibrary::Name::kCublasLt)));
  }
  Product product(functions);
  const std::size_t matrix_bytes = static_cast<std::size_t>(2 * size * size);
  const std::size_t workspace_bytes = DenseF16Bytes(size) - 3 * matrix_bytes;
  std::byte* workspace = memory + 3 * matrix_bytes;
  cublasStatus_t status = functions.create(&product.handle);
  const auto then = [&](auto&& call) {
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = call();
    }
  };
  // Both operands along K, as weights and activations lie.
  const cublasOperation_t transposed = CUBLAS_OP_T;
  then([&] { return functions.desc_create(&product.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F); });
  then([&] {
    return functions.desc_set(product.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                              sizeof(transposed));
  });
  then([&] {
    return functions.layout_create(&product.layout, CUDA_R_16F, static_cast<std::uint64_t>(size),
                                   static_cast<std::uint64_t>(size), size);
  });
  then([&] { return functions.preference_create(&product.preference); });
  then([&] {
    return functions.preference_set(product.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                    &workspace_bytes, sizeof(workspace_bytes));
  });
  std::array<cublasLtMatmulHeuristicResult_t, 4> found{};
  int num_found = 0;
  then([&] {
    return functions.heuristic(product.handle, product.desc, product.layout, product.layout,
                               product.layout, product.layout, product.preference,
                               static_cast<int>(found.size()), found.data(), &num_found);
  });
  if (status != CUBLAS_STATUS_SUCCESS || num_found == 0) {
    return Fail(ErrorCode::kUnavailable, fmt::format("cuBLASLt has no product to offer (status {})",
                                                     static_cast<int>(status)));
  }
  const float one = 1.0F;
  const float zero = 0.0F;
  double best = 0.0;
  for (int i = 0; i < num_found; ++i) {
    const auto run = [&] {
      return functions.matmul(product.handle, product.desc, &one, memory, product.layout,
                              memory + matrix_bytes, product.layout, &zero,
                              memory + 2 * matrix_bytes, product.layout, memory + 2 * matrix_bytes,
                              product.layout, &found[static_cast<std::size_t>(i)].algo, workspace,
                              workspace_bytes, device.stream());
    };
    const auto time = TimeLaunches(device, [&] {
      return run() == CUBLAS_STATUS_SUCCESS ? 0 : static_cast<int>(cudaErrorUnknown);
    });
    if (time) {
      const auto n = static_cast<double>(size);
      best = std::max(best, 2.0 * n * n * n / time->seconds);
    }
  }
  if (best == 0.0) {
    return Fail(ErrorCode::kUnavailable, "cuBLASLt's products did not run");
  }
  return best;
}

}  // namespace nibble::cuda
