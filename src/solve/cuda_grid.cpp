#include "solve/cuda_grid.h"

#include <bit>
#include <cstdint>
#include <limits>

#include "base/check.h"

namespace nibble {
namespace {

// Keys, as CodeTable says; the way back is the same.
std::int32_t Flip(std::int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
std::int32_t KeyOf(float value) { return Flip(std::bit_cast<std::int32_t>(value)); }
float FloatOf(std::int32_t key) { return std::bit_cast<float>(Flip(key)); }

}  // namespace

cuda::CodeTable MakeCodeTable(Codebook codebook) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::int32_t last = KeyOf(kLargest);
  const auto values = ValuesOf(codebook);
  cuda::CodeTable table{};
  int rank = 0;
  for (std::int64_t key = KeyOf(-kLargest); key <= last; ++rank) {
    NIBBLE_CHECK(rank < cuda::CodeTable::kMaxCodes, "each code is nearest in one interval");
    const std::uint8_t code = NearestCode(codebook, FloatOf(static_cast<std::int32_t>(key)));
    // The last key that has this code.
    std::int64_t end = last;
    for (std::int64_t begin = key; begin < end;) {
      const std::int64_t middle = begin + (end - begin + 1) / 2;
      if (NearestCode(codebook, FloatOf(static_cast<std::int32_t>(middle))) == code) {
        begin = middle;
      } else {
        end = middle - 1;
      }
    }
    table.last_key[rank] = static_cast<std::int32_t>(end);
    table.values[rank] = values[code];
    table.codes[rank] = code;
    key = end + 1;
  }
  for (--rank; rank < cuda::CodeTable::kMaxCodes; ++rank) {
    table.last_key[rank] = std::numeric_limits<std::int32_t>::max();
  }
  return table;
}

std::array<cuda::CodeTable, kNumCodeTables> TablesOf(const WeightSpec& spec) {
  return {spec.kind == CodecKind::kCodebook ? MakeCodeTable(spec.codebook) : cuda::CodeTable{},
          MakeCodeTable(Codebook::kFp8E4M3)};
}

cuda::GridRules RulesOf(const WeightSpec& spec, const GridSearch::Options& options,
                        const cuda::CodeTable* tables) {
  const bool is_codebook = spec.kind == CodecKind::kCodebook;
  const auto top = static_cast<float>((1 << spec.bits) - 1);
  cuda::GridRules rules{
      .table = is_codebook ? tables : nullptr,
      .bits = is_codebook ? BitsOf(spec.codebook) : spec.bits,
      .top = top,
      .middle = (top + 1.0F) / 2.0F,
      .largest = LargestOf(spec.codebook),
      .has_zero_points = spec.has_zero_points,
      .divisor = options.scale_divisor,
      .e4m3 = tables + 1,
      .search = options.search,
      .both_signs = options.both_signs && !spec.has_zero_points && !IsSymmetric(spec.codebook)};
  switch (spec.scale_grid) {
    case ScaleGrid::kAny:
      rules.rule = cuda::ScaleRule::kAny;
      break;
    case ScaleGrid::kPowersOfTwo:
      rules.rule = cuda::ScaleRule::kPowersOfTwo;
      break;
    case ScaleGrid::kE4M3:
      rules.rule = cuda::ScaleRule::kE4M3;
      break;
  }
  rules.storage = spec.has_f32_scales                   ? cuda::ScaleStorage::kF32
                  : options.scale_dtype == DType::kF16  ? cuda::ScaleStorage::kF16
                  : options.scale_dtype == DType::kBF16 ? cuda::ScaleStorage::kBF16
                                                        : cuda::ScaleStorage::kF32;
  if (options.fixed) {
    rules.is_fixed = true;
    rules.fixed_scale = options.fixed->scale;
    rules.fixed_zero = options.fixed->zero;
  }
  return rules;
}

}  // namespace nibble
