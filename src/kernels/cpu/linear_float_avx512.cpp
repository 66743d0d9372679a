#include <immintrin.h>

#include <cstdint>

#include "kernels/linear_kernel.h"

// y[o] = sum over blocks of 64 k, in order, of (sum over k in the block, fma in order from zero)
//   weight [panel][k][16] f32, f16 or bf16    x [block][row][64] f32
// Moves out*in*sizeof(weight) bytes for 2*out*in flops a row; one row: judge by GB/s, many: by fp32
// FMA.

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

template <LinearFormat kFormat>
constexpr std::int64_t kValueBytes = kFormat == LinearFormat::kF32 ? 4 : 2;

template <LinearFormat kFormat>
__attribute__((always_inline)) inline __m512 LoadWeights(const std::uint8_t* at) {
  if (kFormat == LinearFormat::kF32) {
    return _mm512_loadu_ps(at);
  }
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  if (kFormat == LinearFormat::kF16) {
    return _mm512_cvtph_ps(half);
  }
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

__attribute__((always_inline)) inline void Store(const LinearCall& call, std::int64_t row,
                                                 std::int64_t panel, __m512 y) {
  float* out = call.y + row * call.y_stride + panel * kPanelOutputs;
  const std::int64_t left = call.layout.rows - panel * kPanelOutputs;
  _mm512_mask_storeu_ps(
      out, static_cast<__mmask16>(left >= kPanelOutputs ? 0xffffU : (1U << left) - 1U), y);
}

// ---- 1 to 3 rows: weights straight from memory, kPanels streams at once ----

template <LinearFormat kFormat, int kPanels, int kRows>
__attribute__((always_inline)) inline void RowPanels(const LinearCall& call, std::int64_t panel) {
  const PackedLayout& layout = call.layout;
  const std::uint8_t* w[kPanels];
  __m512 acc[kRows][kPanels];
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    w[p] = call.weight + (panel + p) * layout.panel_bytes;
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) acc[r][p] = _mm512_setzero_ps();
  }
  for (std::int64_t block = 0; block < call.x.num_blocks; ++block) {
    const std::int64_t left = layout.cols - block * kActivationBlock;
    const std::int64_t count = left < kActivationBlock ? left : kActivationBlock;
    const float* x = call.x.values + block * call.x.block_rows * kActivationBlock;
    __m512 sum[kRows][kPanels];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = _mm512_setzero_ps();
    }
    for (std::int64_t k = 0; k < count; ++k) {
      __m512 v[kPanels];
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        v[p] = LoadWeights<kFormat>(w[p]);
        _mm_prefetch(reinterpret_cast<const char*>(w[p]) + 2048, _MM_HINT_T0);
        w[p] += kPanelOutputs * kValueBytes<kFormat>;
      }
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m512 one = _mm512_set1_ps(x[r * kActivationBlock + k]);
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          sum[r][p] = _mm512_fmadd_ps(v[p], one, sum[r][p]);
        }
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        acc[r][p] = _mm512_add_ps(acc[r][p], sum[r][p]);
      }
    }
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) Store(call, r, panel + p, acc[r][p]);
  }
}

template <LinearFormat kFormat, int kRows>
void RunRowCount(const LinearCall& call) {
  std::int64_t p = call.panel_begin;
  for (; p + 4 <= call.panel_end; p += 4) {
    RowPanels<kFormat, 4, kRows>(call, p);
  }
  for (; p < call.panel_end; ++p) {
    RowPanels<kFormat, 1, kRows>(call, p);
  }
}

template <LinearFormat kFormat>
void RunRows(const LinearCall& call) {
  switch (call.x.num_rows) {
    case 1:
      RunRowCount<kFormat, 1>(call);
      break;
    case 2:
      RunRowCount<kFormat, 2>(call);
      break;
    default:
      RunRowCount<kFormat, 3>(call);
      break;
  }
}

// ---- many rows: widen 64 columns of 4 panels to L1, then sweep a block of rows ----

constexpr std::int64_t kRowBlock = 256;  // rows whose sums stay in the scratch
constexpr std::int64_t kWeightScratch = kActivationBlock * 4 * kPanelOutputs * 4;
static_assert(kWeightScratch + kRowBlock * 4 * kPanelOutputs * 4 <= kLinearKernelScratchBytes);

