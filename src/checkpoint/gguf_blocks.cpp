#include "checkpoint/gguf_blocks.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <span>

#include "checkpoint/folder_format.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

constexpr std::int64_t kSmall = 32;   // columns of a block of Q4_0 and its like
constexpr std::int64_t kSuper = 256;  // columns of a block of a K-quant

struct Row {
  GgufType type;
  WeightSpec spec;
};
constexpr Row kTypes[] = {
    {GgufType::kF32, {.float_dtype = DType::kF32}},
    {GgufType::kF16, {.float_dtype = DType::kF16}},
    {GgufType::kBF16, {.float_dtype = DType::kBF16}},
    {GgufType::kQ4_0, {.kind = CodecKind::kUniform, .bits = 4, .group_size = 32}},
    {GgufType::kQ4_1, {.kind = CodecKind::kMinimum, .bits = 4, .group_size = 32}},
    {GgufType::kQ5_0, {.kind = CodecKind::kUniform, .bits = 5, .group_size = 32}},
    {GgufType::kQ5_1, {.kind = CodecKind::kMinimum, .bits = 5, .group_size = 32}},
    {GgufType::kQ8_0, {.kind = CodecKind::kUniform, .bits = 8, .group_size = 32}},
    {GgufType::kQ2_K,
     {.kind = CodecKind::kMinimum, .bits = 2, .group_size = 16, .has_f32_scales = true}},
    {GgufType::kQ3_K,
     {.kind = CodecKind::kUniform, .bits = 3, .group_size = 16, .has_f32_scales = true}},
    {GgufType::kQ4_K,
     {.kind = CodecKind::kMinimum, .bits = 4, .group_size = 32, .has_f32_scales = true}},
    {GgufType::kQ5_K,
     {.kind = CodecKind::kMinimum, .bits = 5, .group_size = 32, .has_f32_scales = true}},
    {GgufType::kQ6_K,
     {.kind = CodecKind::kUniform, .bits = 6, .group_size = 16, .has_f32_scales = true}},
};

bool IsSuper(GgufType type) { return type >= GgufType::kQ2_K && type <= GgufType::kQ6_K; }

float Half(const std::uint8_t* at) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return F16ToFloat(bits);
}

void PutHalf(std::uint8_t* at, float value) {
  const std::uint16_t bits = FloatToF16(value);
  std::memcpy(at, &bits, sizeof bits);
}

// The 6-bit scales and minima of Q4_K and Q5_K: four of each in the low bits of bytes 0 to 7, then
// their high bits and, in bytes 8 to 11, the low halves of the others.
struct ScalePair {
  std::uint8_t scale = 0, minimum = 0;
};
ScalePair GetPair(const std::uint8_t* s, int j) {
  const auto byte = [](int value) { return static_cast<std::uint8_t>(value); };
  if (j < 4) {
    return {byte(s[j] & 63), byte(s[j + 4] & 63)};
  }
  return {byte((s[j + 4] & 15) | (s[j - 4] >> 6 << 4)), byte(s[j + 4] >> 4 | (s[j] >> 6 << 4))};
}
void PutPair(std::uint8_t* s, int j, ScalePair pair) {
  const auto add = [](std::uint8_t& to, int bits) { to = static_cast<std::uint8_t>(to | bits); };
  if (j < 4) {
    add(s[j], pair.scale);
    add(s[j + 4], pair.minimum);
    return;
  }
  add(s[j + 4], (pair.scale & 15) | (pair.minimum & 15) << 4);
  add(s[j - 4], pair.scale >> 4 << 6);
  add(s[j], pair.minimum >> 4 << 6);
}

