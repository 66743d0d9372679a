#include "solve/cuda_solver.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "solve/correction.h"
#include "solve/rtn.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/solve/problem.h"

namespace nibble {
namespace {

using Shift = InputSums::Shift;

// How far the card's targets may be from the CPU's, in scales: its sums, factor and correction have
// other roundings.
constexpr double kOfScale = 4e-3;

// Inputs of at most 8 bits, with one step for a channel: the card's bf16 and the CPU's whole
// numbers are exact, and only sums differ. How others are rounded is tested where they are packed.
SolverProblem MakeExactProblem(std::int64_t rows, std::int64_t width, std::int64_t tokens,
                               std::uint32_t seed, std::int64_t num_dead = 1) {
  SolverProblem p = MakeSolverProblem(rows, width, tokens, seed, num_dead);
  const auto stride = static_cast<std::size_t>(width);
  for (std::size_t i = 0; i < stride; ++i) {
    float largest = 0.0F;
    for (std::size_t at = i; at < p.x.size(); at += stride) {
      largest = std::max({largest, std::fabs(p.x[at]), std::fabs(p.y[at])});
    }
    const float step = std::ldexp(1.0F, std::ilogb(largest > 0.0F ? largest : 1.0F) - 7);
    for (std::size_t at = i; at < p.x.size(); at += stride) {
      p.x[at] = step * std::nearbyint(p.x[at] / step);
      p.y[at] = step * std::nearbyint(p.y[at] / step);
    }
  }
  return p;
}

// The same linear on the CPU: its factor, and the weights that are rounded.
struct CpuSide {
  std::vector<double> squares;
  HessianFactor factor;
  std::vector<float> weights;  // corrected
};

class CudaSolver : public cuda::CudaTest {
 protected:
  std::unique_ptr<LinearSolver> Solver(const SolverLimits& limits) {
    auto solver = MakeCudaSolver(device(), limits);
    EXPECT_TRUE(solver) << solver.error().message;
    return solver ? std::move(*solver) : nullptr;
  }

  // Rows of p, num_at_once a call; the first num_shift with x.
  void AddAll(LinearSolver& solver, const SolverProblem& p, std::int64_t num_shift,
              std::int64_t num_at_once) {
    const DeviceBuffer x = Upload(p.x), y = Upload(p.y);
    for (std::int64_t row = 0; row < p.tokens;) {
      const std::int64_t stop = row < num_shift ? num_shift : p.tokens;
      const std::int64_t rows = std::min(num_at_once, stop - row);
      ActivationRows of_y{.data = y.as<float>() + row * p.width,
                          .stride = p.width,
                          .num_rows = rows,
                          .width = p.width};
      ActivationRows of_x = of_y;
      of_x.data = x.as<float>() + row * p.width;
      solver.Add(of_y, row < num_shift ? &of_x : nullptr);
      row += rows;
    }
    EXPECT_TRUE(device().Health());
    device().Wait(device().Record());
  }

