#include "kernels/cpu/vec16_avx512.inl"
#include "kernels/grid_kernel.h"
// After them: it is written in their terms.
#include "kernels/cpu/grid_body.inl"

namespace nibble {

const GridKernels kAvx512Grid = {.name = "avx512", .error = Error};

}  // namespace nibble
