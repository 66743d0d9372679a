#pragma once

#include "kernels/grid_kernel.h"

namespace nibble {

/// What a grid loses of sixteen rows' groups (GridErrorCall), the same bits on every ISA.
void GridError(const GridErrorCall& call);

}  // namespace nibble
