#pragma once

#include <cstdint>

// What the kernels of Gram matrices of all ISAs share: plain data only.

namespace nibble {

constexpr std::int64_t kGramPanel = 16;   // columns of a panel
constexpr std::int64_t kGramRows = 8;     // rows of c that a call makes: half a panel
constexpr std::int64_t kGramChain = 256;  // rows that a chain of fp32 fma runs over
constexpr int kGramMaxPanels = 3;
constexpr std::int64_t kGramBf16Chain = 512;  // rows of bf16 inputs: rounding them costs far more

// Magnitudes below 2^-50 become zero in bf16: sums of products are then never subnormal, which
// vdpbf16ps would flush and fma would not.
constexpr std::uint32_t kGramTinyBits = 0x26800000U;

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

/// The same for bf16 inputs, two rows t in a word (even row low): per word
/// chain = fma(a odd, b odd, chain), then fma(a even, b even, chain), which is what vdpbf16ps does.
struct GramBf16Call {
  const std::uint32_t* a = nullptr;  // [pairs][16]; 8 columns from here count
  const std::uint32_t* b = nullptr;  // [num_panels][pairs][16]
  std::int64_t b_stride = 0;         // words between panels of b
  int num_panels = 0;                // 1 to kGramMaxPanels
  std::int64_t pairs = 0;
  double* c = nullptr;  // [8][16 * num_panels]
  std::int64_t c_stride = 0;
};

/// One panel of bf16 rows: x, or x - minus in fp32, rounded to nearest even; tiny values are zero,
/// and so are columns beyond `columns` and the partner of a last odd row.
struct GramPackBf16Call {
  const float* x = nullptr;
  const float* minus = nullptr;  // or none
  std::int64_t stride = 0;       // floats between rows of both
  std::int64_t rows = 0;
  int columns = 16;                // 1 to 16
  std::uint32_t* panel = nullptr;  // [(rows + 1) / 2][16]
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
  void (*gram_bf16)(const GramBf16Call& call);
  void (*pack_bf16)(const GramPackBf16Call& call);
};

extern const GramKernels kRefGram;
extern const GramKernels kAvx2Gram;
extern const GramKernels kAvx512Gram;
extern const GramKernels kAvx512Bf16Gram;  // where the processor has vdpbf16ps

}  // namespace nibble
