// GGUF -> canonical names, un-permuted q and k, codes as they lie in the blocks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numbers>

#include "base/limits.h"
#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_names.h"
#include "io/gguf.h"

namespace nibble {
namespace {

// How a tensor of the file makes a canonical weight.
struct Source {
  const GgufTensor* tensor = nullptr;
  std::int64_t permuted_heads = 0;  // > 0: rows lie interleaved inside that many heads
  float offset = 0.0F;              // what the file added to every element
};

class GgufCheckpoint final : public CheckpointBase {
 public:
  CheckpointFormat format() const override { return CheckpointFormat::kGguf; }
  Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                   std::int64_t row_end) const override;
  Result<std::vector<std::span<const std::byte>>> RawParts(
      const WeightInfo& weight) const override {
    return std::vector<std::span<const std::byte>>{file_->Bytes(*SourceOf(weight).tensor)};
  }
  void Release(const WeightInfo& weight) const override {
    file_->file().Release(file_->Bytes(*SourceOf(weight).tensor));
  }

  Result<void> Open(const std::filesystem::path& path);

 private:
  Result<void> ReadConfig();
  Result<void> ReadRope(const std::string& arch);
  void ReadVocabulary();
  Result<void> MapWeights();
  const Source& SourceOf(const WeightInfo& weight) const { return sources_.at(weight.name); }
  std::string Where() const { return path_.string(); }

  std::unique_ptr<GgufFile> file_;
  std::map<std::string, Source> sources_;
};

tl::unexpected<Error> Missing(const std::string& file, const std::string& key) {
  return Fail(ErrorCode::kCorruptFile,
              fmt::format("{}: metadata key {} is missing or not a positive number", file, key));
}

Result<void> GgufCheckpoint::Open(const std::filesystem::path& path) {
  path_ = path;
  NIBBLE_TRY(file, GgufFile::Open(path));
  file_ = std::move(file);
  ReadVocabulary();
  if (const auto parts = file_->Int("split.count"); parts && *parts > 1) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: one of {} parts (split.count); join them first with "
                            "llama-gguf-split --merge",
                            Where(), *parts));
  }
  if (file_->header().tensors.empty()) {
    return {};  // a vocabulary alone: good for tokenizing and for templates
  }
  return GuardMappedReads(Where(), [&]() -> Result<void> {
    NIBBLE_TRY_VOID(ReadConfig());
    return MapWeights();
  });
}

