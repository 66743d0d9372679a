#include "checkpoint/gguf_names.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "base/check.h"

namespace nibble {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr Pair kTop[] = {{"model.embed_tokens.weight", "token_embd.weight"},
                         {"model.norm.weight", "output_norm.weight"},
                         {"lm_head.weight", "output.weight"}};
constexpr Pair kModules[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"}};
// Where the outputs are normed as well, what is called post_attention is another norm.
constexpr Pair kSandwichNorms[] = {{"post_attention_layernorm", "post_attention_norm"},
                                   {"pre_feedforward_layernorm", "ffn_norm"},
                                   {"post_feedforward_layernorm", "post_ffw_norm"}};

}  // namespace

std::string GgufNameOf(const ModelConfig& config, const std::string& canonical) {
  for (const auto& [ours, theirs] : kTop) {
    if (canonical == ours) {
      return std::string(theirs);
    }
  }
  constexpr std::string_view kPrefix = "model.layers.";
  const auto dot = canonical.find('.', kPrefix.size());
  const auto last = canonical.rfind('.');
  const std::string module = canonical.substr(dot + 1, last - dot - 1);
  const auto in_block = [&](std::string_view theirs) {
    return fmt::format("blk.{}.{}{}", canonical.substr(kPrefix.size(), dot - kPrefix.size()),
                       theirs, canonical.substr(last));
  };
  if (config.sandwich_norms) {
    for (const auto& [ours, theirs] : kSandwichNorms) {
      if (module == ours) {
        return in_block(theirs);
      }
    }
  }
  for (const auto& [ours, theirs] : kModules) {
    if (module == ours) {
      return in_block(theirs);
    }
  }
  NIBBLE_CHECK(false, "a weight without a name in GGUF");
  return {};
}

float GgufOffsetOf(const ModelConfig& config, const std::string& canonical) {
  return config.norm_plus_one && canonical.ends_with("norm.weight") ? 1.0F : 0.0F;
}

std::int64_t GgufInterleavedHeads(const ModelConfig& config, const std::string& canonical) {
  if (config.architecture != Architecture::kLlama &&
      config.architecture != Architecture::kMistral) {
    return 0;
  }
  return canonical.find(".q_proj.") != std::string::npos   ? config.num_heads
         : canonical.find(".k_proj.") != std::string::npos ? config.num_kv_heads
                                                           : 0;
}

}  // namespace nibble