// sums[v * 4 + p] += (sum over `count` columns of w[panel p] * x[row v]), the inner sum in order
// from zero. In assembly, as GCC 12 keeps the weights on the stack.
#define NIBBLE_FMA_ZERO(t) "vxorps %%zmm" #t ", %%zmm" #t ", %%zmm" #t "\n"
#define NIBBLE_FMA_ROW(v, t0, t1, t2, t3)   \
  "vbroadcastss " #v                        \
  "*256(%[x]), %%zmm20\n"                   \
  "vfmadd231ps %%zmm20, %%zmm16, %%zmm" #t0 \
  "\n"                                      \
  "vfmadd231ps %%zmm20, %%zmm17, %%zmm" #t1 \
  "\n"                                      \
  "vfmadd231ps %%zmm20, %%zmm18, %%zmm" #t2 \
  "\n"                                      \
  "vfmadd231ps %%zmm20, %%zmm19, %%zmm" #t3 "\n"
#define NIBBLE_FMA_ROWS1 NIBBLE_FMA_ROW(0, 0, 1, 2, 3)
#define NIBBLE_FMA_ROWS4                                                         \
  NIBBLE_FMA_ROWS1 NIBBLE_FMA_ROW(1, 4, 5, 6, 7) NIBBLE_FMA_ROW(2, 8, 9, 10, 11) \
      NIBBLE_FMA_ROW(3, 12, 13, 14, 15)
#define NIBBLE_FMA_ZERO4(a, b, c, d) \
  NIBBLE_FMA_ZERO(a) NIBBLE_FMA_ZERO(b) NIBBLE_FMA_ZERO(c) NIBBLE_FMA_ZERO(d)
#define NIBBLE_FMA_ADD(t)                            \
  "vaddps " #t "*64(%[sums]), %%zmm" #t ", %%zmm" #t \
  "\n"                                               \
  "vmovaps %%zmm" #t ", " #t "*64(%[sums])\n"
#define NIBBLE_FMA_ADD4(a, b, c, d) \
  NIBBLE_FMA_ADD(a) NIBBLE_FMA_ADD(b) NIBBLE_FMA_ADD(c) NIBBLE_FMA_ADD(d)
#define NIBBLE_FMA_LOOP(rows)         \
  "1:\n"                              \
  "vmovaps (%[w]), %%zmm16\n"         \
  "vmovaps 64(%[w]), %%zmm17\n"       \
  "vmovaps 128(%[w]), %%zmm18\n"      \
  "vmovaps 192(%[w]), %%zmm19\n" rows \
  "add $256, %[w]\n"                  \
  "add $4, %[x]\n"                    \
  "dec %[count]\n"                    \
  "jnz 1b\n"
#define NIBBLE_FMA_CLOBBERS                                                                     \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",      \
      "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", \
      "cc", "memory"

inline void Tile4(const float* w, const float* x, std::int64_t count, float* sums) {
  __asm__ volatile(NIBBLE_FMA_ZERO4(0, 1, 2, 3) NIBBLE_FMA_ZERO4(4, 5, 6, 7)
                       NIBBLE_FMA_ZERO4(8, 9, 10, 11) NIBBLE_FMA_ZERO4(12, 13, 14, 15)
                           NIBBLE_FMA_LOOP(NIBBLE_FMA_ROWS4) NIBBLE_FMA_ADD4(0, 1, 2, 3)
                               NIBBLE_FMA_ADD4(4, 5, 6, 7) NIBBLE_FMA_ADD4(8, 9, 10, 11)
                                   NIBBLE_FMA_ADD4(12, 13, 14, 15)
                   : [w] "+r"(w), [x] "+r"(x), [count] "+r"(count)
                   : [sums] "r"(sums)
                   : NIBBLE_FMA_CLOBBERS);
}

inline void Tile1(const float* w, const float* x, std::int64_t count, float* sums) {
  __asm__ volatile(NIBBLE_FMA_ZERO4(0, 1, 2, 3) NIBBLE_FMA_LOOP(NIBBLE_FMA_ROWS1)
                       NIBBLE_FMA_ADD4(0, 1, 2, 3)
                   : [w] "+r"(w), [x] "+r"(x), [count] "+r"(count)
                   : [sums] "r"(sums)
                   : NIBBLE_FMA_CLOBBERS);
}