Result<void> GgufCheckpoint::ReadConfig() {
  const std::string arch = file_->String("general.architecture").value_or("");
  if (arch == "llama") {
    config_.architecture = Architecture::kLlama;
  } else if (arch == "qwen2") {
    config_.architecture = Architecture::kQwen2;
  } else if (arch == "qwen3") {
    config_.architecture = Architecture::kQwen3;
  } else if (arch == "gemma3") {
    config_.architecture = Architecture::kGemma3;
  } else {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: general.architecture \"{}\" is not supported (llama, qwen2, qwen3 "
                            "and gemma3 are)",
                            Where(), Quote(arch)));
  }
  std::optional<std::string> missing;
  const auto count = [&](const std::string& key,
                         std::optional<std::int64_t> fallback = {}) -> std::int64_t {
    constexpr std::int64_t kMost = std::int64_t{1} << 31;
    const GgufValue* found = file_->header().Find(arch + "." + key);
    if (found == nullptr && fallback) {
      return *fallback;
    }
    auto value = file_->Int(arch + "." + key);
    // One number a layer: fine if they agree.
    const auto* list = found == nullptr ? nullptr : std::get_if<std::vector<std::int64_t>>(found);
    if (list != nullptr && !list->empty() &&
        std::ranges::all_of(*list, [&](std::int64_t one) { return one == list->front(); })) {
      value = list->front();
    }
    if (!value || *value < 1 || *value > kMost) {
      missing = missing ? missing : arch + "." + key;
      return 1;
    }
    return *value;
  };
  config_.hidden_size = count("embedding_length");
  config_.intermediate_size = count("feed_forward_length");
  config_.num_layers = count("block_count");
  config_.num_heads = count("attention.head_count");
  config_.num_kv_heads = count("attention.head_count_kv", config_.num_heads);
  config_.head_dim = count("attention.key_length",
                           std::max<std::int64_t>(1, config_.hidden_size / config_.num_heads));
  config_.max_position_embeddings = count("context_length");
  if (missing) {
    return Missing(Where(), *missing);
  }
  if (count("attention.value_length", config_.head_dim) != config_.head_dim) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: keys and values of different width", Where()));
  }
  if (config_.num_heads % config_.num_kv_heads != 0 || config_.head_dim % 2 != 0 ||
      config_.num_layers > 4096) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: {} layers, {} heads, {} key-value heads of {} do not fit together",
                            Where(), config_.num_layers, config_.num_heads, config_.num_kv_heads,
                            config_.head_dim));
  }
  const auto eps = file_->Double(arch + ".attention.layer_norm_rms_epsilon");
  if (!eps || *eps < 0.0) {
    return Missing(Where(), arch + ".attention.layer_norm_rms_epsilon");
  }
  config_.rms_norm_eps = static_cast<float>(*eps);
  ApplyArchitecture(config_);
  const auto has = [&](std::string_view name) {
    return std::ranges::any_of(file_->header().tensors,
                               [&](const GgufTensor& tensor) { return tensor.name == name; });
  };
  config_.tie_word_embeddings = !has("output.weight");
  config_.qkv_bias = has("blk.0.attn_q.bias");
  config_.attention_out_bias = has("blk.0.attn_output.bias");
  config_.mlp_bias = has("blk.0.ffn_gate.bias");
  if (const GgufValue* window = file_->header().Find(arch + ".attention.sliding_window");
      window != nullptr && config_.architecture == Architecture::kLlama) {
    // Mistral 7B v0.1: the one member of this family whose files say so.
    config_.architecture = Architecture::kMistral;
    config_.sliding_window = count("attention.sliding_window");
  }
  if (config_.architecture == Architecture::kGemma3) {
    config_.sliding_window = count("attention.sliding_window");
    config_.sliding_layers = SlidingLayers(config_.num_layers, kGemma3GlobalInterval);
    // The largest Gemma 3 alone divides by the hidden size's share of a head; its files do not say.
    const bool largest = config_.num_layers == 62;
    config_.query_pre_attn_scalar =
        largest ? config_.hidden_size / config_.num_heads : config_.head_dim;
  }
  config_.dtype = DType::kF16;
  if (vocabulary_) {
    config_.bos_token_id = vocabulary_->bos;
    for (const auto& end : {vocabulary_->eos, vocabulary_->eot}) {
      if (end && std::ranges::find(config_.eos_token_ids, *end) == config_.eos_token_ids.end()) {
        config_.eos_token_ids.push_back(*end);
      }
    }
  }
  for (const GgufTensor& tensor : file_->header().tensors) {
    if (tensor.name == "token_embd.weight" && tensor.dims.size() == 2) {
      config_.vocab_size = tensor.dims[1];
      if (tensor.type == static_cast<std::uint32_t>(GgufType::kBF16)) {
        config_.dtype = DType::kBF16;
      }
    }
  }
  if (missing) {
    return Missing(Where(), *missing);
  }
  if (config_.vocab_size > limits::kVocabulary) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("{}: {} tokens, the limit is {}", Where(),
                                                       config_.vocab_size, limits::kVocabulary));
  }
  if (config_.vocab_size == 0) {
    return Fail(ErrorCode::kNotFound,
                fmt::format("{}: tensor token_embd.weight is missing", Where()));
  }
  return ReadRope(arch);
}

