#include <utility>

#include "checkpoint/model_config.h"

namespace nibble {
namespace {

// The object of rope_scaling.
json::Object ToHuggingFaceRope(const RopeConfig& config) {
  const char* types[] = {"default", "linear", "llama3", "yarn"};
  json::Object rope;
  rope.Set("rope_type", types[static_cast<int>(config.type)]);
  rope.Set("rope_theta", config.theta);
  rope.Set("factor", config.factor);
  if (config.type != RopeType::kLinear) {
    rope.Set("original_max_position_embeddings",
             static_cast<std::int64_t>(config.original_max_position_embeddings));
  }
  if (config.type == RopeType::kLlama3) {
    rope.Set("low_freq_factor", config.low_freq_factor);
    rope.Set("high_freq_factor", config.high_freq_factor);
  }
  if (config.type == RopeType::kYarn) {
    rope.Set("beta_fast", config.beta_fast);
    rope.Set("beta_slow", config.beta_slow);
    if (config.attention_factor) {
      rope.Set("attention_factor", *config.attention_factor);
    }
    rope.Set("truncate", config.truncate);
  }
  return rope;
}

void SetGemma3(const ModelConfig& config, json::Object& out) {
  if (config.query_pre_attn_scalar) {
    out.Set("query_pre_attn_scalar", *config.query_pre_attn_scalar);
  }
  json::Array kinds;
  for (const bool sliding : config.sliding_layers) {
    kinds.emplace_back(sliding ? "sliding_attention" : "full_attention");
  }
  out.Set("layer_types", std::move(kinds));
  if (config.sliding_rope) {
    out.Set("rope_local_base_freq", config.sliding_rope->theta);
  }
}

}  // namespace

json::Object ToHuggingFaceConfig(const ModelConfig& config) {
  json::Object out;
  const char* classes[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                           "Qwen3ForCausalLM", "Gemma3ForCausalLM"};
  const bool gemma = config.architecture == Architecture::kGemma3;
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
  out.Set(gemma ? "hidden_activation" : "hidden_act", gemma ? "gelu_pytorch_tanh" : "silu");
  out.Set("tie_word_embeddings", config.tie_word_embeddings);
  if (config.architecture != Architecture::kQwen2) {
    out.Set("attention_bias", config.qkv_bias);
  }
  if (config.architecture == Architecture::kLlama) {
    out.Set("mlp_bias", config.mlp_bias);
  }
  if (config.architecture == Architecture::kMistral || gemma) {
    out.Set("sliding_window",
            config.sliding_window ? json::Value(*config.sliding_window) : json::Value());
  }
  if (gemma) {
    SetGemma3(config, out);
  }
  out.Set("rope_theta", config.rope.theta);
  if (config.rope.type != RopeType::kDefault) {
    out.Set("rope_scaling", ToHuggingFaceRope(config.rope));
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

}  // namespace nibble
