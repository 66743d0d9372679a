#pragma once

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/block_solver.h"
#include "compress/calibration.h"
#include "compress/fold.h"
#include "device/device.h"

namespace nibble {

/// The scales of SmoothQuant (Xiao et al. 2023, eq. 4), which move outliers of activations into the
/// weights that multiply them, so that both fit 8 bits:
///   s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)
/// x_j: an input channel of a group of linears, over the calibration data through the source; w_j:
/// the column of all its matrices. Inputs of o and down are scaled too, by rows of v and up: with
/// one scale a row that costs those nothing. Up to a common factor, which changes no rounding.
/// alpha: 0 to 1. Memory: what BlockWalk plans for the source, and one matrix.
Result<FoldedScales> SmoothScales(const Checkpoint& source, const CalibrationSet& calibration,
                                  double alpha, Device& device, const SolveProgress& progress);

}  // namespace nibble
