#include "kernels/grid_error.h"

#include "kernels/isa.h"

namespace nibble {

void GridError(const GridErrorCall& call) {
  ForCurrentIsa(kRefGrid, kAvx2Grid, kAvx512Grid).error(call);
}

}  // namespace nibble