// The 6-bit scales of Q3_K: low halves in bytes 0 to 7, high bits in bytes 8 to 11.
int GetQ3Scale(const std::uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  return (low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
}
void PutQ3Scale(std::uint8_t* s, int j, int scale) {
  const int value = scale + 32;
  const auto add = [](std::uint8_t& to, int bits) { to = static_cast<std::uint8_t>(to | bits); };
  add(s[j % 8], j < 8 ? value & 15 : (value & 15) << 4);
  add(s[8 + j % 4], value >> 4 << (2 * (j / 4)));
}

// Where the parts of a K-quant's block lie.
struct SuperLayout {
  int bytes, d, dmin, scales, low, high;
};
SuperLayout LayoutOf(GgufType type) {
  switch (type) {
    case GgufType::kQ2_K:
      return {.bytes = 84, .d = 80, .dmin = 82, .scales = 0, .low = 16, .high = 0};
    case GgufType::kQ3_K:
      return {.bytes = 110, .d = 108, .dmin = 0, .scales = 96, .low = 32, .high = 0};
    case GgufType::kQ4_K:
      return {.bytes = 144, .d = 0, .dmin = 2, .scales = 4, .low = 16, .high = 0};
    case GgufType::kQ5_K:
      return {.bytes = 176, .d = 0, .dmin = 2, .scales = 4, .low = 48, .high = 16};
    default:
      return {.bytes = 210, .d = 208, .dmin = 0, .scales = 192, .low = 0, .high = 128};
  }
}

// The place of the low bits of column i, and of its high bits.
struct Place {
  int low_byte = 0, low_shift = 0, high_byte = 0, high_shift = 0;
};
Place PlaceOf(GgufType type, int i) {
  switch (type) {
    case GgufType::kQ2_K:
    case GgufType::kQ3_K:  // halves of 128, in each four runs of 32 columns: bits 0, 2, 4, 6
      return {.low_byte = i / 128 * 32 + i % 32,
              .low_shift = i % 128 / 32 * 2,
              .high_byte = i % 32,
              .high_shift = i / 32};
    case GgufType::kQ4_K:
    case GgufType::kQ5_K:  // runs of 32 columns: low and high halves of 32 bytes in turn
      return {.low_byte = i / 64 * 32 + i % 32,
              .low_shift = i % 64 / 32 * 4,
              .high_byte = i % 32,
              .high_shift = i / 32};
    default: {  // Q6_K: halves of 128, in each four runs k of 32
      const int k = i % 128 / 32;
      return {.low_byte = i / 128 * 64 + i % 32 + 32 * (k & 1),
              .low_shift = k / 2 * 4,
              .high_byte = i / 128 * 32 + i % 32,
              .high_shift = 2 * k};
    }
  }
}

// Bits of a code that lie with the low ones, and with the high ones.
struct Split {
  int low, high;
};
Split SplitOf(GgufType type) {
  switch (type) {
    case GgufType::kQ2_K:
      return {2, 0};
    case GgufType::kQ3_K:
      return {2, 1};
    case GgufType::kQ4_K:
      return {4, 0};
    case GgufType::kQ5_K:
      return {4, 1};
    default:
      return {4, 2};
  }
}

void DecodeSmall(GgufType type, const std::uint8_t* block, std::uint8_t* codes, float& scale,
                 float* minimum) {
  scale = Half(block);
  block += 2;
  if (minimum != nullptr) {
    *minimum = Half(block);
    block += 2;
  }
  if (type == GgufType::kQ8_0) {
    for (int i = 0; i < kSmall; ++i) {
      codes[i] = static_cast<std::uint8_t>(block[i] ^ 0x80U);  // signed -> +128
    }
    return;
  }
  std::uint32_t fifth = 0;
  if (type == GgufType::kQ5_0 || type == GgufType::kQ5_1) {
    std::memcpy(&fifth, block, sizeof fifth);
    block += 4;
  }
  for (int i = 0; i < kSmall / 2; ++i) {
    codes[i] = static_cast<std::uint8_t>((block[i] & 15U) | (fifth >> i & 1U) << 4);
    codes[i + 16] = static_cast<std::uint8_t>(block[i] >> 4 | (fifth >> (i + 16) & 1U) << 4);
  }
}

void EncodeSmall(GgufType type, const std::uint8_t* codes, float scale, const float* minimum,
                 std::string& out) {
  std::array<std::uint8_t, 34> block{};
  std::size_t at = 0;
  const auto put = [&](float value) {
    PutHalf(block.data() + at, value);
    at += 2;
  };
  put(scale);
  if (minimum != nullptr) {
    put(*minimum);
  }
  if (type == GgufType::kQ8_0) {
    for (int i = 0; i < kSmall; ++i) {
      block[at++] = static_cast<std::uint8_t>(codes[i] ^ 0x80U);
    }
  } else {
    if (type == GgufType::kQ5_0 || type == GgufType::kQ5_1) {
      std::uint32_t fifth = 0;
      for (int i = 0; i < kSmall; ++i) {
        fifth |= (std::uint32_t{codes[i]} >> 4 & 1U) << i;
      }
      std::memcpy(block.data() + at, &fifth, sizeof fifth);
      at += 4;
    }
    for (int i = 0; i < kSmall / 2; ++i) {
      block[at++] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
    }
  }
  out.append(reinterpret_cast<const char*>(block.data()), at);
}

void DecodeSuper(GgufType type, const std::uint8_t* block, std::uint8_t* codes, float* scales,
                 float* minima) {
  const SuperLayout layout = LayoutOf(type);
  const Split split = SplitOf(type);
  const float d = Half(block + layout.d);
  const std::uint8_t* packed = block + layout.scales;
  switch (type) {
    case GgufType::kQ2_K: {
      const float dmin = Half(block + layout.dmin);
      for (int j = 0; j < 16; ++j) {
        scales[j] = d * static_cast<float>(packed[j] & 15);
        minima[j] = -(dmin * static_cast<float>(packed[j] >> 4));
      }
      break;
    }
    case GgufType::kQ3_K:
      for (int j = 0; j < 16; ++j) {
        scales[j] = d * static_cast<float>(GetQ3Scale(packed, j));
      }
      break;
    case GgufType::kQ4_K:
    case GgufType::kQ5_K: {
      const float dmin = Half(block + layout.dmin);
      for (int j = 0; j < 8; ++j) {
        const ScalePair pair = GetPair(packed, j);
        scales[j] = d * static_cast<float>(pair.scale);
        minima[j] = -(dmin * static_cast<float>(pair.minimum));
      }
      break;
    }
    default:
      for (int j = 0; j < 16; ++j) {
        scales[j] = d * static_cast<float>(static_cast<std::int8_t>(packed[j]));
      }
  }
  const int low_mask = (1 << split.low) - 1;
  const int high_mask = (1 << split.high) - 1;
  for (int i = 0; i < kSuper; ++i) {
    const Place place = PlaceOf(type, i);
    int code = block[layout.low + place.low_byte] >> place.low_shift & low_mask;
    if (split.high > 0) {
      code |= (block[layout.high + place.high_byte] >> place.high_shift & high_mask) << split.low;
    }
    codes[i] = static_cast<std::uint8_t>(code);
  }
}

// The f16 number of which each value is a whole multiple from `lowest` to `highest`, and the
// multiples.
struct Multiples {
  float unit = 0.0F;
  std::array<int, 16> of{};
};
std::optional<Multiples> FindMultiples(std::span<const float> values, int lowest, int highest) {
  float largest = 0.0F;
  for (const float value : values) {
    largest = std::fabs(value) > std::fabs(largest) ? value : largest;
  }
  Multiples out;
  if (largest == 0.0F) {
    return out;
  }
  // The largest is one of the multiples, in either sign if there are negative ones.
  for (int k = highest; k >= lowest; --k) {
    const float unit = k == 0 ? 0.0F : largest / static_cast<float>(k);
    if (unit == 0.0F || F16ToFloat(FloatToF16(unit)) != unit) {
      continue;
    }
    bool all = true;
    for (std::size_t j = 0; j < values.size() && all; ++j) {
      const float times = std::nearbyint(values[j] / unit);
      all = times >= static_cast<float>(lowest) && times <= static_cast<float>(highest) &&
            unit * times == values[j];
      out.of[j] = static_cast<int>(times);
    }
    if (all) {
      out.unit = unit;
      return out;
    }
  }
  return std::nullopt;
}

bool EncodeSuper(GgufType type, const std::uint8_t* codes, const float* scales, const float* minima,
                 std::string& out) {
  const SuperLayout layout = LayoutOf(type);
  const Split split = SplitOf(type);
  const std::size_t groups = type == GgufType::kQ4_K || type == GgufType::kQ5_K ? 8 : 16;
  const int top = type == GgufType::kQ2_K ? 15 : type == GgufType::kQ6_K ? 127 : 63;
  const bool has_signs = type == GgufType::kQ3_K || type == GgufType::kQ6_K;
  const auto d = type == GgufType::kQ3_K
                     ? FindMultiples({scales, groups}, -32, 31)
                     : FindMultiples({scales, groups}, has_signs ? -128 : 0, top);
  if (!d) {
    return false;
  }
  std::array<std::uint8_t, 210> block{};
  PutHalf(block.data() + layout.d, d->unit);
  std::uint8_t* packed = block.data() + layout.scales;
  if (minima != nullptr) {
    std::array<float, 16> negative{};
    for (std::size_t j = 0; j < groups; ++j) {
      negative[j] = -minima[j];
    }
    const auto dmin = FindMultiples({negative.data(), groups}, 0, top);
    if (!dmin) {
      return false;
    }
    PutHalf(block.data() + layout.dmin, dmin->unit);
    for (std::size_t j = 0; j < groups; ++j) {
      if (type == GgufType::kQ2_K) {
        packed[j] = static_cast<std::uint8_t>(d->of[j] | dmin->of[j] << 4);
      } else {
        PutPair(packed, static_cast<int>(j),
                {.scale = static_cast<std::uint8_t>(d->of[j]),
                 .minimum = static_cast<std::uint8_t>(dmin->of[j])});
      }
    }
  } else {
    for (std::size_t j = 0; j < groups; ++j) {
      if (type == GgufType::kQ3_K) {
        PutQ3Scale(packed, static_cast<int>(j), d->of[j]);
      } else {
        packed[j] = static_cast<std::uint8_t>(d->of[j]);
      }
    }
  }
  const auto add = [&](int byte, int bits) {
    auto& to = block[static_cast<std::size_t>(byte)];
    to = static_cast<std::uint8_t>(to | bits);
  };
  const int low_mask = (1 << split.low) - 1;
  for (int i = 0; i < kSuper; ++i) {
    const Place place = PlaceOf(type, i);
    add(layout.low + place.low_byte, (codes[i] & low_mask) << place.low_shift);
    if (split.high > 0) {
      add(layout.high + place.high_byte, codes[i] >> split.low << place.high_shift);
    }
  }
  out.append(reinterpret_cast<const char*>(block.data()), static_cast<std::size_t>(layout.bytes));
  return true;
}

}  // namespace

