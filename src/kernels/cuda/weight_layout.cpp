#include "kernels/cuda/weight_layout.h"

#include <emmintrin.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "device/device.h"
#include "tensor/float16.h"

namespace nibble::cuda {
namespace {

constexpr int kSteps = 4;  // MMA steps of 16 columns in a half
constexpr int kLanes = 32;

int CodeBytes(const WeightLayout& layout) {
  const int values = kTileRows * layout.unit_cols;
  switch (layout.format) {
    case Format::kW4:
    case Format::kNf4:
      return values / 2;
    case Format::kW8:
    case Format::kFp8:
      return values;
    case Format::kF16:
      return values * 2;
  }
  return 0;
}

// Bytes of scales, and of zero points or minima, for the columns that share a scale.
int SubBytes(const WeightLayout& layout) {
  if (layout.format == Format::kF16 || layout.grid == Grid::kRow) {
    return 0;
  }
  return layout.grid == Grid::kSymmetric ? kPairBytes : 2 * kPairBytes;
}

// The power of two that brings the largest value of a row to [1, 2): fp16 then has its full
// precision for everything above 2^-14 of it. Scales that a checkpoint stores as f32
// (WeightSpec::has_f32_scales) are rounded by this as float weights are: every weight becomes an
// fp16 operand anyway.
// `unit`: what scales are stored times. Where the largest would round to infinity (W4: from 65,520
// times 2^-15 on, which only f32 scales reach) the factor is twice as large.
float RowFactor(float largest, float unit = 1.0F) {
  if (!(largest > 0.0F) || !std::isfinite(largest)) {
    return 1.0F;
  }
  const float factor = std::ldexp(1.0F, std::clamp(std::ilogb(largest), -120, 120));
  return std::isinf(F16ToFloat(FloatToF16(largest / factor * unit))) ? 2.0F * factor : factor;
}

// The column of MMA step `step` that element `e` (0..7: two of each A register) of a lane holds,
// and its row in the tile.
struct Place {
  int row;
  int col;
};
constexpr Place PlaceOf(int lane, int step, int e) {
  const int g = lane / 4;
  const int t = lane % 4;
  return {.row = g + (e / 2 % 2) * 8, .col = step * 16 + 2 * t + (e / 4) * 8 + e % 2};
}
// Bit of a 4-bit code inside its word, so that one mask gives an A register (codec.cuh).
constexpr int NibbleBit(int e) { return (e / 2) * 4 + (e % 2) * 16; }
// The two codes of an A register of NF4 are a byte: a place in the table (codec.cuh).
constexpr int Nf4Bit(int e) { return e * 4; }

void StoreHalf(std::byte* at, float value) {
  const std::uint16_t bits = FloatToF16(value);
  std::memcpy(at, &bits, sizeof bits);
}

float LoadHalf(const std::byte* at) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return F16ToFloat(bits);
}

bool IsCodebook(const WeightLayout& layout) {
  return layout.format == Format::kNf4 || layout.format == Format::kFp8;
}

// The code that is worth nothing where codes have neither zero points nor minima.
int Middle(const WeightLayout& layout) {
  switch (layout.format) {
    case Format::kW4:
      return 8;
    case Format::kNf4:
      return NearestCode(Codebook::kNf4, 0.0F);
    case Format::kFp8:
      return NearestCode(Codebook::kFp8E4M3, 0.0F);
    default:
      return 128;
  }
}

// What decoding makes of a code is (offset + code) * code unit, and scales are stored times `scale`
// (codec.cuh): 4-bit codes of rows 8 to 15 stand 4 bits higher.
struct StoredUnits {
  float code = 1.0F;
  float scale = 1.0F;
  float offset = 0.0F;
};
StoredUnits UnitsOf(const WeightLayout& layout, int row) {
  if (layout.format == Format::kW4) {
    return {.code = row % kTileRows < 8 ? 0x1p-24F : 0x1p-20F, .scale = 0x1p15F};
  }
  return {.offset = 1024.0F};
}

// Where the 16-bit value of `row` lies among the pairs (r, r + 8).
int PairOffset(int row) { return row % 8 * 4 + row / 8 * 2; }

struct TileRow {
  const std::uint8_t* codes = nullptr;  // null: no such row
  float inverse = 1.0F;                 // of the factor
};

// The codes of one half of a unit, in the order of the lanes.
template <typename CodeAt>
void StoreHalfCodes(const WeightLayout& layout, std::byte* half, const CodeAt& code_at) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int step = 0; step < kSteps; ++step) {
      if (layout.format == Format::kW4) {
        std::uint32_t word = 0;
        for (int e = 0; e < 8; ++e) {
          word |= code_at(PlaceOf(lane, step, e)) << NibbleBit(e);
        }
        std::memcpy(half + lane * 16 + step * 4, &word, sizeof word);
      } else if (layout.format == Format::kNf4) {
        std::uint32_t word = 0;
        for (int e = 0; e < 8; ++e) {
          word |= code_at(PlaceOf(lane, step, e)) << Nf4Bit(e);
        }
        std::memcpy(half + lane * 16 + step * 4, &word, sizeof word);
      } else {
        std::array<std::uint8_t, 8> bytes{};
        for (int e = 0; e < 8; ++e) {
          bytes[static_cast<std::size_t>(e)] =
              static_cast<std::uint8_t>(code_at(PlaceOf(lane, step, e)));
        }
        std::memcpy(half + step / 2 * 512 + lane * 16 + step % 2 * 8, bytes.data(), bytes.size());
      }
    }
  }
}

