#include "solve/cuda_solver.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/dense_algebra.h"
#include "kernels/cuda/gptq_kernel.h"
#include "kernels/cuda/stream_timer.h"
#include "solve/correction.h"
#include "solve/cuda_grid.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

using cuda::Matrix;
using cuda::Precision;
using Shift = InputSums::Shift;

constexpr std::int64_t kBatchTokens = 2048;     // multiplied at once
constexpr std::int64_t kUpperPanel = 2048;      // columns of an upper triangle multiplied at once
constexpr std::int64_t kCorrectionRows = 2048;  // corrected at once
constexpr std::int64_t kSpan = 256;             // positions whose errors go to later ones together
constexpr std::int64_t kLeastGroup = 8;         // columns that share a scale
constexpr const char* kHostLine = "solver (host)";
constexpr const char* kLine = "solver";  // of the ledger

// Hands out parts of one range of memory; without a range it only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  template <typename T>
  T* Take(std::int64_t count) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t at = used_;
    used_ +=
        (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

// All memory of one input, n wide, and of its largest matrix, [rows, n].
struct Buffers {
  Buffers() = default;
  Buffers(Carver carver, const SolverLimits::Input& input, Shift with_shift) {
    const std::int64_t n = input.width;
    const std::int64_t square = n * n;
    const std::int64_t matrix = n * input.max_rows;
    const std::int64_t groups = input.max_rows * ((n + kLeastGroup - 1) / kLeastGroup);
    const bool has_shift = with_shift != Shift::kNone;
    const bool has_other = with_shift == Shift::kSome;
    constexpr std::int64_t kAlign = 64;
    pitch = (n + kAlign - 1) / kAlign * kAlign;
    hessian = carver.Take<double>(square);
    shift = carver.Take<double>(has_shift ? square : 0);
    shift_hessian = carver.Take<double>(has_other ? square : 0);
    factor = carver.Take<double>(square);
    shift_factor = carver.Take<double>(has_other ? square : 0);
    product = carver.Take<float>(square);
    y = carver.Take<std::uint16_t>(kBatchTokens * pitch);
    moved = carver.Take<std::uint16_t>(has_shift ? kBatchTokens * pitch : 0);
    diagonal = carver.Take<double>(n);
    curvature = carver.Take<double>(n);
    curvature_f32 = carver.Take<float>(n);
    column_curvature = carver.Take<float>(n);
    order = carver.Take<std::int32_t>(n);
    natural = carver.Take<std::int32_t>(n);
    tables = carver.Take<cuda::CodeTable>(kNumCodeTables);
    not_finite = carver.Take<unsigned long long>(1);
    weights = carver.Take<float>(matrix);
    sums = carver.Take<float>(matrix);
    errors = carver.Take<float>(matrix);
    codes = carver.Take<std::uint8_t>(matrix);
    scales = carver.Take<float>(groups);
    zeros = carver.Take<float>(groups);
    row_errors = carver.Take<double>(input.max_rows);
    row_energies = carver.Take<double>(input.max_rows);
    const std::int64_t corrected = has_shift ? std::min(kCorrectionRows, input.max_rows) * n : 0;
    wide = carver.Take<double>(corrected);
    change = carver.Take<double>(corrected);
    size_bytes = carver.used();
  }

  // Of the input.
  double* hessian = nullptr;        // [n, n], on and above the diagonal
  double* shift = nullptr;          // [n, n]
  double* shift_hessian = nullptr;  // of the rows with x, if others came
  double* factor = nullptr;         // U of the Hessian in sweep order, backwards
  double* shift_factor = nullptr;   // U of shift_hessian in natural order, backwards
  float* product = nullptr;         // of a batch; then the ratios
  std::uint16_t* y = nullptr;       // bf16 [kBatchTokens, pitch]
  std::uint16_t* moved = nullptr;   // x - y
  std::int64_t pitch = 0;
  double* diagonal = nullptr;
  double* curvature = nullptr;
  float* curvature_f32 = nullptr;
  float* column_curvature = nullptr;
  std::int32_t* order = nullptr;
  std::int32_t* natural = nullptr;
  cuda::CodeTable* tables = nullptr;
  // Of a matrix.
  unsigned long long* not_finite = nullptr;
  float* weights = nullptr;  // by column; corrected in place
  float* sums = nullptr;     // by position: what earlier errors add
  float* errors = nullptr;   // by position
  std::uint8_t* codes = nullptr;
  float* scales = nullptr;
  float* zeros = nullptr;
  double* row_errors = nullptr;
  double* row_energies = nullptr;
  double* wide = nullptr;    // [kCorrectionRows, n]
  double* change = nullptr;  // the same
  std::uint64_t size_bytes = 0;
};

// What is copied to the card in its queue's order, in pinned host memory.
struct Pinned {
  Pinned() = default;
  Pinned(Carver carver, std::int64_t n) {
    order = carver.Take<std::int32_t>(n);
    natural = carver.Take<std::int32_t>(n);
    tables = carver.Take<cuda::CodeTable>(kNumCodeTables);
    size_bytes = carver.used();
  }
  std::int32_t* order = nullptr;
  std::int32_t* natural = nullptr;  // 0, 1, ...
  cuda::CodeTable* tables = nullptr;
  std::uint64_t size_bytes = 0;
};
std::uint64_t HostBytes(std::int64_t n) { return Pinned(Carver(nullptr), n).size_bytes; }

std::int64_t WidestOf(const SolverLimits& limits) {
  std::int64_t widest = 0;
  for (const SolverLimits::Input& input : limits.inputs) {
    widest = std::max(widest, input.width);
  }
  return widest;
}

cuda::InputRows RowsOf(const ActivationRows& rows, std::int64_t first) {
  const bool is_f16 = rows.dtype == DType::kF16;
  const std::int64_t at = first * rows.stride * (is_f16 ? 2 : 4);
  return {.data = static_cast<const std::byte*>(rows.data) + at,
          .is_f16 = is_f16,
          .stride = rows.stride,
          .scale = rows.scale};
}

class CudaLinearSolver final : public LinearSolver {
 public:
  CudaLinearSolver(CudaDevice& device, const SolverLimits& limits)
      : device_(device), limits_(limits), timer_(device) {}

  Result<void> Open() {
    std::uint64_t bytes = 0;
    for (const SolverLimits::Input& input : limits_.inputs) {
      bytes = std::max(bytes, Buffers(Carver(nullptr), input, limits_.shift).size_bytes);
    }
    NIBBLE_TRY(memory, device_.Allocate(kLine, bytes));
    memory_ = std::move(memory);
    const std::int64_t widest = WidestOf(limits_);
    NIBBLE_TRY(host, device_.AllocateHost(kHostLine, HostBytes(widest)));
    host_ = std::move(host);
    pinned_ = Pinned(Carver(host_.data()), widest);
    std::iota(pinned_.natural, pinned_.natural + widest, 0);
    NIBBLE_TRY(algebra, cuda::DenseAlgebra::Create(device_, widest));
    algebra_ = std::move(algebra);
    return {};
  }

  Result<void> Begin(std::int64_t width) override {
    n_ = width;
    max_rows_ = 0;
    for (const SolverLimits::Input& input : limits_.inputs) {
      max_rows_ = std::max(max_rows_, input.width == width ? input.max_rows : 0);
    }
    NIBBLE_CHECK(max_rows_ > 0, "a width that was not announced");
    at_ = Buffers(Carver(memory_.data()), {width, max_rows_}, limits_.shift);
    num_tokens_ = num_shift_tokens_ = num_waiting_ = 0;
    batch_has_shift_ = has_shift_hessian_ = has_shift_factor_ = is_factorized_ = false;
    Clear(at_.hessian, n_ * n_);
    if (HasShift()) {
      Clear(at_.shift, n_ * n_);
    }
    Copy(at_.natural, pinned_.natural, n_);
    return device_.Health();
  }

  void Add(const ActivationRows& y, const ActivationRows* x) override {
    NIBBLE_CHECK(y.width == n_ && (x == nullptr || x->num_rows == y.num_rows), "other rows");
    const bool with_shift = HasShift() && x != nullptr;
    NIBBLE_CHECK(!with_shift || num_tokens_ == num_shift_tokens_, "rows with x come first");
    timer_.Begin();
    if (batch_has_shift_ != with_shift) {
      Flush();
      if (!with_shift) {
        KeepShiftHessian();
      }
      batch_has_shift_ = with_shift;
    }
    for (std::int64_t row = 0; row < y.num_rows;) {
      const std::int64_t rows = std::min(y.num_rows - row, kBatchTokens - num_waiting_);
      cuda::PackInputsArgs args{.y = RowsOf(y, row),
                                .out = at_.y + num_waiting_ * at_.pitch,
                                .pitch = at_.pitch,
                                .width = static_cast<int>(n_),
                                .rows = static_cast<int>(rows)};
      if (with_shift) {
        args.x = RowsOf(*x, row);
        args.moved = at_.moved + num_waiting_ * at_.pitch;
      }
      Note(cuda::LaunchPackInputs(args, device_.stream()), "packing inputs");
      num_waiting_ += rows;
      row += rows;
      if (num_waiting_ == kBatchTokens) {
        Flush();
      }
    }
    num_tokens_ += y.num_rows;
    num_shift_tokens_ += with_shift ? y.num_rows : 0;
    timer_.End();
  }

  Result<std::vector<double>> Finish() override {
    timer_.Begin();
    Flush();
    NIBBLE_TRY(diagonal, DiagonalOf(at_.hessian));
    diagonal_ = std::move(diagonal);
    timer_.End();
    times_.sums += timer_.Take();
    return diagonal_;
  }

  Result<void> Factorize(const FactorOptions& options) override {
    timer_.Begin();
    is_factorized_ = false;
    NIBBLE_TRY(facts, ReadDiagonal(diagonal_, num_tokens_));
    order_ = OrderColumns(diagonal_, options);
    std::ranges::copy(order_, pinned_.order);
    Copy(at_.order, pinned_.order, n_);
    NIBBLE_TRY(damping,
               FactorizeOf(at_.hessian, at_.order, facts.mean, options.damping, at_.factor));
    damping_ = damping;
    Note(cuda::LaunchRatios({.u = at_.factor,
                             .order = at_.order,
                             .ratios = at_.product,
                             .curvature = at_.curvature,
                             .curvature_f32 = at_.curvature_f32,
                             .column_curvature = at_.column_curvature,
                             .n = n_},
                            device_.stream()),
         "the ratios of a factor");
    if (has_shift_hessian_ && !has_shift_factor_) {
      NIBBLE_TRY(diagonal, DiagonalOf(at_.shift_hessian));
      NIBBLE_TRY(shift_facts, ReadDiagonal(diagonal, num_shift_tokens_));
      NIBBLE_TRY_VOID(FactorizeOf(at_.shift_hessian, at_.natural, shift_facts.mean, options.damping,
                                  at_.shift_factor));
      has_shift_factor_ = true;
    }
    timer_.End();
    times_.factor += timer_.Take();
    is_factorized_ = true;
    return device_.Health();
  }

  Result<Solved> Solve(std::span<const float> weights, const GptqOptions& options) override {
    NIBBLE_CHECK(is_factorized_, "Solve follows Factorize");
    NIBBLE_TRY_VOID(CheckGroups(options, n_));
    if (options.spec.group_size < kLeastGroup) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("groups of {} columns: a card takes {} or more",
                              options.spec.group_size, kLeastGroup));
    }
    const auto count = static_cast<std::int64_t>(weights.size());
    NIBBLE_CHECK(count % n_ == 0 && count / n_ <= max_rows_, "more rows than announced");
    rows_ = count / n_;
    NIBBLE_TRY_VOID(CheckFinite(weights.data(), count));
    Copy(at_.weights, weights.data(), count);
    if (num_shift_tokens_ > 0) {
      timer_.Begin();
      Correct();
      timer_.End();
      times_.correction += timer_.Take();
    }
    timer_.Begin();
    NIBBLE_TRY(grid, GridOptions(options, count));
    std::ranges::copy(TablesOf(options.spec), pinned_.tables);
    Copy(at_.tables, pinned_.tables, kNumCodeTables);
    rules_ = RulesOf(options.spec, grid, at_.tables);
    MeasureEnergy();
    Sweep(options);
    timer_.End();
    Solved solved{.damping = damping_};
    NIBBLE_TRY(tensor, ReadTensor(options.spec, grid.scale_divisor));
    NIBBLE_TRY(error, SumOf(at_.row_errors));
    NIBBLE_TRY(energy, SumOf(at_.row_energies));
    solved.tensor = std::move(tensor);
    solved.report = {.error = error, .energy = energy};
    times_.sweep += timer_.Take();
    return solved;
  }

  void End() override { is_factorized_ = false; }

 private:
  bool HasShift() const { return limits_.shift != Shift::kNone; }
  void Note(int error, const char* what) { device_.NoteError(error, what); }
  template <typename T>
  Matrix<T> Square(T* data) const {
    return {data, n_, n_, n_};
  }
  // The ratios, and the matrices of this size: by position.
  Matrix<const float> Ratios() const { return {at_.product, n_, n_, n_}; }
  Matrix<float> Sums() const { return {at_.sums, rows_, n_, n_}; }
  Matrix<float> Errors() const { return {at_.errors, rows_, n_, n_}; }
  template <typename T>
  static Matrix<const T> Const(const Matrix<T>& matrix) {
    return {matrix.data, matrix.rows, matrix.cols, matrix.pitch};
  }
  template <typename T>
  void Clear(T* data, std::int64_t count) {
    Note(cuda::LaunchClear(data, count * static_cast<std::int64_t>(sizeof(T)), device_.stream()),
         "clearing memory");
  }
  template <typename T>
  void Copy(T* to, const T* from, std::int64_t count) {
    device_.Copy(reinterpret_cast<std::byte*>(to), reinterpret_cast<const std::byte*>(from),
                 static_cast<std::size_t>(count) * sizeof(T));
  }
  template <typename T>
  Result<void> Read(std::vector<T>& to, const T* from, std::int64_t count) {
    to.resize(static_cast<std::size_t>(count));
    return device_.Read(reinterpret_cast<std::byte*>(to.data()),
                        reinterpret_cast<const std::byte*>(from), to.size() * sizeof(T));
  }

  // --- sums ---

  // The rows that wait become a part of the sums.
  void Flush() {
    if (num_waiting_ == 0) {
      return;
    }
    const Matrix<const std::uint16_t> y{at_.y, num_waiting_, n_, at_.pitch};
    const Matrix<float> product = Square(at_.product);
    for (std::int64_t begin = 0; begin < n_; begin += kUpperPanel) {
      const std::int64_t end = std::min(n_, begin + kUpperPanel);
      algebra_->TransposedProduct(y.Columns(0, end), y.Columns(begin, end),
                                  product.Rows(0, end).Columns(begin, end));
    }
    Note(cuda::LaunchAddToSums(at_.product, at_.hessian, n_, /*upper_only=*/true, device_.stream()),
         "adding to a Hessian");
    if (batch_has_shift_) {
      algebra_->TransposedProduct({at_.moved, num_waiting_, n_, at_.pitch}, y, product);
      Note(
          cuda::LaunchAddToSums(at_.product, at_.shift, n_, /*upper_only=*/false, device_.stream()),
          "adding to a shift");
    }
    num_waiting_ = 0;
  }

  // What was summed so far belongs to the rows with x; from now on others come.
  void KeepShiftHessian() {
    NIBBLE_CHECK(limits_.shift == Shift::kSome, "all rows were to have x");
    Copy(at_.shift_hessian, at_.hessian, n_ * n_);
    has_shift_hessian_ = true;
  }

  Result<std::vector<double>> DiagonalOf(const double* matrix) {
    Note(cuda::LaunchDiagonal(matrix, n_, at_.diagonal, device_.stream()), "a diagonal");
    std::vector<double> diagonal;
    NIBBLE_TRY_VOID(Read(diagonal, at_.diagonal, n_));
    return diagonal;
  }

  // --- factor ---

  // u = U of the Hessian h, columns in this order, backwards. Returns the damping that it took.
  Result<double> FactorizeOf(const double* h, const std::int32_t* order, double mean,
                             double damping, double* u) {
    for (int num_retries = 0;;) {
      Note(cuda::LaunchGatherSymmetric(
               {.h = h, .order = order, .added = damping * mean, .out = u, .n = n_},
               device_.stream()),
           "ordering a Hessian");
      NIBBLE_TRY(is_positive, algebra_->Factorize(Square(u)));
      if (is_positive) {
        return damping;
      }
      NIBBLE_TRY(more, MoreDamping(damping, ++num_retries));
      damping = more;
    }
  }

  // --- one matrix ---

  Result<void> CheckFinite(const float* weights, std::int64_t count) {
    Note(cuda::LaunchFindNotFinite(weights, count, at_.not_finite, device_.stream()),
         "looking at weights");
    std::vector<unsigned long long> first;
    NIBBLE_TRY_VOID(Read(first, at_.not_finite, 1));
    return first[0] >= static_cast<unsigned long long>(count)
               ? Result<void>{}
               : NotFinite(static_cast<std::int64_t>(first[0]), n_);
  }

  // W += strength W S (H + lambda I)^-1 with the Hessian of the shift's rows.
  void Correct() {
    const double strength = CorrectionStrength(num_shift_tokens_, n_);
    const double* u = has_shift_factor_ ? at_.shift_factor : at_.factor;
    const std::int32_t* order = has_shift_factor_ ? at_.natural : at_.order;
    CUstream_st* stream = device_.stream();
    for (std::int64_t row = 0; row < rows_; row += kCorrectionRows) {
      const std::int64_t rows = std::min(kCorrectionRows, rows_ - row);
      const auto num_rows = static_cast<int>(rows);
      float* weights = at_.weights + row * n_;
      const Matrix<double> wide{at_.wide, rows, n_, n_};
      const Matrix<double> change{at_.change, rows, n_, n_};
      Note(cuda::LaunchWiden(weights, wide.data, rows * n_, stream), "widening weights");
      algebra_->Product(strength, Const(wide), Const(Square(at_.shift)), change);
      Note(cuda::LaunchGatherBackwards(change.data, order, wide.data, num_rows, n_, stream),
           "ordering a correction");
      algebra_->Solve({u, n_, n_, n_}, wide);
      Note(cuda::LaunchScatterAddBackwards(wide.data, order, weights, num_rows, n_, stream),
           "adding a correction");
    }
  }

  // What all weights settle is settled by the corrected ones, which lie on the card.
  Result<GridSearch::Options> GridOptions(const GptqOptions& options, std::int64_t count) {
    const bool needs_weights =
        options.spec.has_one_scale ||
        (options.spec.scale_grid == ScaleGrid::kE4M3 && options.scale_divisor == 0.0F);
    std::vector<float> weights;
    if (needs_weights) {
      NIBBLE_TRY_VOID(Read(weights, at_.weights, count));
    }
    return OptionsFor(options.spec, weights,
                      {.scale_dtype = options.scale_dtype,
                       .search = options.search_scale,
                       .both_signs = options.both_signs,
                       .scale_divisor = options.scale_divisor});
  }

  // |w R|^2 of each row. It is only looked at, so tf32 is exact enough.
  void MeasureEnergy() {
    Note(cuda::LaunchGatherColumns(at_.weights, at_.order, at_.errors, static_cast<int>(rows_), n_,
                                   device_.stream()),
         "ordering weights");
    for (std::int64_t begin = 0; begin < n_; begin += kUpperPanel) {
      const std::int64_t end = std::min(n_, begin + kUpperPanel);
      algebra_->Product(Const(Errors().Columns(0, end)), Ratios().Rows(0, end).Columns(begin, end),
                        Sums().Columns(begin, end),
                        /*add=*/false, Precision::kTf32);
    }
    Note(cuda::LaunchSquareRows({.a = at_.errors,
                                 .b = at_.sums,
                                 .curvature = at_.curvature,
                                 .out = at_.row_energies,
                                 .rows = static_cast<int>(rows_),
                                 .n = n_},
                                device_.stream()),
         "the energy of weights");
  }

  void Sweep(const GptqOptions& options) {
    const std::int64_t group = options.spec.group_size;
    // Of a group as wide as the row the free values are the weights themselves.
    const bool is_static = !options.sweep_scales || group == n_ || rules_.is_fixed;
    Clear(at_.sums, rows_ * n_);
    Clear(at_.row_errors, rows_);
    if (is_static) {
      SearchStaticGrids(group);
    }
    const std::int64_t step = is_static ? std::int64_t{cuda::kSweepBlock} : group;
    const std::int64_t span = std::max(step, kSpan / step * step);
    for (std::int64_t begin = 0; begin < n_; begin += span) {
      const std::int64_t end = std::min(n_, begin + span);
      for (std::int64_t at = begin; at < end; at += step) {
        if (!is_static) {
          SearchGrids(at, group);
        }
        RoundPositions(at, std::min(end, at + step), end, group);
      }
      Spread(begin, end, n_);
    }
  }

  // What the errors of positions [begin, end) add to those of [end, stop).
  void Spread(std::int64_t begin, std::int64_t end, std::int64_t stop) {
    if (end < stop) {
      algebra_->Product(Const(Errors().Columns(begin, end)),
                        Ratios().Rows(begin, end).Columns(end, stop), Sums().Columns(end, stop),
                        /*add=*/true, Precision::kF32);
    }
  }

  // Rounds positions [begin, end) of a span that ends at `stop`, and spreads their errors in it.
  void RoundPositions(std::int64_t begin, std::int64_t end, std::int64_t stop, std::int64_t group) {
    for (std::int64_t at = begin; at < end; at += cuda::kSweepBlock) {
      const std::int64_t next = std::min<std::int64_t>(end, at + cuda::kSweepBlock);
      Note(cuda::LaunchRoundBlock({.rules = rules_,
                                   .weights = at_.weights,
                                   .order = at_.order,
                                   .moved = at_.sums,
                                   .ratios = at_.product,
                                   .curvature = at_.curvature,
                                   .scales = at_.scales,
                                   .zeros = at_.zeros,
                                   .errors = at_.errors,
                                   .codes = at_.codes,
                                   .row_errors = at_.row_errors,
                                   .n = n_,
                                   .rows = static_cast<int>(rows_),
                                   .at = static_cast<int>(at),
                                   .count = static_cast<int>(next - at),
                                   .group_size = static_cast<int>(group),
                                   .groups_per_row = static_cast<int>(n_ / group)},
                                  device_.stream()),
           "rounding columns");
      Spread(at, next, stop);
    }
  }

  cuda::SearchGridsArgs SearchArgs(std::int64_t group) const {
    return {.rules = rules_,
            .weights = at_.weights,
            .n = n_,
            .rows = static_cast<int>(rows_),
            .size = static_cast<int>(group),
            .groups_per_row = static_cast<int>(n_ / group),
            .scales = at_.scales,
            .zeros = at_.zeros};
  }

  void SearchStaticGrids(std::int64_t group) {
    cuda::SearchGridsArgs args = SearchArgs(group);
    args.curvature = at_.column_curvature;
    args.num_groups = static_cast<int>(n_ / group);
    Note(cuda::LaunchSearchGrids(args, device_.stream()), "searching scales");
  }

  // Of the group at positions [at, at + group), for the values that its columns would take if none
  // were rounded: t = w + d with d = sums - d N, N the ratios inside the group.
  void SearchGrids(std::int64_t at, std::int64_t group) {
    const Matrix<float> free = Errors().Columns(at, at + group);  // errors are still to come there
    Note(cuda::LaunchCopyColumns(at_.sums + at, free.data, static_cast<int>(rows_),
                                 static_cast<int>(group), n_, device_.stream()),
         "copying sums");
    algebra_->SolveUnit(Ratios().Rows(at, at + group).Columns(at, at + group), free);
    cuda::SearchGridsArgs args = SearchArgs(group);
    args.columns = at_.order + at;
    args.moved = free.data;
    args.curvature = at_.curvature_f32 + at;
    args.first_group = static_cast<int>(order_[static_cast<std::size_t>(at)] / group);
    Note(cuda::LaunchSearchGrids(args, device_.stream()), "searching scales");
  }

  Result<QuantizedTensor> ReadTensor(const WeightSpec& spec, float scale_divisor) {
    QuantizedTensor out{.spec = spec, .scale_divisor = scale_divisor};
    out.spec.rows = rows_;
    const std::int64_t groups = rows_ * out.spec.num_groups();
    NIBBLE_TRY_VOID(Read(out.codes, at_.codes, rows_ * n_));
    NIBBLE_TRY_VOID(Read(out.scales, at_.scales, groups));
    if (spec.has_zero_points) {
      std::vector<float> zeros;
      NIBBLE_TRY_VOID(Read(zeros, at_.zeros, groups));
      out.zero_points.reserve(zeros.size());
      for (const float zero : zeros) {
        out.zero_points.push_back(static_cast<std::uint8_t>(zero));
      }
    }
    return out;
  }

  Result<double> SumOf(const double* rows) {
    std::vector<double> values;
    NIBBLE_TRY_VOID(Read(values, rows, rows_));
    return std::accumulate(values.begin(), values.end(), 0.0);
  }

  CudaDevice& device_;
  const SolverLimits limits_;
  cuda::StreamTimer timer_;
  std::unique_ptr<cuda::DenseAlgebra> algebra_;
  DeviceBuffer memory_, host_;
  Pinned pinned_;

  // Of the input.
  Buffers at_;
  std::int64_t n_ = 0, max_rows_ = 0;
  std::int64_t num_tokens_ = 0, num_shift_tokens_ = 0;
  std::int64_t num_waiting_ = 0;  // rows in the batch
  bool batch_has_shift_ = false;  // all of them, or none
  bool has_shift_hessian_ = false, has_shift_factor_ = false, is_factorized_ = false;
  std::vector<double> diagonal_;
  std::vector<std::int32_t> order_;
  double damping_ = 0.0;

  // Of the matrix.
  std::int64_t rows_ = 0;
  cuda::GridRules rules_;
};

}  // namespace

SolverMemory MemoryOfCudaSolver(const SolverLimits& limits) {
  SolverMemory memory{.host_bytes = HostBytes(WidestOf(limits))};
  for (const SolverLimits::Input& input : limits.inputs) {
    // Beside its own memory, the matrix that it is given.
    const auto given = static_cast<std::uint64_t>(input.width * input.max_rows) * sizeof(float);
    memory.device_bytes = std::max(
        memory.device_bytes, given + Buffers(Carver(nullptr), input, limits.shift).size_bytes);
  }
  memory.device_bytes += cuda::DenseAlgebra::SizeBytes(WidestOf(limits));
  return memory;
}

Result<void> CheckCudaSolver() { return cuda::DenseAlgebra::Check(); }

Result<std::unique_ptr<LinearSolver>> MakeCudaSolver(CudaDevice& device,
                                                     const SolverLimits& limits) {
  auto solver = std::make_unique<CudaLinearSolver>(device, limits);
  NIBBLE_TRY_VOID(solver->Open());
  return std::unique_ptr<LinearSolver>(std::move(solver));
}

}  // namespace nibble
