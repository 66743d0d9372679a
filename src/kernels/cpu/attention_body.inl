// The body of attention_avx2.cpp and attention_avx512.cpp, written in terms of V (vec16_*.inl) and
// of the tile sizes kScoreRows, kOutputRows, kOutputVectors and ScoreBlocks(rows), all given
// before. Arithmetic: ref/attention_ref.cpp; bytes: docs/formats/kv_block.md. A tile does 2 * rows
// * keys * head_dim fma. Scores: lanes are tokens, a K vector is loaded and widened once for
// kScoreRows rows. Outputs: lanes are d, a V vector once for kOutputRows rows.

namespace nibble {
namespace {

constexpr int kSplitBlocks = kAttentionSplit / kKvBlockTokens;

inline std::int64_t Clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// s[r][16 b + token] = start[r] + sum over d of q[r][d] * k[token][d] for kRows rows and kBlocks
// blocks. int8: k is the unsigned code, and start[r] takes its offset of 128 back.
template <KvDType kType, int kRows, int kBlocks>
static inline void ScoreTile(const float* q, const float* start, std::int64_t head_dim,
                             const unsigned char* const* k, float* s) {
  constexpr bool kInt8 = kType == KvDType::kInt8;
  V sum[kRows][kBlocks];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) {
      sum[r][b] = kInt8 ? Set(start[r]) : Zero();
    }
  }
  const auto add = [&](std::int64_t d, const V* values) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V x = Set(q[r * head_dim + d]);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        sum[r][b] = Fma(x, values[b], sum[r][b]);
      }
    }
  };
  if constexpr (kInt8) {
    for (std::int64_t d = 0; d < head_dim; d += 4) {
      Bytes bytes[kBlocks];
      V values[kBlocks];
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        bytes[b] = LoadBytes(k[b] + d * 16);
      }
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = Byte<0>(bytes[b]);
      }
      add(d, values);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = Byte<1>(bytes[b]);
      }
      add(d + 1, values);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = Byte<2>(bytes[b]);
      }
      add(d + 2, values);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = Byte<3>(bytes[b]);
      }
      add(d + 3, values);
    }
  } else if constexpr (kType == KvDType::kF32) {
    for (std::int64_t d = 0; d < head_dim; ++d) {
      V values[kBlocks];
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        values[b] = Load(reinterpret_cast<const float*>(k[b]) + d * 16);
      }
      add(d, values);
    }
  } else {
    for (std::int64_t d = 0; d < head_dim; d += 2) {
      V even[kBlocks];
      V odd[kBlocks];
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        LoadPairs(k[b] + d * 32, even[b], odd[b]);
      }
      add(d, even);
      add(d + 1, odd);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) {
      Store(s + r * kAttentionSplit + b * kKvBlockTokens, sum[r][b]);
    }
  }
}

// Blocks [begin, end) for kRows rows.
template <KvDType kType, int kRows>
static void ScoreRows(const float* q, const float* start, std::int64_t head_dim,
                      const unsigned char* const* k, std::int64_t begin, std::int64_t end,
                      float* s) {
  constexpr int kBlocks = ScoreBlocks(kRows);
  std::int64_t b = begin;
  for (; b + kBlocks <= end; b += kBlocks) {
    ScoreTile<kType, kRows, kBlocks>(q, start, head_dim, k + b, s + b * kKvBlockTokens);
  }
  for (; b < end; ++b) {
    ScoreTile<kType, kRows, 1>(q, start, head_dim, k + b, s + b * kKvBlockTokens);
  }
}

template <KvDType kType, int kRows = kScoreRows>
static void Score(int rows, const float* q, const float* start, std::int64_t head_dim,
                  const unsigned char* const* k, std::int64_t begin, std::int64_t end, float* s) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      Score<kType, kRows - 1>(rows, q, start, head_dim, k, begin, end, s);
      return;
    }
  }
  ScoreRows<kType, kRows>(q, start, head_dim, k, begin, end, s);
}