// Sixteen codes of a row, each plus `shift`.
__m128i LoadCodes(const std::uint8_t* at, __m128i shift) {
  return _mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), shift);
}

void StoreVector(std::byte* at, __m128i value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), value);
}

// The words of lanes 4 g to 4 g + 3 of one step, of the codes of rows g and g + 8.
__m128i W4Words(__m128i front, __m128i back) {
  const __m128i both = _mm_or_si128(front, _mm_slli_epi16(back, 4));  // codes are below 16
  return _mm_unpacklo_epi8(both, _mm_srli_si128(both, 8));
}

__m128i Nf4Words(__m128i front, __m128i back) {
  const __m128i low = _mm_set1_epi16(0xff);
  const auto pairs = [&](__m128i codes) {  // two codes to a byte, in the low half of 16 bits
    return _mm_and_si128(_mm_or_si128(codes, _mm_srli_epi16(codes, 4)), low);
  };
  const __m128i both = _mm_or_si128(pairs(front), _mm_slli_epi16(pairs(back), 8));
  return _mm_unpacklo_epi16(both, _mm_srli_si128(both, 8));
}

// Four steps of one format with a word a step: a lane's four words are contiguous.
template <typename Words>
void StoreFourBitRows(std::byte* out, const std::uint8_t* front, const std::uint8_t* back,
                      __m128i shift, const Words& words_of) {
  const auto words = [&](int step) {
    return words_of(LoadCodes(front + step * 16, shift), LoadCodes(back + step * 16, shift));
  };
  const __m128i words0 = words(0);
  const __m128i words1 = words(1);
  const __m128i words2 = words(2);
  const __m128i words3 = words(3);
  const __m128i a = _mm_unpacklo_epi32(words0, words1);
  const __m128i b = _mm_unpacklo_epi32(words2, words3);
  const __m128i c = _mm_unpackhi_epi32(words0, words1);
  const __m128i d = _mm_unpackhi_epi32(words2, words3);
  StoreVector(out, _mm_unpacklo_epi64(a, b));
  StoreVector(out + 16, _mm_unpackhi_epi64(a, b));
  StoreVector(out + 32, _mm_unpacklo_epi64(c, d));
  StoreVector(out + 48, _mm_unpackhi_epi64(c, d));
}

