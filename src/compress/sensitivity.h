#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/block_solver.h"
#include "compress/block_walk.h"
#include "compress/calibration.h"
#include "compress/scheme.h"
#include "device/device.h"
#include "io/atomic_writer.h"

namespace nibble {

struct SensitivityOptions {
  BlockMethod method = BlockMethod::kGptq;  // 8 bits are rounded all the same
  DType scale_dtype = DType::kF16;
  double damping = 0.01;
  std::int64_t max_windows = 16;     // of the calibration set, for Hessians
  std::int64_t probe_windows = 4;    // others of its windows, their first probe_tokens tokens: what
  std::int64_t probe_tokens = 128;   // the model's output is compared on
  std::int64_t position_stride = 4;  // at every so many positions
  std::function<void(const Device&)>
      planned;  // told, before the work, with the memory it will take
};

/// What it costs to quantize the linears of one input alone, everything else as in the source: the
/// mean KL of the model's output, by candidate.
struct GroupSensitivity {
  std::int64_t block = 0;
  LinearGroup group = LinearGroup::kQkv;
  std::vector<double> kl;
};

/// Measures every group of linears at every candidate. A block's outputs in the source are where
/// the measurements of the next one start, so a candidate costs the blocks behind it and the head.
/// The whole source model is in memory, and one block of each candidate. Finished blocks are
/// journalled in `out`; Clear takes the files away. Errors: kOutOfMemory with what helps,
/// kCancelled, what reading and solving give.
class SensitivityMeter {
 public:
  /// All arguments must outlive the meter.
  SensitivityMeter(const Checkpoint& source, std::span<const Scheme> candidates,
                   const CalibrationSet& calibration, const SensitivityOptions& options,
                   Device& device)
      : source_(source),
        candidates_(candidates),
        calibration_(calibration),
        options_(options),
        device_(device) {}

  /// Blocks in order, in each the groups in order.
  Result<std::vector<GroupSensitivity>> Run(AtomicWriter& out, const SolveProgress& progress) const;
  Result<void> Clear(AtomicWriter& out) const;

 private:
  class State;
  const Checkpoint& source_;
  std::span<const Scheme> candidates_;
  const CalibrationSet& calibration_;
  SensitivityOptions options_;
  Device& device_;
};

}  // namespace nibble
