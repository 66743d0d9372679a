#pragma once

#include <span>
#include <vector>

#include "kernels/linear_kernel.h"

namespace nibble {

/// All linear kernels of this build, the preferred ones first.
std::span<const LinearKernel> LinearKernels();
std::span<const ActivationKernel> ActivationKernels();

/// The first kernel of at most `isa` for a shape. Never null: ref runs everything.
const LinearKernel& SelectLinear(Isa isa, LinearFormat format, LinearActivation activation,
                                 std::int64_t num_rows);
const ActivationKernel& SelectActivation(Isa isa, LinearActivation activation);

/// Bytes of PackedActivations of num_rows x cols, and where its arrays lie inside `memory` (aligned
/// to 64).
std::size_t ActivationBytes(LinearActivation activation, std::int64_t num_rows, std::int64_t cols);
PackedActivations PlaceActivations(LinearActivation activation, std::int64_t num_rows,
                                   std::int64_t cols, std::byte* memory);
/// Rows [row_begin, row_end) of x, where they lie.
PackedActivations PartOfRows(const PackedActivations& x, LinearActivation activation,
                             std::int64_t row_begin, std::int64_t row_end);

}  // namespace nibble
