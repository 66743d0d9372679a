// Integer weights times quantized activations, AVX2: included by linear_w4_avx2.cpp and
// linear_w8_avx2.cpp, which define kWeightBits. Everything here is static.
//
// The formula and the order of sums are those of linear_integer_avx512.inl. vpmaddubsw would
// saturate with 8-bit codes, so codes and activations meet as int16 in vpmaddwd, which is exact: a
// 32-bit lane holds columns (k, k+2) or (k+1, k+3) of one output, the order in which a packed row
// of four k falls apart by shifts and masks.

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")

constexpr std::int64_t CodeBytes(std::int64_t unit_cols) {
  return unit_cols * kPanelOutputs * kWeightBits / 8;
}

constexpr std::int64_t kGroupPanels = 4;  // panels that share one widening of x
constexpr std::int64_t kRowBlock = 128;   // rows whose f32 sums stay in the scratch
constexpr std::int64_t kChunkBlocks = 2;  // blocks of 64 columns unpacked at once
constexpr std::int64_t kPairs = 32;       // of a block

// Scratch of a worker.
struct Scratch {
  std::int16_t codes[kGroupPanels][kChunkBlocks * kPairs][2 * kPanelOutputs];  // [pair][output][2]
  std::int16_t x[kRowBlock][kChunkBlocks][kActivationBlock];                   // [pair][2]
  float sums[kGroupPanels][kRowBlock][kPanelOutputs];
};
static_assert(sizeof(Scratch) <= kLinearKernelScratchBytes);

__attribute__((always_inline)) static inline __m256i Load(const void* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// 64 activations of one row as pairs (k, k + 2), (k + 1, k + 3).
template <int kLimbs>
static inline void WidenBlock(const std::int8_t* limbs, std::int16_t* to) {
  for (int i = 0; i < kActivationBlock; i += 16) {
    const auto widen = [](const std::int8_t* at) __attribute__((always_inline)) {
      return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    };
    __m256i v = widen(limbs + i);
    if (kLimbs == 2) {
      v = _mm256_add_epi16(_mm256_slli_epi16(v, 8), widen(limbs + kActivationBlock + i));
    }
    v = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, 0xd8), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), v);
  }
}

// A unit's codes as pairs of int16, [pair][output][2].
template <int kUnit>
static inline void UnpackUnit(const std::uint8_t* unit, std::int16_t* to) {
  constexpr int kRowsOf64 = static_cast<int>(CodeBytes(kUnit) / 64);
  const __m256i mask = _mm256_set1_epi16(kWeightBits == 4 ? 15 : 255);
  for (int j = 0; j < kRowsOf64; ++j) {
    for (int half = 0; half < 2; ++half) {
      const __m256i v = Load(unit + 64 * j + 32 * half);
      const auto put = [&](int pair, __m256i codes) __attribute__((always_inline)) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + pair * 2 * kPanelOutputs + 16 * half),
                            codes);
      };
      put(2 * j, _mm256_and_si256(v, mask));
      put(2 * j + 1, _mm256_and_si256(_mm256_srli_epi16(v, 8), mask));
      if (kWeightBits == 4) {
        put(kUnit / 4 + 2 * j, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
        put(kUnit / 4 + 2 * j + 1, _mm256_srli_epi16(v, 12));
      }
    }
  }
}