  std::optional<LinearSolver::Solved> Solve(LinearSolver& solver, const std::vector<float>& weights,
                                            const GptqOptions& options) {
    const DeviceBuffer on_card = Upload(weights);
    auto solved = solver.Solve({on_card.as<float>(), weights.size()}, options);
    EXPECT_TRUE(solved) << solved.error().message;
    if (!solved) {
      return std::nullopt;
    }
    EXPECT_TRUE(Validate(solved->tensor)) << Validate(solved->tensor).error().message;
    return std::move(*solved);
  }
};

CpuSide OnCpu(ThreadPool& pool, const SolverProblem& p, std::int64_t num_shift, Shift shift,
              const FactorOptions& options) {
  InputSums sums(p.width, p.tokens, shift);
  sums.Add(pool, p.y.data(), num_shift > 0 ? p.x.data() : nullptr,
           num_shift > 0 ? num_shift : p.tokens);
  if (num_shift > 0 && num_shift < p.tokens) {
    sums.Add(pool, p.y.data() + num_shift * p.width, nullptr, p.tokens - num_shift);
  }
  sums.Finish(pool);
  CpuSide cpu;
  for (std::int64_t i = 0; i < p.width; ++i) {
    cpu.squares.push_back(sums.hessian().At(i, i));
  }
  auto factor = Factorize(pool, sums.hessian(), options);
  EXPECT_TRUE(factor) << factor.error().message;
  cpu.factor = std::move(*factor);
  cpu.weights = p.weights;
  if (num_shift > 0) {
    const bool is_own = &sums.shift_hessian() != &sums.hessian();
    const auto other = Factorize(pool, sums.shift_hessian(),
                                 {.order = ColumnOrder::kNatural, .damping = options.damping});
    EXPECT_TRUE(other);
    const HessianFactor& used = is_own ? *other : cpu.factor;
    const double strength = CorrectionStrength(num_shift, p.width);
    cpu.weights = CorrectWeights(pool, p.weights, used, ShiftOf(pool, used, sums, strength));
  }
  return cpu;
}

// Walks over a solved tensor as the sweep did, in double, and asks of each choice whether it is the
// best one, given those before it. Nothing follows from a tie here.
class Choices {
 public:
  Choices(const CpuSide& cpu, const QuantizedTensor& tensor, const GptqOptions& options)
      : cpu_(cpu),
        tensor_(tensor),
        group_(options.spec.group_size),
        search_(tensor.spec, OptionsFor(tensor.spec, cpu.weights,
                                        {.scale_dtype = options.scale_dtype,
                                         .search = options.search_scale,
                                         .both_signs = options.both_signs,
                                         .scale_divisor = options.scale_divisor})),
        is_static_(!options.sweep_scales || group_ == cpu.factor.width ||
                   tensor.spec.has_one_scale) {}

  void Check() {
    const std::vector<float> rounded = Dequantize(tensor_);
    for (std::int64_t row = 0; row < tensor_.spec.rows; ++row) {
      ASSERT_NO_FATAL_FAILURE(CheckRow(row, rounded));
    }
  }

 private:
  double Ratio(std::int64_t j, std::int64_t i) const {
    return static_cast<double>(cpu_.factor.Ratios(i / 16)[j * 16 + i % 16]);
  }
  std::int64_t Column(std::int64_t i) const {
    return cpu_.factor.order[static_cast<std::size_t>(i)];
  }
  std::size_t At(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * cpu_.factor.width + column);
  }
  LaneGrid GridAt(std::int64_t row, std::int64_t group) const {
    const auto at = static_cast<std::size_t>(row * tensor_.spec.num_groups() + group);
    const float scale = tensor_.scales[at];
    LaneGrid grid;
    grid.scale.fill(scale);
    grid.inverse.fill(scale == 0.0F ? 0.0F : 1.0F / scale);
    if (tensor_.spec.kind == CodecKind::kUniform) {
      grid.zero.fill(tensor_.zero_points.empty() ? static_cast<float>(1 << (tensor_.spec.bits - 1))
                                                 : static_cast<float>(tensor_.zero_points[at]));
    }
    return grid;
  }

