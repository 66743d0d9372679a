// Integer weights times quantized activations, AVX-512 with VNNI: included by linear_w4_avx512.cpp
// and linear_w8_avx512.cpp, which define kWeightBits. Everything here is static: no symbol may
// leave an object with AVX-512 code.
//
// y = factor * x_scale * sum_u scale[u] * (sum_{k in u} code * x - zero_point * sum_{k in u} x)
//   code [panel][unit] u8 or nibbles (docs/formats/packed_weight.md), the unsigned operand of
//   vpdpbusd x    [block][row] int8 limbs (linear_kernel.h), the signed operand, four k at a time
//   broadcast
// Integer inside a unit, f32 over units in order (docs/adr/0002-one-arithmetic.md).

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

// In place: GCC 12 puts a register move beside the intrinsic.
__attribute__((always_inline)) static inline void Dot(__m512i& sum, __m512i codes, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
}

__attribute__((always_inline)) static inline __m512i BroadcastFour(const std::int8_t* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

constexpr std::int64_t CodeBytes(int unit_cols) {
  return unit_cols * kPanelOutputs * kWeightBits / 8;
}

// Scales, and zero points (i32) or minima (f32), of one unit of one panel, widened.
struct UnitScales {
  __m512 scale;
  __m512i extra;
};

template <LinearGrid kGrid>
__attribute__((always_inline)) static inline UnitScales LoadScales(const std::uint8_t* at,
                                                                   bool wide) {
  const auto load = [wide](const std::uint8_t* from) __attribute__((always_inline)) {
    return wide ? _mm512_loadu_ps(from)
                : _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  const std::uint8_t* extra = at + (wide ? 64 : 32);
  UnitScales s;
  s.scale = load(at);
  s.extra = _mm512_setzero_si512();
  if (kGrid == LinearGrid::kZeroPoints) {
    s.extra = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(extra)));
  } else if (kGrid == LinearGrid::kMinima) {
    s.extra = _mm512_castps_si512(load(extra));
  }
  return s;
}

// What a row adds to the sums of a symmetric unit before they begin: -zero_point * sum of x.
template <LinearGrid kGrid>
__attribute__((always_inline)) static inline __m512i StartOf(const ActivationBlock& info,
                                                             int part) {
  return kGrid == LinearGrid::kSymmetric
             ? _mm512_slli_epi32(_mm512_set1_epi32(info.minus_sum[part]), kWeightBits - 1)
             : _mm512_setzero_si512();
}

// The row's share of a fold, broadcast. What a format does not use is never loaded.
struct RowTerms {
  __m512i minus_sum;
  __m512 scale;
  __m512 scaled_sum;
};

__attribute__((always_inline)) static inline RowTerms TermsOf(const ActivationBlock& info,
                                                              int part) {
  return {_mm512_set1_epi32(info.minus_sum[part]), _mm512_set1_ps(info.scale),
          _mm512_set1_ps(info.scaled_sum[part])};
}

// Turns the sums of one unit (of the high limbs, or all; of the low limbs) into floats and adds
// them to acc.
template <int kLimbs, LinearGrid kGrid>
__attribute__((always_inline)) static inline __m512 Fold(__m512i t, __m512i low,
                                                         const UnitScales& s, const RowTerms& row,
                                                         __m512 acc) {
  if (kLimbs == 2) {
    t = _mm512_add_epi32(_mm512_slli_epi32(t, 8), low);
  }
  if (kGrid == LinearGrid::kZeroPoints) {
    t = _mm512_add_epi32(t, _mm512_mullo_epi32(s.extra, row.minus_sum));
  }
  const __m512 scale = kLimbs == 2 ? s.scale : _mm512_mul_ps(s.scale, row.scale);
  acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), scale, acc);
  if (kGrid == LinearGrid::kMinima) {
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(s.extra), row.scaled_sum, acc);
  }
  return acc;
}

