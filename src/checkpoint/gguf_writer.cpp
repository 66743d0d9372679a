#include "checkpoint/gguf_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "checkpoint/folder_format.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_names.h"

namespace nibble {
namespace {

constexpr const char* kRopeFactors = "rope_freqs.weight";

// The file's type of a weight; norms and biases are F32 whatever they were.
std::optional<GgufType> TypeOf(const WeightToWrite& weight) {
  return weight.spec.rows == 1 ? GgufType::kF32 : GgufTypeOf(weight.spec);
}

std::uint64_t BytesOf(const WeightToWrite& weight) {
  const auto type = TypeOf(weight);
  const auto block = type ? GgufBlockOf(static_cast<std::uint32_t>(*type)) : std::nullopt;
  return block ? static_cast<std::uint64_t>(weight.spec.rows *
                                            (weight.spec.cols / block->elements) * block->bytes)
               : 0;
}

// general.file_type of a file whose matrices are mostly of this type.
std::uint32_t FileTypeOf(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return 0;
    case GgufType::kF16:
      return 1;
    case GgufType::kBF16:
      return 32;
    case GgufType::kQ4_0:
      return 2;
    case GgufType::kQ4_1:
      return 3;
    case GgufType::kQ5_0:
      return 8;
    case GgufType::kQ5_1:
      return 9;
    case GgufType::kQ8_0:
      return 7;
    case GgufType::kQ2_K:
      return 10;
    case GgufType::kQ3_K:
      return 12;
    case GgufType::kQ4_K:
      return 15;
    case GgufType::kQ5_K:
      return 17;
    case GgufType::kQ6_K:
      return 18;
  }
  return 0;
}

// The divisors of llama3's rotary frequencies: 1 for short waves, the factor for long ones.
std::vector<float> RopeFactors(const RopeConfig& rope, std::int64_t head_dim) {
  std::vector<float> out;
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    const double wave =
        2.0 * std::numbers::pi *
        std::pow(rope.theta, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double divisor = 1.0;
    if (wave > rope.original_max_position_embeddings / rope.low_freq_factor) {
      divisor = rope.factor;
    } else if (wave >= rope.original_max_position_embeddings / rope.high_freq_factor) {
      const double smooth = (rope.original_max_position_embeddings / wave - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      divisor = 1.0 / ((1.0 - smooth) / rope.factor + smooth);
    }
    out.push_back(static_cast<float>(divisor));
  }
  return out;
}

// llama.cpp takes some of Gemma 3's numbers for granted; a model with others would compute
// nonsense.
Result<void> CheckGemma3(const ModelConfig& config) {
  const auto refuse = [](const char* key) {
    return Fail(
        ErrorCode::kUnsupported,
        fmt::format("{}: GGUF has no place for a value that published Gemma 3 models do not "
                    "have; choose another format",
                    key));
  };
  if (config.sliding_layers != SlidingLayers(config.num_layers, kGemma3GlobalInterval)) {
    return refuse("layer_types");
  }
  if (config.query_pre_attn_scalar != config.head_dim) {
    return refuse("query_pre_attn_scalar");
  }
  if (!config.sliding_rope || config.sliding_rope->theta != 10000.0 ||
      config.sliding_rope->type != RopeType::kDefault) {
    return refuse("rope_local_base_freq");
  }
  return {};
}

Result<void> DescribeModel(const GgufModelFacts& facts, GgufHeaderBuilder& header) {
  const ModelConfig& config = facts.config;
  const bool llama =
      config.architecture == Architecture::kLlama || config.architecture == Architecture::kMistral;
  const bool gemma = config.architecture == Architecture::kGemma3;
  const std::string arch = llama ? "llama" : gemma ? "gemma3" : Name(config.architecture);
  if (gemma) {
    NIBBLE_TRY_VOID(CheckGemma3(config));
  }
  const auto u32 = [&](const char* key, std::int64_t value) {
    header.SetU32(arch + "." + key, static_cast<std::uint32_t>(value));
  };
  header.SetString("general.architecture", arch);
  header.SetString("general.name", facts.name);
  header.SetU32("general.quantization_version", 2);
  u32("context_length", config.max_position_embeddings);
  u32("embedding_length", config.hidden_size);
  u32("block_count", config.num_layers);
  u32("feed_forward_length", config.intermediate_size);
  u32("vocab_size", config.vocab_size);
  u32("attention.head_count", config.num_heads);
  u32("attention.head_count_kv", config.num_kv_heads);
  u32("attention.key_length", config.head_dim);
  u32("attention.value_length", config.head_dim);
  header.SetF32(arch + ".attention.layer_norm_rms_epsilon", config.rms_norm_eps);
  if (config.sliding_window) {
    u32("attention.sliding_window", *config.sliding_window);
  }
  const RopeConfig& rope = config.rope;
  u32("rope.dimension_count", config.head_dim);
  header.SetF32(arch + ".rope.freq_base", static_cast<float>(rope.theta));
  if (rope.type == RopeType::kLinear || rope.type == RopeType::kYarn) {
    header.SetString(arch + ".rope.scaling.type",
                     rope.type == RopeType::kLinear ? "linear" : "yarn");
    header.SetF32(arch + ".rope.scaling.factor", static_cast<float>(rope.factor));
  }
  if (rope.type == RopeType::kLlama3) {  // others read rope_freqs.weight alone
    u32("rope.scaling.original_context_length",
        static_cast<std::int64_t>(rope.original_max_position_embeddings));
    header.SetF32(arch + ".rope.scaling.low_freq_factor", static_cast<float>(rope.low_freq_factor));
    header.SetF32(arch + ".rope.scaling.high_freq_factor",
                  static_cast<float>(rope.high_freq_factor));
  }
  if (rope.type == RopeType::kYarn) {
    u32("rope.scaling.original_context_length",
        static_cast<std::int64_t>(rope.original_max_position_embeddings));
    header.SetF32(arch + ".rope.scaling.yarn_beta_fast", static_cast<float>(rope.beta_fast));
    header.SetF32(arch + ".rope.scaling.yarn_beta_slow", static_cast<float>(rope.beta_slow));
    if (rope.attention_factor) {
      // llama.cpp multiplies it onto YaRN's own factor.
      header.SetF32(
          arch + ".rope.scaling.attn_factor",
          static_cast<float>(*rope.attention_factor / (0.1 * std::log(rope.factor) + 1.0)));
    }
    if (!rope.truncate) {
      return Fail(ErrorCode::kUnsupported,
                  "YaRN with truncate false has no place in the metadata of GGUF");
    }
  }
  return {};
}

void DescribeVocabulary(const GgufVocabulary& vocabulary, GgufHeaderBuilder& header) {
  header.SetString("tokenizer.ggml.model", vocabulary.model);
  if (!vocabulary.pre.empty()) {
    header.SetString("tokenizer.ggml.pre", vocabulary.pre);
  }
  header.SetStrings("tokenizer.ggml.tokens", vocabulary.tokens);
  if (!vocabulary.scores.empty()) {
    header.SetFloats("tokenizer.ggml.scores", vocabulary.scores);
  }
  if (!vocabulary.token_types.empty()) {
    header.SetInts("tokenizer.ggml.token_type", vocabulary.token_types);
  }
  if (!vocabulary.merges.empty()) {
    header.SetStrings("tokenizer.ggml.merges", vocabulary.merges);
  }
  const auto id = [&](const char* key, std::optional<TokenId> token) {
    if (token) {
      header.SetU32(key, static_cast<std::uint32_t>(Raw(*token)));
    }
  };
  id("tokenizer.ggml.bos_token_id", vocabulary.bos);
  id("tokenizer.ggml.eos_token_id", vocabulary.eos);
  id("tokenizer.ggml.unknown_token_id", vocabulary.unk);
  id("tokenizer.ggml.padding_token_id", vocabulary.pad);
  id("tokenizer.ggml.eot_token_id", vocabulary.eot);
  const auto flag = [&](const char* key, std::optional<bool> value) {
    if (value) {
      header.SetBool(key, *value);
    }
  };
  flag("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  flag("tokenizer.ggml.add_eos_token", vocabulary.add_eos);
  flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
}

// What the file has before the given weights: header and rotary factors.
Result<std::string> BeginningOf(std::span<const WeightToWrite> weights,
                                const GgufModelFacts& facts) {
  GgufHeaderBuilder header;
  NIBBLE_TRY_VOID(DescribeModel(facts, header));
  std::map<GgufType, std::uint64_t> elements;
  for (const WeightToWrite& weight : weights) {
    const auto type = TypeOf(weight);
    const auto block = type ? GgufBlockOf(static_cast<std::uint32_t>(*type)) : std::nullopt;
    if (!block || weight.spec.cols % block->elements != 0) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: no type of GGUF holds {} in rows of {}", weight.name,
                              weight.spec.ToString(), weight.spec.cols));
    }
    if (weight.spec.rows > 1) {
      elements[*type] += static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
    }
  }
  const auto most =
      std::ranges::max_element(elements, {}, [](const auto& pair) { return pair.second; });
  header.SetU32("general.file_type", FileTypeOf(most->first));
  DescribeVocabulary(facts.vocabulary, header);
  if (facts.chat_template) {
    header.SetString("tokenizer.chat_template", *facts.chat_template);
  }
  const ModelConfig& config = facts.config;
  std::string rope_factors;
  if (config.rope.type == RopeType::kLlama3) {
    AppendFloats(RopeFactors(config.rope, config.head_dim), DType::kF32, rope_factors);
    const std::int64_t dims[] = {config.head_dim / 2};
    header.AddTensor(kRopeFactors, dims, GgufType::kF32);
  }
  for (const WeightToWrite& weight : weights) {
    const std::int64_t dims[] = {weight.spec.cols, weight.spec.rows};
    header.AddTensor(GgufNameOf(config, weight.name),
                     std::span(dims).first(weight.spec.rows == 1 ? 1 : 2), *TypeOf(weight));
  }
  rope_factors.resize(rope_factors.size() + GgufHeaderBuilder::PaddingAfter(rope_factors.size()));
  return header.Build() + rope_factors;
}

