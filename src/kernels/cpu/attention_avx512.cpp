#include "kernels/attention_kernel.h"
#include "kernels/cpu/vec16_avx512.inl"

namespace nibble {
namespace {

// 8 rows x 2 blocks: 16 sums, 4 K vectors and a broadcast of the 32 registers.
constexpr int kScoreRows = 8;
constexpr int kOutputRows = 4;
constexpr int kOutputVectors = 4;
constexpr int ScoreBlocks(int rows) { return rows <= 4 ? 4 : 2; }

}  // namespace
}  // namespace nibble

// After them: it is written in their terms.
#include "kernels/cpu/attention_body.inl"

namespace nibble {

const AttentionKernels kAvx512Attention = {
    .name = "avx512", .attend = Attend, .rope_and_cache = RopeAndCacheRow};

}  // namespace nibble
