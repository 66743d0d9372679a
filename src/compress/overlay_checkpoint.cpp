#include "compress/overlay_checkpoint.h"

#include <fmt/format.h>

#include <utility>

#include "base/check.h"
#include "codec/encode.h"

namespace nibble {

OverlayCheckpoint::OverlayCheckpoint(const Checkpoint& source,
                                     std::span<const WeightToWrite> weights)
    : source_(source) {
  path_ = source.path();
  config_ = source.config();
  for (const WeightToWrite& weight : weights) {
    weights_.push_back({.name = weight.name, .spec = weight.spec});
  }
}

const QuantizedTensor& OverlayCheckpoint::Replace(std::string_view name, QuantizedTensor tensor) {
  const WeightInfo* weight = Find(name);
  NIBBLE_CHECK(weight != nullptr && weight->spec == tensor.spec, "a weight that will be written");
  return replaced_.insert_or_assign(std::string(name), std::move(tensor)).first->second;
}

void OverlayCheckpoint::Forget(std::string_view name) {
  if (const auto found = replaced_.find(name); found != replaced_.end()) {
    replaced_.erase(found);
  }
}

Result<QuantizedTensor> OverlayCheckpoint::ReadRows(const WeightInfo& weight,
                                                    std::int64_t row_begin,
                                                    std::int64_t row_end) const {
  if (const auto found = replaced_.find(weight.name); found != replaced_.end()) {
    return SliceRows(found->second, row_begin, row_end);
  }
  if (weight.spec.kind != CodecKind::kFloat) {
    return Fail(ErrorCode::kInternal, fmt::format("{} is not quantized yet", weight.name));
  }
  const WeightInfo* stored = source_.Find(weight.name);
  NIBBLE_CHECK(stored != nullptr, "every weight to write is in the source");
  NIBBLE_TRY(rows, source_.ReadRows(*stored, row_begin, row_end));
  QuantizedTensor out{.spec = weight.spec, .values = Dequantize(rows)};
  out.spec.rows = row_end - row_begin;
  for (float& value : out.values) {
    value = RoundToDType(value, weight.spec.float_dtype);
  }
  return out;
}

Result<std::vector<std::span<const std::byte>>> OverlayCheckpoint::RawParts(
    const WeightInfo& weight) const {
  return Fail(ErrorCode::kUnsupported, fmt::format("{} is not on disk yet", weight.name));
}

void OverlayCheckpoint::Release(const WeightInfo& weight) const {
  if (const WeightInfo* stored = source_.Find(weight.name)) {
    source_.Release(*stored);
  }
}

}  // namespace nibble