class GgufWriter final : public WeightWriter {
 public:
  GgufWriter(AtomicWriter& out, std::string file_name, std::vector<WeightToWrite> weights,
             ModelConfig config)
      : out_(out),
        file_name_(std::move(file_name)),
        weights_(std::move(weights)),
        config_(std::move(config)) {}

  Result<void> Plan(const GgufModelFacts& facts) {
    if (const auto known = out_.DoneFacts(file_name_)) {
      done_ = true;
      if (known->AsObject() != nullptr) {
        facts_ = *known->AsObject();
      }
      return {};
    }
    NIBBLE_TRY(beginning, BeginningOf(weights_, facts));
    beginning_ = std::move(beginning);
    return {};
  }

  bool IsDone(std::string_view) const override { return done_; }
  std::optional<json::Value> DoneFacts(std::string_view name) const override {
    const json::Value* facts = done_ ? facts_.Find(name) : nullptr;
    return facts == nullptr ? std::nullopt : std::optional(*facts);
  }

  Result<void> Write(std::string_view name, const QuantizedTensor& rows,
                     const json::Value& facts) override {
    if (weight_ >= weights_.size() || weights_[weight_].name != name) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: written out of order, {} is next", name,
                              weight_ < weights_.size() ? weights_[weight_].name : "nothing"));
    }
    const WeightToWrite& weight = weights_[weight_];
    WeightSpec expected = weight.spec;
    expected.rows = rows.spec.rows;
    if (rows.spec.kind == CodecKind::kFloat) {
      expected.float_dtype = rows.spec.float_dtype;
    }
    if (rows.spec != expected || rows.spec.rows > weight.spec.rows - next_row_) {
      return Fail(
          ErrorCode::kInvalidArgument,
          fmt::format("{}: got rows of {} x {} {}, expected {} x {} {}", name, rows.spec.rows,
                      rows.spec.cols, rows.spec.ToString(), weight.spec.rows - next_row_,
                      weight.spec.cols, weight.spec.ToString()));
    }
    if (auto valid = Validate(rows); !valid) {
      return Fail(valid.error(), weight.name + ": ");
    }
    if (!file_) {
      NIBBLE_TRY_VOID(Begin());
    }
    NIBBLE_TRY_VOID(Encode(weight, rows));
    next_row_ += rows.spec.rows;
    if (next_row_ < weight.spec.rows) {
      return {};
    }
    facts_.Set(weight.name, facts);
    const std::string padding(GgufHeaderBuilder::PaddingAfter(BytesOf(weight)), '\0');
    NIBBLE_TRY_VOID(WriteText(blocks_ + padding));
    blocks_.clear();
    next_row_ = 0;
    ++weight_;
    return {};
  }

  Result<void> Finish() override {
    if (done_) {
      return {};
    }
    if (weight_ < weights_.size()) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: was not written", weights_[weight_].name));
    }
    NIBBLE_TRY_VOID(file_->Finish(facts_));
    file_.reset();
    done_ = true;
    return {};
  }

 private:
  Result<void> WriteText(std::string_view bytes) {
    return file_->Write(std::as_bytes(std::span(bytes.data(), bytes.size())));
  }

  Result<void> Begin() {
    NIBBLE_TRY(file, out_.OpenFile(file_name_));
    file_ = std::move(file);
    return WriteText(beginning_);
  }

  // Writes the blocks of these rows, or puts them at their places among those of the weight.
  Result<void> Encode(const WeightToWrite& weight, const QuantizedTensor& rows) {
    const GgufType type = *TypeOf(weight);
    const std::int64_t heads = GgufInterleavedHeads(config_, weight.name);
    const bool vector = weight.spec.rows == 1;
    QuantizedTensor typed;
    typed.spec = rows.spec;
    if (vector) {
      typed.spec.float_dtype = DType::kF32;
      typed.values = rows.values;
      if (const float offset = GgufOffsetOf(config_, weight.name); offset != 0.0F) {
        for (float& value : typed.values) {
          value += offset;
        }
      }
      if (heads > 0) {  // a bias moves element by element
        for (std::int64_t i = 0; i < weight.spec.cols; ++i) {
          typed.values[static_cast<std::size_t>(GgufRowOf(i, weight.spec.cols / heads))] =
              rows.values[static_cast<std::size_t>(i)];
        }
      }
    } else if (rows.spec.kind == CodecKind::kFloat) {
      typed.spec.float_dtype = weight.spec.float_dtype;
      typed.values = rows.values;
    }
    const bool converted = vector || rows.spec.kind == CodecKind::kFloat;
    auto bytes = EncodeGgufRows(type, converted ? typed : rows);
    if (!bytes) {
      return Fail(bytes.error(), weight.name + ": ");
    }
    if (heads == 0 || vector) {
      return WriteText(*bytes);
    }
    const std::size_t stride = bytes->size() / static_cast<std::size_t>(rows.spec.rows);
    blocks_.resize(stride * static_cast<std::size_t>(weight.spec.rows));
    for (std::int64_t row = 0; row < rows.spec.rows; ++row) {
      const auto to =
          static_cast<std::size_t>(GgufRowOf(next_row_ + row, weight.spec.rows / heads)) * stride;
      blocks_.replace(to, stride, *bytes, static_cast<std::size_t>(row) * stride, stride);
    }
    return {};
  }

  AtomicWriter& out_;
  std::string file_name_;
  std::vector<WeightToWrite> weights_;
  ModelConfig config_;
  std::string beginning_;
  bool done_ = false;
  json::Object facts_;

  std::unique_ptr<AtomicWriter::File> file_;
  std::size_t weight_ = 0;     // the next or the current one
  std::int64_t next_row_ = 0;  // of it
  std::string blocks_;         // of it, if its rows move
};

}  // namespace

Result<std::unique_ptr<WeightWriter>> CreateGgufWriter(AtomicWriter& out,
                                                       const std::string& file_name,
                                                       std::vector<WeightToWrite> weights,
                                                       const GgufModelFacts& facts) {
  auto writer = std::make_unique<GgufWriter>(out, file_name, std::move(weights), facts.config);
  NIBBLE_TRY_VOID(writer->Plan(facts));
  return writer;
}

Result<std::uint64_t> GgufHeaderBytes(const std::vector<WeightToWrite>& weights,
                                      const GgufModelFacts& facts) {
  NIBBLE_TRY(beginning, BeginningOf(weights, facts));
  return beginning.size();
}

std::uint64_t GgufSizeBytes(const std::vector<WeightToWrite>& weights) {
  std::uint64_t bytes = 0;
  for (const WeightToWrite& weight : weights) {
    const std::uint64_t size = BytesOf(weight);
    bytes += size + GgufHeaderBuilder::PaddingAfter(size);
  }
  return bytes;
}

}  // namespace nibble
