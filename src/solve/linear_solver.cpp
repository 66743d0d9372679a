#include "solve/linear_solver.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/stopwatch.h"
#include "solve/correction.h"
#include "solve/cuda_solver.h"

namespace nibble {
namespace {

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
  return device.kind() == DeviceKind::kCuda ? MemoryOfCudaSolver(limits)
                                            : MemoryOfCpuSolver(limits);
}

Result<void> CheckLinearSolver(DeviceKind kind) {
  return kind == DeviceKind::kCuda ? CheckCudaSolver() : Result<void>{};
}

Result<std::unique_ptr<LinearSolver>> MakeLinearSolver(Device& device, const SolverLimits& limits) {
  if (device.kind() == DeviceKind::kCuda) {
    return MakeCudaSolver(static_cast<CudaDevice&>(device), limits);
  }
  return std::unique_ptr<LinearSolver>(std::make_unique<CpuLinearSolver>(device.pool(), limits));
}

}  // namespace nibble