// Two steps of one format with a byte a code: 16 bytes a lane.
void StoreByteRows(std::byte* out, const std::uint8_t* front, const std::uint8_t* back,
                   __m128i shift) {
  struct Lanes {
    __m128i first;   // 8 bytes of lanes 4 g and 4 g + 1
    __m128i second;  // of 4 g + 2 and 4 g + 3
  };
  const auto lanes_of = [&](int step) {
    const __m128i f = LoadCodes(front + step * 16, shift);
    const __m128i b = LoadCodes(back + step * 16, shift);
    const __m128i low = _mm_unpacklo_epi16(f, b);
    const __m128i high = _mm_unpackhi_epi16(f, b);
    return Lanes{_mm_unpacklo_epi32(low, high), _mm_unpackhi_epi32(low, high)};
  };
  const Lanes even = lanes_of(0);
  const Lanes odd = lanes_of(1);
  StoreVector(out, _mm_unpacklo_epi64(even.first, odd.first));
  StoreVector(out + 16, _mm_unpackhi_epi64(even.first, odd.first));
  StoreVector(out + 32, _mm_unpacklo_epi64(even.second, odd.second));
  StoreVector(out + 48, _mm_unpackhi_epi64(even.second, odd.second));
}

// The same where all rows and columns exist: what nearly all of a model is, so a start waits for
// it. SSE2 is part of x86-64.
void StoreWholeHalf(const WeightLayout& layout, std::byte* half,
                    const std::array<TileRow, kTileRows>& rows, std::int64_t k, int shift) {
  const __m128i added = _mm_set1_epi8(static_cast<char>(shift));
  for (std::size_t g = 0; g < kTileRows / 2; ++g) {
    const std::uint8_t* front = rows[g].codes + k;
    const std::uint8_t* back = rows[g + 8].codes + k;
    std::byte* out = half + g * 64;  // of four lanes
    if (layout.format == Format::kW4) {
      StoreFourBitRows(out, front, back, added, W4Words);
    } else if (layout.format == Format::kNf4) {
      StoreFourBitRows(out, front, back, added, Nf4Words);
    } else {
      StoreByteRows(out, front, back, added);
      StoreByteRows(out + 512, front + 32, back + 32, added);
    }
  }
}

