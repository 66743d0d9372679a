#pragma once

#include <cstdint>

// What the fp32 matrix product kernels of all ISAs share: plain data only.

namespace nibble {

constexpr std::int64_t kGemmRows = 12;    // rows of a panel of a
constexpr std::int64_t kGemmCols = 32;    // columns of a panel of b
constexpr std::int64_t kGemmChain = 256;  // products that a chain of fma runs over

/// c[i][j] = (add ? c[i][j] : 0) + chain, where a chain is fma(a[t][i], b[t][j], ...) for all t in
/// order, from zero.
struct GemmCall {
  const float* a = nullptr;  // [depth][12]
  const float* b = nullptr;  // [depth][32]
  std::int64_t depth = 0;    // up to kGemmChain
  float* c = nullptr;        // [12][32]
  std::int64_t c_stride = 0;
  bool add = false;
};

struct GemmKernels {
  const char* name;
  void (*tile)(const GemmCall& call);
};

extern const GemmKernels kRefGemm;
extern const GemmKernels kAvx2Gemm;
extern const GemmKernels kAvx512Gemm;

}  // namespace nibble