  // Sum of curvature * error^2 of these values on a grid.
  double ErrorOn(const LaneGrid& grid, const std::vector<float>& values,
                 const std::vector<float>& curvature) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      Lane x, codes, rounded;
      x.fill(values[i]);
      search_.Round(grid, x, codes, rounded);
      const auto error = static_cast<double>(values[i] - rounded[0]);
      sum += static_cast<double>(curvature[i]) * error * error;
    }
    return sum;
  }

  void CheckGrid(std::int64_t row, std::int64_t group, const std::vector<float>& values,
                 const std::vector<float>& curvature) {
    std::vector<float> lanes;
    double size = 0.0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      lanes.insert(lanes.end(), kLanes, values[i]);
      size += static_cast<double>(curvature[i] * values[i] * values[i]);
    }
    const LaneGrid best = search_.Best(lanes.data(), curvature);
    const LaneGrid found = GridAt(row, group);
    const double least = ErrorOn(best, values, curvature);
    ASSERT_LE(ErrorOn(found, values, curvature), 1.01 * least + 1e-5 * size)
        << "row " << row << ", group " << group << ": scale " << found.scale[0] << ", zero "
        << found.zero[0] << "; the CPU takes " << best.scale[0] << ", " << best.zero[0];
  }

  void CheckRow(std::int64_t row, const std::vector<float>& rounded) {
    const HessianFactor& factor = cpu_.factor;
    const std::int64_t n = factor.width;
    std::vector<double> errors, free(static_cast<std::size_t>(n));
    std::vector<float> curvature(factor.diagonal.begin(), factor.diagonal.begin() + n);
    if (is_static_) {
      ASSERT_NO_FATAL_FAILURE(CheckStaticGrids(row, curvature));
    }
    for (std::int64_t i = 0; i < n; ++i) {
      if (!is_static_ && i % group_ == 0) {
        // The values of the group if nothing in it were rounded.
        std::vector<float> values;
        for (std::int64_t k = i; k < i + group_; ++k) {
          double t = static_cast<double>(cpu_.weights[At(row, Column(k))]);
          const double w = t;
          for (std::int64_t j = 0; j < k; ++j) {
            t += Ratio(j, k) *
                 (j < i ? errors[static_cast<std::size_t>(j)] : free[static_cast<std::size_t>(j)]);
          }
          free[static_cast<std::size_t>(k)] = w - t;
          values.push_back(static_cast<float>(t));
        }
        ASSERT_NO_FATAL_FAILURE(CheckGrid(row, Column(i) / group_, values,
                                          {curvature.begin() + i, curvature.begin() + i + group_}));
      }
      const std::int64_t column = Column(i);
      const double w = static_cast<double>(cpu_.weights[At(row, column)]);
      double t = w;
      for (std::int64_t j = 0; j < i; ++j) {
        t += Ratio(j, i) * errors[static_cast<std::size_t>(j)];
      }
      const auto value = static_cast<double>(rounded[At(row, column)]);
      const LaneGrid grid = GridAt(row, column / group_);
      Lane x, codes, nearest;
      x.fill(static_cast<float>(t));
      search_.Round(grid, x, codes, nearest);
      // As far from the target as its size and the grid's steps say that roundings may put it.
      const double slack =
          kOfScale * std::fabs(static_cast<double>(grid.scale[0])) * StepOf() + 2e-4 * std::fabs(t);
      ASSERT_LE(std::fabs(value - t), std::fabs(static_cast<double>(nearest[0]) - t) + slack)
          << "row " << row << ", position " << i << " (column " << column << "): target " << t
          << ", scale " << grid.scale[0] << ", code "
          << static_cast<int>(tensor_.codes[At(row, column)]) << " = " << value
          << "; the CPU takes " << codes[0] << " = " << nearest[0];
      errors.push_back(w - value);
    }
  }

  // Of codes, in scales.
  double StepOf() const {
    return tensor_.spec.kind == CodecKind::kUniform
               ? 1.0
               : static_cast<double>(LargestOf(tensor_.spec.codebook)) / 8.0;
  }

  void CheckStaticGrids(std::int64_t row, const std::vector<float>& curvature) {
    const std::int64_t n = cpu_.factor.width;
    std::vector<float> by_column(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      by_column[static_cast<std::size_t>(Column(i))] = curvature[static_cast<std::size_t>(i)];
    }
    for (std::int64_t begin = 0; begin < n; begin += group_) {
      const auto first = cpu_.weights.begin() + row * n + begin;
      ASSERT_NO_FATAL_FAILURE(
          CheckGrid(row, begin / group_, {first, first + group_},
                    {by_column.begin() + begin, by_column.begin() + begin + group_}));
    }
  }

  const CpuSide& cpu_;
  const QuantizedTensor& tensor_;
  std::int64_t group_;
  GridSearch search_;
  bool is_static_;
};