// Turns the scores of blocks [begin, end) into exp(s - max), 0 outside the keys [first, last) that
// the row sees. int8: the scale of K is applied first, the scale of V last; scaled_out is what
// takes back the offset of 128 in the codes of V.
template <KvDType kType>
static void Softmax(float* s, std::int64_t begin, std::int64_t end, std::int64_t first,
                    std::int64_t last, const unsigned char* const* scales, float& max_out,
                    float& sum_out, float& scaled_out) {
  constexpr bool kInt8 = kType == KvDType::kInt8;
  const V lowest = Set(-__builtin_inff());
  V max = lowest;
  for (std::int64_t b = begin; b < end; ++b) {
    const std::int64_t base = b * kKvBlockTokens;
    V x = Load(s + base);
    if constexpr (kInt8) {
      x = x * LoadHalves(scales[b]);
    }
    if (first > base || last < base + kKvBlockTokens) {
      x = Select(x, Clamp(first - base, 0, 16), Clamp(last - base, 0, 16), lowest);
    }
    if (kInt8 || first > base || last < base + kKvBlockTokens) {
      Store(s + base, x);
    }
    max = Max(max, x);
  }
  max_out = Max(max);
  const V shift = Set(max_out);
  V sum = Zero();
  V scaled = Zero();
  for (std::int64_t b = begin; b < end; ++b) {
    const std::int64_t base = b * kKvBlockTokens;
    V p = ExpOfNonPositive(Load(s + base) - shift);
    sum = sum + p;
    if constexpr (kInt8) {
      p = p * LoadHalves(scales[b] + 2 * kKvBlockTokens);
      scaled = scaled + p;
    }
    Store(s + base, p);
  }
  sum_out = Sum(sum);
  scaled_out = kInt8 ? -128.0F * Sum(scaled) : 0.0F;
}

// o[r][d] = start[r] + sum over tokens [begin, end) of p[r][token] * v[token][d], for kRows rows
// and 16 kVectors values of d; begin is a multiple of 16. A token at `end` is never read into a
// sum: the slot may hold anything.
template <KvDType kType, int kRows, int kVectors>
static inline void OutputTile(const float* p, const float* start, std::int64_t head_dim,
                              const unsigned char* const* v, std::int64_t d, std::int64_t begin,
                              std::int64_t end, float* o) {
  constexpr bool kInt8 = kType == KvDType::kInt8;
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) {
      sum[r][c] = kInt8 ? Set(start[r]) : Zero();
    }
  }
  const auto add = [&](std::int64_t token, const V* values) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V x = Set(p[r * kAttentionSplit + token]);
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) {
        sum[r][c] = Fma(x, values[c], sum[r][c]);
      }
    }
  };
  constexpr int kPack = kInt8 ? 4 : kType == KvDType::kF32 ? 1 : 2;  // tokens a 32-bit lane
  for (std::int64_t t = begin; t < end; t += kPack) {
    const unsigned char* row =
        v[t / kKvBlockTokens] + (t % kKvBlockTokens / kPack * head_dim + d) * 4;
    if constexpr (kInt8) {
      Bytes bytes[kVectors];
      V values[kVectors];
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) {
        bytes[c] = LoadBytes(row + 64 * c);
        values[c] = Byte<0>(bytes[c]);
      }
      add(t, values);
      if (t + 1 < end) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; ++c) {
          values[c] = Byte<1>(bytes[c]);
        }
        add(t + 1, values);
      }
      if (t + 2 < end) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; ++c) {
          values[c] = Byte<2>(bytes[c]);
        }
        add(t + 2, values);
      }
      if (t + 3 < end) {
#pragma GCC unroll 16
        for (int c = 0; c < kVectors; ++c) {
          values[c] = Byte<3>(bytes[c]);
        }
        add(t + 3, values);
      }
    } else if constexpr (kType == KvDType::kF32) {
      V values[kVectors];
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) {
        values[c] = Load(reinterpret_cast<const float*>(row) + 16 * c);
      }
      add(t, values);
    } else {
      V even[kVectors];
      V odd[kVectors];
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) {
        LoadPairs(row + 64 * c, even[c], odd[c]);
      }
      add(t, even);
      if (t + 1 < end) {
        add(t + 1, odd);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) {
      Store(o + r * head_dim + d + 16 * c, sum[r][c]);
    }
  }
}