// acc -> y of one row and panel.
template <int kLimbs>
__attribute__((always_inline)) static inline void Store(const LinearCall& call, std::int64_t row,
                                                        std::int64_t panel, __m512 acc) {
  const PackedLayout& layout = call.layout;
  const __m512 factor = _mm512_loadu_ps(call.weight + panel * layout.panel_bytes +
                                        layout.num_units * layout.unit_bytes);
  __m512 y = _mm512_mul_ps(acc, factor);
  if (kLimbs == 2) {
    y = _mm512_mul_ps(y, _mm512_set1_ps(call.x.row_scales[row]));
  }
  float* out = call.y + row * call.y_stride + panel * kPanelOutputs;
  const std::int64_t left = layout.rows - panel * kPanelOutputs;
  if (left >= kPanelOutputs) {
    _mm512_storeu_ps(out, y);
  } else {
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1U << left) - 1U), y);
  }
}

// ---- 1 to 4 rows: straight from the packed codes, kPanels streams of weights at once ----

template <int kLimbs, LinearGrid kGrid, int kUnit, int kRows, int kPanels>
__attribute__((always_inline)) static inline void RowPanels(const LinearCall& call,
                                                            std::int64_t panel) {
  const PackedLayout& layout = call.layout;
  const std::uint8_t* w[kPanels];
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    w[p] = call.weight + (panel + p) * layout.panel_bytes;
  }
  __m512 acc[kRows][kPanels];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_ps();
  }
  const __m512i mask = _mm512_set1_epi8(15);
  for (std::int64_t u = 0; u < layout.num_units; ++u) {
    // Opaque to the compiler, which would otherwise keep every sum of pointer and row in a register
    // of its own.
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) __asm__("" : "+r"(w[p]));
    const std::int64_t block = kUnit == 64 ? u : u / 2;
    const int first = kUnit == 64 ? 0 : static_cast<int>(u % 2) * 32;
    const int part = kUnit == 64 ? 2 : static_cast<int>(u % 2);
    const std::int8_t* x =
        call.x.limbs + block * call.x.block_rows * kLimbs * kActivationBlock + first;
    const ActivationBlock* info = call.x.blocks + block * call.x.block_rows;
    __m512i t[kRows][kPanels][kLimbs];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m512i start = StartOf<kGrid>(info[r], part);
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        t[r][p][0] = _mm512_setzero_si512();
        t[r][p][kLimbs - 1] = start;
      }
    }
    constexpr int kRowsOf64 = static_cast<int>(CodeBytes(kUnit) / 64);
    NIBBLE_UNROLL for (int j = 0; j < kRowsOf64; ++j) {
      __m512i low[kPanels];
      __m512i high[kPanels];
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        const std::uint8_t* at = w[p] + 64 * j;
        low[p] = _mm512_loadu_si512(at);
        _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes, _MM_HINT_T0);
        if (kWeightBits == 4) {
          high[p] = _mm512_and_si512(_mm512_srli_epi16(low[p], 4), mask);
          low[p] = _mm512_and_si512(low[p], mask);
        }
      }
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL for (int l = 0; l < kLimbs; ++l) {
          const std::int8_t* four = x + (r * kLimbs + l) * kActivationBlock + 4 * j;
          const __m512i x_low = BroadcastFour(four);
          NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) Dot(t[r][p][l], low[p], x_low);
          if (kWeightBits == 4) {
            const __m512i x_high = BroadcastFour(four + kUnit / 2);
            NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) Dot(t[r][p][l], high[p], x_high);
          }
        }
      }
    }
    UnitScales s[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      s[p] = LoadScales<kGrid>(w[p] + CodeBytes(kUnit), false);
      w[p] += layout.unit_bytes;
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const RowTerms terms = TermsOf(info[r], part);
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        acc[r][p] = Fold<kLimbs, kGrid>(t[r][p][0], t[r][p][kLimbs - 1], s[p], terms, acc[r][p]);
      }
    }
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) Store<kLimbs>(call, r, panel + p, acc[r][p]);
  }
}