double ErrorOf(ThreadPool& pool, const QuantizedTensor& tensor, const CpuSide& cpu) {
  std::vector<float> e = Dequantize(tensor);
  for (std::size_t i = 0; i < e.size(); ++i) {
    e[i] -= cpu.weights[i];
  }
  return OutputError(pool, e, cpu.factor);
}

// Choices, what the report says, and the error of the CPU's own result.
void ExpectSolvedAsOnTheCpu(ThreadPool& pool, const CpuSide& cpu,
                            const LinearSolver::Solved& solved, const GptqOptions& options) {
  ASSERT_NO_FATAL_FAILURE(Choices(cpu, solved.tensor, options).Check());
  SolveReport expected;
  const auto on_cpu = QuantizeGptq(pool, cpu.weights, cpu.factor, options, &expected);
  ASSERT_TRUE(on_cpu) << on_cpu.error().message;
  const double error = ErrorOf(pool, solved.tensor, cpu);
  EXPECT_NEAR(solved.report.error, error, 2e-3 * error) << "what the report says";
  EXPECT_NEAR(solved.report.energy, expected.energy, 2e-3 * expected.energy);
  EXPECT_NEAR(error, expected.error, 0.01 * expected.error) << "beside the CPU's result";
  EXPECT_EQ(solved.damping, cpu.factor.damping);
}

// The test of the worst bug: docs/kernels/cuda_gptq.md.
TEST_F(CudaSolver, EveryChoiceIsTheOneThatTheCpuWouldMakeThere) {
  ThreadPool pool(2);
  struct Case {
    std::int64_t width, group, rows;
    ColumnOrder order = ColumnOrder::kGroups;
  };
  // The last one: a width that is no multiple of 64, groups of whole rows.
  for (const Case& c :
       {Case{64, 64, 40}, Case{320, 64, 70}, Case{320, 32, 40, ColumnOrder::kNatural},
        Case{384, 96, 40}, Case{512, 128, 20}, Case{1536, 512, 12},
        Case{576, 64, 50, ColumnOrder::kDescending}, Case{1536, 64, 33}, Case{200, 200, 30}}) {
    const SolverProblem p = MakeExactProblem(c.rows, c.width, 2 * c.width + 301, 21);
    for (const Shift shift : {Shift::kNone, Shift::kSome, Shift::kAll}) {
      SCOPED_TRACE(fmt::format("width {}, group {}, order {}, shift {}", c.width, c.group,
                               Name(c.order), static_cast<int>(shift)));
      const std::int64_t num_shift = shift == Shift::kNone  ? 0
                                     : shift == Shift::kAll ? p.tokens
                                                            : p.tokens / 2 + 1;
      const FactorOptions factor{.order = c.order, .group_size = c.group};
      const GptqOptions options{.spec = UniformSpec(c.width, 4, c.group, true),
                                .sweep_scales = c.order != ColumnOrder::kDescending};
      const auto solver =
          Solver({.inputs = {{c.width, c.rows}}, .max_tokens = 512, .shift = shift});
      ASSERT_NE(solver, nullptr);
      ASSERT_TRUE(solver->Begin(c.width));
      AddAll(*solver, p, num_shift, 300);
      const auto squares = solver->Finish();
      ASSERT_TRUE(squares) << squares.error().message;
      const auto factorized = solver->Factorize(factor);
      ASSERT_TRUE(factorized) << factorized.error().message;
      const auto solved = Solve(*solver, p.weights, options);
      ASSERT_TRUE(solved);
      const CpuSide cpu = OnCpu(pool, p, num_shift, shift, factor);
      for (std::size_t i = 0; i < squares->size(); ++i) {
        ASSERT_NEAR((*squares)[i], cpu.squares[i], 5e-5 * cpu.squares[i]) << i;
      }
      ASSERT_NO_FATAL_FAILURE(ExpectSolvedAsOnTheCpu(pool, cpu, *solved, options));
    }
  }
}

