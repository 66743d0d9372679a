#pragma once

#include <cstdint>

struct CUstream_st;

namespace nibble::cuda {

// The kernels of solve/cuda_solver.cpp: plain data and launchers, each returns a cudaError_t.
// Matrices are row-major; n is the width of a linear's input. docs/kernels/cuda_gptq.md.

// --- sums ---

/// Inputs of a linear, ActivationRows without their shape.
struct InputRows {
  const void* data = nullptr;  // null: none
  bool is_f16 = false;         // else fp32
  std::int64_t stride = 0;     // numbers between rows
  float scale = 1.0F;          // a value is its number times this
};

constexpr std::uint32_t kTinyInputBits = 0x26800000U;  // 2^-50: below it an input is zero

/// y, and x - y if there is x, in fp32, rounded to bf16; tiny values are zero.
struct PackInputsArgs {
  InputRows y, x;
  std::uint16_t* out = nullptr;    // [rows, pitch]
  std::uint16_t* moved = nullptr;  // the same, of x - y
  std::int64_t pitch = 0;
  int width = 0;
  int rows = 0;
};
int LaunchPackInputs(const PackInputsArgs& args, CUstream_st* stream);

/// sums += product [n, n], in double; upper_only: on and above the diagonal.
int LaunchAddToSums(const float* product, double* sums, std::int64_t n, bool upper_only,
                    CUstream_st* stream);

/// out[i] = a[i, i].
int LaunchDiagonal(const double* a, std::int64_t n, double* out, CUstream_st* stream);

// --- factor ---
// order[i]: the column at position i. What is to be factorized is "backwards": position n - 1 - i
// comes i-th.

/// out[i, j] = h of the columns at positions n - 1 - i and n - 1 - j, plus `added` where i = j, for
/// j >= i. Of h, what is on and above the diagonal is read.
struct GatherSymmetricArgs {
  const double* h = nullptr;            // [n, n]
  const std::int32_t* order = nullptr;  // [n]
  double added = 0.0;
  double* out = nullptr;  // [n, n]
  std::int64_t n = 0;
};
int LaunchGatherSymmetric(const GatherSymmetricArgs& args, CUstream_st* stream);

/// Of U, the upper triangle with U^T U = what GatherSymmetric gave: R_ij = U_(n-1-j)(n-1-i), and
///   ratios[j, i] = R_ji / R_ii for j < i, else 0;  curvature[i] = R_ii^2
struct RatiosArgs {
  const double* u = nullptr;
  const std::int32_t* order = nullptr;
  float* ratios = nullptr;            // [n, n]
  double* curvature = nullptr;        // [n], by position
  float* curvature_f32 = nullptr;     // the same
  float* column_curvature = nullptr;  // the same by column
  std::int64_t n = 0;
};
int LaunchRatios(const RatiosArgs& args, CUstream_st* stream);

// --- one matrix [rows, n] ---

/// first = the least index of a number that is not finite, or ~0.
int LaunchFindNotFinite(const float* x, std::int64_t count, unsigned long long* first,
                        CUstream_st* stream);
/// Sets memory to zero.
int LaunchClear(void* data, std::int64_t size_bytes, CUstream_st* stream);
/// y = x.
int LaunchWiden(const float* x, double* y, std::int64_t count, CUstream_st* stream);
/// y[r, i] = x[r, the column at position n - 1 - i].
int LaunchGatherBackwards(const double* x, const std::int32_t* order, double* y, int rows,
                          std::int64_t n, CUstream_st* stream);
/// weights[r, the column at position n - 1 - i] += x[r, i].
int LaunchScatterAddBackwards(const double* x, const std::int32_t* order, float* weights, int rows,
                              std::int64_t n, CUstream_st* stream);
/// y[r, i] = x[r, order[i]].
int LaunchGatherColumns(const float* x, const std::int32_t* order, float* y, int rows,
                        std::int64_t n, CUstream_st* stream);
/// y[r, i] = x[r, i] for i < cols; both n numbers a row.
int LaunchCopyColumns(const float* x, float* y, int rows, int cols, std::int64_t n,
                      CUstream_st* stream);
/// out[r] = sum over i of curvature[i] (a[r, i] + b[r, i])^2.
struct SquareRowsArgs {
  const float* a = nullptr;
  const float* b = nullptr;
  const double* curvature = nullptr;
  double* out = nullptr;
  int rows = 0;
  std::int64_t n = 0;
};
int LaunchSquareRows(const SquareRowsArgs& args, CUstream_st* stream);

// --- grids: solve/grid.h, for one group of one row ---

/// NearestCode of a codebook as a table, its cells (codec/code_cells.h), by their keys.
/// Without initial values, as shared memory has none.
struct CodeTable {
  static constexpr int kMaxCodes = 256;
  std::int32_t last_key[kMaxCodes];  // the largest key that still has this rank, or 2^31 - 1
  float values[kMaxCodes];           // by rank
  std::uint8_t codes[kMaxCodes];     // by rank
};

enum class ScaleStorage : std::uint8_t { kF32, kF16, kBF16 };
enum class ScaleRule : std::uint8_t { kAny, kPowersOfTwo, kE4M3 };  // ScaleGrid

struct GridRules {
  const CodeTable* table = nullptr;  // of a codebook; null: a uniform grid
  int bits = 4;
  float top = 15.0F;     // uniform: the largest code
  float middle = 8.0F;   // uniform: the zero of a symmetric grid
  float largest = 1.0F;  // codebook: the largest value
  bool has_zero_points = false;
  ScaleStorage storage = ScaleStorage::kF16;
  ScaleRule rule = ScaleRule::kAny;
  float divisor = 1.0F;             // kE4M3
  const CodeTable* e4m3 = nullptr;  // kE4M3
  bool search = true;
  bool both_signs = false;
  bool is_fixed = false;  // one grid for all groups
  float fixed_scale = 0.0F, fixed_zero = 0.0F;
};

/// Grids of groups [first_group, first_group + num_groups) of all rows. Group first_group + g has
/// columns [g * size, (g + 1) * size) of the arrays below.
struct SearchGridsArgs {
  GridRules rules;
  const float* weights = nullptr;         // [rows, n]
  const std::int32_t* columns = nullptr;  // of `weights`; null: 0, 1, ...
  const float* moved = nullptr;           // [rows, n], added to the weights; or null
  const float* curvature = nullptr;
  std::int64_t n = 0;
  int rows = 0;
  int size = 0;
  int first_group = 0;
  int num_groups = 1;
  int groups_per_row = 0;  // of the two below
  float* scales = nullptr;
  float* zeros = nullptr;
};
int LaunchSearchGrids(const SearchGridsArgs& args, CUstream_st* stream);

// --- sweep ---

constexpr int kSweepBlock = 64;  // positions that one kernel rounds

/// Rounds positions [at, at + count), at most kSweepBlock: of row r, in order,
///   t_i = w_i + moved[r, i] + sum over at <= j < i of ratios[j, i] e_j
///   e_i = w_i - rounded_i,  row_errors[r] += curvature[i] (t_i - rounded_i)^2
struct RoundBlockArgs {
  GridRules rules;
  const float* weights = nullptr;       // [rows, n], by column
  const std::int32_t* order = nullptr;  // [n]
  const float* moved = nullptr;         // [rows, n], by position
  const float* ratios = nullptr;        // [n, n]
  const double* curvature = nullptr;    // [n]
  const float* scales = nullptr;        // [rows, groups_per_row]
  const float* zeros = nullptr;
  float* errors = nullptr;        // [rows, n], by position
  std::uint8_t* codes = nullptr;  // [rows, n], by column
  double* row_errors = nullptr;   // [rows]
  std::int64_t n = 0;
  int rows = 0;
  int at = 0;
  int count = 0;
  int group_size = 0;
  int groups_per_row = 0;
};
int LaunchRoundBlock(const RoundBlockArgs& args, CUstream_st* stream);

}  // namespace nibble::cuda
