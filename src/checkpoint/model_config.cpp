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

void RefusePartialRotary(ConfigReader& reader, double factor) {
  if (factor != 1.0) {
    reader.Complain("partial_rotary_factor other than 1 is not supported", ErrorCode::kUnsupported);
  }
}

// One object of rope_parameters or rope_scaling over what `rope` says already.
void ParseRopeParameters(ConfigReader& reader, const json::Value& parameters, RopeConfig& rope) {
  std::string type = "default";
  for (const char* key : {"type", "rope_type"}) {
    const json::Value* value = parameters.Find(key);
    if (value != nullptr && value->AsString() != nullptr) {
      type = *value->AsString();
    }
  }
  rope.theta = reader.NumberIn(parameters, "rope_theta", rope.theta);
  rope.factor = reader.NumberIn(parameters, "factor", 1.0);
  RefusePartialRotary(reader, reader.NumberIn(parameters, "partial_rotary_factor", 1.0));
  rope.original_max_position_embeddings = reader.NumberIn(
      parameters, "original_max_position_embeddings", rope.original_max_position_embeddings);
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    rope.low_freq_factor = reader.NumberIn(parameters, "low_freq_factor", 1.0);
    rope.high_freq_factor = reader.NumberIn(parameters, "high_freq_factor", 4.0);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      reader.Complain("rope_scaling: high_freq_factor must be above low_freq_factor");
    }
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
    rope.beta_fast = reader.NumberIn(parameters, "beta_fast", 32.0);
    rope.beta_slow = reader.NumberIn(parameters, "beta_slow", 1.0);
    const json::Value* truncate = parameters.Find("truncate");
    rope.truncate = truncate == nullptr ? true : truncate->AsBool().value_or(true);
    if (const json::Value* factor = parameters.Find("attention_factor");
        factor != nullptr && factor->AsDouble()) {
      rope.attention_factor = factor->AsDouble();
    }
    if (parameters.Find("mscale") != nullptr || parameters.Find("mscale_all_dim") != nullptr) {
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

void ParseRope(ConfigReader& reader, ModelConfig& out) {
  const bool gemma = out.architecture == Architecture::kGemma3;
  RopeConfig& rope = out.rope;
  rope.theta = reader.Number("rope_theta", gemma ? 1e6 : 10000.0);
  rope.original_max_position_embeddings = reader.Number(
      "original_max_position_embeddings", static_cast<double>(out.max_position_embeddings));
  RefusePartialRotary(reader, reader.Number("partial_rotary_factor", 1.0));
  if (gemma) {
    out.sliding_rope = rope;  // long contexts are scaled in the other layers alone
    out.sliding_rope->theta = reader.Number("rope_local_base_freq", 10000.0);
  }
  const json::Value* parameters = reader.Member("rope_parameters");
  if (parameters == nullptr) {
    parameters = reader.Member("rope_scaling");
  }
  if (parameters == nullptr) {
    return;
  }
  if (!parameters->IsObject()) {
    reader.Complain("rope_scaling: expected an object");
    return;
  }
  bool by_kind = false;
  for (const auto& [key, value] : *parameters->AsObject()) {
    if (!value.IsObject()) {
      continue;
    }
    by_kind = true;
    if (gemma && key == "full_attention") {
      ParseRopeParameters(reader, value, rope);
    } else if (gemma && key == "sliding_attention") {
      ParseRopeParameters(reader, value, *out.sliding_rope);
    } else {
      reader.Complain(
          fmt::format("rope_parameters by kind of layer (\"{}\") are not supported", Quote(key)),
          ErrorCode::kUnsupported);
    }
  }
  if (!by_kind) {
    ParseRopeParameters(reader, *parameters, rope);
  }
}

// Which layers have the window, and whether those of this architecture may differ.
void ParseSlidingWindow(ConfigReader& reader, ModelConfig& out) {
  const bool gemma = out.architecture == Architecture::kGemma3;
  if (reader.Member("sliding_window") != nullptr) {
    const std::int64_t window = reader.Count("sliding_window");
    if (out.architecture == Architecture::kMistral || gemma) {
      out.sliding_window = window;
    } else if (reader.Flag("use_sliding_window", false)) {
      reader.Complain("sliding windows in only some layers (use_sliding_window) are not supported",
                      ErrorCode::kUnsupported);
    }
  }
  if (gemma) {
    out.sliding_layers = SlidingLayers(
        out.num_layers, reader.Count("sliding_window_pattern", kGemma3GlobalInterval));
  }
  const json::Value* layers = reader.Member("layer_types");
  if (layers == nullptr || layers->AsArray() == nullptr) {
    return;
  }
  const json::Array& kinds = *layers->AsArray();
  if (gemma && static_cast<std::int64_t>(kinds.size()) != out.num_layers) {
    reader.Complain(
        fmt::format("layer_types has {} entries for {} layers", kinds.size(), out.num_layers));
    return;
  }
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const std::string kind = kinds[i].AsString() == nullptr ? "" : *kinds[i].AsString();
    const bool sliding = kind == "sliding_attention";
    if (!sliding && kind != "full_attention") {
      reader.Complain(fmt::format("layer_types: \"{}\" is not supported", Quote(kind)),
                      ErrorCode::kUnsupported);
      return;
    }
    if (gemma) {
      out.sliding_layers[i] = sliding;
    } else if (sliding != out.sliding_window.has_value()) {
      reader.Complain("layer_types mixes kinds of attention, which is not supported",
                      ErrorCode::kUnsupported);
      return;
    }
  }
}

