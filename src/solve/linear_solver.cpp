#include "solve/linear_solver.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/stopwatch.h"
#include "solve/correction.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

constexpr const char* kHostLine = "solver (host)";

std::int64_t WidestOf(const SolverLimits& limits) {
  std::int64_t widest = 0;
  for (const SolverLimits::Input& input : limits.inputs) {
    widest = std::max(widest, input.width);
  }
  return widest;
}

std::uint64_t LargestMatrixBytes(const SolverLimits& limits) {
  std::int64_t largest = 0;
  for (const SolverLimits::Input& input : limits.inputs) {
    largest = std::max(largest, input.width * input.max_rows);
  }
  return static_cast<std::uint64_t>(largest) * sizeof(float);
}

class CpuLinearSolver final : public LinearSolver {
 public:
  CpuLinearSolver(ThreadPool& pool, const SolverLimits& limits) : pool_(pool), limits_(limits) {}

  Result<void> Begin(std::int64_t width) override {
    sums_.emplace(width, limits_.max_tokens, limits_.shift);
    return {};
  }

  void Add(const ActivationRows& y, const ActivationRows* x) override {
    const Stopwatch watch(times_.sums);
    sums_->Add(pool_, y.floats(), HasShift() && x != nullptr ? x->floats() : nullptr, y.num_rows);
  }

  Result<std::vector<double>> Finish() override {
    const Stopwatch watch(times_.sums);
    sums_->Finish(pool_);
    std::vector<double> squares;
    for (std::int64_t i = 0; i < sums_->hessian().width(); ++i) {
      squares.push_back(sums_->hessian().At(i, i));
    }
    return squares;
  }

  Result<void> Factorize(const FactorOptions& options) override {
    const Stopwatch watch(times_.factor);
    factor_.reset();
    other_factor_.reset();
    shift_.reset();
    const Hessian& hessian = sums_->hessian();
    NIBBLE_TRY(factor, nibble::Factorize(pool_, hessian, options));
    factor_ = std::move(factor);
    if (!HasShift()) {
      return {};
    }
    if (&sums_->shift_hessian() != &hessian) {
      NIBBLE_TRY(other,
                 nibble::Factorize(pool_, sums_->shift_hessian(),
                                   {.order = ColumnOrder::kNatural, .damping = options.damping}));
      other_factor_ = std::move(other);
    }
    shift_ = ShiftOf(pool_, ShiftFactor(), *sums_,
                     CorrectionStrength(sums_->num_shift_tokens(), hessian.width()));
    return {};
  }

  Result<Solved> Solve(std::span<const float> weights, const GptqOptions& options) override {
    std::vector<float> corrected;
    if (shift_) {
      const Stopwatch watch(times_.correction);
      corrected = CorrectWeights(pool_, weights, ShiftFactor(), *shift_);
      weights = corrected;
    }
    const Stopwatch watch(times_.sweep);
    Solved solved{.damping = factor_->damping};
    NIBBLE_TRY(tensor, QuantizeGptq(pool_, weights, *factor_, options, &solved.report));
    solved.tensor = std::move(tensor);
    return solved;
  }

  void End() override {
    shift_.reset();
    other_factor_.reset();
    factor_.reset();
    sums_.reset();
  }

 private:
  bool HasShift() const { return limits_.shift != InputSums::Shift::kNone; }
  const HessianFactor& ShiftFactor() const { return other_factor_ ? *other_factor_ : *factor_; }

  ThreadPool& pool_;
  const SolverLimits limits_;
  std::optional<InputSums> sums_;
  std::optional<HessianFactor> factor_, other_factor_;  // the other: of the shift's rows
  std::optional<InputShift> shift_;
};

// The CPU's solver for inputs and matrices that lie on a card: they are copied.
class CopyingLinearSolver final : public LinearSolver {
 public:
  static Result<std::unique_ptr<LinearSolver>> Create(Device& device, const SolverLimits& limits) {
    NIBBLE_TRY(rows, device.AllocateHost(kHostLine, RowBytes(limits)));
    return std::unique_ptr<LinearSolver>(new CopyingLinearSolver(device, limits, std::move(rows)));
  }

  // fp16 at the pitch of fp32.
  static std::size_t RowBytes(const SolverLimits& limits) {
    return static_cast<std::size_t>(limits.max_tokens * WidestOf(limits)) * sizeof(float);
  }