template <KvDType kType, int kRows = kOutputRows>
static void Output(int rows, const float* p, const float* start, std::int64_t head_dim,
                   const unsigned char* const* v, std::int64_t begin, std::int64_t end, float* o) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      Output<kType, kRows - 1>(rows, p, start, head_dim, v, begin, end, o);
      return;
    }
  }
  std::int64_t d = 0;
  for (; d + 16 * kOutputVectors <= head_dim; d += 16 * kOutputVectors) {
    OutputTile<kType, kRows, kOutputVectors>(p, start, head_dim, v, d, begin, end, o);
  }
  for (; d < head_dim; d += 16) {
    OutputTile<kType, kRows, 1>(p, start, head_dim, v, d, begin, end, o);
  }
}

struct RowState {
  float max;
  float sum;
  bool any;
};

// Adds one split to what is merged so far.
void Merge(RowState& state, float* merged, float max, float sum, const float* out,
           std::int64_t head_dim) {
  if (!state.any) {
    state = {max, sum, true};
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      Store(merged + d, Load(out + d));
    }
    return;
  }
  const float new_max = state.max > max ? state.max : max;
  float weights[16] = {state.max - new_max, max - new_max};
  Store(weights, Exp(Load(weights)));
  const float keep = weights[0];
  const float add = weights[1];
  state.max = new_max;
  state.sum = __builtin_fmaf(state.sum, keep, sum * add);
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    Store(merged + d, Fma(Load(merged + d), Set(keep), Load(out + d) * Set(add)));
  }
}