// One input, a factor for each size of groups, and both kinds of scales.
TEST_F(CudaSolver, EveryGridIsSolvedAsOnTheCpu) {
  constexpr std::int64_t kWidth = 192;
  ThreadPool pool(2);
  const SolverProblem p = MakeExactProblem(24, kWidth, 900, 22);
  const auto solver =
      Solver({.inputs = {{kWidth, p.rows}}, .max_tokens = 512, .shift = Shift::kSome});
  ASSERT_NE(solver, nullptr);
  ASSERT_TRUE(solver->Begin(kWidth));
  AddAll(*solver, p, p.tokens / 2, 512);
  ASSERT_TRUE(solver->Finish());
  for (const WeightSpec& spec : EveryGrid(kWidth)) {
    const FactorOptions factor{.group_size = spec.group_size};
    ASSERT_TRUE(solver->Factorize(factor));
    const CpuSide cpu = OnCpu(pool, p, p.tokens / 2, Shift::kSome, factor);
    for (const DType scale_dtype : {DType::kF16, DType::kBF16}) {
      for (const bool search : {true, false}) {
        SCOPED_TRACE(fmt::format("{}, search {}, scales {}", spec.ToString(), search,
                                 scale_dtype == DType::kF16 ? "f16" : "bf16"));
        const GptqOptions options{.spec = spec, .scale_dtype = scale_dtype, .search_scale = search};
        const auto solved = Solve(*solver, p.weights, options);
        ASSERT_TRUE(solved);
        ASSERT_NO_FATAL_FAILURE(ExpectSolvedAsOnTheCpu(pool, cpu, *solved, options));
      }
    }
  }
}

TEST_F(CudaSolver, ASecondRunAndRowsInOtherFormsGiveTheSameBytes) {
  constexpr std::int64_t kWidth = 128;
  constexpr float kScale = 32.0F;
  SolverProblem p = MakeSolverProblem(30, kWidth, 2500, 23);  // more than are multiplied at once
  const auto to_f16 = [&](std::vector<float>& values) {
    std::vector<std::uint16_t> half;
    for (float& value : values) {
      half.push_back(FloatToF16(value / kScale));
      value = F16ToFloat(half.back()) * kScale;
    }
    return half;
  };
  const DeviceBuffer half_x = Upload(to_f16(p.x)), half_y = Upload(to_f16(p.y));
  const auto solver =
      Solver({.inputs = {{64, 8}, {kWidth, p.rows}}, .max_tokens = p.tokens, .shift = Shift::kAll});
  ASSERT_NE(solver, nullptr);
  std::optional<LinearSolver::Solved> before;
  for (const bool is_f16 : {false, false, true}) {
    // Another input in between leaves nothing behind.
    const SolverProblem other = MakeSolverProblem(8, 64, 300, 24);
    ASSERT_TRUE(solver->Begin(64));
    AddAll(*solver, other, other.tokens, 300);
    ASSERT_TRUE(solver->Finish());
    ASSERT_TRUE(solver->Factorize({}));
    ASSERT_TRUE(Solve(*solver, other.weights, {.spec = UniformSpec(64, 4, 64, false)}));
    solver->End();

    ASSERT_TRUE(solver->Begin(kWidth));
    if (is_f16) {
      ActivationRows y{.data = half_y.data(),
                       .dtype = DType::kF16,
                       .stride = kWidth,
                       .scale = kScale,
                       .num_rows = p.tokens,
                       .width = kWidth};
      ActivationRows x = y;
      x.data = half_x.data();
      solver->Add(y, &x);
    } else {
      AddAll(*solver, p, p.tokens, p.tokens);
    }
    ASSERT_TRUE(solver->Finish());
    ASSERT_TRUE(solver->Factorize({}));
    const auto solved = Solve(*solver, p.weights, {.spec = UniformSpec(kWidth, 4, 64, true)});
    ASSERT_TRUE(solved);
    if (before) {
      EXPECT_EQ(solved->tensor.codes, before->tensor.codes) << (is_f16 ? "f16" : "again");
      EXPECT_EQ(solved->tensor.scales, before->tensor.scales);
      EXPECT_EQ(solved->report.error, before->report.error);
      EXPECT_EQ(solved->report.energy, before->report.energy);
    }
    before = solved;
    solver->End();
  }
}

