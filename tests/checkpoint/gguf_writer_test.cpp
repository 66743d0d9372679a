#include "checkpoint/gguf_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_names.h"
#include "codec/encode.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

ModelConfig MakeConfig(Architecture architecture) {
  ModelConfig config{.architecture = architecture,
                     .hidden_size = 256,
                     .intermediate_size = 512,
                     .num_layers = 1,
                     .num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 64,
                     .vocab_size = 9,
                     .max_position_embeddings = 128,
                     .qkv_bias = architecture == Architecture::kLlama,
                     .attention_out_bias = architecture == Architecture::kLlama,
                     .dtype = DType::kF16};
  ApplyArchitecture(config);
  if (architecture == Architecture::kGemma3) {
    config.query_pre_attn_scalar = config.head_dim;
    config.sliding_window = 32;
    config.sliding_layers = SlidingLayers(config.num_layers, kGemma3GlobalInterval);
    config.sliding_rope = config.rope;
    config.tie_word_embeddings = true;
  }
  return config;
}

GgufModelFacts FactsOf(const ModelConfig& config) {
  GgufModelFacts facts{.name = "tiny", .config = config};
  facts.vocabulary.model = "gpt2";
  facts.vocabulary.pre = "smollm";
  facts.vocabulary.tokens = {"<s>", "</s>", "a", "b", "ab", "c", "d", "e", "[PAD8]"};
  facts.vocabulary.token_types = {3, 3, 1, 1, 1, 1, 1, 1, 5};
  facts.vocabulary.merges = {"a b"};
  facts.vocabulary.bos = TokenId{0};
  facts.vocabulary.eos = TokenId{1};
  facts.vocabulary.add_bos = false;
  facts.chat_template = "{{ messages }}";
  return facts;
}

// Pseudo-random rows that a block of the type holds.
QuantizedTensor Rows(const WeightSpec& spec, std::uint32_t seed) {
  QuantizedTensor out;
  out.spec = spec;
  std::uint32_t state = seed * 2654435761U + 1;
  const auto next = [&] { return (state = state * 1664525U + 1013904223U) >> 8U; };
  const auto elements = static_cast<std::size_t>(spec.rows * spec.cols);
  if (spec.kind == CodecKind::kFloat) {
    for (std::size_t i = 0; i < elements; ++i) {
      out.values.push_back(static_cast<float>(next() % 257) / 64.0F - 2.0F);
    }
    return out;
  }
  for (std::size_t i = 0; i < elements; ++i) {
    out.codes.push_back(static_cast<std::uint8_t>(next() % (1U << spec.bits)));
  }
  const bool is_super = spec.has_f32_scales;
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  for (std::size_t i = 0; i < groups; ++i) {
    // K-quants: whole multiples of 1/512, up to 15, so that every type holds them.
    const float scale = is_super
                            ? static_cast<float>(next() % 16) / 512.0F
                            : RoundToDType(static_cast<float>(next() % 999) / 7e4F, DType::kF16);
    out.scales.push_back(scale);
    if (spec.kind == CodecKind::kMinimum) {
      out.minima.push_back(is_super ? -static_cast<float>(next() % 16) / 256.0F : -scale * 2.0F);
    }
  }
  return out;
}

QuantizedTensor Slice(const QuantizedTensor& whole, std::int64_t begin, std::int64_t end) {
  QuantizedTensor out;
  out.spec = whole.spec;
  out.spec.rows = end - begin;
  const auto cut = [&](const auto& from, auto& to, std::int64_t width) {
    if (!from.empty()) {
      to.assign(from.begin() + begin * width, from.begin() + end * width);
    }
  };
  cut(whole.codes, out.codes, whole.spec.cols);
  cut(whole.values, out.values, whole.spec.cols);
  cut(whole.scales, out.scales, whole.spec.num_groups());
  cut(whole.minima, out.minima, whole.spec.num_groups());
  return out;
}

