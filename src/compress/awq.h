#pragma once

#include <span>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "compress/block_solver.h"
#include "compress/calibration.h"
#include "compress/fold.h"
#include "device/device.h"

namespace nibble {

/// The scales of AWQ (Lin et al. 2024): s = rms(x)^a, a of 0 to 0.7 with the least error of the
/// group's output, tr(E H E^T), when its weights are rounded by QuantizeWeighted, whose scale
/// search is AWQ's clipping as well. The inputs are those of the source. weights: what the result
/// will hold. Memory: what BlockSolver plans without its second walk.
Result<FoldedScales> SearchAwqScales(const Checkpoint& source,
                                     std::span<const WeightToWrite> weights,
                                     const CalibrationSet& calibration, DType scale_dtype,
                                     Device& device, const SolveProgress& progress);

}  // namespace nibble
