#include "checkpoint/weight_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/bitsandbytes.h"
#include "codec/encode.h"
#include "io/safetensors.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

constexpr int kWordBits = 32;

std::int64_t Words(std::int64_t count, int bits) {
  return (count * bits + kWordBits - 1) / kWordBits;
}

bool IsNf4(const WeightSpec& spec) { return spec.codebook == Codebook::kNf4; }

// Tensors that make up one weight, in the order in which their bytes become known.
std::vector<SafetensorsEntry> PartsOf(const WeightToWrite& weight, DType scale_dtype) {
  const WeightSpec& spec = weight.spec;
  if (spec.kind == CodecKind::kFloat) {
    const Shape shape = spec.rows == 1 ? Shape{spec.cols} : Shape{spec.rows, spec.cols};
    return {{.name = weight.name, .dtype = spec.float_dtype, .shape = shape}};
  }
  if (IsNf4(spec)) {
    const auto text = BitsandbytesStateText(spec.rows, spec.cols, spec.group_size, scale_dtype);
    return {
        {.name = weight.name, .dtype = DType::kU8, .shape = Shape{spec.rows * spec.cols / 2, 1}},
        {.name = weight.name + ".absmax",
         .dtype = DType::kF32,
         .shape = Shape{spec.rows * spec.num_groups()}},
        {.name = weight.name + std::string(kBitsandbytesStateSuffix),
         .dtype = DType::kU8,
         .shape = Shape{static_cast<std::int64_t>(text.size())}}};
  }
  std::vector<SafetensorsEntry> parts = {{.name = weight.name + "_packed",
                                          .dtype = DType::kI32,
                                          .shape = Shape{spec.rows, Words(spec.cols, spec.bits)}}};
  if (spec.has_zero_points) {
    parts.push_back({.name = weight.name + "_zero_point",
                     .dtype = DType::kI32,
                     .shape = Shape{Words(spec.rows, spec.bits), spec.num_groups()}});
  }
  parts.push_back({.name = weight.name + "_scale",
                   .dtype = scale_dtype,
                   .shape = Shape{spec.rows, spec.num_groups()}});
  return parts;
}

// The part of a quantized weight that is known before its rows, and its bytes.
SafetensorsEntry HeadOf(const WeightToWrite& weight) {
  if (IsNf4(weight.spec)) {
    return {.name = weight.name + ".quant_map", .dtype = DType::kF32, .shape = Shape{16}};
  }
  return {.name = weight.name + "_shape", .dtype = DType::kI64, .shape = Shape{2}};
}
std::string HeadBytes(const WeightToWrite& weight) {
  if (IsNf4(weight.spec)) {
    const auto values = ValuesOf(weight.spec.codebook);
    return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
  }
  const std::int64_t dims[2] = {weight.spec.rows, weight.spec.cols};
  return {reinterpret_cast<const char*>(dims), sizeof dims};
}

std::uint64_t BytesOf(const SafetensorsEntry& entry) {
  return static_cast<std::uint64_t>(entry.shape.num_elements()) * SizeBytes(entry.dtype);
}

std::uint64_t BytesOf(const WeightToWrite& weight, DType scale_dtype) {
  std::uint64_t bytes = weight.spec.kind == CodecKind::kFloat ? 0 : BytesOf(HeadOf(weight));
  for (const SafetensorsEntry& part : PartsOf(weight, scale_dtype)) {
    bytes += BytesOf(part);
  }
  return bytes;
}

// torch wants every tensor at a multiple of its element, and the format allows no padding. So the
// heads, of 16 and 64 bytes, come first, and what would push later 4-byte elements off their places
// comes last.
bool GoesLast(const SafetensorsEntry& part) { return BytesOf(part) % 4 != 0; }

void AppendFloats(std::span<const float> values, DType dtype, std::string& out) {
  const std::size_t width = SizeBytes(dtype);
  const std::size_t at = out.size();
  out.resize(at + values.size() * width);
  char* to = out.data() + at;
  for (const float value : values) {
    if (dtype == DType::kF32) {
      std::memcpy(to, &value, width);
    } else {
      const std::uint16_t half = dtype == DType::kF16 ? FloatToF16(value) : FloatToBF16(value);
      std::memcpy(to, &half, width);
    }
    to += width;
  }
}

// Rows of codes, each padded to whole words with zero bits.
void AppendPackedRows(std::span<const std::uint8_t> codes, std::int64_t cols, int bits,
                      std::string& out) {
  const auto rows = static_cast<std::int64_t>(codes.size()) / cols;
  const std::int64_t per_word = kWordBits / bits;
  std::vector<std::uint32_t> words(static_cast<std::size_t>(Words(cols, bits)));
  for (std::int64_t row = 0; row < rows; ++row) {
    std::ranges::fill(words, 0U);
    const std::uint8_t* from = codes.data() + row * cols;
    for (std::int64_t col = 0; col < cols; ++col) {
      words[static_cast<std::size_t>(col / per_word)] |=
          static_cast<std::uint32_t>(from[col]) << static_cast<unsigned>(col % per_word * bits);
    }
    out.append(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::uint32_t));
  }
}