TEST_F(CudaSolver, DampingGrowsAsOnTheCpu) {
  constexpr std::int64_t kWidth = 64;
  ThreadPool pool(1);
  const SolverProblem p = MakeExactProblem(10, kWidth, 700, 25, /*num_dead=*/3);
  const auto solver = Solver({.inputs = {{kWidth, p.rows}}, .max_tokens = 700});
  ASSERT_NE(solver, nullptr);
  ASSERT_TRUE(solver->Begin(kWidth));
  AddAll(*solver, p, 0, 700);
  ASSERT_TRUE(solver->Finish());
  const FactorOptions factor{.damping = 0.0};
  ASSERT_TRUE(solver->Factorize(factor));
  const CpuSide cpu = OnCpu(pool, p, 0, Shift::kNone, factor);
  EXPECT_GT(cpu.factor.num_retries, 0);
  const GptqOptions options{.spec = UniformSpec(kWidth, 4, 64, true)};
  const auto solved = Solve(*solver, p.weights, options);
  ASSERT_TRUE(solved);
  ExpectSolvedAsOnTheCpu(pool, cpu, *solved, options);
}

TEST_F(CudaSolver, RefusesWhatItCannotDoByName) {
  constexpr std::int64_t kWidth = 96;
  const SolverProblem p = MakeSolverProblem(4, kWidth, 200, 26);
  const auto solver = Solver({.inputs = {{kWidth, p.rows}}, .max_tokens = 200});
  ASSERT_NE(solver, nullptr);
  ASSERT_TRUE(solver->Begin(kWidth));
  ASSERT_TRUE(solver->Finish());
  const auto nothing = solver->Factorize({.group_size = 32});
  ASSERT_FALSE(nothing);
  EXPECT_NE(nothing.error().message.find("no calibration token"), std::string::npos);

  SolverProblem broken = p;
  broken.y[17] = INFINITY;
  ASSERT_TRUE(solver->Begin(kWidth));
  AddAll(*solver, broken, 0, 200);
  ASSERT_TRUE(solver->Finish());
  const auto overflow = solver->Factorize({.group_size = 32});
  ASSERT_FALSE(overflow);
  EXPECT_NE(overflow.error().message.find("overflow"), std::string::npos);

  ASSERT_TRUE(solver->Begin(kWidth));
  AddAll(*solver, p, 0, 200);
  ASSERT_TRUE(solver->Finish());
  ASSERT_TRUE(solver->Factorize({.group_size = 32}));
  auto weights = p.weights;
  weights[kWidth + 5] = NAN;
  weights[3 * kWidth] = INFINITY;
  const DeviceBuffer on_card = Upload(weights);
  const std::span<const float> span(on_card.as<float>(), weights.size());
  const auto infinite = solver->Solve(span, {.spec = UniformSpec(kWidth, 4, 32, true)});
  ASSERT_FALSE(infinite);
  EXPECT_NE(infinite.error().message.find("row 1, column 5"), std::string::npos)
      << infinite.error().message;
  const auto group = solver->Solve(span, {.spec = UniformSpec(kWidth, 4, 64, true)});
  ASSERT_FALSE(group);
  EXPECT_NE(group.error().message.find("64 does not divide the width 96"), std::string::npos);
}

}  // namespace
}  // namespace nibble
