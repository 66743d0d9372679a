#include "checkpoint/model_config.h"

#include <gtest/gtest.h>

#include "json/value.h"

namespace nibble {
namespace {

constexpr const char* kLlama = R"({"model_type":"llama","hidden_size":64,"intermediate_size":96,
  "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,
  "max_position_embeddings":256,"rms_norm_eps":1e-5,"hidden_act":"silu")";

Result<ModelConfig> Parse(const std::string& more, const char* base = kLlama) {
  const auto value = json::Parse(std::string(base) + (more.empty() ? "" : "," + more) + "}");
  EXPECT_TRUE(value) << value.error().message;
  return ParseModelConfig(*value, "config.json");
}

ModelConfig MustParse(const std::string& more) {
  const auto config = Parse(more);
  EXPECT_TRUE(config) << config.error().message;
  return config.value_or(ModelConfig{});
}

TEST(ModelConfig, DefaultsAreThoseOfTransformers) {
  const ModelConfig config = MustParse("");
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.sliding_window);
  EXPECT_EQ(config.dtype, DType::kF32);
}

TEST(ModelConfig, OldAndNewSpellingsMeanTheSame) {
  EXPECT_EQ(MustParse(R"("torch_dtype":"bfloat16")").dtype, DType::kBF16);
  EXPECT_EQ(MustParse(R"("dtype":"float16")").dtype, DType::kF16);
  EXPECT_EQ(MustParse(R"("rope_theta":5e5)").rope.theta, 5e5);
  EXPECT_EQ(MustParse(R"("rope_parameters":{"rope_type":"default","rope_theta":5e5})").rope.theta,
            5e5);
  const std::string numbers = R"("factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
                              R"("original_max_position_embeddings":8192)";
  for (const std::string& more :
       {R"("rope_theta":5e5,"rope_scaling":{"rope_type":"llama3",)" + numbers + "}",
        R"("rope_theta":5e5,"rope_scaling":{"type":"llama3",)" + numbers + "}",
        R"("rope_parameters":{"rope_theta":5e5,"rope_type":"llama3",)" + numbers + "}"}) {
    const RopeConfig rope = MustParse(more).rope;
    EXPECT_EQ(rope.type, RopeType::kLlama3);
    EXPECT_EQ(rope.theta, 5e5);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.original_max_position_embeddings, 8192.0);
  }
  EXPECT_EQ(MustParse(R"("rope_scaling":null)").rope.type, RopeType::kDefault);
}

TEST(ModelConfig, EndTokensMayBeOneOrSeveral) {
  EXPECT_EQ(MustParse(R"("eos_token_id":3)").eos_token_ids, std::vector<TokenId>{TokenId{3}});
  EXPECT_EQ(MustParse(R"("eos_token_id":[3,4])").eos_token_ids.size(), 2U);
  EXPECT_TRUE(MustParse(R"("eos_token_id":null)").eos_token_ids.empty());
}

TEST(ModelConfig, WhatIsUnsupportedIsNamed) {
  const struct {
    const char* more;
    const char* says;
  } kCases[] = {
      {R"("rope_scaling":{"type":"dynamic","factor":2.0})", "dynamic"},
      {R"("rope_scaling":{"rope_type":"longrope"})", "longrope"},
      {R"("partial_rotary_factor":0.5)", "partial_rotary_factor"},
      {R"("rope_parameters":{"full_attention":{"rope_type":"default"}})", "full_attention"},
  };
  for (const auto& wrong : kCases) {
    const auto config = Parse(wrong.more);
    ASSERT_FALSE(config) << wrong.more;
    EXPECT_EQ(config.error().code, ErrorCode::kUnsupported) << config.error().message;
    EXPECT_NE(config.error().message.find(wrong.says), std::string::npos) << config.error().message;
    EXPECT_NE(config.error().message.find("config.json"), std::string::npos);
  }
  const auto gemma = Parse("", R"({"model_type":"gemma3")");
  ASSERT_FALSE(gemma);
  EXPECT_EQ(gemma.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(gemma.error().message.find("gemma3"), std::string::npos);
  EXPECT_NE(gemma.error().message.find("qwen3"), std::string::npos);  // what is supported
}

TEST(ModelConfig, WrongValuesAreNamed) {
  const struct {
    const char* key;
    const char* value;
  } kCases[] = {{"hidden_size", "-64"},         {"hidden_size", "1e30"},
                {"hidden_size", "64.5"},        {"hidden_size", "\"64\""},
                {"num_hidden_layers", "0"},     {"num_hidden_layers", "99999"},
                {"vocab_size", "999999999999"}, {"num_attention_heads", "9223372036854775808"},
                {"num_key_value_heads", "3"}};
  for (const auto& wrong : kCases) {
    json::Object object = *json::Parse(std::string(kLlama) + "}")->AsObject();
    object.Set(wrong.key, *json::Parse(wrong.value));
    const auto config = ParseModelConfig(object, "config.json");
    EXPECT_FALSE(config) << wrong.key << " " << wrong.value;
  }
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size"}) {
    json::Object object = *json::Parse(std::string(kLlama) + "}")->AsObject();
    object.Erase(key);
    const auto config = ParseModelConfig(object, "config.json");
    ASSERT_FALSE(config) << key;
    EXPECT_NE(config.error().message.find(key), std::string::npos) << config.error().message;
  }
}

constexpr const char* kGemma =
    R"({"model_type":"gemma3_text","hidden_size":64,"intermediate_size":96,"num_hidden_layers":7,)"
    R"("num_attention_heads":4,"num_key_value_heads":2,"vocab_size":160,"head_dim":32)";

