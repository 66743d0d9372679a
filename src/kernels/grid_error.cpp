#include "kernels/grid_error.h"

#include "kernels/isa.h"

namespace nibble {
namespace {

const GridKernels& Kernels() {
  switch (CurrentIsa()) {
    case Isa::kRef:
      return kRefGrid;
    case Isa::kAvx2:
      return kAvx2Grid;
    case Isa::kAvx512:
    case Isa::kAmx:
      return kAvx512Grid;
  }
  return kRefGrid;
}

}  // namespace

void GridError(const GridErrorCall& call) { Kernels().error(call); }

}  // namespace nibble