template <KvDType kType>
static void AttendTile(const AttentionTile& tile) {
  constexpr bool kInt8 = kType == KvDType::kInt8;
  const std::int64_t head_dim = tile.head_dim;
  const int rows = tile.num_rows;
  float* q = tile.scratch;
  float* merged = q + kMaxAttentionRows * head_dim;
  float* split_out = merged + kMaxAttentionRows * head_dim;
  float* p = split_out + kMaxAttentionRows * head_dim;
  const std::int64_t v_offset = (kInt8 ? 16 : kType == KvDType::kF32 ? 64 : 32) * head_dim;
  const std::int64_t scale_offset = 32 * head_dim;
  RowState state[kMaxAttentionRows];
  float score_start[kMaxAttentionRows];
  for (int r = 0; r < rows; ++r) {
    state[r] = {0.0F, 0.0F, false};
    V q_sum = Zero();
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      const V scaled = Load(tile.q[r] + d) * Set(tile.scale);
      Store(q + r * head_dim + d, scaled);
      q_sum = q_sum + scaled;
    }
    score_start[r] = kInt8 ? -128.0F * Sum(q_sum) : 0.0F;
  }
  const std::int64_t first_split = tile.first_key[0] / kAttentionSplit;
  const std::int64_t last_split = tile.last_key[rows - 1] / kAttentionSplit;
  for (std::int64_t split = first_split; split <= last_split; ++split) {
    const std::int64_t base = split * kAttentionSplit;
    const unsigned char* k[kSplitBlocks];
    const unsigned char* v[kSplitBlocks];
    const unsigned char* scales[kSplitBlocks];
    const std::int64_t first_block =
        Clamp(tile.first_key[0] - base, 0, kAttentionSplit) / kKvBlockTokens;
    const std::int64_t end_block =
        (Clamp(tile.last_key[rows - 1] + 1 - base, 0, kAttentionSplit) + kKvBlockTokens - 1) /
        kKvBlockTokens;
    for (std::int64_t b = first_block; b < end_block; ++b) {
      k[b] = tile.heads + tile.block_table[base / kKvBlockTokens + b] * tile.block_stride;
      v[b] = k[b] + v_offset;
      scales[b] = k[b] + scale_offset;
    }
    for (int row = 0; row < rows; row += kScoreRows) {
      const int n = rows - row < kScoreRows ? rows - row : kScoreRows;
      const std::int64_t begin = Clamp(tile.first_key[row] - base, 0, kAttentionSplit);
      const std::int64_t end = Clamp(tile.last_key[row + n - 1] + 1 - base, 0, kAttentionSplit);
      if (begin >= end) {
        continue;
      }
      const std::int64_t block_begin = begin / kKvBlockTokens;
      const std::int64_t block_end = (end + kKvBlockTokens - 1) / kKvBlockTokens;
      float* scores = p + row * kAttentionSplit;
      Score<kType>(n, q + row * head_dim, score_start + row, head_dim, k, block_begin, block_end,
                   scores);
      float max[kScoreRows];
      float sum[kScoreRows];
      float out_start[kScoreRows];
      for (int r = 0; r < n; ++r) {
        float* s = scores + r * kAttentionSplit;
        const std::int64_t first = Clamp(tile.first_key[row + r] - base, 0, kAttentionSplit);
        const std::int64_t last = Clamp(tile.last_key[row + r] + 1 - base, 0, kAttentionSplit);
        if (first < last) {
          Softmax<kType>(s, block_begin, block_end, first, last, scales, max[r], sum[r],
                         out_start[r]);
          continue;
        }
        for (std::int64_t b = block_begin; b < block_end; ++b) {
          Store(s + b * kKvBlockTokens, Zero());
        }
        out_start[r] = 0.0F;
      }
      for (int r = 0; r < n; r += kOutputRows) {
        const int m = n - r < kOutputRows ? n - r : kOutputRows;
        Output<kType>(m, scores + r * kAttentionSplit, out_start + r, head_dim, v,
                      block_begin * kKvBlockTokens, end, split_out + r * head_dim);
      }
      for (int r = 0; r < n; ++r) {
        const int i = row + r;
        if (tile.first_key[i] < base + kAttentionSplit && tile.last_key[i] >= base) {
          Merge(state[i], merged + i * head_dim, max[r], sum[r], split_out + r * head_dim,
                head_dim);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const V inverse = Set(1.0F / state[r].sum);
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      Store(tile.out[r] + d, Load(merged + r * head_dim + d) * inverse);
    }
  }
}

void Attend(const AttentionTile& tile) {
  if (tile.dtype == KvDType::kInt8) {
    AttendTile<KvDType::kInt8>(tile);
  } else if (tile.dtype == KvDType::kF32) {
    AttendTile<KvDType::kF32>(tile);
  } else {
    AttendTile<KvDType::kBF16>(tile);
  }
}

void NormAndRotate(float* x, const float* norm, float eps, const float* cos_sin,
                   std::int64_t head_dim) {
  if (norm != nullptr) {
    V squares = Zero();
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      const V a = Load(x + d);
      squares = Fma(a, a, squares);
    }
    const float mean = Sum(squares) / static_cast<float>(head_dim);
    const V inverse = Set(1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps))));
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      Store(x + d, Load(x + d) * inverse * Load(norm + d));
    }
  }
  const std::int64_t half = head_dim / 2;
  std::int64_t d = 0;
  for (; d + 16 <= half; d += 16) {
    const V a = Load(x + d);
    const V b = Load(x + half + d);
    const V c = Load(cos_sin + d);
    const V s = Load(cos_sin + half + d);
    Store(x + d, NegFma(b, s, a * c));
    Store(x + half + d, Fma(a, s, b * c));
  }
  if (d < half) {  // 8 are left, as head_dim is a multiple of 16
    const V a = LoadFirst(x + d, 8);
    const V b = LoadFirst(x + half + d, 8);
    const V c = LoadFirst(cos_sin + d, 8);
    const V s = LoadFirst(cos_sin + half + d, 8);
    StoreFirst(x + d, NegFma(b, s, a * c), 8);
    StoreFirst(x + half + d, Fma(a, s, b * c), 8);
  }
}

