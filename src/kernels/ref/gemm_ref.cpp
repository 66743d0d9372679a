#include <cmath>

#include "kernels/gemm_kernel.h"

namespace nibble {
namespace {

void Tile(const GemmCall& call) {
  for (std::int64_t i = 0; i < kGemmRows; ++i) {
    for (std::int64_t j = 0; j < kGemmCols; ++j) {
      float chain = 0.0F;
      for (std::int64_t t = 0; t < call.depth; ++t) {
        chain = std::fma(call.a[t * kGemmRows + i], call.b[t * kGemmCols + j], chain);
      }
      float& c = call.c[i * call.c_stride + j];
      c = (call.add ? c : 0.0F) + chain;
    }
  }
}

}  // namespace

const GemmKernels kRefGemm = {.name = "ref", .tile = Tile};

}  // namespace nibble