template <int kLimbs, LinearGrid kGrid, int kUnit, int kRows>
static void RunRowCount(const LinearCall& call) {
  // As many streams as the registers hold: sums and f32 sums of kRows rows, codes, activations.
  constexpr int kPanels = kRows == 1 || (kRows == 2 && kLimbs == 1) ? 4 : 2;
  std::int64_t p = call.panel_begin;
  for (; p + kPanels <= call.panel_end; p += kPanels) {
    RowPanels<kLimbs, kGrid, kUnit, kRows, kPanels>(call, p);
  }
  for (; p < call.panel_end; ++p) {
    RowPanels<kLimbs, kGrid, kUnit, kRows, 1>(call, p);
  }
}

template <int kLimbs, LinearGrid kGrid, int kUnit>
static void RunRow(const LinearCall& call) {
  switch (call.x.num_rows) {
    case 1:
      RunRowCount<kLimbs, kGrid, kUnit, 1>(call);
      break;
    case 2:
      RunRowCount<kLimbs, kGrid, kUnit, 2>(call);
      break;
    case 3:
      RunRowCount<kLimbs, kGrid, kUnit, 3>(call);
      break;
    default:
      RunRowCount<kLimbs, kGrid, kUnit, 4>(call);
      break;
  }
}

// ---- the inner loop of many rows ----
//
// t[v * 4 + p] = start[v] + sum over a unit of codes[panel p] * x[vector v], for 4 panels whose
// unpacked rows of 64 bytes lie interleaved, and for limb vectors kActivationBlock bytes apart.
// Written in assembly: GCC 12 keeps the codes on the stack and puts a register move beside every
// product.

#define NIBBLE_DOT_START(v, t0, t1, t2, t3) \
  "vmovdqa64 %[s" #v "], %%zmm" #t0         \
  "\n"                                      \
  "vmovdqa64 %[s" #v "], %%zmm" #t1         \
  "\n"                                      \
  "vmovdqa64 %[s" #v "], %%zmm" #t2         \
  "\n"                                      \
  "vmovdqa64 %[s" #v "], %%zmm" #t3 "\n"
#define NIBBLE_DOT_START1 NIBBLE_DOT_START(0, 0, 1, 2, 3)
#define NIBBLE_DOT_START2 NIBBLE_DOT_START1 NIBBLE_DOT_START(1, 4, 5, 6, 7)
#define NIBBLE_DOT_START4 \
  NIBBLE_DOT_START2 NIBBLE_DOT_START(2, 8, 9, 10, 11) NIBBLE_DOT_START(3, 12, 13, 14, 15)
#define NIBBLE_DOT_LOAD(at)       \
  "vmovdqa64 " #at                \
  "*256(%[codes]), %%zmm16\n"     \
  "vmovdqa64 " #at                \
  "*256+64(%[codes]), %%zmm17\n"  \
  "vmovdqa64 " #at                \
  "*256+128(%[codes]), %%zmm18\n" \
  "vmovdqa64 " #at "*256+192(%[codes]), %%zmm19\n"
#define NIBBLE_DOT_VECTOR(at, v, b, t0, t1, t2, t3)  \
  "vpbroadcastd " #at "*4+" #v "*64(%[x]), %%zmm" #b \
  "\n"                                               \
  "vpdpbusd %%zmm" #b ", %%zmm16, %%zmm" #t0         \
  "\n"                                               \
  "vpdpbusd %%zmm" #b ", %%zmm17, %%zmm" #t1         \
  "\n"                                               \
  "vpdpbusd %%zmm" #b ", %%zmm18, %%zmm" #t2         \
  "\n"                                               \
  "vpdpbusd %%zmm" #b ", %%zmm19, %%zmm" #t3 "\n"
