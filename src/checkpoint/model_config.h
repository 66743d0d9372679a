#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "json/value.h"
#include "tensor/tensor.h"

namespace nibble {

/// The llama family: one plain forward pass covers all of them.
enum class Architecture : std::uint8_t { kLlama, kMistral, kQwen2, kQwen3, kGemma3 };

/// The `model_type` of config.json: "llama", "mistral", "qwen2", "qwen3", "gemma3_text".
const char* Name(Architecture architecture);

/// What gates the feed-forward product.
enum class GateActivation : std::uint8_t { kSilu, kGeluTanh };

enum class RopeType : std::uint8_t { kDefault, kLinear, kLlama3, kYarn };

/// Rotary position embedding, half-split (NEOX) pairing: (i, i + head_dim / 2).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;                      // llama3
  double high_freq_factor = 4.0;                     // llama3
  double original_max_position_embeddings = 8192.0;  // llama3, yarn
  double beta_fast = 32.0;                           // yarn
  double beta_slow = 1.0;                            // yarn
  std::optional<double> attention_factor;            // yarn
  bool truncate = true;                              // yarn
};

/// What a forward pass needs to know. Every number comes from the checkpoint; nothing is guessed by
/// name.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-5F;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;            // qwen2, or llama with attention_bias
  bool attention_out_bias = false;  // llama with attention_bias
  bool mlp_bias = false;
  bool qk_norm = false;         // qwen3: RMSNorm over head_dim on q and k before RoPE
  bool norm_plus_one = false;   // gemma3: norms multiply by 1 + what is stored
  bool sandwich_norms = false;  // gemma3: the output of attention and of feed-forward is normed too
  GateActivation activation = GateActivation::kSilu;
  float embedding_scale = 1.0F;  // gemma3: sqrt(hidden_size)
  std::optional<std::int64_t>
      query_pre_attn_scalar;                   // gemma3: scores / sqrt of it, not of head_dim
  std::optional<std::int64_t> sliding_window;  // set only where layers really use it
  // gemma3, by layer: false for those that see everything. Empty: the window is of all layers.
  std::vector<bool> sliding_layers;
  std::optional<RopeConfig> sliding_rope;  // of layers with a window, where theirs differs
  DType dtype = DType::kF32;  // storage dtype of the float tensors, `dtype` / `torch_dtype`
  std::optional<TokenId> bos_token_id;
  std::vector<TokenId> eos_token_ids;

  /// Whether this layer's attention has the window.
  bool SlidesIn(std::int64_t layer) const {
    return sliding_window &&
           (sliding_layers.empty() || sliding_layers[static_cast<std::size_t>(layer)]);
  }
  /// The module whose norm makes the input of gate and up.
  const char* FeedForwardNorm() const {
    return sandwich_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  }
};

/// Fills in what every model of this architecture has in common, whatever a file says.
void ApplyArchitecture(ModelConfig& config);

/// The layers with a window where only every `interval`th has none: of 6, the sixth, the twelfth...
std::vector<bool> SlidingLayers(std::int64_t num_layers, std::int64_t interval);

/// Gemma 3's files say so or mean it: every sixth layer sees everything.
inline constexpr std::int64_t kGemma3GlobalInterval = 6;

/// Reads a Hugging Face config.json (legacy and current spellings of rope and dtype).
/// Errors name the key: kUnsupported for an architecture, rope type, activation or option nibble
/// lacks, kCorruptFile for missing, negative or contradictory values.
Result<ModelConfig> ParseModelConfig(const json::Value& config, const std::string& source);

/// Writes the config.json that makes transformers build the same model (without
/// quantization_config).
json::Object ToHuggingFaceConfig(const ModelConfig& config);

}  // namespace nibble