// The sums of one unit and 8 outputs (half 0 or 1 of a panel) become floats and join acc.
template <int kLimbs, LinearGrid kGrid, bool kWide>
__attribute__((always_inline)) static inline __m256 Fold(__m256i t, const std::uint8_t* scales,
                                                         int half, const ActivationBlock& info,
                                                         int part, __m256 acc) {
  const auto load8 = [&](const std::uint8_t* from) __attribute__((always_inline)) {
    return kWide ? _mm256_loadu_ps(reinterpret_cast<const float*>(from) + 8 * half)
                 : _mm256_cvtph_ps(
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * half)));
  };
  const std::uint8_t* extra = scales + (kWide ? 64 : 32);
  const __m256i minus_sum = _mm256_set1_epi32(info.minus_sum[part]);
  if (kGrid == LinearGrid::kSymmetric) {
    t = _mm256_add_epi32(t, _mm256_slli_epi32(minus_sum, kWeightBits - 1));
  } else if (kGrid == LinearGrid::kZeroPoints) {
    const __m256i zero =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(extra + 8 * half)));
    t = _mm256_add_epi32(t, _mm256_mullo_epi32(zero, minus_sum));
  }
  __m256 scale = load8(scales);
  if (kLimbs == 1) {
    scale = _mm256_mul_ps(scale, _mm256_set1_ps(info.scale));
  }
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), scale, acc);
  if (kGrid == LinearGrid::kMinima) {
    acc = _mm256_fmadd_ps(load8(extra), _mm256_set1_ps(info.scaled_sum[part]), acc);
  }
  return acc;
}

// kRows rows against one panel over `units` unpacked units.
template <int kLimbs, LinearGrid kGrid, bool kWide, int kUnit, int kRows>
static inline void Tile(const LinearCall& call, const Scratch& scratch, std::int64_t panel,
                        std::int64_t p, std::int64_t unit, std::int64_t units, std::int64_t row,
                        std::int64_t row0, float* sums) {
  const PackedLayout& layout = call.layout;
  for (std::int64_t i = 0; i < units; ++i) {
    __m256i t[kRows][2];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      t[r][0] = _mm256_setzero_si256();
      t[r][1] = _mm256_setzero_si256();
    }
    const std::int16_t* codes = scratch.codes[p][i * kUnit / 2];
    const std::int16_t* x = &scratch.x[row - row0][0][0] + i * kUnit;
    for (int pair = 0; pair < kUnit / 2; ++pair) {
      const __m256i w0 = Load(codes + pair * 2 * kPanelOutputs);
      const __m256i w1 = Load(codes + pair * 2 * kPanelOutputs + 16);
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        std::int32_t two;
        __builtin_memcpy(&two, x + r * kChunkBlocks * kActivationBlock + 2 * pair, 4);
        const __m256i both = _mm256_set1_epi32(two);
        t[r][0] = _mm256_add_epi32(t[r][0], _mm256_madd_epi16(w0, both));
        t[r][1] = _mm256_add_epi32(t[r][1], _mm256_madd_epi16(w1, both));
      }
    }
    const std::int64_t block = (unit + i) * kUnit / kActivationBlock;
    const int part = kUnit == 64 ? 2 : static_cast<int>((unit + i) % 2);
    const std::uint8_t* scales = call.weight + panel * layout.panel_bytes +
                                 (unit + i) * layout.unit_bytes + CodeBytes(kUnit);
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const ActivationBlock& info = call.x.blocks[block * call.x.block_rows + row + r];
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
        float* sum = sums + r * kPanelOutputs + 8 * half;
        _mm256_storeu_ps(sum, Fold<kLimbs, kGrid, kWide>(t[r][half], scales, half, info, part,
                                                         _mm256_loadu_ps(sum)));
      }
    }
  }
}

template <int kLimbs>
static inline void Store(const LinearCall& call, std::int64_t row, std::int64_t panel,
                         const float* sums) {
  const PackedLayout& layout = call.layout;
  const auto* factors =
      call.weight + panel * layout.panel_bytes + layout.num_units * layout.unit_bytes;
  float* out = call.y + row * call.y_stride + panel * kPanelOutputs;
  const std::int64_t left = layout.rows - panel * kPanelOutputs;
  const std::int64_t outputs = left < kPanelOutputs ? left : kPanelOutputs;
  for (std::int64_t c = 0; c < outputs; ++c) {
    float factor;
    __builtin_memcpy(&factor, factors + 4 * c, 4);
    const float y = sums[c] * factor;
    out[c] = kLimbs == 2 ? y * call.x.row_scales[row] : y;
  }
}

