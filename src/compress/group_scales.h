#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/block_solver.h"
#include "compress/block_walk.h"
#include "compress/calibration.h"
#include "compress/fold.h"
#include "device/device.h"

namespace nibble {

/// Chooses the input scales of one group of linears after another.
class GroupScaler {
 public:
  virtual ~GroupScaler() = default;
  virtual void Begin(std::int64_t width, std::int64_t max_rows) = 0;
  /// The next rows that reach the group's input.
  virtual void Add(const BlockWalk::Inputs& inputs) = 0;
  /// [width], or empty for none.
  virtual Result<std::vector<float>> Scales(std::int64_t block, LinearGroup group) = 0;
};

/// Walks the calibration data through the source and asks the scaler for every group's scales.
/// Memory: what BlockWalk plans for the source. Errors: kCancelled, and what reading gives.
Result<FoldedScales> FindGroupScales(const Checkpoint& source, const CalibrationSet& calibration,
                                     GroupScaler& scaler, Device& device,
                                     const SolveProgress& progress);

}  // namespace nibble