TEST(ModelConfig, GemmasOldAndNewSpellingsSayTheSame) {
  const auto old_style =
      Parse(R"("sliding_window":12,"sliding_window_pattern":6,"rope_theta":500000.0,)"
            R"("rope_local_base_freq":20000.0,"rope_scaling":{"rope_type":"linear","factor":8.0})",
            kGemma);
  ASSERT_TRUE(old_style) << old_style.error().message;
  const auto new_style =
      Parse(R"("sliding_window":12,"layer_types":["sliding_attention","sliding_attention",)"
            R"("sliding_attention","sliding_attention","sliding_attention","full_attention",)"
            R"("sliding_attention"],"rope_parameters":{"full_attention":{"rope_type":"linear",)"
            R"("factor":8.0,"rope_theta":500000.0},"sliding_attention":{"rope_type":"default",)"
            R"("rope_theta":20000.0}})",
            kGemma);
  ASSERT_TRUE(new_style) << new_style.error().message;
  for (const ModelConfig& config : {*old_style, *new_style}) {
    EXPECT_EQ(config.rope.type, RopeType::kLinear);
    EXPECT_EQ(config.rope.theta, 500000.0);
    EXPECT_EQ(config.sliding_rope->type, RopeType::kDefault);
    EXPECT_EQ(config.sliding_rope->theta, 20000.0);
    EXPECT_TRUE(config.SlidesIn(4));
    EXPECT_FALSE(config.SlidesIn(5));
    EXPECT_TRUE(config.SlidesIn(6));
    EXPECT_TRUE(config.tie_word_embeddings);
    EXPECT_EQ(config.embedding_scale, 8.0F);
    EXPECT_EQ(config.query_pre_attn_scalar, 256);
  }
}

TEST(ModelConfig, WhatGemmasRelativesAddIsRefusedByName) {
  for (const char* more : {R"("final_logit_softcapping":30.0)", R"("attn_logit_softcapping":50.0)",
                           R"("use_bidirectional_attention":true)", R"("hidden_activation":"gelu")",
                           R"("layer_types":["sliding_attention"])"}) {
    const auto config = Parse(more, kGemma);
    ASSERT_FALSE(config) << more;
    const std::string key = std::string(more).substr(1, std::string(more).find('"', 1) - 1);
    EXPECT_NE(config.error().message.find(key), std::string::npos) << config.error().message;
  }
}

bool SameModel(const ModelConfig& a, const ModelConfig& b) {
  return a.architecture == b.architecture && a.hidden_size == b.hidden_size &&
         a.intermediate_size == b.intermediate_size && a.num_layers == b.num_layers &&
         a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim == b.head_dim && a.vocab_size == b.vocab_size &&
         a.max_position_embeddings == b.max_position_embeddings &&
         a.rms_norm_eps == b.rms_norm_eps && a.tie_word_embeddings == b.tie_word_embeddings &&
         a.qkv_bias == b.qkv_bias && a.attention_out_bias == b.attention_out_bias &&
         a.mlp_bias == b.mlp_bias && a.qk_norm == b.qk_norm && a.norm_plus_one == b.norm_plus_one &&
         a.sandwich_norms == b.sandwich_norms && a.activation == b.activation &&
         a.embedding_scale == b.embedding_scale &&
         a.query_pre_attn_scalar == b.query_pre_attn_scalar &&
         a.sliding_layers == b.sliding_layers &&
         a.sliding_rope.has_value() == b.sliding_rope.has_value() &&
         (!a.sliding_rope || a.sliding_rope->theta == b.sliding_rope->theta) &&
         a.sliding_window == b.sliding_window && a.dtype == b.dtype &&
         a.bos_token_id == b.bos_token_id && a.eos_token_ids == b.eos_token_ids &&
         a.rope.type == b.rope.type && a.rope.theta == b.rope.theta &&
         a.rope.factor == b.rope.factor && a.rope.attention_factor == b.rope.attention_factor &&
         a.rope.low_freq_factor == b.rope.low_freq_factor &&
         a.rope.high_freq_factor == b.rope.high_freq_factor && a.rope.truncate == b.rope.truncate &&
         a.rope.beta_fast == b.rope.beta_fast && a.rope.beta_slow == b.rope.beta_slow &&
         a.rope.original_max_position_embeddings == b.rope.original_max_position_embeddings;
}

TEST(ModelConfig, WhatIsWrittenReadsBackTheSame) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}) {
    for (const char* more :
         {R"("tie_word_embeddings":true,"eos_token_id":[1,2],"bos_token_id":0)",
          R"("attention_bias":true,"mlp_bias":true,"dtype":"bfloat16","head_dim":32)",
          R"("rope_scaling":{"type":"linear","factor":4.0},"rope_theta":77777.7)",
          R"("rope_scaling":{"rope_type":"yarn","factor":4.0,"attention_factor":1.5,)"
          R"("truncate":false,"original_max_position_embeddings":64})",
          R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
          R"("high_freq_factor":4.0,"original_max_position_embeddings":32})",
          R"("sliding_window":12,"initializer_range":0.02)"}) {
      json::Object object = *json::Parse(std::string(kLlama) + "," + more + "}")->AsObject();
      object.Set("model_type", type);
      const auto first = ParseModelConfig(object, "a");
      ASSERT_TRUE(first) << first.error().message;
      const auto second = ParseModelConfig(ToHuggingFaceConfig(*first), "b");
      ASSERT_TRUE(second) << second.error().message;
      EXPECT_TRUE(SameModel(*first, *second)) << type << " " << more;
    }
  }
}

}  // namespace
}  // namespace nibble