void PackIntegerTile(const QuantizedTensor& rows, std::int64_t first, const WeightLayout& layout,
                     std::byte* tile, float* factors) {
  const WeightSpec& spec = rows.spec;
  const std::int64_t groups = spec.num_groups();
  const auto count = static_cast<int>(std::min<std::int64_t>(kTileRows, spec.rows - first));
  const int shift = layout.grid == Grid::kSymmetric && !IsCodebook(layout)
                        ? Middle(layout) - (1 << (spec.bits - 1))
                        : 0;
  const int code_bytes = CodeBytes(layout);
  std::array<TileRow, kTileRows> tile_rows;
  for (int r = 0; r < kTileRows; ++r) {
    factors[r] = 1.0F;
    if (r >= count) {
      continue;
    }
    const std::int64_t row = first + r;
    tile_rows[static_cast<std::size_t>(r)].codes = rows.codes.data() + row * spec.cols;
    if (layout.grid == Grid::kRow) {
      factors[r] = rows.scales[static_cast<std::size_t>(row)];
      continue;
    }
    float largest = 0.0F;
    for (std::int64_t g = row * groups; g < (row + 1) * groups; ++g) {
      largest = std::max(largest, std::fabs(rows.scales[static_cast<std::size_t>(g)]));
      if (layout.grid == Grid::kMinima) {
        largest = std::max(largest, std::fabs(rows.minima[static_cast<std::size_t>(g)]) / 16.0F);
      }
    }
    factors[r] = RowFactor(largest, UnitsOf(layout, r).scale);
    tile_rows[static_cast<std::size_t>(r)].inverse = 1.0F / factors[r];
  }
  for (int u = 0; u < layout.num_units; ++u) {
    std::byte* unit =
        tile + static_cast<std::size_t>(u) * static_cast<std::size_t>(layout.unit_bytes);
    const int k0 = u * layout.unit_cols;
    const bool whole = k0 + layout.unit_cols <= layout.cols && count == kTileRows;
    const auto group_of = [&](int r, int k) {
      return static_cast<std::size_t>((first + r) * groups + k / spec.group_size);
    };
    // A column or row that does not exist is worth zero: the zero point as code, or a scale of 0.
    const auto padding = [&](int r, int k) -> std::uint32_t {
      if (layout.grid == Grid::kZeroPoints && r < count) {
        return rows.zero_points[group_of(r, std::min<int>(k, layout.cols - 1))];
      }
      return layout.grid == Grid::kSymmetric || layout.grid == Grid::kRow
                 ? static_cast<std::uint32_t>(Middle(layout))
                 : 0U;
    };
    for (int half = 0; half < layout.unit_cols / kHalfCols; ++half) {
      const int k_half = k0 + half * kHalfCols;
      std::byte* out = unit + half * (code_bytes / (layout.unit_cols / kHalfCols));
      if (whole) {
        StoreWholeHalf(layout, out, tile_rows, k_half, shift);
      } else {
        StoreHalfCodes(layout, out, [&](Place place) {
          const int k = k_half + place.col;
          return place.row < count && k < layout.cols
                     ? static_cast<std::uint32_t>(
                           tile_rows[static_cast<std::size_t>(place.row)].codes[k]) +
                           static_cast<std::uint32_t>(shift)
                     : padding(place.row, k);
        });
      }
    }
    for (int sub = 0; SubBytes(layout) > 0 && sub < layout.unit_cols / layout.sub_cols; ++sub) {
      std::byte* extra = unit + code_bytes + sub * SubBytes(layout);
      const int k = std::min(k0 + sub * layout.sub_cols, layout.cols - 1);
      const bool exists = k0 + sub * layout.sub_cols < layout.cols;
      for (int r = 0; r < kTileRows; ++r) {
        const bool real = r < count && exists;
        const float inverse = tile_rows[static_cast<std::size_t>(r)].inverse;
        const StoredUnits units = UnitsOf(layout, r);
        StoreHalf(extra + PairOffset(r),
                  real ? rows.scales[group_of(r, k)] * inverse * units.scale : 0.0F);
        if (layout.grid == Grid::kMinima) {
          StoreHalf(extra + kPairBytes + PairOffset(r),
                    real ? rows.minima[group_of(r, k)] * inverse * units.scale * units.code : 0.0F);
        } else if (layout.grid == Grid::kZeroPoints) {
          const float zero = r < count ? rows.zero_points[group_of(r, k)] : 0.0F;
          StoreHalf(extra + kPairBytes + PairOffset(r), -(units.offset + zero) * units.code);
        }
      }
    }
  }
}

void PackFloatTile(const QuantizedTensor& rows, std::int64_t first, const WeightLayout& layout,
                   std::byte* tile, float* factors) {
  const auto count = static_cast<int>(std::min<std::int64_t>(kTileRows, rows.spec.rows - first));
  std::array<float, kTileRows> inverse{};
  for (int r = 0; r < kTileRows; ++r) {
    float largest = 0.0F;
    for (int k = 0; r < count && k < layout.cols; ++k) {
      largest = std::max(
          largest, std::fabs(rows.values[static_cast<std::size_t>((first + r) * layout.cols + k)]));
    }
    factors[r] = RowFactor(largest);
    inverse[static_cast<std::size_t>(r)] = 1.0F / factors[r];
  }
  for (int u = 0; u < layout.num_units; ++u) {
    std::byte* unit =
        tile + static_cast<std::size_t>(u) * static_cast<std::size_t>(layout.unit_bytes);
    for (int step = 0; step < layout.unit_cols / 16; ++step) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int e = 0; e < 8; ++e) {
          const Place place = PlaceOf(lane, step, e);
          const int k = u * layout.unit_cols + place.col;
          const bool real = place.row < count && k < layout.cols;
          StoreHalf(
              unit + (step * kLanes + lane) * 16 + e * 2,
              real ? rows.values[static_cast<std::size_t>((first + place.row) * layout.cols + k)] *
                         inverse[static_cast<std::size_t>(place.row)]
                   : 0.0F);
        }
      }
    }
  }
}