#define NIBBLE_DOT_STEP1(at) NIBBLE_DOT_LOAD(at) NIBBLE_DOT_VECTOR(at, 0, 20, 0, 1, 2, 3)
#define NIBBLE_DOT_STEP2(at) NIBBLE_DOT_STEP1(at) NIBBLE_DOT_VECTOR(at, 1, 21, 4, 5, 6, 7)
#define NIBBLE_DOT_STEP4(at)                 \
  NIBBLE_DOT_STEP2(at)                       \
  NIBBLE_DOT_VECTOR(at, 2, 22, 8, 9, 10, 11) \
  NIBBLE_DOT_VECTOR(at, 3, 23, 12, 13, 14, 15)
#define NIBBLE_DOT_UNIT32(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7)
#define NIBBLE_DOT_UNIT64(step) \
  NIBBLE_DOT_UNIT32(step) step(8) step(9) step(10) step(11) step(12) step(13) step(14) step(15)
#define NIBBLE_DOT_CLOBBERS \
  "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "memory"

template <int kUnit>
__attribute__((always_inline)) static inline void DotPanels(const std::uint8_t* codes,
                                                            const std::int8_t* x,
                                                            const __m512i (&start)[1],
                                                            __m512i (&t)[4]) {
  register __m512i t0 __asm__("zmm0");
  register __m512i t1 __asm__("zmm1");
  register __m512i t2 __asm__("zmm2");
  register __m512i t3 __asm__("zmm3");
  if constexpr (kUnit == 64) {
    __asm__ volatile(NIBBLE_DOT_START1 NIBBLE_DOT_UNIT64(NIBBLE_DOT_STEP1)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0])
                     : NIBBLE_DOT_CLOBBERS);
  } else {
    __asm__ volatile(NIBBLE_DOT_START1 NIBBLE_DOT_UNIT32(NIBBLE_DOT_STEP1)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0])
                     : NIBBLE_DOT_CLOBBERS);
  }
  t[0] = t0;
  t[1] = t1;
  t[2] = t2;
  t[3] = t3;
}

template <int kUnit>
__attribute__((always_inline)) static inline void DotPanels(const std::uint8_t* codes,
                                                            const std::int8_t* x,
                                                            const __m512i (&start)[2],
                                                            __m512i (&t)[8]) {
  register __m512i t0 __asm__("zmm0");
  register __m512i t1 __asm__("zmm1");
  register __m512i t2 __asm__("zmm2");
  register __m512i t3 __asm__("zmm3");
  register __m512i t4 __asm__("zmm4");
  register __m512i t5 __asm__("zmm5");
  register __m512i t6 __asm__("zmm6");
  register __m512i t7 __asm__("zmm7");
  if constexpr (kUnit == 64) {
    __asm__ volatile(NIBBLE_DOT_START2 NIBBLE_DOT_UNIT64(NIBBLE_DOT_STEP2)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3), "=&v"(t4), "=&v"(t5), "=&v"(t6),
                       "=&v"(t7)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0]), [s1] "v"(start[1])
                     : NIBBLE_DOT_CLOBBERS);
  } else {
    __asm__ volatile(NIBBLE_DOT_START2 NIBBLE_DOT_UNIT32(NIBBLE_DOT_STEP2)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3), "=&v"(t4), "=&v"(t5), "=&v"(t6),
                       "=&v"(t7)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0]), [s1] "v"(start[1])
                     : NIBBLE_DOT_CLOBBERS);
  }
  t[0] = t0;
  t[1] = t1;
  t[2] = t2;
  t[3] = t3;
  t[4] = t4;
  t[5] = t5;
  t[6] = t6;
  t[7] = t7;
}

