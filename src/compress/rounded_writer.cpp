#include "compress/rounded_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "codec/encode.h"
#include "compress/block_walk.h"
#include "compress/read_weights.h"
#include "compress/solved_block.h"
#include "compress/tensor_statistics.h"
#include "solve/rtn.h"
#include "solve/super_blocks.h"

namespace nibble {
namespace {

// Rows that one worker rounds at a time; a multiple of 8 for packing.
constexpr std::int64_t kChunkRows = 256;

// Grids that the matrix has as a whole, and tables whose scales are searched.
bool IsRoundedWhole(const WeightSpec& spec) {
  return spec.has_one_scale || spec.scale_grid != ScaleGrid::kAny ||
         spec.codebook == Codebook::kLog4 || spec.codebook == Codebook::kLog3;
}

}  // namespace

Result<json::Value> RoundedWriter::Write(WeightWriter& writer, const WeightToWrite& weight,
                                         ThreadPool& pool) const {
  return IsRoundedWhole(weight.spec) ? WriteWhole(writer, weight, pool)
                                     : WriteRows(writer, weight, pool);
}

Result<json::Value> RoundedWriter::WriteWhole(WeightWriter& writer, const WeightToWrite& weight,
                                              ThreadPool& pool) const {
  const WeightInfo* stored = weights_.Find(weight.name);
  NIBBLE_CHECK(stored != nullptr, "Checkpoint::Open guarantees every expected weight");
  float divisor = 0.0F;
  if (weight.spec.scale_grid == ScaleGrid::kE4M3) {
    NIBBLE_TRY(absmax, ReadAbsMax(weights_, SiblingsOf(weight), pool));
    divisor = ScaleDivisorOf(absmax);
  }
  NIBBLE_TRY(weights, ReadWeights(weights_, *stored, pool));
  const std::vector<float> importance(static_cast<std::size_t>(weight.spec.cols), 1.0F);
  auto rounded = QuantizeWeighted(pool, weights, weight.spec, importance, plan_.scale_dtype,
                                  search_scale_, divisor);
  if (!rounded) {
    return Fail(rounded.error(), fmt::format("tensor {}: ", weight.name));
  }
  TensorStatistics statistics;
  statistics.Add(*rounded, weights);
  const json::Value facts = statistics.ToJson(weight.spec);
  NIBBLE_TRY_VOID(writer.Write(weight.name, *rounded, facts));
  return facts;
}

// The matrices of its input that share this weight's grid, which consumers multiply as one.
std::vector<const WeightInfo*> RoundedWriter::SiblingsOf(const WeightToWrite& weight) const {
  std::vector<const WeightInfo*> out;
  const auto block = BlockOfWeight(weight.name);
  for (const LinearGroup group : kLinearGroups) {
    std::vector<std::string> names;
    for (const std::string_view linear : LinearsOf(group)) {
      names.push_back(WeightName(block.value_or(0), linear));
    }
    if (std::ranges::find(names, weight.name) == names.end()) {
      continue;
    }
    for (const WeightToWrite& other : plan_.weights) {
      if (other.spec.scale_grid == weight.spec.scale_grid &&
          std::ranges::find(names, other.name) != names.end()) {
        out.push_back(weights_.Find(other.name));
      }
    }
  }
  return out.empty() ? std::vector{weights_.Find(weight.name)} : out;
}

// One tensor, a batch of row chunks at a time: rounded on all workers, written in order.
Result<json::Value> RoundedWriter::WriteRows(WeightWriter& writer, const WeightToWrite& weight,
                                             ThreadPool& pool) const {
  const WeightInfo* stored = weights_.Find(weight.name);
  NIBBLE_CHECK(stored != nullptr, "Checkpoint::Open guarantees every expected weight");
  TensorStatistics statistics;
  json::Value facts;
  const std::int64_t batch_rows = kChunkRows * pool.num_workers();
  for (std::int64_t begin = 0; begin < weight.spec.rows; begin += batch_rows) {
    const std::int64_t end = std::min(weight.spec.rows, begin + batch_rows);
    const std::int64_t chunks = (end - begin + kChunkRows - 1) / kChunkRows;
    std::vector<Result<QuantizedTensor>> rounded(static_cast<std::size_t>(chunks));
    std::vector<std::vector<float>> weights(static_cast<std::size_t>(chunks));
    pool.For(chunks, 1, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t i = first; i < last; ++i) {
        const auto index = static_cast<std::size_t>(i);
        const std::int64_t row = begin + i * kChunkRows;
        rounded[index] =
            Round(*stored, weight.spec, row, std::min(end, row + kChunkRows), weights[index]);
      }
    });
    for (std::size_t i = 0; i < rounded.size(); ++i) {
      if (!rounded[i]) {
        return Fail(rounded[i].error(), fmt::format("tensor {}: ", weight.name));
      }
      const bool last = begin + static_cast<std::int64_t>(i + 1) * kChunkRows >= weight.spec.rows;
      if (weight.spec.kind != CodecKind::kFloat) {
        statistics.Add(*rounded[i], weights[i]);
        if (last) {
          facts = statistics.ToJson(weight.spec);
        }
      }
      NIBBLE_TRY_VOID(writer.Write(weight.name, *rounded[i], facts));
    }
  }
  weights_.Release(*stored);
  return facts;
}

Result<QuantizedTensor> RoundedWriter::Round(const WeightInfo& stored, const WeightSpec& spec,
                                             std::int64_t begin, std::int64_t end,
                                             std::vector<float>& weights) const {
  NIBBLE_TRY(rows, weights_.ReadRows(stored, begin, end));
  weights = Dequantize(rows);
  if (spec.kind == CodecKind::kFloat) {
    QuantizedTensor out{.spec = spec, .values = std::move(weights)};
    out.spec.rows = end - begin;
    return out;
  }
  if (IsFp8(spec.codebook)) {
    return QuantizeFp8(weights, end - begin, spec.cols, spec.group_size,
                       spec.has_f32_scales ? DType::kF32 : plan_.scale_dtype, spec.codebook);
  }
  if (spec.kind == CodecKind::kCodebook) {
    return QuantizeToCodebook(weights, end - begin, spec.cols, spec.codebook, spec.group_size);
  }
  if (!BlockOfWeight(stored.name)) {  // a table, at 8 bits
    return EncodeAbsmax(weights, end - begin, spec.cols, spec.bits, spec.group_size);
  }
  if (spec.has_f32_scales) {
    return QuantizeSuperBlocks(weights, end - begin, spec.cols, spec);
  }
  if (spec.kind == CodecKind::kMinimum) {
    return QuantizeMinima(weights, end - begin, spec.cols, spec.bits, spec.group_size);
  }
  return QuantizeRtn(weights, end - begin, spec.cols,
                     {.bits = spec.bits,
                      .group_size = spec.group_size,
                      .symmetric = !spec.has_zero_points,
                      .search_scale = search_scale_,
                      .scale_dtype = plan_.scale_dtype});
}

}  // namespace nibble