std::optional<WeightSpec> GgufSpecOf(std::uint32_t type) {
  for (const Row& row : kTypes) {
    if (static_cast<std::uint32_t>(row.type) == type) {
      return row.spec;
    }
  }
  return std::nullopt;
}

std::optional<GgufType> GgufTypeOf(const WeightSpec& spec) {
  WeightSpec wanted = spec;
  wanted.rows = 0;
  wanted.cols = 0;
  if (spec.kind != CodecKind::kFloat) {
    wanted.float_dtype = DType::kF32;
  }
  for (const Row& row : kTypes) {
    if (row.spec == wanted) {
      return row.type;
    }
  }
  return std::nullopt;
}

void DecodeGgufRow(GgufType type, const std::byte* blocks, QuantizedTensor& out,
                   std::int64_t index) {
  const std::int64_t cols = out.spec.cols;
  const std::int64_t groups = out.spec.num_groups();
  const auto* at = reinterpret_cast<const std::uint8_t*>(blocks);
  std::uint8_t* codes = out.codes.data() + index * cols;
  float* scales = out.scales.data() + index * groups;
  float* minima = out.minima.empty() ? nullptr : out.minima.data() + index * groups;
  const std::int64_t elements = IsSuper(type) ? kSuper : kSmall;
  const std::int64_t bytes = GgufBlockOf(static_cast<std::uint32_t>(type))->bytes;
  for (std::int64_t b = 0; b < cols / elements; ++b, at += bytes) {
    const std::int64_t group = b * elements / out.spec.group_size;
    float* block_minima = minima == nullptr ? nullptr : minima + group;
    if (IsSuper(type)) {
      DecodeSuper(type, at, codes + b * elements, scales + group, block_minima);
    } else {
      DecodeSmall(type, at, codes + b * elements, scales[group], block_minima);
    }
  }
}

