#include "checkpoint/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/limits.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"

namespace nibble {
namespace {

// Reads members of config.json; the first complaint is kept.
class ConfigReader {
 public:
  ConfigReader(const json::Value& config, const std::string& source)
      : config_(config), source_(source) {}

  std::int64_t Count(const char* key) {
    const json::Value* value = Member(key);
    if (value == nullptr) {
      Complain(fmt::format("{} is missing", key));
      return 1;
    }
    return CheckedCount(key, *value);
  }
  std::int64_t Count(const char* key, std::int64_t fallback) {
    const json::Value* value = Member(key);
    return value == nullptr ? fallback : CheckedCount(key, *value);
  }
  double Number(const char* key, double fallback) { return NumberIn(config_, key, fallback); }
  double NumberIn(const json::Value& object, const char* key, double fallback) {
    const json::Value* value = object.Find(key);
    if (value == nullptr || value->IsNull()) {
      return fallback;
    }
    const auto number = value->AsDouble();
    if (!number || !std::isfinite(*number)) {
      Complain(fmt::format("{}: expected a number, found {}", key, value->TypeName()));
      return fallback;
    }
    return *number;
  }
  bool Flag(const char* key, bool fallback) {
    const json::Value* value = Member(key);
    if (value == nullptr) {
      return fallback;
    }
    const auto flag = value->AsBool();
    if (!flag) {
      Complain(fmt::format("{}: expected true or false, found {}", key, value->TypeName()));
    }
    return flag.value_or(fallback);
  }
  std::string String(const char* key, const std::string& fallback) {
    const json::Value* value = Member(key);
    const std::string* text = value == nullptr ? nullptr : value->AsString();
    return text == nullptr ? fallback : *text;
  }
  std::vector<TokenId> Tokens(const char* key) {
    std::vector<TokenId> tokens;
    const json::Value* value = Member(key);
    if (value == nullptr) {
      return tokens;
    }
    const auto add = [&](const json::Value& item) {
      const auto id = item.AsInt();
      if (!id || *id < 0 || *id > INT32_MAX) {
        Complain(fmt::format("{}: expected a token id or a list of them", key));
        return;
      }
      tokens.push_back(TokenId{static_cast<std::int32_t>(*id)});
    };
    if (const json::Array* list = value->AsArray()) {
      for (const json::Value& item : *list) {
        add(item);
      }
    } else {
      add(*value);
    }
    return tokens;
  }
  const json::Value* Member(const char* key) {
    const json::Value* value = config_.Find(key);
    return value == nullptr || value->IsNull() ? nullptr : value;
  }
  void Complain(const std::string& what, ErrorCode code = ErrorCode::kCorruptFile) {
    if (!error_) {
      error_ = Error{code, fmt::format("{}: {}", source_, what)};
    }
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::int64_t CheckedCount(const char* key, const json::Value& value) {
    constexpr std::int64_t kMost = std::int64_t{1} << 31;
    const auto number = value.IsDouble() ? std::nullopt : value.AsInt();
    if (!number || *number < 1 || *number > kMost) {
      Complain(fmt::format("{}: expected a positive whole number", key));
      return 1;
    }
    return *number;
  }
  const json::Value& config_;
  std::string source_;
  std::optional<Error> error_;
};

void ParseRope(ConfigReader& reader, const json::Value& config, ModelConfig& out) {
  RopeConfig& rope = out.rope;
  rope.theta = reader.Number("rope_theta", 10000.0);
  rope.original_max_position_embeddings = static_cast<double>(out.max_position_embeddings);
  const json::Value* parameters = reader.Member("rope_parameters");
  if (parameters == nullptr) {
    parameters = reader.Member("rope_scaling");
  }
  const double rotary = reader.Number("partial_rotary_factor", 1.0);
  if (rotary != 1.0) {
    reader.Complain("partial_rotary_factor other than 1 is not supported", ErrorCode::kUnsupported);
  }
  if (parameters == nullptr) {
    return;
  }
  if (!parameters->IsObject()) {
    reader.Complain("rope_scaling: expected an object");
    return;
  }
  for (const auto& [key, value] : *parameters->AsObject()) {
    if (value.IsObject()) {
      reader.Complain(
          fmt::format("rope_parameters by kind of layer (\"{}\") are not supported", Quote(key)),
          ErrorCode::kUnsupported);
    }
  }
  std::string type = "default";
  for (const char* key : {"type", "rope_type"}) {
    const json::Value* value = parameters->Find(key);
    if (value != nullptr && value->AsString() != nullptr) {
      type = *value->AsString();
    }
  }
  rope.theta = reader.NumberIn(*parameters, "rope_theta", rope.theta);
  rope.factor = reader.NumberIn(*parameters, "factor", 1.0);
  if (reader.NumberIn(*parameters, "partial_rotary_factor", rotary) != 1.0) {
    reader.Complain("partial_rotary_factor other than 1 is not supported", ErrorCode::kUnsupported);
  }
  const json::Value* top_original = config.Find("original_max_position_embeddings");
  rope.original_max_position_embeddings =
      reader.NumberIn(*parameters, "original_max_position_embeddings",
                      top_original != nullptr
                          ? top_original->AsDouble().value_or(rope.original_max_position_embeddings)
                          : rope.original_max_position_embeddings);
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    rope.low_freq_factor = reader.NumberIn(*parameters, "low_freq_factor", 1.0);
    rope.high_freq_factor = reader.NumberIn(*parameters, "high_freq_factor", 4.0);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      reader.Complain("rope_scaling: high_freq_factor must be above low_freq_factor");
    }
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
    rope.beta_fast = reader.NumberIn(*parameters, "beta_fast", 32.0);
    rope.beta_slow = reader.NumberIn(*parameters, "beta_slow", 1.0);
    const json::Value* truncate = parameters->Find("truncate");
    rope.truncate = truncate == nullptr ? true : truncate->AsBool().value_or(true);
    if (const json::Value* factor = parameters->Find("attention_factor");
        factor != nullptr && factor->AsDouble()) {
      rope.attention_factor = factor->AsDouble();
    }
    if (parameters->Find("mscale") != nullptr || parameters->Find("mscale_all_dim") != nullptr) {
      reader.Complain("rope_scaling: yarn with mscale (DeepSeek) is not supported",
                      ErrorCode::kUnsupported);
    }
  } else {
    reader.Complain(
        fmt::format("rope type \"{}\" is not supported (default, linear, llama3 and yarn are)",
                    Quote(type)),
        ErrorCode::kUnsupported);
  }
  if (rope.theta <= 0.0 || rope.factor <= 0.0 || rope.original_max_position_embeddings <= 0.0) {
    reader.Complain("rope parameters must be positive");
  }
}

}  // namespace

