#include "checkpoint/weight_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "codec/encode.h"
#include "io/safetensors.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

std::uint64_t BytesOf(const SafetensorsEntry& entry) {
  return static_cast<std::uint64_t>(entry.shape.num_elements()) * SizeBytes(entry.dtype);
}

// torch wants every tensor at a multiple of its element, and the format allows no padding. So the
// heads, multiples of 8 bytes, come first, and what would push later 4-byte elements off their
// places comes last.
bool GoesLast(const SafetensorsEntry& part) { return BytesOf(part) % 4 != 0; }

SafetensorsEntry FloatEntry(const WeightToWrite& weight) {
  const WeightSpec& spec = weight.spec;
  return {.name = weight.name,
          .dtype = spec.float_dtype,
          .shape = spec.rows == 1 ? Shape{spec.cols} : Shape{spec.rows, spec.cols}};
}

Result<std::unique_ptr<WeightEncoder>> EncoderOf(const WeightToWrite& weight,
                                                 const WeightWriter::Options& options) {
  return MakeWeightEncoder(
      options.format, weight,
      {.scale_dtype = options.scale_dtype, .model_dtype = options.model_dtype});
}

// The tensors of a weight: heads and other parts.
Result<std::vector<SafetensorsEntry>> EntriesOf(const WeightToWrite& weight,
                                                const WeightWriter::Options& options) {
  if (weight.spec.rows < 1 || weight.spec.cols < 1) {
    return Fail(ErrorCode::kInvalidArgument, weight.name + ": has no elements");
  }
  if (weight.spec.kind == CodecKind::kFloat) {
    return std::vector<SafetensorsEntry>{FloatEntry(weight)};
  }
  NIBBLE_TRY(encoder, EncoderOf(weight, options));
  std::vector<SafetensorsEntry> out;
  for (const WeightEncoder::Head& head : encoder->Heads()) {
    out.push_back(head.entry);
  }
  for (SafetensorsEntry& part : encoder->Parts()) {
    out.push_back(std::move(part));
  }
  return out;
}

struct Shard {
  std::string file_name;
  std::size_t begin = 0, end = 0;  // weights
  std::uint64_t bytes = 0;         // of its tensors
  bool done = false;
  json::Object facts;
};

Result<std::vector<Shard>> ShardsOf(std::span<const WeightToWrite> weights,
                                    const WeightWriter::Options& options) {
  std::vector<Shard> shards;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    NIBBLE_TRY(entries, EntriesOf(weights[i], options));
    std::uint64_t size = 0;
    for (const SafetensorsEntry& entry : entries) {
      size += BytesOf(entry);
    }
    if (shards.empty() ||
        (shards.back().bytes + size > options.shard_bytes && shards.back().bytes > 0)) {
      shards.push_back({.begin = i, .end = i});
    }
    shards.back().bytes += size;
    shards.back().end = i + 1;
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].file_name =
        shards.size() == 1 ? std::string("model.safetensors")
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

// What a file begins with: its header, and the bytes of all heads.
struct Beginning {
  std::string header, heads;
};

Result<Beginning> BeginningOf(std::span<const WeightToWrite> weights,
                              const WeightWriter::Options& options) {
  Beginning out;
  std::vector<SafetensorsEntry> entries, streamed, last;
  for (const WeightToWrite& weight : weights) {
    std::vector<SafetensorsEntry> parts = {FloatEntry(weight)};
    if (weight.spec.kind != CodecKind::kFloat) {
      NIBBLE_TRY(encoder, EncoderOf(weight, options));
      for (const WeightEncoder::Head& head : encoder->Heads()) {
        entries.push_back(head.entry);
        out.heads += head.bytes;
      }
      parts = encoder->Parts();
    }
    for (SafetensorsEntry& part : parts) {
      (GoesLast(part) ? last : streamed).push_back(std::move(part));
    }
  }
  entries.insert(entries.end(), streamed.begin(), streamed.end());
  entries.insert(entries.end(), last.begin(), last.end());
  out.header = BuildSafetensorsHeader(entries);
  return out;
}

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
  Result<void> CheckRows(const WeightToWrite& weight, const QuantizedTensor& rows) const;
  Result<void> WritePart(const SafetensorsEntry& part, std::string_view bytes);
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
  std::unique_ptr<WeightEncoder> encoder_;  // of the current weight, if it is quantized
  std::string last_;                        // tensors that come at the end of the shard
};

Result<void> Writer::Plan() {
  NIBBLE_TRY(shards, ShardsOf(weights_, options_));
  shards_ = std::move(shards);
  for (Shard& shard : shards_) {
    total_bytes_ += shard.bytes;
    if (const auto facts = out_.DoneFacts(shard.file_name)) {
      shard.done = true;
      if (const json::Object* object = facts->AsObject()) {
        shard.facts = *object;
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
  NIBBLE_TRY(
      beginning,
      BeginningOf(std::span(weights_).subspan(shard.begin, shard.end - shard.begin), options_));
  last_.clear();
  NIBBLE_TRY_VOID(WriteText(beginning.header));
  return WriteText(beginning.heads);
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
  const DType scale_dtype = encoder_ ? encoder_->ScaleDType() : DType::kF32;
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
  if (next_row_ == 0) {
    encoder_.reset();
    if (weight.spec.kind != CodecKind::kFloat) {
      NIBBLE_TRY(encoder, EncoderOf(weight, options_));
      encoder_ = std::move(encoder);
    }
  }
  NIBBLE_TRY_VOID(CheckRows(weight, rows));
  if (!file_) {
    NIBBLE_TRY_VOID(OpenShard());
  }
  if (encoder_) {
    NIBBLE_TRY(bytes, encoder_->Add(rows));
    NIBBLE_TRY_VOID(WritePart(encoder_->Parts().front(), bytes));
  } else {
    std::string bytes;
    AppendFloats(rows.values, weight.spec.float_dtype, bytes);
    NIBBLE_TRY_VOID(WritePart(FloatEntry(weight), bytes));
  }
  next_row_ += rows.spec.rows;
  return next_row_ == weight.spec.rows ? EndWeight(facts) : Result<void>{};
}

Result<void> Writer::WritePart(const SafetensorsEntry& part, std::string_view bytes) {
  if (GoesLast(part)) {
    last_ += bytes;
    return {};
  }
  return WriteText(bytes);
}

Result<void> Writer::EndWeight(const json::Value& facts) {
  if (encoder_) {
    const std::vector<SafetensorsEntry> parts = encoder_->Parts();
    const std::vector<std::string> bytes = encoder_->Finish();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      NIBBLE_TRY_VOID(WritePart(parts[i], bytes[i]));
    }
  }
  encoder_.reset();
  shards_[shard_].facts.Set(weights_[weight_].name, facts);
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
      NIBBLE_TRY(entries, EntriesOf(weights_[i], options_));
      for (const SafetensorsEntry& entry : entries) {
        weight_map.Set(entry.name, shard.file_name);
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
                                      const Options& options) {
  std::uint64_t bytes = 0;
  const auto shards = ShardsOf(weights, options);  // what the format cannot hold, Create refuses
  for (const Shard& shard : shards ? *shards : std::vector<Shard>()) {
    const auto beginning =
        BeginningOf(std::span(weights).subspan(shard.begin, shard.end - shard.begin), options);
    bytes += shard.bytes + (beginning ? beginning->header.size() : 0);
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