// Symmetric absmax / 127 with the scale rounded to fp16 first.
std::uint16_t Quantize(const float* x, std::int64_t head_dim, unsigned char* codes) {
  V max = Zero();
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    max = Max(Abs(Load(x + d)), max);
  }
  const float ratio = Max(max) / 127.0F;
  const std::uint16_t half =
      _cvtss_sh(ratio < 65504.0F ? ratio : 65504.0F, _MM_FROUND_TO_NEAREST_INT);
  const float scale = _cvtsh_ss(half);
  const V inverse = Set(scale > 0.0F ? 1.0F / scale : 0.0F);
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    StoreCodes(codes + d, Min(Max(Load(x + d) * inverse, Set(-127.0F)), Set(127.0F)));
  }
  return half;
}

// 32-bit words: every 16th one of `to` from consecutive ones.
inline void ScatterWords(const void* from, std::int64_t count, unsigned char* to) {
  const auto* words = static_cast<const std::uint32_t*>(from);
  auto* out = reinterpret_cast<std::uint32_t*>(to);
  for (std::int64_t i = 0; i < count; ++i) {
    out[i * 16] = words[i];
  }
}

void RopeAndCacheRow(const RopeRow& row) {
  const std::int64_t head_dim = row.head_dim;
  const std::int64_t slot = row.slot;
  for (int head = 0; head < row.num_heads; ++head) {
    NormAndRotate(row.q + head * head_dim, row.q_norm, row.norm_eps, row.cos_sin, head_dim);
  }
  alignas(64) float k[kMaxHeadDim];
  alignas(64) std::uint16_t halves[kMaxHeadDim];
  for (int head = 0; head < row.num_kv_heads; ++head) {
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      Store(k + d, Load(row.k + head * head_dim + d));
    }
    NormAndRotate(k, row.k_norm, row.norm_eps, row.cos_sin, head_dim);
    const float* v = row.v + head * head_dim;
    unsigned char* block = row.block + head * row.head_bytes;
    if (row.dtype == KvDType::kF32) {
      ScatterWords(k, head_dim, block + slot * 4);
      auto* out = reinterpret_cast<float*>(block + 64 * head_dim) + slot * head_dim;
      for (std::int64_t d = 0; d < head_dim; d += 16) {
        Store(out + d, Load(v + d));
      }
      continue;
    }
    if (row.dtype == KvDType::kInt8) {
      auto* codes = reinterpret_cast<unsigned char*>(halves);
      auto* scales = reinterpret_cast<std::uint16_t*>(block + 32 * head_dim);
      scales[slot] = Quantize(k, head_dim, codes);
      ScatterWords(codes, head_dim / 4, block + slot * 4);
      scales[kKvBlockTokens + slot] = Quantize(v, head_dim, codes);
      unsigned char* out = block + 16 * head_dim + slot / 4 * head_dim * 4 + slot % 4;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        out[4 * d] = codes[d];
      }
      continue;
    }
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      StoreBF16(halves + d, Load(k + d));
    }
    ScatterWords(halves, head_dim / 2, block + slot * 4);
    unsigned char* out = block + 32 * head_dim + slot / 2 * head_dim * 4;
    for (std::int64_t d = 0; d < head_dim; d += 16) {
      StoreBF16IntoPairs(out + d * 4, static_cast<int>(slot % 2), Load(v + d));
    }
  }
}

}  // namespace
}  // namespace nibble
