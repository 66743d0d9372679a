#pragma once

#include <cstdint>

// What the kernels of Gram matrices of all ISAs share: plain data only.

namespace nibble {

constexpr std::int64_t kGramPanel = 16;   // columns of a panel
constexpr std::int64_t kGramRows = 8;     // rows of c that a call makes: half a panel
constexpr std::int64_t kGramChain = 256;  // rows that a chain of fp32 fma runs over
constexpr int kGramMaxPanels = 3;

/// c[i][16 p + j] += sum over chains of kGramChain rows t, in order, of double(chain), where a
/// chain is fma(a[t][i], b[p][t][j], ...) in fp32, in order from zero; the last chain may be short.
struct GramCall {
  const float* a = nullptr;   // [rows][16]; 8 columns from here count
  const float* b = nullptr;   // [num_panels][rows][16]
  std::int64_t b_stride = 0;  // floats between panels of b
  int num_panels = 0;         // 1 to kGramMaxPanels
  std::int64_t rows = 0;
  double* c = nullptr;  // [8][16 * num_panels]
  std::int64_t c_stride = 0;
};

/// c[i][j] = fma(-a[t][i], b[t][j], c[i][j]) for all t in order, in double.
struct DowndateCall {
  const double* a = nullptr;  // [rows][16]; 8 columns from here count
  const double* b = nullptr;  // [rows][16]
  std::int64_t rows = 0;
  double* c = nullptr;  // [8][16]
  std::int64_t c_stride = 0;
};

struct GramKernels {
  const char* name;
  void (*gram)(const GramCall& call);
  void (*downdate)(const DowndateCall& call);
};

extern const GramKernels kRefGram;
extern const GramKernels kAvx2Gram;
extern const GramKernels kAvx512Gram;

}  // namespace nibble