template <int kUnit>
__attribute__((always_inline)) static inline void DotPanels(const std::uint8_t* codes,
                                                            const std::int8_t* x,
                                                            const __m512i (&start)[4],
                                                            __m512i (&t)[16]) {
  register __m512i t0 __asm__("zmm0");
  register __m512i t1 __asm__("zmm1");
  register __m512i t2 __asm__("zmm2");
  register __m512i t3 __asm__("zmm3");
  register __m512i t4 __asm__("zmm4");
  register __m512i t5 __asm__("zmm5");
  register __m512i t6 __asm__("zmm6");
  register __m512i t7 __asm__("zmm7");
  register __m512i t8 __asm__("zmm8");
  register __m512i t9 __asm__("zmm9");
  register __m512i t10 __asm__("zmm10");
  register __m512i t11 __asm__("zmm11");
  register __m512i t12 __asm__("zmm12");
  register __m512i t13 __asm__("zmm13");
  register __m512i t14 __asm__("zmm14");
  register __m512i t15 __asm__("zmm15");
  if constexpr (kUnit == 64) {
    __asm__ volatile(NIBBLE_DOT_START4 NIBBLE_DOT_UNIT64(NIBBLE_DOT_STEP4)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3), "=&v"(t4), "=&v"(t5), "=&v"(t6),
                       "=&v"(t7), "=&v"(t8), "=&v"(t9), "=&v"(t10), "=&v"(t11), "=&v"(t12),
                       "=&v"(t13), "=&v"(t14), "=&v"(t15)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0]), [s1] "v"(start[1]),
                       [s2] "v"(start[2]), [s3] "v"(start[3])
                     : NIBBLE_DOT_CLOBBERS);
  } else {
    __asm__ volatile(NIBBLE_DOT_START4 NIBBLE_DOT_UNIT32(NIBBLE_DOT_STEP4)
                     : "=&v"(t0), "=&v"(t1), "=&v"(t2), "=&v"(t3), "=&v"(t4), "=&v"(t5), "=&v"(t6),
                       "=&v"(t7), "=&v"(t8), "=&v"(t9), "=&v"(t10), "=&v"(t11), "=&v"(t12),
                       "=&v"(t13), "=&v"(t14), "=&v"(t15)
                     : [codes] "r"(codes), [x] "r"(x), [s0] "v"(start[0]), [s1] "v"(start[1]),
                       [s2] "v"(start[2]), [s3] "v"(start[3])
                     : NIBBLE_DOT_CLOBBERS);
  }
  t[0] = t0;
  t[1] = t1;
  t[2] = t2;
  t[3] = t3;
  t[4] = t4;
  t[5] = t5;
  t[6] = t6;
  t[7] = t7;
  t[8] = t8;
  t[9] = t9;
  t[10] = t10;
  t[11] = t11;
  t[12] = t12;
  t[13] = t13;
  t[14] = t14;
  t[15] = t15;
}

// ---- many rows: unpack a few units of kPanels panels to L1 once, then sweep a block of rows ----

constexpr std::int64_t kRowBlock = 256;  // rows whose f32 sums stay in the scratch
constexpr std::int64_t kChunkUnits64 =
    4;  // units of 64 columns unpacked at once: 16 KiB for 4 panels

// Scratch of a worker: unpacked codes, widened scales, f32 sums.
constexpr std::int64_t kCodesBytes = kChunkUnits64 * 64 * kPanelOutputs * 4;
constexpr std::int64_t kScalesBytes = kChunkUnits64 * 2 * 4 * 128;
static_assert(kCodesBytes + kScalesBytes + kRowBlock * 4 * 64 <= kLinearKernelScratchBytes);