const char* Name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kMistral:
      return "mistral";
    case Architecture::kQwen2:
      return "qwen2";
    case Architecture::kQwen3:
      return "qwen3";
  }
  return "?";
}

Result<ModelConfig> ParseModelConfig(const json::Value& config, const std::string& source) {
  if (!config.IsObject()) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: not a JSON object", source));
  }
  ConfigReader reader(config, source);
  ModelConfig out;
  const std::string type = reader.String("model_type", "");
  if (type == "llama") {
    out.architecture = Architecture::kLlama;
  } else if (type == "mistral") {
    out.architecture = Architecture::kMistral;
  } else if (type == "qwen2") {
    out.architecture = Architecture::kQwen2;
  } else if (type == "qwen3") {
    out.architecture = Architecture::kQwen3;
  } else {
    return Fail(
        ErrorCode::kUnsupported,
        fmt::format("{}: model_type \"{}\" is not supported (llama, mistral, qwen2 and qwen3 are)",
                    source, Quote(type)));
  }
  out.hidden_size = reader.Count("hidden_size");
  out.intermediate_size = reader.Count("intermediate_size");
  out.num_layers = reader.Count("num_hidden_layers");
  out.num_heads = reader.Count("num_attention_heads");
  out.num_kv_heads = reader.Count("num_key_value_heads", out.num_heads);
  out.head_dim =
      reader.Count("head_dim", std::max<std::int64_t>(1, out.hidden_size / out.num_heads));
  out.vocab_size = reader.Count("vocab_size");
  out.max_position_embeddings = reader.Count("max_position_embeddings", 2048);
  out.rms_norm_eps = static_cast<float>(reader.Number("rms_norm_eps", 1e-6));
  ParseRope(reader, config, out);
  // transformers: llama, mistral, qwen2 and qwen3 all default to untied.
  out.tie_word_embeddings = reader.Flag("tie_word_embeddings", false);
  const bool attention_bias = reader.Flag("attention_bias", false);
  out.qkv_bias = out.architecture == Architecture::kQwen2 || attention_bias;
  out.attention_out_bias = out.architecture != Architecture::kQwen2 && attention_bias;
  out.mlp_bias = out.architecture == Architecture::kLlama && reader.Flag("mlp_bias", false);
  out.qk_norm = out.architecture == Architecture::kQwen3;
  if (const std::string activation = reader.String("hidden_act", "silu"); activation != "silu") {
    reader.Complain(fmt::format("hidden_act \"{}\" is not supported (silu is)", Quote(activation)),
                    ErrorCode::kUnsupported);
  }
  if (reader.Member("sliding_window") != nullptr) {
    const std::int64_t window = reader.Count("sliding_window");
    if (out.architecture == Architecture::kMistral) {
      out.sliding_window = window;
    } else if (reader.Flag("use_sliding_window", false)) {
      reader.Complain("sliding windows in only some layers (use_sliding_window) are not supported",
                      ErrorCode::kUnsupported);
    }
  }
  if (const json::Value* layers = reader.Member("layer_types");
      layers != nullptr && layers->AsArray() != nullptr) {
    for (const json::Value& layer : *layers->AsArray()) {
      const std::string* kind = layer.AsString();
      const char* expected = out.sliding_window ? "sliding_attention" : "full_attention";
      if (kind == nullptr || *kind != expected) {
        reader.Complain("layer_types mixes kinds of attention, which is not supported",
                        ErrorCode::kUnsupported);
        break;
      }
    }
  }
  const std::string dtype = reader.String("dtype", reader.String("torch_dtype", "float32"));
  if (dtype == "bfloat16") {
    out.dtype = DType::kBF16;
  } else if (dtype == "float16") {
    out.dtype = DType::kF16;
  } else {
    out.dtype = DType::kF32;
  }
  const std::vector<TokenId> bos = reader.Tokens("bos_token_id");
  if (!bos.empty()) {
    out.bos_token_id = bos.front();
  }
  out.eos_token_ids = reader.Tokens("eos_token_id");
  if (!reader.error()) {
    if (out.num_heads % out.num_kv_heads != 0) {
      reader.Complain(fmt::format("{} attention heads cannot share {} key-value heads",
                                  out.num_heads, out.num_kv_heads));
    }
    if (out.head_dim % 2 != 0) {
      reader.Complain(fmt::format("head_dim {} is odd", out.head_dim));
    }
    if (out.num_layers > 4096 || out.vocab_size > limits::kVocabulary) {
      reader.Complain("more layers or tokens than the limits allow", ErrorCode::kLimitExceeded);
    }
  }
  if (reader.error()) {
    return tl::unexpected<Error>(*reader.error());
  }
  return out;
}

