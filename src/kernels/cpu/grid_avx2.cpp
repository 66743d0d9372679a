#include "kernels/cpu/vec16_avx2.inl"
#include "kernels/grid_kernel.h"
// After them: it is written in their terms.
#include "kernels/cpu/grid_body.inl"

namespace nibble {

const GridKernels kAvx2Grid = {.name = "avx2", .error = Error};

}  // namespace nibble