Result<void> GgufCheckpoint::ReadRope(const std::string& arch) {
  RopeConfig& rope = config_.rope;
  rope.theta = file_->Double(arch + ".rope.freq_base").value_or(10000.0);
  rope.original_max_position_embeddings = static_cast<double>(config_.max_position_embeddings);
  if (config_.architecture == Architecture::kGemma3) {
    config_.sliding_rope = rope;
    config_.sliding_rope->theta = file_->Double(arch + ".rope.freq_base_swa").value_or(10000.0);
  }
  if (file_->Int(arch + ".rope.dimension_count").value_or(config_.head_dim) != config_.head_dim) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: rotary embedding of a part of the head", Where()));
  }
  const std::string type = file_->String(arch + ".rope.scaling.type").value_or("none");
  rope.factor = file_->Double(arch + ".rope.scaling.factor").value_or(1.0);
  rope.original_max_position_embeddings =
      static_cast<double>(file_->Int(arch + ".rope.scaling.original_context_length")
                              .value_or(config_.max_position_embeddings));
  if (type == "linear" && rope.factor != 1.0) {
    rope.type = RopeType::kLinear;
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
    rope.beta_fast = file_->Double(arch + ".rope.scaling.yarn_beta_fast").value_or(rope.beta_fast);
    rope.beta_slow = file_->Double(arch + ".rope.scaling.yarn_beta_slow").value_or(rope.beta_slow);
    if (const auto factor = file_->Double(arch + ".rope.scaling.attn_factor")) {
      // llama.cpp multiplies it onto YaRN's own factor, transformers replaces that one.
      rope.attention_factor = *factor * (0.1 * std::log(rope.factor) + 1.0);
    }
  } else if (type != "none" && type != "linear") {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: rope scaling \"{}\" is not supported (none, linear and yarn are)",
                            Where(), Quote(type)));
  }
  const auto& tensors = file_->header().tensors;
  const auto factors = std::ranges::find_if(
      tensors, [](const GgufTensor& t) { return t.name == "rope_freqs.weight"; });
  if (factors == tensors.end()) {
    return {};
  }
  // Llama 3.x: the file has the divisors instead of the four numbers they come from. Published
  // models use low 1, high 4 and 8192, our own files say what they use; the largest divisor is the
  // factor. Anything else is refused rather than served slightly wrong.
  NIBBLE_TRY(divisors, WidenFloats(DType::kF32, file_->Bytes(*factors)));
  const std::int64_t half = config_.head_dim / 2;
  bool matches = factors->type == static_cast<std::uint32_t>(GgufType::kF32) &&
                 static_cast<std::int64_t>(divisors.size()) == half;
  if (matches) {
    rope.type = RopeType::kLlama3;
    rope.factor = static_cast<double>(*std::ranges::max_element(divisors));
    const auto number = [&](const char* key, double usual) {
      const double found = file_->Double(arch + ".rope.scaling." + key).value_or(usual);
      return found > 0.0 ? found : usual;
    };
    rope.low_freq_factor = number("low_freq_factor", 1.0);
    rope.high_freq_factor = number("high_freq_factor", 4.0);
    rope.original_max_position_embeddings = number("original_context_length", 8192.0);
    for (std::int64_t i = 0; i < half && matches; ++i) {
      const double wave = 2.0 * std::numbers::pi *
                          std::pow(rope.theta, 2.0 * static_cast<double>(i) /
                                                   static_cast<double>(config_.head_dim));
      double expected = 1.0;
      if (wave > rope.original_max_position_embeddings / rope.low_freq_factor) {
        expected = rope.factor;
      } else if (wave >= rope.original_max_position_embeddings / rope.high_freq_factor) {
        const double smooth =
            (rope.original_max_position_embeddings / wave - rope.low_freq_factor) /
            (rope.high_freq_factor - rope.low_freq_factor);
        expected = 1.0 / ((1.0 - smooth) / rope.factor + smooth);
      }
      matches = std::fabs(static_cast<double>(divisors[static_cast<std::size_t>(i)]) - expected) <=
                1e-3 * expected;
    }
  }
  if (!matches) {
    return Fail(ErrorCode::kUnsupported, fmt::format("{}: rope_freqs.weight does not follow Llama "
                                                     "3's rule; convert from safetensors instead",
                                                     Where()));
  }
  return {};
}