// Up to 4 panels for all rows; absent panels are computed from stale weights and dropped.
template <LinearFormat kFormat>
void BatchPanels(const LinearCall& call, std::int64_t panel, int panels) {
  const PackedLayout& layout = call.layout;
  auto* widened = reinterpret_cast<float*>(call.scratch);
  auto* sums = reinterpret_cast<float*>(call.scratch + kWeightScratch);
  for (std::int64_t row0 = 0; row0 < call.x.num_rows; row0 += kRowBlock) {
    const std::int64_t rows_left = call.x.num_rows - row0;
    const std::int64_t rows = rows_left < kRowBlock ? rows_left : kRowBlock;
    for (std::int64_t i = 0; i < rows * 4; ++i) {
      _mm512_store_ps(sums + i * kPanelOutputs, _mm512_setzero_ps());
    }
    for (std::int64_t block = 0; block < call.x.num_blocks; ++block) {
      const std::int64_t k0 = block * kActivationBlock;
      const std::int64_t left = layout.cols - k0;
      const std::int64_t count = left < kActivationBlock ? left : kActivationBlock;
      for (int p = 0; p < panels; ++p) {
        const std::uint8_t* from = call.weight + (panel + p) * layout.panel_bytes +
                                   k0 * kPanelOutputs * kValueBytes<kFormat>;
        for (std::int64_t k = 0; k < count; ++k) {
          const std::uint8_t* at = from + k * kPanelOutputs * kValueBytes<kFormat>;
          _mm512_store_ps(widened + (k * 4 + p) * kPanelOutputs, LoadWeights<kFormat>(at));
        }
      }
      const float* x = call.x.values + (block * call.x.block_rows + row0) * kActivationBlock;
      // The next block of weights, a few lines before every tile: all at once they would stall.
      const bool last = block + 1 == call.x.num_blocks;
      constexpr std::int64_t kBlockBytes = kActivationBlock * kPanelOutputs * kValueBytes<kFormat>;
      const std::uint8_t* ahead = call.weight + (last ? panel + 4 : panel) * layout.panel_bytes +
                                  (last ? 0 : (block + 1) * kBlockBytes);
      const std::int64_t step = (kBlockBytes / 64 + rows / 4) / (rows / 4 + 1) * 64;
      const std::uint8_t* ahead_end =
          ahead + (last && panel + 8 > call.panel_end ? 0 : kBlockBytes);
      const auto fetch = [&]() __attribute__((always_inline)) {
        for (std::int64_t i = 0; i < step && ahead < ahead_end; i += 64, ahead += 64) {
          NIBBLE_UNROLL for (int p = 0; p < 4; ++p) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead) + p * layout.panel_bytes,
                         _MM_HINT_T0);
          }
        }
      };
      std::int64_t r = 0;
      for (; r + 4 <= rows; r += 4) {
        fetch();
        Tile4(widened, x + r * kActivationBlock, count, sums + r * 4 * kPanelOutputs);
      }
      for (; r < rows; ++r) {
        Tile1(widened, x + r * kActivationBlock, count, sums + r * 4 * kPanelOutputs);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int p = 0; p < panels; ++p) {
        Store(call, row0 + r, panel + p, _mm512_load_ps(sums + (r * 4 + p) * kPanelOutputs));
      }
    }
  }
}

template <LinearFormat kFormat>
void RunBatch(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; p += 4) {
    const std::int64_t left = call.panel_end - p;
    BatchPanels<kFormat>(call, p, left < 4 ? static_cast<int>(left) : 4);
  }
}

constexpr std::int64_t kAnyRows = INT64_MAX;

constexpr LinearKernel kKernels[] = {
    {"linear.f32.avx512.rows", LinearFormat::kF32, LinearActivation::kF32, Isa::kAvx512, 1, 3,
     RunRows<LinearFormat::kF32>},
    {"linear.f32.avx512.batch", LinearFormat::kF32, LinearActivation::kF32, Isa::kAvx512, 4,
     kAnyRows, RunBatch<LinearFormat::kF32>},
    {"linear.f16.avx512.rows", LinearFormat::kF16, LinearActivation::kF32, Isa::kAvx512, 1, 3,
     RunRows<LinearFormat::kF16>},
    {"linear.f16.avx512.batch", LinearFormat::kF16, LinearActivation::kF32, Isa::kAvx512, 4,
     kAnyRows, RunBatch<LinearFormat::kF16>},
    {"linear.bf16.avx512.rows", LinearFormat::kBF16, LinearActivation::kF32, Isa::kAvx512, 1, 3,
     RunRows<LinearFormat::kBF16>},
    {"linear.bf16.avx512.batch", LinearFormat::kBF16, LinearActivation::kF32, Isa::kAvx512, 4,
     kAnyRows, RunBatch<LinearFormat::kBF16>},
};

}  // namespace

LinearKernelList Avx512LinearFloatKernels() { return {kKernels, 6}; }

}  // namespace nibble
