#include "kernels/cpu/vec16_avx512.inl"
#include "kernels/ops_kernel.h"
// After them: it is written in their terms.
#include "kernels/cpu/ops_body.inl"

namespace nibble {

const OpsKernels kAvx512Ops = {.name = "avx512",
                               .add_rms_norm = AddRmsNormRow,
                               .add_bias = AddBiasRow,
                               .swiglu = SwiGluRow,
                               .geglu = GeGluRow,
                               .exp = ExpRow};

}  // namespace nibble