// Codes that no kernel unpacks are packed as fp16 values, which is what a code becomes anyway.
bool RunsAsFloats(const WeightSpec& spec) {
  std::int64_t grain = 32;  // that groups must be multiples of, if they are no whole rows
  switch (spec.codebook) {
    case Codebook::kNone:
      break;
    case Codebook::kNf4:
      grain = kHalfCols;
      break;
    case Codebook::kFp8E4M3:
      grain = 128;
      break;
    default:
      return true;
  }
  return spec.kind == CodecKind::kFloat ||
         (spec.group_size > 0 && spec.group_size < spec.cols && spec.group_size % grain != 0);
}

}  // namespace

Result<WeightLayout> LayoutOf(const WeightSpec& spec) {
  constexpr std::int64_t kMostRows = std::int64_t{1} << 30;
  constexpr std::int64_t kMostCols = std::int64_t{1} << 17;  // a tile of fp16 is one DeviceWrite
  static_assert(kMostCols * kTileRows * 2 <= Device::kMaxWriteBytes);
  const auto unsupported = [&](const char* what) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("no CUDA kernel runs {} weights of {} x {}: {}; use --device cpu",
                            spec.ToString(), spec.rows, spec.cols, what));
  };
  if (spec.rows <= 0 || spec.cols <= 0 || spec.rows > kMostRows || spec.cols > kMostCols ||
      spec.cols % 8 != 0) {
    return unsupported("the width must be a multiple of 8, up to 131,072");
  }
  WeightLayout layout{.rows = static_cast<int>(spec.rows), .cols = static_cast<int>(spec.cols)};
  layout.num_tiles = (layout.rows + kTileRows - 1) / kTileRows;
  layout.unit_cols = spec.cols % 128 == 0 ? 128 : 64;
  layout.sub_cols = layout.unit_cols;
  if (!RunsAsFloats(spec)) {
    const bool whole_row = spec.group_size >= spec.cols;
    if (spec.bits < 2 || spec.bits > 8 || spec.group_size <= 0) {
      return unsupported("2 to 8 bits in groups are supported");
    }
    if (!whole_row && spec.group_size % layout.unit_cols != 0) {
      layout.sub_cols = spec.group_size % 64 == 0 ? 64 : 32;
    }
    layout.format = spec.codebook == Codebook::kNf4       ? Format::kNf4
                    : spec.codebook == Codebook::kFp8E4M3 ? Format::kFp8
                    : spec.bits <= 4                      ? Format::kW4
                                                          : Format::kW8;
    if (layout.format == Format::kNf4) {
      layout.sub_cols = kHalfCols;  // wider groups repeat their scale: one kernel for all
    }
    layout.grid = spec.kind == CodecKind::kMinimum             ? Grid::kMinima
                  : spec.has_zero_points                       ? Grid::kZeroPoints
                  : layout.format == Format::kFp8 && whole_row ? Grid::kRow
                                                               : Grid::kSymmetric;
  }
  layout.num_units = (layout.cols + layout.unit_cols - 1) / layout.unit_cols;
  layout.unit_bytes = CodeBytes(layout) + layout.unit_cols / layout.sub_cols * SubBytes(layout);
  return layout;
}