json::Object ToHuggingFaceConfig(const ModelConfig& config) {
  json::Object out;
  const char* classes[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                           "Qwen3ForCausalLM"};
  out.Set("architectures", json::Array{classes[static_cast<int>(config.architecture)]});
  out.Set("model_type", Name(config.architecture));
  out.Set("hidden_size", config.hidden_size);
  out.Set("intermediate_size", config.intermediate_size);
  out.Set("num_hidden_layers", config.num_layers);
  out.Set("num_attention_heads", config.num_heads);
  out.Set("num_key_value_heads", config.num_kv_heads);
  out.Set("head_dim", config.head_dim);
  out.Set("vocab_size", config.vocab_size);
  out.Set("max_position_embeddings", config.max_position_embeddings);
  out.Set("rms_norm_eps", static_cast<double>(config.rms_norm_eps));
  out.Set("hidden_act", "silu");
  out.Set("tie_word_embeddings", config.tie_word_embeddings);
  if (config.architecture != Architecture::kQwen2) {
    out.Set("attention_bias", config.qkv_bias);
  }
  if (config.architecture == Architecture::kLlama) {
    out.Set("mlp_bias", config.mlp_bias);
  }
  if (config.architecture == Architecture::kMistral) {
    out.Set("sliding_window",
            config.sliding_window ? json::Value(*config.sliding_window) : json::Value());
  }
  out.Set("rope_theta", config.rope.theta);
  if (config.rope.type != RopeType::kDefault) {
    const char* types[] = {"default", "linear", "llama3", "yarn"};
    json::Object rope;
    rope.Set("rope_type", types[static_cast<int>(config.rope.type)]);
    rope.Set("rope_theta", config.rope.theta);
    rope.Set("factor", config.rope.factor);
    if (config.rope.type != RopeType::kLinear) {
      rope.Set("original_max_position_embeddings",
               static_cast<std::int64_t>(config.rope.original_max_position_embeddings));
    }
    if (config.rope.type == RopeType::kLlama3) {
      rope.Set("low_freq_factor", config.rope.low_freq_factor);
      rope.Set("high_freq_factor", config.rope.high_freq_factor);
    }
    if (config.rope.type == RopeType::kYarn) {
      rope.Set("beta_fast", config.rope.beta_fast);
      rope.Set("beta_slow", config.rope.beta_slow);
      if (config.rope.attention_factor) {
        rope.Set("attention_factor", *config.rope.attention_factor);
      }
      rope.Set("truncate", config.rope.truncate);
    }
    out.Set("rope_scaling", std::move(rope));
  }
  if (config.bos_token_id) {
    out.Set("bos_token_id", Raw(*config.bos_token_id));
  }
  if (config.eos_token_ids.size() == 1) {
    out.Set("eos_token_id", Raw(config.eos_token_ids[0]));
  } else if (!config.eos_token_ids.empty()) {
    json::Array ids;
    for (const TokenId id : config.eos_token_ids) {
      ids.push_back(Raw(id));
    }
    out.Set("eos_token_id", std::move(ids));
  }
  out.Set("torch_dtype", config.dtype == DType::kBF16  ? "bfloat16"
                         : config.dtype == DType::kF16 ? "float16"
                                                       : "float32");
  return out;
}