// kVectors limb vectors (kVectors / kLimbs rows) against 4 panels over `units` unpacked units.
template <int kLimbs, LinearGrid kGrid, int kUnit, int kVectors>
static inline void Tile(const LinearCall& call, const std::uint8_t* codes, const UnitScales* scales,
                        std::int64_t unit, std::int64_t units, std::int64_t row, float* sums) {
  constexpr int kRows = kVectors / kLimbs;
  const std::int64_t rows = call.x.block_rows;
  for (std::int64_t i = 0; i < units; ++i) {
    const std::int64_t block = kUnit == 64 ? unit + i : (unit + i) / 2;
    const int half = kUnit == 64 ? 0 : static_cast<int>((unit + i) % 2);
    const ActivationBlock* info = call.x.blocks + block * rows + row;
    const int part = kUnit == 64 ? 2 : half;
    __m512i start[kVectors];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      start[r * kLimbs] = _mm512_setzero_si512();
      start[(r + 1) * kLimbs - 1] = StartOf<kGrid>(info[r], part);
    }
    __m512i t[kVectors * 4];
    DotPanels<kUnit>(codes + i * kUnit * kPanelOutputs * 4,
                     call.x.limbs + (block * rows + row) * kLimbs * kActivationBlock + half * 32,
                     start, t);
    // Everything is read before the first store, which might alias it for all the compiler knows.
    UnitScales s[4];
    NIBBLE_UNROLL for (int p = 0; p < 4; ++p) s[p] = scales[i * 4 + p];
    RowTerms terms[kRows];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) terms[r] = TermsOf(info[r], part);
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int p = 0; p < 4; ++p) {
        __asm__ volatile("" ::
                             : "memory");  // one fold after the other: sums that are ready go first
        float* sum = sums + (r * 4 + p) * kPanelOutputs;
        _mm512_store_ps(
            sum, Fold<kLimbs, kGrid>(t[r * kLimbs * 4 + p], t[((r + 1) * kLimbs - 1) * 4 + p], s[p],
                                     terms[r], _mm512_load_ps(sum)));
      }
    }
  }
}

// Fetches the packed units that come next, a few lines before every tile: all at once they would
// fill the queue of misses and stall it.
class Prefetcher {
 public:
  Prefetcher(const LinearCall& call, std::int64_t panel, std::int64_t unit, std::int64_t units,
             std::int64_t num_steps) {
    const PackedLayout& layout = call.layout;
    if (unit >= layout.num_units) {
      panel += 4;
      unit = 0;
    }
    stride_ = layout.panel_bytes;
    at_ = call.weight + panel * stride_ + unit * layout.unit_bytes;
    lines_ = panel < call.panel_end ? (units * layout.unit_bytes + 63) / 64 : 0;
    step_ = (lines_ + num_steps - 1) / num_steps;
  }
  void Step() {
    const std::int64_t end = done_ + step_ < lines_ ? done_ + step_ : lines_;
    for (; done_ < end; ++done_, at_ += 64) {
      NIBBLE_UNROLL for (int p = 0; p < 4; ++p) {
        _mm_prefetch(reinterpret_cast<const char*>(at_ + p * stride_), _MM_HINT_T0);
      }
    }
  }

 private:
  const std::uint8_t* at_ = nullptr;
  std::int64_t stride_ = 0;
  std::int64_t lines_ = 0;
  std::int64_t step_ = 0;
  std::int64_t done_ = 0;
};