void GgufCheckpoint::ReadVocabulary() {
  const auto model = file_->String("tokenizer.ggml.model");
  if (const auto text = file_->String("tokenizer.chat_template")) {
    chat_template_ = *text;
  }
  if (!model) {
    return;
  }
  GgufVocabulary out;
  out.model = *model;
  out.pre = file_->String("tokenizer.ggml.pre").value_or("");
  const auto strings = [&](const char* key, std::vector<std::string>& target) {
    const GgufValue* value = file_->header().Find(key);
    if (const auto* list =
            value == nullptr ? nullptr : std::get_if<std::vector<std::string>>(value)) {
      target = *list;
    }
  };
  strings("tokenizer.ggml.tokens", out.tokens);
  strings("tokenizer.ggml.merges", out.merges);
  if (const GgufValue* value = file_->header().Find("tokenizer.ggml.scores")) {
    if (const auto* list = std::get_if<std::vector<double>>(value)) {
      for (const double score : *list) {
        out.scores.push_back(static_cast<float>(score));
      }
    }
  }
  if (const GgufValue* value = file_->header().Find("tokenizer.ggml.token_type")) {
    if (const auto* list = std::get_if<std::vector<std::int64_t>>(value)) {
      for (const std::int64_t type : *list) {
        out.token_types.push_back(
            static_cast<std::int32_t>(std::clamp<std::int64_t>(type, 0, 127)));
      }
    }
  }
  const auto id = [&](const char* key) -> std::optional<TokenId> {
    const auto value = file_->Int(key);
    return value && *value >= 0 && *value < static_cast<std::int64_t>(out.tokens.size())
               ? std::optional(TokenId{static_cast<std::int32_t>(*value)})
               : std::nullopt;
  };
  out.bos = id("tokenizer.ggml.bos_token_id");
  out.eos = id("tokenizer.ggml.eos_token_id");
  out.unk = id("tokenizer.ggml.unknown_token_id");
  out.pad = id("tokenizer.ggml.padding_token_id");
  out.eot = id("tokenizer.ggml.eot_token_id");
  out.add_bos = file_->Bool("tokenizer.ggml.add_bos_token");
  out.add_eos = file_->Bool("tokenizer.ggml.add_eos_token");
  out.add_space_prefix = file_->Bool("tokenizer.ggml.add_space_prefix");
  const auto spelling = [&](std::optional<TokenId> token) {
    return token ? out.tokens[static_cast<std::size_t>(Raw(*token))] : std::string();
  };
  bos_token_ = spelling(out.bos);
  eos_token_ = spelling(out.eos);
  vocabulary_ = std::move(out);
}