std::vector<ExpectedWeight> ExpectedWeights(const ModelConfig& config) {
  std::vector<ExpectedWeight> out;
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q = config.num_heads * config.head_dim;
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  const auto vector = [&](const std::string& name, std::int64_t size) {
    out.push_back({name, 1, size, false});
  };
  const auto linear = [&](const std::string& module, std::int64_t rows, std::int64_t cols,
                          bool bias) {
    out.push_back({module + ".weight", rows, cols, true});
    if (bias) {
      vector(module + ".bias", rows);
    }
  };
  out.push_back({"model.embed_tokens.weight", config.vocab_size, hidden, false});
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string at = fmt::format("model.layers.{}.", i);
    vector(at + "input_layernorm.weight", hidden);
    linear(at + "self_attn.q_proj", q, hidden, config.qkv_bias);
    linear(at + "self_attn.k_proj", kv, hidden, config.qkv_bias);
    linear(at + "self_attn.v_proj", kv, hidden, config.qkv_bias);
    linear(at + "self_attn.o_proj", hidden, q, config.attention_out_bias);
    if (config.qk_norm) {
      vector(at + "self_attn.q_norm.weight", config.head_dim);
      vector(at + "self_attn.k_norm.weight", config.head_dim);
    }
    vector(at + "post_attention_layernorm.weight", hidden);
    linear(at + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    linear(at + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    linear(at + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }
  vector("model.norm.weight", hidden);
  if (!config.tie_word_embeddings) {
    out.push_back({"lm_head.weight", config.vocab_size, hidden, false});
  }
  return out;
}

}  // namespace nibble
