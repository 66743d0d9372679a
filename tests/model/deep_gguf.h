#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tensor/float16.h"
#include "tests/io/gguf_builder.h"

namespace nibble {

/// A random Llama of as many blocks as wanted, each with its own type of matrices, whose logits are
/// ordinary numbers.
struct DeepGguf {
  static constexpr std::uint32_t kF32 = 0, kQ4_1 = 3;
  std::vector<std::uint32_t> block_types;
  std::int64_t hidden = 128;
  std::int64_t inner = 192;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t vocab = 320;

  std::string Build() const {
    using testing::BytesOf;
    testing::GgufBuilder file;
    const auto u32 = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
    file.String("general.architecture", "llama")
        .U32("llama.block_count", u32(std::ssize(block_types)))
        .U32("llama.context_length", 512)
        .U32("llama.embedding_length", u32(hidden))
        .U32("llama.feed_forward_length", u32(inner))
        .U32("llama.attention.head_count", u32(heads))
        .U32("llama.attention.head_count_kv", u32(kv_heads))
        .F32("llama.attention.layer_norm_rms_epsilon", 1e-5F)
        .F32("llama.rope.freq_base", 10000.0F);
    std::vector<std::string> tokens{"<s>", "</s>"};
    std::vector<std::int32_t> kinds{3, 3};
    while (std::ssize(tokens) < vocab) {
      tokens.push_back("t" + std::to_string(tokens.size()));
      kinds.push_back(1);
    }
    file.String("tokenizer.ggml.model", "gpt2")
        .String("tokenizer.ggml.pre", "smollm")
        .Strings("tokenizer.ggml.tokens", tokens)
        .Array<std::int32_t>("tokenizer.ggml.token_type", 5, kinds)
        .Strings("tokenizer.ggml.merges", {"a b"})
        .U32("tokenizer.ggml.bos_token_id", 0)
        .U32("tokenizer.ggml.eos_token_id", 1)
        .Bool("tokenizer.ggml.add_bos_token", false);
    std::mt19937 rng(20261127);
    const auto normal = [&](std::int64_t count, float mean, float stddev) {
      std::normal_distribution<float> draw(mean, stddev);
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& value : values) {
        value = draw(rng);
      }
      return BytesOf(values);
    };
    file.Tensor("token_embd.weight", {hidden, vocab}, kF32, normal(hidden * vocab, 0.0F, 0.5F));
    const std::int64_t kv = hidden / heads * kv_heads;
    const std::vector<std::pair<std::string, std::pair<std::int64_t, std::int64_t>>> matrices = {
        {"attn_q", {hidden, hidden}},  {"attn_k", {hidden, kv}},
        {"attn_v", {hidden, kv}},      {"attn_output", {hidden, hidden}},
        {"ffn_gate", {hidden, inner}}, {"ffn_up", {hidden, inner}},
        {"ffn_down", {inner, hidden}}};
    for (std::size_t block = 0; block < block_types.size(); ++block) {
      const std::string at = "blk." + std::to_string(block) + ".";
      for (const char* norm : {"attn_norm", "ffn_norm"}) {
        file.Tensor(at + norm + ".weight", {hidden}, kF32, normal(hidden, 1.0F, 0.1F));
      }
      for (const auto& [name, shape] : matrices) {
        const auto [cols, rows] = shape;
        const float stddev = 1.0F / std::sqrt(static_cast<float>(cols));
        file.Tensor(at + name + ".weight", {cols, rows}, block_types[block],
                    block_types[block] == kF32 ? normal(cols * rows, 0.0F, stddev)
                                               : Q4Blocks(cols * rows, stddev, rng));
      }
    }
    file.Tensor("output_norm.weight", {hidden}, kF32, normal(hidden, 1.0F, 0.1F));
    return file.Build();
  }

 private:
  // w = scale * code + minimum, evenly over 16 codes around 0.
  static std::string Q4Blocks(std::int64_t count, float stddev, std::mt19937& rng) {
    std::string bytes;
    for (std::int64_t i = 0; i < count / 32; ++i) {
      const float scale = stddev * (0.15F + 0.01F * static_cast<float>(rng() % 16));
      bytes += testing::GgufBuilder::Bytes(FloatToF16(scale));
      bytes += testing::GgufBuilder::Bytes(FloatToF16(-7.5F * scale));
      for (int word = 0; word < 4; ++word) {
        bytes += testing::GgufBuilder::Bytes(static_cast<std::uint32_t>(rng()));
      }
    }
    return bytes;
  }
};

}  // namespace nibble