// Two codes a byte, the first in the high nibble.
void AppendNf4Codes(std::span<const std::uint8_t> codes, std::string& out) {
  for (std::size_t i = 0; i < codes.size(); i += 2) {
    out.push_back(static_cast<char>(codes[i] << 4 | codes[i + 1]));
  }
}

// zero_points: [rows, groups]. The result packs a column: word (r / per_word, group).
std::string PackZeroPoints(std::span<const std::uint8_t> zero_points, std::int64_t rows,
                           std::int64_t groups, int bits) {
  const std::int64_t per_word = kWordBits / bits;
  std::vector<std::uint32_t> words(static_cast<std::size_t>(Words(rows, bits) * groups));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      words[static_cast<std::size_t>(row / per_word * groups + group)] |=
          static_cast<std::uint32_t>(zero_points[static_cast<std::size_t>(row * groups + group)])
          << static_cast<unsigned>(row % per_word * bits);
    }
  }
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::uint32_t)};
}

struct Shard {
  std::string file_name;
  std::size_t begin = 0, end = 0;  // weights
  bool done = false;
  json::Object facts;
};

class Writer final : public WeightWriter {
 public:
  Writer(AtomicWriter& out, std::vector<WeightToWrite> weights, const Options& options)
      : out_(out), weights_(std::move(weights)), options_(options) {}

  Result<void> Plan();
  bool IsDone(std::string_view name) const override;
  std::optional<json::Value> DoneFacts(std::string_view name) const override;
  Result<void> Write(std::string_view name, const QuantizedTensor& rows,
                     const json::Value& facts) override;
  Result<void> Finish() override;

 private:
  Result<void> CheckSpec(const WeightToWrite& weight) const;
  Result<void> CheckRows(const WeightToWrite& weight, const QuantizedTensor& rows) const;
  const Shard* ShardOf(std::string_view name) const;
  void SkipDone();
  Result<void> OpenShard();
  Result<void> WriteText(std::string_view bytes);
  Result<void> EndWeight(const json::Value& facts);
  Result<void> EndShard();

  AtomicWriter& out_;
  std::vector<WeightToWrite> weights_;
  Options options_;
  std::vector<Shard> shards_;
  std::uint64_t total_bytes_ = 0;

  std::size_t shard_ = 0;      // the one being written
  std::size_t weight_ = 0;     // the next or the current weight
  std::int64_t next_row_ = 0;  // of the current weight
  std::unique_ptr<AtomicWriter::File> file_;
  std::string scales_;                     // of the current weight, as they will be stored
  std::vector<std::uint8_t> zero_points_;  // of the current weight
  std::string last_;                       // tensors that come at the end of the shard
};

Result<void> Writer::CheckSpec(const WeightToWrite& weight) const {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  if (spec.rows < 1 || spec.cols < 1) {
    return wrong("has no elements");
  }
  if (spec.kind == CodecKind::kFloat) {
    return {};
  }
  const bool uniform = spec.kind == CodecKind::kUniform && (spec.bits == 4 || spec.bits == 8);
  if (!uniform && !(IsNf4(spec) && spec.has_f32_scales)) {
    return wrong(spec.ToString() +
                 " cannot be written: 4 or 8 uniform bits and NF4 with f32 scales can");
  }
  if (IsNf4(spec) && spec.cols % 2 != 0) {
    return wrong(fmt::format("a row of {} codes ends inside a byte", spec.cols));
  }
  if (spec.group_size < 1 || spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("groups of {} do not divide its width of {}", spec.group_size, spec.cols));
  }
  return {};
}

Result<void> Writer::Plan() {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    NIBBLE_TRY_VOID(CheckSpec(weights_[i]));
    const std::uint64_t size = BytesOf(weights_[i], options_.scale_dtype);
    if (shards_.empty() || (bytes + size > options_.shard_bytes && bytes > 0)) {
      shards_.push_back({.begin = i, .end = i});
      bytes = 0;
    }
    bytes += size;
    total_bytes_ += size;
    shards_.back().end = i + 1;
  }
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].file_name = shards_.size() == 1 ? std::string("model.safetensors")
                                               : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                             i + 1, shards_.size());
    if (const auto facts = out_.DoneFacts(shards_[i].file_name)) {
      shards_[i].done = true;
      if (const json::Object* object = facts->AsObject()) {
        shards_[i].facts = *object;
      }
    }
  }
  SkipDone();
  return {};
}

