#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "codec/quantized_tensor.h"
#include "device/device.h"
#include "kernels/activation_rows.h"
#include "solve/gptq.h"
#include "solve/hessian.h"

namespace nibble {

/// The most that a LinearSolver will be given.
struct SolverLimits {
  struct Input {
    std::int64_t width = 0;
    std::int64_t max_rows = 0;  // of the largest matrix that multiplies it
  };
  std::vector<Input> inputs;
  std::int64_t max_tokens = 0;  // rows of one Add
  InputSums::Shift shift = InputSums::Shift::kNone;
};

/// Seconds of work, waited for.
struct SolverTimes {
  double sums = 0.0, factor = 0.0, correction = 0.0, sweep = 0.0;
};

/// GPTQ of the linears of one input, where the input lies: sums over all its rows, then a factor
/// for each size of groups, then one matrix after the other. Begin, Add..., Finish, (Factorize,
/// Solve...)..., End; then the next input.
class LinearSolver {
 public:
  struct Solved {
    QuantizedTensor tensor;
    SolveReport report;
    double damping = 0.0;  // what the factor took
  };

  virtual ~LinearSolver() = default;

  /// All sums are zero. width: one of the limits' inputs.
  virtual Result<void> Begin(std::int64_t width) = 0;
  /// y: what the model that is solved for sees. x: what it should see, or null; rows that have an x
  /// come before those that have none. Both are read on the queue of the device's steps, so work
  /// submitted there afterwards may overwrite them. The order of calls matters for the last bits.
  virtual void Add(const ActivationRows& y, const ActivationRows* x) = 0;
  /// After the last Add: the sum of squares of each channel of y, [width]. Errors: kUnavailable if
  /// the device failed.
  virtual Result<std::vector<double>> Finish() = 0;
  /// For the matrices with this order and size of groups. Errors: those of nibble::Factorize.
  virtual Result<void> Factorize(const FactorOptions& options) = 0;
  /// weights: [rows, width], row-major, finite, in the device's memory. They are corrected for the
  /// shift (solve/correction.h) if the limits have one, then rounded. Errors: those of
  /// QuantizeGptq.
  virtual Result<Solved> Solve(std::span<const float> weights, const GptqOptions& options) = 0;
  /// What the input took is free again.
  virtual void End() = 0;

  /// Of all inputs so far.
  const SolverTimes& times() const { return times_; }

 protected:
  SolverTimes times_;
};

/// What solving takes at its peak: of the device's memory, the matrix it is given included, and of
/// the host's beside a card.
struct SolverMemory {
  std::uint64_t device_bytes = 0;
  std::uint64_t host_bytes = 0;
};
SolverMemory MemoryOfSolver(const Device& device, const SolverLimits& limits);
/// Whether the libraries are here that the solver of such a device calls: a CPU's has none. Errors:
/// kUnavailable naming the one that is missing.
Result<void> CheckLinearSolver(DeviceKind kind);
/// The solver of a device. Its memory has the lines "solver" and "solver (host)". Errors:
/// those of CheckLinearSolver; kOutOfMemory.
Result<std::unique_ptr<LinearSolver>> MakeLinearSolver(Device& device, const SolverLimits& limits);

}  // namespace nibble
