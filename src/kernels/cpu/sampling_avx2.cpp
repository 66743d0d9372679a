#include "kernels/cpu/vec16_avx2.inl"
#include "kernels/sampling_kernel.h"
// After them: it is written in their terms.
#include "kernels/cpu/sampling_body.inl"

namespace nibble {

const SamplingKernels kAvx2Sampling = {.name = "avx2",
                                       .arg_max = ArgMax,
                                       .chunk_max = ChunkMax,
                                       .chunk_weight = ChunkWeight,
                                       .sum_at_least = SumAtLeast,
                                       .collect = Collect,
                                       .count_greater = CountGreater};

}  // namespace nibble