  Result<void> Begin(std::int64_t width) override { return cpu_.Begin(width); }
  void Add(const ActivationRows& y, const ActivationRows* x) override {
    const ActivationRows here = Fetch(y, y_);
    if (x == nullptr) {
      cpu_.Add(here, nullptr);
    } else {
      const ActivationRows truth = Fetch(*x, x_);
      cpu_.Add(here, &truth);
    }
    times_ = cpu_.times();
  }
  Result<std::vector<double>> Finish() override {
    NIBBLE_TRY_VOID(device_.Health());
    auto squares = cpu_.Finish();
    times_ = cpu_.times();
    return squares;
  }
  Result<void> Factorize(const FactorOptions& options) override {
    auto factorized = cpu_.Factorize(options);
    times_ = cpu_.times();
    return factorized;
  }
  Result<Solved> Solve(std::span<const float> weights, const GptqOptions& options) override {
    std::vector<float> here(weights.size());
    NIBBLE_TRY_VOID(device_.Read(reinterpret_cast<std::byte*>(here.data()),
                                 reinterpret_cast<const std::byte*>(weights.data()),
                                 weights.size_bytes()));
    auto solved = cpu_.Solve(here, options);
    times_ = cpu_.times();
    return solved;
  }
  void End() override { cpu_.End(); }

 private:
  CopyingLinearSolver(Device& device, const SolverLimits& limits, DeviceBuffer rows)
      : device_(device), cpu_(device.pool(), limits), rows_(std::move(rows)) {}

  // The rows as fp32 in `values`.
  ActivationRows Fetch(const ActivationRows& rows, std::vector<float>& values) {
    NIBBLE_CHECK(rows.dtype == DType::kF16, "what a card's operators leave");
    device_.Copy(rows_.data(), static_cast<const std::byte*>(rows.data),
                 static_cast<std::size_t>(rows.num_rows * rows.stride) * sizeof(std::uint16_t));
    device_.Wait(device_.Record());
    values.resize(static_cast<std::size_t>(rows.num_rows * rows.width));
    device_.pool().For(rows.num_rows, 16, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::uint16_t* from = rows_.as<std::uint16_t>() + row * rows.stride;
        float* to = values.data() + row * rows.width;
        for (std::int64_t i = 0; i < rows.width; ++i) {
          to[i] = F16ToFloat(from[i]) * rows.scale;
        }
      }
    });
    return {.data = values.data(),
            .stride = rows.width,
            .num_rows = rows.num_rows,
            .width = rows.width};
  }

  Device& device_;
  CpuLinearSolver cpu_;
  DeviceBuffer rows_;
  std::vector<float> y_, x_;
};

SolverMemory MemoryOfCpuSolver(const SolverLimits& limits) {
  const bool has_shift = limits.shift != InputSums::Shift::kNone;
  SolverMemory memory;
  for (const SolverLimits::Input& input : limits.inputs) {
    const std::int64_t width = input.width;
    const std::uint64_t factor = HessianFactor::SizeBytes(width);
    const std::uint64_t other = limits.shift == InputSums::Shift::kSome ? factor : 0;
    // The matrix and what its codes say, and the corrected one.
    const std::uint64_t matrices =
        (has_shift ? 3U : 2U) * static_cast<std::uint64_t>(width * input.max_rows) * sizeof(float);
    // It is solved when its factors are there and the matrices that these came of are gone.
    const std::uint64_t solve = matrices + factor + (has_shift ? InputShift::SizeBytes(width) : 0);
    memory.device_bytes =
        std::max(memory.device_bytes, InputSums::SizeBytes(width, limits.max_tokens, limits.shift) +
                                          other + std::max(HessianFactor::PeakBytes(width), solve));
  }
  return memory;
}

}  // namespace

SolverMemory MemoryOfSolver(const Device& device, const SolverLimits& limits) {
  SolverMemory memory = MemoryOfCpuSolver(limits);
  if (device.kind() == DeviceKind::kCuda) {
    memory.host_bytes = memory.device_bytes + 3 * CopyingLinearSolver::RowBytes(limits);
    memory.device_bytes = LargestMatrixBytes(limits);
  }
  return memory;
}

Result<std::unique_ptr<LinearSolver>> MakeLinearSolver(Device& device, const SolverLimits& limits) {
  if (device.kind() == DeviceKind::kCuda) {
    return CopyingLinearSolver::Create(device, limits);
  }
  return std::unique_ptr<LinearSolver>(std::make_unique<CpuLinearSolver>(device.pool(), limits));
}

}  // namespace nibble
