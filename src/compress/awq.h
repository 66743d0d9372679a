#pragma once

#include <cstdint>
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
/// will hold. Memory: that of a BlockWalk of the source, and AwqBytes.
Result<FoldedScales> SearchAwqScales(const Checkpoint& source,
                                     std::span<const WeightToWrite> weights,
                                     const CalibrationSet& calibration, DType scale_dtype,
                                     Device& device, const SolveProgress& progress);

/// Bytes that the search takes beside its walk, whose Adds bring at most max_rows.
std::uint64_t AwqBytes(const Checkpoint& source, std::int64_t max_rows);

}  // namespace nibble