// What Gemma 3 adds; options that its later relatives use are refused.
void ParseGemma3(ConfigReader& reader, ModelConfig& out) {
  out.query_pre_attn_scalar = reader.Count("query_pre_attn_scalar", 256);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (reader.Member(key) != nullptr) {
      reader.Complain(fmt::format("{} is not supported", key), ErrorCode::kUnsupported);
    }
  }
  if (reader.Flag("use_bidirectional_attention", false)) {
    reader.Complain("use_bidirectional_attention is not supported", ErrorCode::kUnsupported);
  }
}

void ParseActivation(ConfigReader& reader, const ModelConfig& config) {
  const bool gemma = config.architecture == Architecture::kGemma3;
  const std::string known = gemma ? "gelu_pytorch_tanh" : "silu";
  const char* key = gemma ? "hidden_activation" : "hidden_act";
  if (const std::string found = reader.String(key, known); found != known) {
    reader.Complain(fmt::format("{} \"{}\" is not supported ({} is)", key, Quote(found), known),
                    ErrorCode::kUnsupported);
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
    case Architecture::kGemma3:
      return "gemma3_text";
  }
  return "?";
}

void ApplyArchitecture(ModelConfig& config) {
  config.qk_norm = config.architecture == Architecture::kQwen3;
  if (config.architecture == Architecture::kGemma3) {
    config.qk_norm = config.norm_plus_one = config.sandwich_norms = true;
    config.activation = GateActivation::kGeluTanh;
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  }
}

std::vector<bool> SlidingLayers(std::int64_t num_layers, std::int64_t interval) {
  std::vector<bool> out;
  for (std::int64_t i = 0; i < num_layers; ++i) {
    out.push_back((i + 1) % interval != 0);
  }
  return out;
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
  } else if (type == "gemma3_text") {
    out.architecture = Architecture::kGemma3;
  } else {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: model_type \"{}\" is not supported (llama, mistral, qwen2, qwen3 "
                            "and gemma3_text are)",
                            source, Quote(type)));
  }
  const bool gemma = out.architecture == Architecture::kGemma3;
  out.hidden_size = reader.Count("hidden_size");
  out.intermediate_size = reader.Count("intermediate_size");
  out.num_layers = reader.Count("num_hidden_layers");
  out.num_heads = reader.Count("num_attention_heads");
  out.num_kv_heads = reader.Count("num_key_value_heads", out.num_heads);
  out.head_dim = reader.Count(
      "head_dim", gemma ? 256 : std::max<std::int64_t>(1, out.hidden_size / out.num_heads));
  out.vocab_size = reader.Count("vocab_size");
  out.max_position_embeddings = reader.Count("max_position_embeddings", 2048);
  out.rms_norm_eps = static_cast<float>(reader.Number("rms_norm_eps", 1e-6));
  ParseRope(reader, out);
  // The defaults of transformers.
  out.tie_word_embeddings = reader.Flag("tie_word_embeddings", gemma);
  const bool attention_bias = reader.Flag("attention_bias", false);
  out.qkv_bias = out.architecture == Architecture::kQwen2 || attention_bias;
  out.attention_out_bias = out.architecture != Architecture::kQwen2 && attention_bias;
  out.mlp_bias = out.architecture == Architecture::kLlama && reader.Flag("mlp_bias", false);
  ApplyArchitecture(out);
  ParseActivation(reader, out);
  ParseSlidingWindow(reader, out);
  if (gemma) {
    ParseGemma3(reader, out);
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
    if (config.sandwich_norms) {
      vector(at + "pre_feedforward_layernorm.weight", hidden);
      vector(at + "post_feedforward_layernorm.weight", hidden);
    }
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
