#include "kernels/cpu/vec16_avx2.inl"
#include "kernels/ops_kernel.h"
// After them: it is written in their terms.
#include "kernels/cpu/ops_body.inl"

namespace nibble {

const OpsKernels kAvx2Ops = {.name = "avx2",
                             .add_rms_norm = AddRmsNormRow,
                             .add_bias = AddBiasRow,
                             .swiglu = SwiGluRow,
                             .geglu = GeGluRow,
                             .exp = ExpRow};

}  // namespace nibble