const Shard* Writer::ShardOf(std::string_view name) const {
  const auto found = std::ranges::find_if(
      weights_, [&](const WeightToWrite& weight) { return weight.name == name; });
  const auto index = static_cast<std::size_t>(found - weights_.begin());
  const auto shard = std::ranges::find_if(shards_, [&](const Shard& s) { return index < s.end; });
  return found == weights_.end() || shard == shards_.end() ? nullptr : &*shard;
}

bool Writer::IsDone(std::string_view name) const {
  const Shard* shard = ShardOf(name);
  return shard != nullptr && shard->done;
}

std::optional<json::Value> Writer::DoneFacts(std::string_view name) const {
  const Shard* shard = ShardOf(name);
  const json::Value* facts = shard == nullptr || !shard->done ? nullptr : shard->facts.Find(name);
  return facts == nullptr ? std::nullopt : std::optional(*facts);
}

void Writer::SkipDone() {
  while (shard_ < shards_.size() && shards_[shard_].done) {
    weight_ = shards_[shard_].end;
    ++shard_;
  }
}

Result<void> Writer::WriteText(std::string_view bytes) {
  return file_->Write(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

Result<void> Writer::OpenShard() {
  const Shard& shard = shards_[shard_];
  NIBBLE_TRY(file, out_.OpenFile(shard.file_name));
  file_ = std::move(file);
  std::vector<SafetensorsEntry> entries, streamed, last;
  std::string heads;
  for (std::size_t i = shard.begin; i < shard.end; ++i) {
    const WeightToWrite& weight = weights_[i];
    if (weight.spec.kind != CodecKind::kFloat) {
      entries.push_back(HeadOf(weight));
      heads += HeadBytes(weight);
    }
    for (SafetensorsEntry& part : PartsOf(weight, options_.scale_dtype)) {
      (GoesLast(part) ? last : streamed).push_back(std::move(part));
    }
  }
  entries.insert(entries.end(), streamed.begin(), streamed.end());
  entries.insert(entries.end(), last.begin(), last.end());
  last_.clear();
  NIBBLE_TRY_VOID(WriteText(BuildSafetensorsHeader(entries)));
  return WriteText(heads);
}

Result<void> Writer::CheckRows(const WeightToWrite& weight, const QuantizedTensor& rows) const {
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  WeightSpec spec = rows.spec;
  spec.rows = weight.spec.rows;
  if (spec.kind == CodecKind::kFloat) {
    spec.float_dtype = weight.spec.float_dtype;
  }
  if (spec != weight.spec || rows.spec.rows > weight.spec.rows - next_row_) {
    return wrong(fmt::format("got rows of {} x {} {}, expected {} x {} {}", rows.spec.rows,
                             rows.spec.cols, rows.spec.ToString(), weight.spec.rows - next_row_,
                             weight.spec.cols, weight.spec.ToString()));
  }
  if (auto valid = Validate(rows); !valid) {
    return Fail(valid.error(), weight.name + ": ");
  }
  const DType scale_dtype = IsNf4(weight.spec) ? DType::kF32 : options_.scale_dtype;
  for (const float scale : rows.scales) {
    if (RoundToDType(scale, scale_dtype) != scale || !std::isfinite(scale)) {
      return wrong(fmt::format("the scale {} is no {} number: round scales before choosing codes",
                               scale, Name(scale_dtype)));
    }
  }
  for (const float value : rows.values) {
    if (!std::isfinite(RoundToDType(value, weight.spec.float_dtype))) {
      return wrong(
          fmt::format("the value {} does not fit {}", value, Name(weight.spec.float_dtype)));
    }
  }
  return {};
}

Result<void> Writer::Write(std::string_view name, const QuantizedTensor& rows,
                           const json::Value& facts) {
  if (weight_ >= weights_.size() || weights_[weight_].name != name) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: written out of order, {} is next", name,
                            weight_ < weights_.size() ? weights_[weight_].name : "nothing"));
  }
  const WeightToWrite& weight = weights_[weight_];
  NIBBLE_TRY_VOID(CheckRows(weight, rows));
  if (!file_) {
    NIBBLE_TRY_VOID(OpenShard());
  }
  const SafetensorsEntry main = PartsOf(weight, options_.scale_dtype).front();
  std::string bytes;
  if (weight.spec.kind == CodecKind::kFloat) {
    AppendFloats(rows.values, weight.spec.float_dtype, bytes);
  } else if (IsNf4(weight.spec)) {
    AppendNf4Codes(rows.codes, bytes);
    AppendFloats(rows.scales, DType::kF32, scales_);
  } else {
    AppendPackedRows(rows.codes, weight.spec.cols, weight.spec.bits, bytes);
    AppendFloats(rows.scales, options_.scale_dtype, scales_);
    zero_points_.insert(zero_points_.end(), rows.zero_points.begin(), rows.zero_points.end());
  }
  if (GoesLast(main)) {
    last_ += bytes;
  } else {
    NIBBLE_TRY_VOID(WriteText(bytes));
  }
  next_row_ += rows.spec.rows;
  return next_row_ == weight.spec.rows ? EndWeight(facts) : Result<void>{};
}