Result<std::string> EncodeGgufRows(GgufType type, const QuantizedTensor& rows) {
  const WeightSpec& spec = rows.spec;
  const auto block = GgufBlockOf(static_cast<std::uint32_t>(type));
  const std::string name = GgufTypeName(static_cast<std::uint32_t>(type));
  const auto wrong = [](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, what);
  };
  if (GgufTypeOf(spec) != type) {
    return wrong(fmt::format("{} does not hold {}", name, spec.ToString()));
  }
  if (spec.cols % block->elements != 0) {
    return wrong(fmt::format("a width of {} is no multiple of {}'s block of {}", spec.cols, name,
                             block->elements));
  }
  std::string out;
  if (spec.kind == CodecKind::kFloat) {
    AppendFloats(rows.values, spec.float_dtype, out);
    return out;
  }
  const auto is_half = [](float value) { return F16ToFloat(FloatToF16(value)) == value; };
  for (std::int64_t row = 0; row < spec.rows; ++row) {
    for (std::int64_t col = 0; col < spec.cols; col += block->elements) {
      const std::uint8_t* codes = rows.codes.data() + row * spec.cols + col;
      const auto group = static_cast<std::size_t>(row * spec.num_groups() + col / spec.group_size);
      const float* minima = rows.minima.empty() ? nullptr : rows.minima.data() + group;
      if (IsSuper(type)) {
        if (!EncodeSuper(type, codes, rows.scales.data() + group, minima, out)) {
          return wrong(
              fmt::format("the scales of row {}, columns {} to {} are no whole multiples "
                          "of one f16 number, as {} holds them",
                          row, col, col + kSuper - 1, name));
        }
        continue;
      }
      for (const float value : {rows.scales[group], minima == nullptr ? 0.0F : *minima}) {
        if (!is_half(value)) {
          return wrong(fmt::format("{} of row {}, column {} is no f16 number, as {} holds them",
                                   value, row, col, name));
        }
      }
      EncodeSmall(type, codes, rows.scales[group], minima, out);
    }
  }
  return out;
}

}  // namespace nibble