TEST(GgufWriter, WhatIsWrittenReadsBackTheSame) {
  const TempFolder folder;
  int number = 0;
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen3, Architecture::kGemma3}) {
    for (const GgufType type :
         {GgufType::kF16, GgufType::kBF16, GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0,
          GgufType::kQ5_1, GgufType::kQ8_0, GgufType::kQ2_K, GgufType::kQ3_K, GgufType::kQ4_K,
          GgufType::kQ5_K, GgufType::kQ6_K}) {
      ModelConfig config = MakeConfig(architecture);
      config.rope.type = number % 2 == 0 ? RopeType::kLlama3 : RopeType::kDefault;
      config.rope.factor = config.rope.type == RopeType::kLlama3 ? 8.0 : 1.0;
      std::vector<WeightToWrite> plan;
      std::vector<QuantizedTensor> weights;
      for (const ExpectedWeight& weight : ExpectedWeights(config)) {
        WeightSpec spec;
        if (weight.rows > 1) {
          spec = *GgufSpecOf(static_cast<std::uint32_t>(type));
        }
        spec.rows = weight.rows;
        spec.cols = weight.cols;
        plan.push_back({weight.name, spec});
        weights.push_back(Rows(spec, static_cast<std::uint32_t>(plan.size())));
      }
      const auto target = folder.path() / (std::to_string(++number) + ".gguf");
      auto out = AtomicWriter::Create(target, {}, GgufSizeBytes(plan));
      ASSERT_TRUE(out) << out.error().message;
      auto writer = CreateGgufWriter(**out, "model.gguf", plan, FactsOf(config));
      ASSERT_TRUE(writer) << writer.error().message;
      for (std::size_t i = 0; i < plan.size(); ++i) {
        for (std::int64_t row = 0; row < plan[i].spec.rows; row += 48) {
          const auto written = (*writer)->Write(
              plan[i].name, Slice(weights[i], row, std::min(plan[i].spec.rows, row + 48)));
          ASSERT_TRUE(written) << written.error().message;
        }
      }
      ASSERT_TRUE((*writer)->Finish());
      const auto committed = (*out)->CommitFile("model.gguf");
      ASSERT_TRUE(committed) << committed.error().message;
      const auto checkpoint = Checkpoint::Open(target.string());
      ASSERT_TRUE(checkpoint) << checkpoint.error().message;
      EXPECT_TRUE((*checkpoint)->warnings().empty());
      EXPECT_EQ((*checkpoint)->config().architecture, architecture);
      EXPECT_EQ((*checkpoint)->config().rope.type, config.rope.type);
      EXPECT_EQ((*checkpoint)->config().qkv_bias, config.qkv_bias);
      EXPECT_EQ((*checkpoint)->config().sliding_layers, config.sliding_layers);
      EXPECT_EQ((*checkpoint)->config().query_pre_attn_scalar, config.query_pre_attn_scalar);
      EXPECT_EQ((*checkpoint)->chat_template(), "{{ messages }}");
      EXPECT_EQ((*checkpoint)->gguf_vocabulary()->merges, (std::vector<std::string>{"a b"}));
      for (std::size_t i = 0; i < plan.size(); ++i) {
        const WeightInfo* info = (*checkpoint)->Find(plan[i].name);
        ASSERT_NE(info, nullptr);
        EXPECT_EQ(info->spec, plan[i].spec) << info->name << " " << info->spec.ToString();
        const auto rows = (*checkpoint)->ReadRows(*info, 0, info->spec.rows);
        ASSERT_TRUE(rows) << rows.error().message;
        EXPECT_EQ(rows->codes, weights[i].codes) << info->name;
        EXPECT_EQ(Dequantize(*rows), Dequantize(weights[i])) << info->name;
      }
    }
  }
}

TEST(GgufNames, GemmasNormsAreOthersAndHoldTheOne) {
  const ModelConfig gemma = MakeConfig(Architecture::kGemma3);
  const std::string at = "model.layers.3.";
  EXPECT_EQ(GgufNameOf(gemma, at + "post_attention_layernorm.weight"),
            "blk.3.post_attention_norm.weight");
  EXPECT_EQ(GgufNameOf(gemma, at + "pre_feedforward_layernorm.weight"), "blk.3.ffn_norm.weight");
  EXPECT_EQ(GgufNameOf(gemma, at + "post_feedforward_layernorm.weight"),
            "blk.3.post_ffw_norm.weight");
  EXPECT_EQ(GgufOffsetOf(gemma, at + "self_attn.q_norm.weight"), 1.0F);
  EXPECT_EQ(GgufOffsetOf(gemma, "model.norm.weight"), 1.0F);
  EXPECT_EQ(GgufOffsetOf(gemma, at + "self_attn.q_proj.weight"), 0.0F);
  const ModelConfig llama = MakeConfig(Architecture::kLlama);
  EXPECT_EQ(GgufNameOf(llama, at + "post_attention_layernorm.weight"), "blk.3.ffn_norm.weight");
  EXPECT_EQ(GgufOffsetOf(llama, "model.norm.weight"), 0.0F);
}

TEST(GgufWriter, AGemmaThatNoFileDescribesIsRefused) {
  const TempFolder folder;
  auto out = AtomicWriter::Create(folder.path() / "m.gguf", {}, 0);
  const auto message_of = [&](const ModelConfig& config) {
    const auto writer = CreateGgufWriter(**out, "m", {}, FactsOf(config));
    return writer ? "" : writer.error().message;
  };
  ModelConfig config = MakeConfig(Architecture::kGemma3);
  config.sliding_layers[0] = false;
  EXPECT_NE(message_of(config).find("layer_types"), std::string::npos);
  config = MakeConfig(Architecture::kGemma3);
  config.query_pre_attn_scalar = 24;
  EXPECT_NE(message_of(config).find("query_pre_attn_scalar"), std::string::npos);
  config = MakeConfig(Architecture::kGemma3);
  config.sliding_rope->theta = 5.0;
  EXPECT_NE(message_of(config).find("rope_local_base_freq"), std::string::npos);
}

TEST(GgufWriter, WhatGgufCannotHoldIsNamed) {
  const TempFolder folder;
  const ModelConfig config = MakeConfig(Architecture::kQwen2);
  auto out = AtomicWriter::Create(folder.path() / "m.gguf", {}, 0);
  const WeightSpec wide{
      .rows = 256, .cols = 256, .kind = CodecKind::kUniform, .bits = 4, .group_size = 128};
  const WeightSpec narrow{
      .rows = 256, .cols = 100, .kind = CodecKind::kUniform, .bits = 4, .group_size = 32};
  for (const WeightSpec& spec : {wide, narrow}) {
    const auto writer = CreateGgufWriter(**out, "m", {{"lm_head.weight", spec}}, FactsOf(config));
    ASSERT_FALSE(writer);
    EXPECT_NE(writer.error().message.find("lm_head.weight"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
