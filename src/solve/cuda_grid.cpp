#include "solve/cuda_grid.h"

#include <cstdint>
#include <limits>

#include "base/check.h"
#include "codec/code_cells.h"

namespace nibble {

cuda::CodeTable MakeCodeTable(Codebook codebook) {
  cuda::CodeTable table{};
  int rank = 0;
  for (const CodeCell& cell : CellsOf(codebook)) {
    NIBBLE_CHECK(rank < cuda::CodeTable::kMaxCodes, "each code is nearest in one interval");
    table.last_key[rank] = cell.last_key;
    table.values[rank] = cell.value;
    table.codes[rank] = cell.code;
    ++rank;
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
