#include "compress/rounded_checkpoint.h"

#include <fmt/format.h>

#include <set>
#include <utility>

#include "base/check.h"
#include "codec/encode.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

std::set<std::string> NamesOfLinears(const ModelConfig& config) {
  std::set<std::string> names;
  for (const ExpectedWeight& weight : ExpectedWeights(config)) {
    if (weight.is_linear) {
      names.insert(weight.name);
    }
  }
  return names;
}

WeightSpec Rounded(const WeightSpec& stored, const RoundedFormat& format) {
  WeightSpec spec{.rows = stored.rows, .cols = stored.cols};
  if (format.bits == 16) {
    spec.float_dtype = DType::kBF16;
    return spec;
  }
  spec.kind = CodecKind::kUniform;
  spec.bits = format.bits;
  spec.group_size = format.group_size == 0 ? stored.cols : format.group_size;
  return spec;
}

}  // namespace

RoundedCheckpoint::RoundedCheckpoint(std::unique_ptr<Checkpoint> source,
                                     const RoundedFormat& format)
    : RoundedCheckpoint(*source, format) {
  owned_ = std::move(source);
}

RoundedCheckpoint::RoundedCheckpoint(const Checkpoint& source, const RoundedFormat& format)
    : source_(&source), search_scale_(format.search_scale) {
  path_ = source_->path();
  config_ = source_->config();
  generation_ = source_->generation();
  const std::set<std::string> linears = NamesOfLinears(config_);
  for (const WeightInfo& stored : source_->weights()) {
    WeightInfo weight{.name = stored.name, .spec = stored.spec};
    const bool is_matrix = stored.spec.rows > 1;
    const bool takes = format.bits == 16 ? is_matrix : linears.contains(stored.name);
    if (takes && !(format.only_floats && stored.spec.kind != CodecKind::kFloat)) {
      weight.spec = Rounded(stored.spec, format);
    }
    weights_.push_back(std::move(weight));
  }
}

Result<QuantizedTensor> RoundedCheckpoint::ReadRows(const WeightInfo& weight,
                                                    std::int64_t row_begin,
                                                    std::int64_t row_end) const {
  const WeightInfo* stored = source_->Find(weight.name);
  NIBBLE_CHECK(stored != nullptr, "every weight is one of the source");
  NIBBLE_TRY(rows, source_->ReadRows(*stored, row_begin, row_end));
  if (weight.spec == stored->spec) {
    return rows;
  }
  std::vector<float> values = Dequantize(rows);
  if (weight.spec.kind == CodecKind::kUniform) {
    return QuantizeRtn(values, row_end - row_begin, weight.spec.cols,
                       {.bits = weight.spec.bits,
                        .group_size = weight.spec.group_size,
                        .search_scale = search_scale_});
  }
  QuantizedTensor out{.spec = weight.spec, .values = std::move(values)};
  out.spec.rows = row_end - row_begin;
  for (float& value : out.values) {
    value = RoundToDType(value, out.spec.float_dtype);
  }
  return out;
}

Result<std::vector<std::span<const std::byte>>> RoundedCheckpoint::RawParts(
    const WeightInfo& weight) const {
  return Fail(ErrorCode::kUnsupported, fmt::format("{} is not on disk", weight.name));
}

void RoundedCheckpoint::Release(const WeightInfo& weight) const {
  if (const WeightInfo* stored = source_->Find(weight.name)) {
    source_->Release(*stored);
  }
}

}  // namespace nibble