// Up to kGroupPanels panels for all rows.
template <int kLimbs, LinearGrid kGrid, bool kWide, int kUnit>
static void RunPanels(const LinearCall& call, std::int64_t panel, std::int64_t panels) {
  const PackedLayout& layout = call.layout;
  auto& scratch = *reinterpret_cast<Scratch*>(call.scratch);
  constexpr std::int64_t kChunk = kChunkBlocks * kActivationBlock / kUnit;
  for (std::int64_t row0 = 0; row0 < call.x.num_rows; row0 += kRowBlock) {
    const std::int64_t left = call.x.num_rows - row0;
    const std::int64_t rows = left < kRowBlock ? left : kRowBlock;
    for (std::int64_t p = 0; p < panels; ++p) {
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t c = 0; c < kPanelOutputs; ++c) {
          scratch.sums[p][row][c] = 0.0F;
        }
      }
    }
    for (std::int64_t unit = 0; unit < layout.num_units; unit += kChunk) {
      const std::int64_t units_left = layout.num_units - unit;
      const std::int64_t units = units_left < kChunk ? units_left : kChunk;
      const std::int64_t block0 = unit * kUnit / kActivationBlock;
      const std::int64_t blocks = (units * kUnit + kActivationBlock - 1) / kActivationBlock;
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t b = 0; b < blocks; ++b) {
          WidenBlock<kLimbs>(call.x.limbs + ((block0 + b) * call.x.block_rows + row0 + r) * kLimbs *
                                                kActivationBlock,
                             scratch.x[r][b]);
        }
      }
      for (std::int64_t p = 0; p < panels; ++p) {
        const std::uint8_t* from =
            call.weight + (panel + p) * layout.panel_bytes + unit * layout.unit_bytes;
        for (std::int64_t i = 0; i < units; ++i) {
          _mm_prefetch(reinterpret_cast<const char*>(from) + (i + kChunk) * layout.unit_bytes,
                       _MM_HINT_T0);
          UnpackUnit<kUnit>(from + i * layout.unit_bytes, scratch.codes[p][i * kUnit / 2]);
        }
        std::int64_t r = 0;
        for (; r + 4 <= rows; r += 4) {
          Tile<kLimbs, kGrid, kWide, kUnit, 4>(call, scratch, panel + p, p, unit, units, row0 + r,
                                               row0, scratch.sums[p][r]);
        }
        for (; r < rows; ++r) {
          Tile<kLimbs, kGrid, kWide, kUnit, 1>(call, scratch, panel + p, p, unit, units, row0 + r,
                                               row0, scratch.sums[p][r]);
        }
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t p = 0; p < panels; ++p) {
        Store<kLimbs>(call, row0 + r, panel + p, scratch.sums[p][r]);
      }
    }
  }
}

template <int kLimbs, LinearGrid kGrid, bool kWide>
static void RunScales(const LinearCall& call) {
  for (std::int64_t p = call.panel_begin; p < call.panel_end; p += kGroupPanels) {
    const std::int64_t left = call.panel_end - p;
    const std::int64_t panels = left < kGroupPanels ? left : kGroupPanels;
    if (call.layout.unit_cols == 64) {
      RunPanels<kLimbs, kGrid, kWide, 64>(call, p, panels);
    } else {
      RunPanels<kLimbs, kGrid, kWide, 32>(call, p, panels);
    }
  }
}

template <int kLimbs, LinearGrid kGrid>
static void RunGrid(const LinearCall& call) {
  if (call.layout.wide_scales) {
    RunScales<kLimbs, kGrid, true>(call);
  } else {
    RunScales<kLimbs, kGrid, false>(call);
  }
}

template <int kLimbs>
static void Run(const LinearCall& call) {
  switch (call.layout.grid) {
    case LinearGrid::kSymmetric:
      RunGrid<kLimbs, LinearGrid::kSymmetric>(call);
      break;
    case LinearGrid::kZeroPoints:
      RunGrid<kLimbs, LinearGrid::kZeroPoints>(call);
      break;
    case LinearGrid::kMinima:
      RunGrid<kLimbs, LinearGrid::kMinima>(call);
      break;
  }
}
