#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"

namespace nibble {

/// H = sum over tokens of x x^T of one linear's input, in double (kernels/gram.h says from what).
/// Linears that multiply the same input share one. Only the upper half is kept.
class Hessian {
 public:
  /// max_tokens: rows that one Add may bring.
  Hessian(std::int64_t width, std::int64_t max_tokens);
  /// Bytes that a Hessian takes.
  static std::uint64_t SizeBytes(std::int64_t width, std::int64_t max_tokens);

  /// x [num_tokens, width], contiguous. The order of calls matters for the last bits, the number of
  /// threads does not.
  void Add(ThreadPool& pool, const float* x, std::int64_t num_tokens);

  std::int64_t width() const { return width_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  double At(std::int64_t i, std::int64_t j) const {
    return i <= j ? sum_[static_cast<std::size_t>(i * padded_ + j)]
                  : sum_[static_cast<std::size_t>(j * padded_ + i)];
  }

 private:
  friend class InputSums;
  std::int64_t width_, padded_, max_tokens_;
  std::int64_t num_tokens_ = 0;
  std::vector<double> sum_;    // [padded, padded]
  std::vector<float> panels_;  // [padded / 16][tokens][16]
};

/// What a linear sees in two models, summed: y in the one that is solved for and x in the other.
/// Beside the Hessian of y this is the shift, S = sum of (x - y) y^T, not symmetric: x is taken
/// from y before anything is rounded, so that little is lost where the two are close. Then y and x
/// - y are rounded to whole numbers, with a step for each channel of a block of tokens
/// (PackInt16Block).
class InputSums {
 public:
  /// Which rows come with their x.
  enum class Shift : std::uint8_t { kNone, kSome, kAll };
  /// max_tokens: rows that one Add may bring.
  InputSums(std::int64_t width, std::int64_t max_tokens, Shift shift);
  /// Bytes that the sums take.
  static std::uint64_t SizeBytes(std::int64_t width, std::int64_t max_tokens, Shift shift);

  /// y and x, [num_tokens, width], contiguous; or, after all of those, y alone (x null). The order
  /// of calls matters for the last bits, the number of threads does not.
  void Add(ThreadPool& pool, const float* y, const float* x, std::int64_t num_tokens);
  /// After the last Add.
  void Finish(ThreadPool& pool);

  const Hessian& hessian() const { return hessian_; }
  /// Of the rows whose x was given, as the shift is: a shift belongs to its own tokens. Beside the
  /// Hessian of all, one that had seen most of what some rare direction gets would correct that
  /// direction several times over, more in each linear.
  const Hessian& shift_hessian() const { return shift_hessian_ ? *shift_hessian_ : hessian_; }
  std::int64_t num_shift_tokens() const { return num_shift_tokens_; }
  /// Sum of (x_i - y_i) y_j over the tokens whose x was given.
  double ShiftAt(std::int64_t i, std::int64_t j) const {
    return shift_[static_cast<std::size_t>(i * hessian_.padded_ + j)];
  }

 private:
  static std::int64_t BatchLines(std::int64_t max_tokens);
  Hessian hessian_;
  std::optional<Hessian> shift_hessian_;      // if that is another
  std::int64_t batch_lines_, num_lines_ = 0;  // pairs of rows that wait in the panels, and steps
  std::vector<std::int64_t> block_pairs_;     // of rows, of each block that waits
  bool batch_has_shift_ = false;              // and in moved_, all or none
  std::int64_t num_shift_tokens_ = 0;
  std::vector<double> shift_;             // [padded, padded]
  std::vector<std::uint32_t> y_, moved_;  // panels [padded / 16][batch_lines][16]
};

/// Rows that QuadraticForm takes at a time: its memory is a Hessian of so many tokens.
constexpr std::int64_t kQuadraticFormRows = 512;

/// tr(E H E^T) of E [rows, hessian.width], row-major.
double QuadraticForm(ThreadPool& pool, std::span<const float> e, const Hessian& hessian);

/// In which order a sweep visits columns.
enum class ColumnOrder : std::uint8_t {
  kNatural,
  kDescending,  // by the Hessian's diagonal ("act order"), scales of all groups fixed beforehand
  kGroups       // whole groups by their diagonal's sum, and columns inside them ("GAR")
};
const char* Name(ColumnOrder order);

struct FactorOptions {
  ColumnOrder order = ColumnOrder::kGroups;
  std::int64_t group_size = 64;
  double damping = 0.01;  // of the mean of the diagonal, added to it
};

/// What a factor needs of the diagonal of H.
struct DiagonalFacts {
  double mean = 1.0;          // 1 for a Hessian of zeros, which leaves plain rounding
  std::int64_t num_dead = 0;  // columns that no token touched
};
/// Errors: those of Factorize.
Result<DiagonalFacts> ReadDiagonal(std::span<const double> diagonal, std::int64_t num_tokens);
/// The column at each position.
std::vector<std::int32_t> OrderColumns(std::span<const double> diagonal,
                                       const FactorOptions& options);
/// What to try after `damping`, for the num_retries-th time. Errors: kInternal where it is in vain.
Result<double> MoreDamping(double damping, int num_retries);

/// H + lambda I = R R^T, R upper triangular, columns in sweep order. Then
///   |R^T (q - w)|^2 = sum over i of R_ii^2 (q_i - t_i)^2,
///   t_i = w_i + sum over j < i of (R_ji / R_ii) (w_j - q_j)
/// which is what GPTQ minimizes column by column (Frantar et al. 2022; as Babai's nearest plane,
/// Chen et al. 2025), without inverting H.
struct HessianFactor {
  std::int64_t width = 0;
  std::int64_t padded = 0;          // in whole panels; the columns beyond width see nothing
  std::vector<std::int32_t> order;  // [width] column at each position
  std::vector<double> diagonal;     // [padded] R_ii^2, by position
  std::vector<float> ratios;        // panel p: [16 (p + 1)][16], R_ji / R_ii, 0 from j = i on
  std::vector<float> row_ratios;    // panel p: [padded - 16 p][16], R_ik / R_ii, 0 up to k = i
  double damping = 0.0;             // what it took; more than asked for if H was worse than that
  int num_retries = 0;
  std::int64_t num_dead = 0;  // columns that no token touched

  /// Ratios of the columns of panel p to all positions j before them.
  const float* Ratios(std::int64_t p) const { return ratios.data() + RatiosBegin(p); }
  static std::int64_t RatiosBegin(std::int64_t p) { return 128 * p * (p + 1); }
  /// Ratios of the rows of panel p to all positions k from 16 p on.
  const float* RowRatios(std::int64_t p) const { return row_ratios.data() + RowRatiosBegin(p); }
  std::int64_t RowRatiosBegin(std::int64_t p) const { return 16 * (p * padded - 8 * p * (p - 1)); }
  /// Bytes of it, and at the peak of Factorize.
  static std::uint64_t SizeBytes(std::int64_t width);
  static std::uint64_t PeakBytes(std::int64_t width);
};

/// Damping grows tenfold until every pivot is positive. Errors: kInvalidArgument for a Hessian with
/// no tokens, or one that is not finite (an overflow in the model).
Result<HessianFactor> Factorize(ThreadPool& pool, const Hessian& hessian,
                                const FactorOptions& options);

}  // namespace nibble
