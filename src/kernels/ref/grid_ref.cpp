#include <cstddef>

#include "base/round.h"
#include "kernels/grid_kernel.h"
#include "kernels/ref/lanes.h"

namespace nibble {
namespace {

float Rounded(const GridErrorCall& call, float scaled, std::size_t lane) {
  if (call.ends == nullptr) {
    // Clamped first, so that the magic number stays valid; the bounds are whole numbers.
    const float zero = call.zero[lane];
    return RoundNearest(ref::Min(ref::Max(scaled, -zero), call.top - zero));
  }
  std::size_t cell = 0;
  while (cell < 15 && scaled > call.ends[cell]) {
    ++cell;
  }
  return call.cells[cell];
}

void Error(const GridErrorCall& call) {
  for (std::size_t l = 0; l < 16; ++l) {
    float sum = 0.0F;
    for (std::int64_t i = 0; i < call.count; ++i) {
      const float x = call.values[static_cast<std::size_t>(i) * 16 + l];
      const float error = x - Rounded(call, x * call.inverse[l], l) * call.scale[l];
      sum += call.weights[i] * (error * error);
    }
    call.error[l] = sum;
  }
}

}  // namespace

const GridKernels kRefGrid = {.name = "ref", .error = Error};

}  // namespace nibble
