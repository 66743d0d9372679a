#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"
#include "json/value.h"
#include "tests/io/gguf_builder.h"

namespace nibble::testing {

/// Numbers that differ at every place and are exact in 16 bits.
inline float Pattern(std::int64_t i) { return static_cast<float>((i * 37) % 101 - 50) / 16.0F; }

inline std::string Floats(std::int64_t count, std::int64_t seed) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(Pattern(i + seed));
  }
  return BytesOf(values);
}

/// A GGUF model of one block: hidden 64, two heads of 32, one of keys and values, 8 tokens. Norms
/// F32, matrices of `type` (F32, Q4_0, Q4_1 or Q8_0) with pseudo-random blocks.
class TinyGguf {
 public:
  std::string architecture = "llama";
  std::uint32_t type = 3;
  bool tied = true;
  bool biases = false;
  bool with_config = true;
  std::vector<std::string> leave_out;                          // tensors
  std::vector<std::pair<std::string, std::string>> extra_f32;  // name -> bytes, 1-D

  GgufBuilder Builder() const {
    GgufBuilder file;
    const std::string& a = architecture;
    file.String("general.architecture", a);
    if (with_config) {
      file.U32(a + ".block_count", 1)
          .U32(a + ".context_length", 128)
          .U32(a + ".embedding_length", 64)
          .U32(a + ".feed_forward_length", 96)
          .U32(a + ".attention.head_count", 2)
          .U32(a + ".attention.head_count_kv", 1)
          .F32(a + ".attention.layer_norm_rms_epsilon", 1e-5F)
          .F32(a + ".rope.freq_base", 10000.0F);
    }
    file.String("tokenizer.ggml.model", "gpt2")
        .String("tokenizer.ggml.pre", "smollm")
        .Strings("tokenizer.ggml.tokens", {"<s>", "</s>", "a", "b", "c", "d", "e", "f"})
        .Array<std::int32_t>("tokenizer.ggml.token_type", 5, {3, 3, 1, 1, 1, 1, 1, 1})
        .Strings("tokenizer.ggml.merges", {"a b"})
        .U32("tokenizer.ggml.bos_token_id", 0)
        .U32("tokenizer.ggml.eos_token_id", 1)
        .Bool("tokenizer.ggml.add_bos_token", false)
        .String("tokenizer.chat_template", "{{ messages }}");
    Matrix(file, "token_embd.weight", 64, 8);
    Vector(file, "blk.0.attn_norm.weight", 64);
    for (const auto& [name, rows] : {std::pair{"q", 64}, std::pair{"k", 32}, std::pair{"v", 32}}) {
      Matrix(file, std::string("blk.0.attn_") + name + ".weight", 64, rows);
      if (biases || architecture == "qwen2") {
        Vector(file, std::string("blk.0.attn_") + name + ".bias", rows);
      }
    }
    Matrix(file, "blk.0.attn_output.weight", 64, 64);
    if (architecture == "qwen3") {
      Vector(file, "blk.0.attn_q_norm.weight", 32);
      Vector(file, "blk.0.attn_k_norm.weight", 32);
    }
    Vector(file, "blk.0.ffn_norm.weight", 64);
    Matrix(file, "blk.0.ffn_gate.weight", 64, 96);
    Matrix(file, "blk.0.ffn_up.weight", 64, 96);
    Matrix(file, "blk.0.ffn_down.weight", 96, 64);
    Vector(file, "output_norm.weight", 64);
    if (!tied) {
      Matrix(file, "output.weight", 64, 8);
    }
    for (const auto& [name, bytes] : extra_f32) {
      file.Tensor(name, {static_cast<std::int64_t>(bytes.size() / 4)}, 0, bytes);
    }
    return file;
  }
  std::string Build() const { return Builder().Build(); }

  /// The bytes of the matrix that Build writes for `rows` rows of `cols`.
  std::string MatrixBytes(std::int64_t cols, std::int64_t rows) const {
    if (type == 0) {
      return Floats(cols * rows, 0);
    }
    std::string out;
    for (std::int64_t block = 0; block < cols * rows / 32; ++block) {
      // f16 0x2800 + k is a little above 1/32.
      out += GgufBuilder::Bytes(static_cast<std::uint16_t>(0x2800 + block % 700));
      if (type == 3) {
        out += GgufBuilder::Bytes(static_cast<std::uint16_t>(0xB800 + block % 500));
      }
      for (int i = 0; i < (type == 8 ? 32 : 16); ++i) {
        out += static_cast<char>((block * 131 + i * 29 + block * i) & 0xFF);
      }
    }
    return out;
  }

 private:
  bool Left(const std::string& name) const {
    return std::find(leave_out.begin(), leave_out.end(), name) != leave_out.end();
  }
  void Matrix(GgufBuilder& file, const std::string& name, std::int64_t cols,
              std::int64_t rows) const {
    if (!Left(name)) {
      file.Tensor(name, {cols, rows}, type, MatrixBytes(cols, rows));
    }
  }
  void Vector(GgufBuilder& file, const std::string& name, std::int64_t size) const {
    if (!Left(name)) {
      file.Tensor(name, {size}, 0, Floats(size, size));
    }
  }
};

}  // namespace nibble::testing
