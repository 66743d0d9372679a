#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/thread_pool.h"
#include "codec/quantized_tensor.h"
#include "solve/hessian.h"

namespace nibble {

struct GptqOptions {
  WeightSpec spec;                  // the grid: kUniform or kCodebook; rows say nothing
  DType scale_dtype = DType::kF16;  // scales are rounded to it before codes are chosen
  bool search_scale = true;         // weighted by R_ii^2; off: the range of the values
  bool sweep_scales = true;  // of the values that a group has when the sweep reaches it, not of the
                             // original weights; needs an order that keeps groups together
  bool both_signs = true;    // symmetric grids and codebooks: a scale may be negative
  float scale_divisor = 0.0F;  // of ScaleGrid::kE4M3; 0: that of these weights (OptionsFor)
};

/// What quantizing changed in the linear's output on the calibration data, in the damped Hessian's
/// norm, tr(E (H + lambda I) E^T).
struct SolveReport {
  double error = 0.0;   // of quantized - given weights
  double energy = 0.0;  // of the given weights
};

/// GPTQ (Frantar et al. 2022) onto any grid: each column is rounded to the value that serves best
/// given the errors of the columns before it. weights: [rows, factor.width], row-major, finite.
/// Rows do not depend on one another, nor on the number of threads. Errors: kInvalidArgument for a
/// group that does not divide the width; kCorruptFile for a weight that is not finite (says where).
Result<QuantizedTensor> QuantizeGptq(ThreadPool& pool, std::span<const float> weights,
                                     const HessianFactor& factor, const GptqOptions& options,
                                     SolveReport* report = nullptr);

/// What both solvers of GPTQ, this one and the card's, ask of groups, and say of a weight.
Result<void> CheckGroups(const GptqOptions& options, std::int64_t width);
tl::unexpected<Error> NotFinite(std::int64_t index, std::int64_t width);

/// tr(E (H + lambda I) E^T) of E [rows, factor.width].
double OutputError(ThreadPool& pool, std::span<const float> e, const HessianFactor& factor);

}  // namespace nibble