Result<void> Writer::EndWeight(const json::Value& facts) {
  const WeightToWrite& weight = weights_[weight_];
  if (weight.spec.has_zero_points) {
    NIBBLE_TRY_VOID(WriteText(PackZeroPoints(zero_points_, weight.spec.rows,
                                             weight.spec.num_groups(), weight.spec.bits)));
  }
  if (weight.spec.kind != CodecKind::kFloat) {
    if (scales_.size() % 4 != 0) {
      last_ += scales_;
    } else {
      NIBBLE_TRY_VOID(WriteText(scales_));
    }
  }
  if (IsNf4(weight.spec)) {
    const std::string state = BitsandbytesStateText(weight.spec.rows, weight.spec.cols,
                                                    weight.spec.group_size, options_.scale_dtype);
    if (state.size() % 4 != 0) {
      last_ += state;
    } else {
      NIBBLE_TRY_VOID(WriteText(state));
    }
  }
  scales_.clear();
  zero_points_.clear();
  shards_[shard_].facts.Set(weight.name, facts);
  next_row_ = 0;
  ++weight_;
  return weight_ == shards_[shard_].end ? EndShard() : Result<void>{};
}

Result<void> Writer::EndShard() {
  NIBBLE_TRY_VOID(WriteText(last_));
  last_.clear();
  NIBBLE_TRY_VOID(file_->Finish(shards_[shard_].facts));
  file_.reset();
  shards_[shard_].done = true;
  SkipDone();
  return {};
}

Result<void> Writer::Finish() {
  if (weight_ < weights_.size()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: was not written", weights_[weight_].name));
  }
  if (shards_.size() < 2) {
    return {};
  }
  json::Object metadata, weight_map, index;
  metadata.Set("total_size", total_bytes_);
  for (const Shard& shard : shards_) {
    for (std::size_t i = shard.begin; i < shard.end; ++i) {
      for (const SafetensorsEntry& part : PartsOf(weights_[i], options_.scale_dtype)) {
        weight_map.Set(part.name, shard.file_name);
      }
      if (weights_[i].spec.kind != CodecKind::kFloat) {
        weight_map.Set(HeadOf(weights_[i]).name, shard.file_name);
      }
    }
  }
  index.Set("metadata", std::move(metadata));
  index.Set("weight_map", std::move(weight_map));
  return out_.WriteWhole("model.safetensors.index.json", json::Dump(index, {.indent = 2}) + "\n");
}

}  // namespace

DType SixteenBitType(const ModelConfig& config) {
  return config.dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
}

json::Object CompressedTensorsConfig(int bits, std::int64_t group_size, bool symmetric,
                                     const std::vector<std::string>& ignore) {
  json::Object weights;
  weights.Set("num_bits", bits);
  weights.Set("type", "int");
  weights.Set("symmetric", symmetric);
  weights.Set("strategy", group_size == 0 ? "channel" : "group");
  weights.Set("group_size", group_size == 0 ? json::Value() : json::Value(group_size));
  weights.Set("dynamic", false);
  json::Object group;
  group.Set("targets", json::Array{"Linear"});
  group.Set("weights", std::move(weights));
  group.Set("input_activations", nullptr);
  group.Set("output_activations", nullptr);
  group.Set("format", nullptr);
  json::Object groups;
  groups.Set("group_0", std::move(group));
  json::Array ignored;
  for (const std::string& module : ignore) {
    ignored.push_back(module);
  }
  json::Object out;
  out.Set("quant_method", "compressed-tensors");
  out.Set("format", "pack-quantized");
  out.Set("quantization_status", "compressed");
  out.Set("config_groups", std::move(groups));
  out.Set("ignore", std::move(ignored));
  out.Set("kv_cache_scheme", nullptr);
  out.Set("global_compression_ratio", nullptr);
  return out;
}

std::uint64_t WeightWriter::SizeBytes(const std::vector<WeightToWrite>& weights,
                                      DType scale_dtype) {
  std::uint64_t bytes = 0;
  for (const WeightToWrite& weight : weights) {
    bytes += BytesOf(weight, scale_dtype);
  }
  return bytes;
}

Result<std::unique_ptr<WeightWriter>> WeightWriter::Create(AtomicWriter& out,
                                                           std::vector<WeightToWrite> weights,
                                                           const Options& options) {
  auto writer = std::make_unique<Writer>(out, std::move(weights), options);
  NIBBLE_TRY_VOID(writer->Plan());
  return writer;
}

}  // namespace nibble
