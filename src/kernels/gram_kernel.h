#pragma once

#include <cstdint>

// What the kernels of Gram matrices of all ISAs share: plain data only.

namespace nibble {

constexpr std::int64_t kGramPanel = 16;   // columns of a panel
constexpr std::int64_t kGramRows = 8;     // rows of c that a call makes: half a panel
constexpr std::int64_t kGramChain = 256;  // rows that a chain of fp32 fma runs over
constexpr int kGramMaxPanels = 3;

// Rows of whole numbers that share the step of their column. Sums of their products stay below 2^31
// whatever a column looks like, by Cauchy and Schwarz: its step is such that its own squares do.
constexpr std::int64_t kGramBlock = 512;
constexpr std::uint32_t kGramTinyBits = 0x0d800000U;  // squares that sum to less than 2^-100: zero
constexpr std::uint32_t kGramInfinityBits = 0x7f800000U;

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

/// The same for one block of whole numbers: c[i][16 p + j] += step(a, i) step(b, p, j) times the
/// sum over t of a[t][i] b[p][t][j], which is below 2^31. A panel of a block is a row of 16 steps,
/// fp32 as bits, then pairs of rows, two int16 in a word (even row low).
struct GramInt16Call {
  const std::uint32_t* a = nullptr;  // [1 + pairs][16]; 8 columns from here count
  const std::uint32_t* b = nullptr;  // [num_panels][1 + pairs][16]
  std::int64_t b_stride = 0;         // words between panels of b
  int num_panels = 0;                // 1 to kGramMaxPanels
  std::int64_t pairs = 0;            // at most kGramBlock / 2
  double* c = nullptr;               // [8][16 * num_panels]
  std::int64_t c_stride = 0;
};

/// One panel of a block: x, or x - minus in fp32. With E = (1 + 2^-8) times the sum of a column's
/// squares, a chain of fp32 fma in order from zero, and E in [2^e, 2^(e + 1)), its step is 2^-k for
/// k = floor((29 - e) / 2), and its values are x 2^k to the nearest even: below 2^15, and their
/// squares sum to less than 2^30. Below 2^-100 they are zeros and the step, too; a sum that is not
/// finite makes the step NaN. Columns beyond `columns` and the partner of a last odd row are zeros.
struct GramPackInt16Call {
  const float* x = nullptr;
  const float* minus = nullptr;    // or none
  std::int64_t stride = 0;         // floats between rows of both
  std::int64_t rows = 0;           // 1 to kGramBlock
  int columns = 16;                // 1 to 16
  std::uint32_t* panel = nullptr;  // [1 + (rows + 1) / 2][16]
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
  void (*gram_int16)(const GramInt16Call& call);
  void (*pack_int16)(const GramPackInt16Call& call);
};

extern const GramKernels kRefGram;
extern const GramKernels kAvx2Gram;
extern const GramKernels kAvx512Gram;

}  // namespace nibble
