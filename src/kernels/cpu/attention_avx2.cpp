#include "kernels/attention_kernel.h"
#include "kernels/cpu/vec16_avx2.inl"

namespace nibble {
namespace {

// 4 rows x 1 block: 8 sums, 4 K vectors and a broadcast of the 16 registers.
constexpr int kScoreRows = 4;
constexpr int kOutputRows = 2;
constexpr int kOutputVectors = 2;
constexpr int ScoreBlocks(int rows) { return rows <= 2 ? 2 : 1; }

}  // namespace
}  // namespace nibble

// After them: it is written in their terms.
#include "kernels/cpu/attention_body.inl"

namespace nibble {

const AttentionKernels kAvx2Attention = {
    .name = "avx2", .attend = Attend, .rope_and_cache = RopeAndCacheRow};

}  // namespace nibble