void PackTiles(const QuantizedTensor& rows, const WeightLayout& layout, std::byte* tiles,
               float* factors) {
  if (rows.spec.kind != CodecKind::kFloat && layout.format == Format::kF16) {
    QuantizedTensor values{.spec = {.rows = rows.spec.rows, .cols = rows.spec.cols}};
    values.values = Dequantize(rows);
    PackTiles(values, layout, tiles, factors);
    return;
  }
  for (std::int64_t first = 0; first < rows.spec.rows; first += kTileRows) {
    std::byte* tile = tiles + static_cast<std::size_t>(first / kTileRows) * layout.tile_bytes();
    if (layout.format == Format::kF16) {
      PackFloatTile(rows, first, layout, tile, factors + first);
    } else {
      PackIntegerTile(rows, first, layout, tile, factors + first);
    }
  }
}

void DequantizeTileRow(const WeightLayout& layout, const std::byte* weight, int row, float* out) {
  const std::byte* tile = weight + static_cast<std::size_t>(row / kTileRows) * layout.tile_bytes();
  const int r = row % kTileRows;
  float factor = 1.0F;
  std::memcpy(&factor,
              weight + layout.factor_offset() + static_cast<std::size_t>(row) * sizeof factor,
              sizeof factor);
  const int code_bytes = CodeBytes(layout);
  const auto round = [](float value) { return F16ToFloat(FloatToF16(value)); };
  for (int u = 0; u < layout.num_units; ++u) {
    const std::byte* unit =
        tile + static_cast<std::size_t>(u) * static_cast<std::size_t>(layout.unit_bytes);
    for (int lane = r % 8 * 4; lane < r % 8 * 4 + 4; ++lane) {
      for (int step = 0; step < layout.unit_cols / 16; ++step) {
        for (int e = 0; e < 8; ++e) {
          const Place place = PlaceOf(lane, step, e);
          const int k = u * layout.unit_cols + place.col;
          if (place.row != r || k >= layout.cols) {
            continue;
          }
          if (layout.format == Format::kF16) {
            out[k] = LoadHalf(unit + (step * kLanes + lane) * 16 + e * 2) * factor;
            continue;
          }
          const std::byte* half =
              unit + step / kSteps * (code_bytes / (layout.unit_cols / kHalfCols));
          const int s = step % kSteps;
          std::uint32_t code = 0;
          if (layout.format == Format::kW4) {
            std::memcpy(&code, half + lane * 16 + s * 4, sizeof code);
            code = code >> NibbleBit(e) & 15U;
          } else if (layout.format == Format::kNf4) {
            std::memcpy(&code, half + lane * 16 + s * 4, sizeof code);
            code = code >> Nf4Bit(e) & 15U;
          } else {
            code = std::to_integer<std::uint32_t>(half[s / 2 * 512 + lane * 16 + s % 2 * 8 + e]);
          }
          if (layout.grid == Grid::kRow) {
            out[k] = ValuesOf(Codebook::kFp8E4M3)[code] * factor;
            continue;
          }
          const std::byte* extra =
              unit + code_bytes + place.col / layout.sub_cols * SubBytes(layout);
          const float scale = LoadHalf(extra + PairOffset(r));
          const auto value = static_cast<float>(code);
          if (IsCodebook(layout)) {
            const auto values =
                ValuesOf(layout.format == Format::kNf4 ? Codebook::kNf4 : Codebook::kFp8E4M3);
            out[k] = round(round(values[code]) * scale) * factor;
          } else {
            // As Fragment does, in its units.
            const StoredUnits units = UnitsOf(layout, r);
            const float stored =
                layout.grid == Grid::kSymmetric
                    ? -(units.offset + static_cast<float>(Middle(layout))) * units.code
                    : LoadHalf(extra + kPairBytes + PairOffset(r));
            const float placed = (units.offset + value) * units.code;
            float w = 0.0F;
            if (layout.grid == Grid::kMinima) {
              w = std::fma(value * units.code, scale, stored);
            } else if (layout.format == Format::kW4 && layout.grid == Grid::kSymmetric) {
              w = std::fma(placed, scale, round(stored * scale));
            } else {
              w = (placed + stored) * scale;
            }
            out[k] = round(w) / (units.code * units.scale) * factor;
          }
        }
      }
    }
  }
}

}  // namespace nibble::cuda
