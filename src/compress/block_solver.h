#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "compress/block_learner.h"
#include "compress/calibration.h"
#include "compress/solved_block.h"
#include "device/device.h"
#include "kernels/context.h"
#include "solve/gptq.h"
#include "solve/hessian.h"
#include "solve/linear_solver.h"

namespace nibble {

enum class BlockMethod : std::uint8_t {
  kWeighted,  // rounding, scales searched with the inputs' mean squares as weights
  kGptq,
  kLearned  // kGptq, then all linears of a block together by SignSGD on its output
};

/// How the linears of a model are solved on calibration data.
struct BlockSolverOptions {
  BlockMethod method = BlockMethod::kGptq;
  DType scale_dtype = DType::kF16;  // of uniform weights
  bool search_scale = true;
  double damping = 0.01;  // kGptq and kLearned, as the next two
  ColumnOrder order = ColumnOrder::kGroups;
  bool correct_inputs = true;         // each linear also makes up for what its input has lost
  std::int64_t truth_tokens = 16384;  // kGptq: of more, every second, third, ... window
  LearnOptions learn;                 // kLearned
  std::set<std::string, std::less<>>
      rounded;  // weights that are rounded although others are solved
  // The host reads ahead, logs and saves while the device works: beside a card always, whatever
  // this says; on a CPU, whose workers it would take, for tests. Not by kLearned.
  bool works_ahead = false;
};

/// Told how far the work is; return false to stop (kCancelled).
using SolveProgress =
    std::function<bool(std::uint64_t done, std::uint64_t total, const std::string& detail)>;

/// Seconds of a run, where they went: what was waited for. Beside a card the host reads, logs and
/// saves while it works.
struct SolveTimes {
  std::int64_t num_blocks = 0;  // that were solved, not taken from the store
  double total = 0.0;
  double start = 0.0;  // memory, tables and embeddings: once
  double walk = 0.0;   // calibration rows through both models
  double load = 0.0;   // weights into the walks
  double read = 0.0;   // of the matrices that are solved
  double log = 0.0;    // what the log says of a matrix
  double save = 0.0;   // waited for
  SolverTimes solver;
  /// One line: "2 blocks in 7.31 s: start 0.52, walk 3.11, ..."
  std::string ToString() const;
};

/// Walks the calibration set through the model block by block and quantizes every linear when its
/// turn comes. The inputs of a linear are those of the model as quantized so far; with
/// correct_inputs a second walk, of the source, says what they should have been. Blocks that the
/// store has are taken from it. On a card both walks lie in its memory, and so do the sums
/// (solve/linear_solver.h); it has no kLearned. Docs: docs/quantization.md.
class BlockSolver {
 public:
  /// weights: what the result will hold, linears of the blocks quantized. All arguments must
  /// outlive the solver.
  BlockSolver(const Checkpoint& source, std::span<const WeightToWrite> weights,
              const CalibrationSet& calibration, const BlockSolverOptions& options, Device& device)
      : source_(source),
        weights_(weights),
        calibration_(calibration),
        options_(options),
        device_(device) {}

  /// Adds all memory to the device's ledger. Errors: kOutOfMemory with what helps.
  Result<void> Plan() const;

  /// Solves what the store lacks and saves it there.
  Result<SolveTimes> Run(SolvedBlocks& store, const SolveProgress& progress) const;

 private:
  class Walks;
  bool IsSolved(std::string_view weight) const {
    return options_.method != BlockMethod::kWeighted && !options_.rounded.contains(weight);
  }
  bool IsCard() const { return device_.kind() == DeviceKind::kCuda; }
  bool WorksAhead() const {
    return IsCard() || (options_.works_ahead && options_.method != BlockMethod::kLearned);
  }
  // On a card rounding takes its mean squares of it, too.
  bool UsesLinearSolver() const { return IsCard() || options_.method != BlockMethod::kWeighted; }
  bool NeedsTruth() const {
    return options_.method == BlockMethod::kLearned ||
           (options_.method == BlockMethod::kGptq && options_.correct_inputs);
  }
  // Whether the second walk has to be that of the source to the last bit.
  bool NeedsExactTruth() const;
  // What it reads: nothing if it is the source itself.
  std::unique_ptr<Checkpoint> RoundedTruth() const;
  ActivationMode TruthActivations() const;
  ActivationMode WalkActivations() const;
  // Of every how many windows, and the tokens of these.
  std::int64_t TruthStride() const;
  InputSums::Shift ShiftRows() const;
  SolverLimits GptqLimits() const;
  std::uint64_t LargestInputBytes() const;
  std::uint64_t LargestMatrixBytes() const;  // as floats

  const Checkpoint& source_;
  std::span<const WeightToWrite> weights_;
  const CalibrationSet& calibration_;
  BlockSolverOptions options_;
  Device& device_;
};

}  // namespace nibble