Result<void> GgufCheckpoint::MapWeights() {
  std::map<std::string, const GgufTensor*> by_name;
  for (const GgufTensor& tensor : file_->header().tensors) {
    by_name[tensor.name] = &tensor;
  }
  by_name.erase("rope_freqs.weight");
  for (const ExpectedWeight& wanted : ExpectedWeights(config_)) {
    const std::string name = GgufNameOf(config_, wanted.name);
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      return Fail(ErrorCode::kNotFound, fmt::format("{}: tensor {} is missing", Where(), name));
    }
    const GgufTensor& tensor = *found->second;
    const std::int64_t cols = tensor.dims[0];
    const std::int64_t rows = tensor.dims.size() > 1 ? tensor.dims[1] : 1;
    if (tensor.dims.size() > 2 || cols != wanted.cols || rows != wanted.rows) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("{}: tensor {} has dimensions [{}, {}], the metadata ask for [{}, {}]",
                      Where(), name, cols, rows, wanted.cols, wanted.rows));
    }
    auto spec = GgufSpecOf(tensor.type);
    if (!spec) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: tensor {} is {}, which nibble does not read yet (F32 F16 BF16 "
                              "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 and Q2_K to Q6_K it does); use another "
                              "quantization of this model",
                              Where(), name, GgufTypeName(tensor.type)));
    }
    spec->rows = rows;
    spec->cols = cols;
    weights_.push_back({.name = wanted.name,
                        .spec = *spec,
                        .stored_as = GgufTypeName(tensor.type),
                        .size_bytes = tensor.size_bytes,
                        .file = path_.filename().string()});
    const Source source{.tensor = &tensor,
                        .permuted_heads = GgufInterleavedHeads(config_, wanted.name),
                        .offset = GgufOffsetOf(config_, wanted.name)};
    sources_[wanted.name] = source;
    by_name.erase(found);
  }
  for (const auto& [name, ignored] : by_name) {
    warnings_.push_back(
        fmt::format("{}: tensor {} is not used by this architecture", Where(), Quote(name)));
  }
  return {};
}

Result<QuantizedTensor> GgufCheckpoint::ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                                 std::int64_t row_end) const {
  const Source& source = SourceOf(weight);
  const std::int64_t rows = row_end - row_begin;
  NIBBLE_CHECK(row_begin >= 0 && row_end <= weight.spec.rows && rows >= 0,
               "rows outside the weight");
  const auto bytes = file_->Bytes(*source.tensor);
  const std::size_t stride = bytes.size() / static_cast<std::size_t>(weight.spec.rows);
  // A permuted bias is one row whose elements move instead.
  const std::int64_t length = weight.spec.rows > 1 ? weight.spec.rows : weight.spec.cols;
  const auto file_index = [&](std::int64_t index) {
    return source.permuted_heads == 0 ? index : GgufRowOf(index, length / source.permuted_heads);
  };
  QuantizedTensor out;
  out.spec = weight.spec;
  out.spec.rows = rows;
  const auto elements = static_cast<std::size_t>(rows * weight.spec.cols);
  const auto groups = static_cast<std::size_t>(rows * weight.spec.num_groups());
  NIBBLE_TRY_VOID(GuardMappedReads(Where(), [&]() -> Result<void> {
    if (weight.spec.kind == CodecKind::kFloat) {
      out.values.reserve(elements);
      for (std::int64_t row = row_begin; row < row_end; ++row) {
        const std::int64_t from = weight.spec.rows > 1 ? file_index(row) : row;
        NIBBLE_TRY(values,
                   WidenFloats(weight.spec.float_dtype,
                               bytes.subspan(static_cast<std::size_t>(from) * stride, stride)));
        out.values.insert(out.values.end(), values.begin(), values.end());
      }
      if (source.offset != 0.0F) {
        for (float& value : out.values) {
          value -= source.offset;
        }
      }
      if (weight.spec.rows == 1 && source.permuted_heads > 0) {
        const std::vector<float> interleaved = out.values;
        for (std::int64_t i = 0; i < length; ++i) {
          out.values[static_cast<std::size_t>(i)] =
              interleaved[static_cast<std::size_t>(file_index(i))];
        }
      }
      return {};
    }
    out.codes.resize(elements);
    out.scales.resize(groups);
    out.minima.resize(weight.spec.kind == CodecKind::kMinimum ? groups : 0);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      DecodeGgufRow(static_cast<GgufType>(source.tensor->type),
                    bytes.data() + static_cast<std::size_t>(file_index(row)) * stride, out,
                    row - row_begin);
    }
    return {};
  }));
  NIBBLE_TRY_VOID(file_->file().CheckUnchanged());
  NIBBLE_TRY_VOID(CheckFinite(out, Where(), weight.name));
  return out;
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::filesystem::path& file) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  NIBBLE_TRY_VOID(checkpoint->Open(file));
  return checkpoint;
}

}  // namespace nibble