// Up to 4 panels for all rows; absent panels are computed from stale codes and dropped.
template <int kLimbs, LinearGrid kGrid, int kUnit>
static void BatchPanels(const LinearCall& call, std::int64_t panel, int panels) {
  constexpr int kRows = 4 / kLimbs;
  constexpr std::int64_t kChunk = kChunkUnits64 * 64 / kUnit;
  const PackedLayout& layout = call.layout;
  std::uint8_t* codes = call.scratch;
  auto* scales = reinterpret_cast<UnitScales*>(call.scratch + kCodesBytes);
  auto* sums = reinterpret_cast<float*>(call.scratch + kCodesBytes + kScalesBytes);
  const __m512i mask = _mm512_set1_epi8(15);
  for (std::int64_t row0 = 0; row0 < call.x.num_rows; row0 += kRowBlock) {
    const std::int64_t row_end =
        row0 + kRowBlock < call.x.num_rows ? row0 + kRowBlock : call.x.num_rows;
    for (std::int64_t i = 0; i < (row_end - row0) * 4; ++i) {
      _mm512_store_ps(sums + i * kPanelOutputs, _mm512_setzero_ps());
    }
    for (std::int64_t unit = 0; unit < layout.num_units; unit += kChunk) {
      const std::int64_t units =
          kChunk < layout.num_units - unit ? kChunk : layout.num_units - unit;
      for (std::int64_t i = 0; i < units; ++i) {
        for (int p = 0; p < panels; ++p) {
          const std::uint8_t* from =
              call.weight + (panel + p) * layout.panel_bytes + (unit + i) * layout.unit_bytes;
          std::uint8_t* to = codes + (i * kUnit / 4 * 4 + p) * 64;
          constexpr int kRowsOf64 = static_cast<int>(CodeBytes(kUnit) / 64);
          NIBBLE_UNROLL for (int j = 0; j < kRowsOf64; ++j) {
            const __m512i v = _mm512_loadu_si512(from + 64 * j);
            if (kWeightBits == 4) {
              _mm512_store_si512(to + j * 256, _mm512_and_si512(v, mask));
              _mm512_store_si512(to + (j + kUnit / 8) * 256,
                                 _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
            } else {
              _mm512_store_si512(to + j * 256, v);
            }
          }
          scales[i * 4 + p] = LoadScales<kGrid>(from + CodeBytes(kUnit), layout.wide_scales);
        }
      }
      Prefetcher ahead(call, panel, unit + units, kChunk, (row_end - row0 + kRows - 1) / kRows);
      std::int64_t row = row0;
      for (; row + kRows <= row_end; row += kRows) {
        ahead.Step();
        Tile<kLimbs, kGrid, kUnit, 4>(call, codes, scales, unit, units, row,
                                      sums + (row - row0) * 4 * kPanelOutputs);
      }
      ahead.Step();
      if (kLimbs == 1 && row + 2 <= row_end) {
        Tile<kLimbs, kGrid, kUnit, 2>(call, codes, scales, unit, units, row,
                                      sums + (row - row0) * 4 * kPanelOutputs);
        row += 2;
      }
      if (row < row_end) {
        Tile<kLimbs, kGrid, kUnit, kLimbs>(call, codes, scales, unit, units, row,
                                           sums + (row - row0) * 4 * kPanelOutputs);
      }
    }
    for (std::int64_t row = row0; row < row_end; ++row) {
      for (int p = 0; p < panels; ++p) {
        Store<kLimbs>(call, row, panel + p,
                      _mm512_load_ps(sums + ((row - row0) * 4 + p) * kPanelOutputs));
      }
    }
  }
}

template <int kLimbs, LinearGrid kGrid, int kUnit>
static void RunBatch(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; p += 4) {
    const std::int64_t left = call.panel_end - p;
    BatchPanels<kLimbs, kGrid, kUnit>(call, p, left < 4 ? static_cast<int>(left) : 4);
  }
}

// ---- grid and unit width become template arguments here ----

template <int kLimbs, bool kBatch, LinearGrid kGrid>
static void RunGrid(const LinearCall& call) {
  // f32 scales are rare: a few rows take the loops of many, which widen scales once, rather than
  // loops of their own.
  const bool batch = kBatch || call.layout.wide_scales;
  if (call.layout.unit_cols == 64) {
    batch ? RunBatch<kLimbs, kGrid, 64>(call) : RunRow<kLimbs, kGrid, 64>(call);
  } else {
    batch ? RunBatch<kLimbs, kGrid, 32>(call) : RunRow<kLimbs, kGrid, 32>(call);
  }
}

template <int kLimbs, bool kBatch>
static void Run(const LinearCall& call) {
  switch (call.layout.grid) {
    case LinearGrid::kSymmetric:
      RunGrid<kLimbs, kBatch, LinearGrid::kSymmetric>(call);
      break;
    case LinearGrid::kZeroPoints:
      RunGrid<kLimbs, kBatch, LinearGrid::kZeroPoints>(call);
      break;
    case LinearGrid::kMinima:
      RunGrid<kLimbs, kBatch, LinearGrid::kMinima>(call);
      break;
  }
}
