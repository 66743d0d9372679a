#include "checkpoint/kv_scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "tensor/float16.h"
#include "tests/checkpoint/tiny_model.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::BytesOf;
using testing::TempFolder;

const ModelConfig kConfig = {.hidden_size = 64,
                             .intermediate_size = 96,
                             .num_layers = 2,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .head_dim = 16,
                             .vocab_size = 31,
                             .max_position_embeddings = 128,
                             .dtype = DType::kBF16};

struct Tensor {
  DType dtype;
  Shape shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

Tensor Numbers(const std::vector<float>& values, const Shape& shape) {
  return {DType::kF32, shape, BytesOf(values)};
}
Tensor Number(float value) { return Numbers({value}, Shape{}); }

std::string In(int layer, const std::string& name) {
  return "model.layers." + std::to_string(layer) + ".self_attn." + name;
}

// A float folder of two layers with these tensors beside the weights.
Result<std::unique_ptr<Checkpoint>> OpenWith(const TempFolder& folder, const Tensors& scales,
                                             const std::string& scheme = "") {
  Tensors tensors = scales;
  for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
    const Shape shape = weight.rows == 1 ? Shape{weight.cols} : Shape{weight.rows, weight.cols};
    tensors[weight.name] = {DType::kF32, shape, testing::Floats(shape.num_elements(), 1)};
  }
  std::vector<SafetensorsEntry> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype == DType::kF32) {
      entries.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
      data += tensor.bytes;
    }
  }
  for (const auto& [name, tensor] : tensors) {  // narrower ones last: all are aligned
    if (tensor.dtype != DType::kF32) {
      entries.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
      data += tensor.bytes;
    }
  }
  const std::string header = BuildSafetensorsHeader(entries);
  std::ofstream(folder.path() / "model.safetensors", std::ios::binary) << header << data;
  json::Object config = ToHuggingFaceConfig(kConfig);
  if (!scheme.empty()) {
    const auto parsed =
        json::Parse(R"({"quant_method":"compressed-tensors","format":"dense","config_groups":{},)"
                    R"("kv_cache_scheme":)" +
                    scheme + "}");
    EXPECT_TRUE(parsed);
    config.Set("quantization_config", *parsed);
  }
  std::ofstream(folder.path() / "config.json", std::ios::binary) << json::Dump(config);
  return Checkpoint::Open(folder.path().string());
}

std::vector<float> ScalesOf(const Checkpoint& checkpoint) {
  return {checkpoint.kv_scales().begin(), checkpoint.kv_scales().end()};
}

TEST(KvScales, EverySpellingIsReadAndLeavesNoWarning) {
  const std::pair<const char*, const char*> kNames[] = {
      {"k_scale", "v_scale"},
      {"k_proj.k_scale", "v_proj.v_scale"},
      {"k_proj.output_scale", "v_proj.output_scale"},
      {"qkv_proj.k_scale", "qkv_proj.v_scale"},
      {"k_cache.scale", "v_cache.scale"}};
  for (const auto& [key, value] : kNames) {
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, {{In(0, key), Number(0.5F)},
                                              {In(0, value), Number(0.25F)},
                                              {In(0, "q_scale"), Number(3.0F)},
                                              {In(0, "prob_scale"), Number(3.0F)},
                                              {In(1, key), Number(0.03F)},
                                              {In(1, value), Number(7.0F)}});
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ(ScalesOf(**checkpoint),
              (std::vector<float>{0.5F, 0.5F, 0.25F, 0.25F, 0.03F, 0.03F, 7.0F, 7.0F}))
        << key;
    EXPECT_TRUE((*checkpoint)->warnings().empty()) << (*checkpoint)->warnings()[0];
  }
}

TEST(KvScales, OneScaleForBothKinds) {
  const TempFolder folder;
  const auto checkpoint =
      OpenWith(folder, {{In(0, "kv_scale"), Number(0.5F)}, {In(1, "kv_scale"), Number(2.0F)}});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(ScalesOf(**checkpoint),
            (std::vector<float>{0.5F, 0.5F, 0.5F, 0.5F, 2.0F, 2.0F, 2.0F, 2.0F}));
}

TEST(KvScales, AScaleForEachHeadInAnyShapeAndWidth) {
  const std::string half = BytesOf(std::vector<std::uint16_t>{FloatToF16(0.5F), FloatToF16(3.0F)});
  const std::string bf16 = BytesOf(std::vector<std::uint16_t>{FloatToBF16(0.125F)});
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, {{In(0, "k_scale"), Numbers({0.1F, 0.2F}, Shape{2})},
                                            {In(0, "v_scale"), {DType::kF16, Shape{2, 1, 1}, half}},
                                            {In(1, "k_scale"), Numbers({4.0F, 5.0F}, Shape{2, 1})},
                                            {In(1, "v_scale"), {DType::kBF16, Shape{1}, bf16}}});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(ScalesOf(**checkpoint),
            (std::vector<float>{0.1F, 0.2F, 0.5F, 3.0F, 4.0F, 5.0F, 0.125F, 0.125F}));
}

TEST(KvScales, NoneAreNone) {
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, {});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->kv_scales().empty());
}

TEST(KvScales, MissingOnesAreOneAndSaid) {
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, {{In(1, "v_scale"), Number(0.5F)}});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(ScalesOf(**checkpoint),
            (std::vector<float>{1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 0.5F, 0.5F}));
  ASSERT_EQ((*checkpoint)->warnings().size(), 1U);
  EXPECT_NE((*checkpoint)->warnings()[0].find("3 of 4 KV scales are missing"), std::string::npos);
}

TEST(KvScales, TheSchemeSaysWhatTheyAreFor) {
  const Tensors scales = {{In(0, "k_scale"), Number(0.5F)},
                          {In(0, "v_scale"), Number(0.5F)},
                          {In(1, "k_scale"), Number(0.5F)},
                          {In(1, "v_scale"), Number(0.5F)}};
  const struct {
    const char* scheme;
    bool taken;
  } kCases[] = {
      {R"({"num_bits":8,"type":"float","strategy":"tensor","dynamic":false,"symmetric":true})",
       true},
      {R"({"num_bits":8,"type":"int","strategy":"tensor","dynamic":false,"symmetric":true})",
       false},
      {R"({"num_bits":4,"type":"float","strategy":"tensor"})", false},
      {R"({"num_bits":8,"type":"float","symmetric":false})", false},
  };
  for (const auto& wanted : kCases) {
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, scales, wanted.scheme);
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->kv_scales().empty(), !wanted.taken) << wanted.scheme;
    bool said = false;
    for (const std::string& warning : (*checkpoint)->warnings()) {
      said |= warning.find("they are not used") != std::string::npos;
      EXPECT_EQ(warning.find("is not used by this architecture"), std::string::npos) << warning;
    }
    EXPECT_EQ(said, !wanted.taken) << wanted.scheme;
  }
}

TEST(KvScales, WhatIsNoScaleIsRefusedByName) {
  const struct {
    Tensors tensors;
    const char* says;
  } kCases[] = {
      {{{In(0, "k_scale"), Number(0.0F)}}, "0.self_attn.k_scale: 0 is no scale"},
      {{{In(0, "v_scale"), Number(-1.0F)}}, "0.self_attn.v_scale: -1 is no scale"},
      {{{In(0, "k_scale"), Number(std::nanf(""))}}, "nan is no scale"},
      {{{In(0, "k_scale"), Number(1e-40F)}}, "is no scale"},
      {{{In(1, "k_proj.k_scale"), Numbers({1.0F, 2.0F, 3.0F}, Shape{3})}},
       "1.self_attn.k_proj.k_scale: shape [3], expected one number or one for each of 2 KV heads"},
      {{{In(1, "v_scale"), {DType::kI32, Shape{}, std::string(4, '\1')}}},
       "I32, expected F32, F16 or BF16"},
      {{{In(1, "v_scale"), Number(1.0F)}, {In(1, "v_cache.scale"), Number(2.0F)}},
       "name one scale and differ"},
  };
  for (const auto& wrong : kCases) {
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, wrong.tensors);
    ASSERT_FALSE(checkpoint) << wrong.says;
    EXPECT_NE(checkpoint.error().message.find(wrong.says), std::string::npos)
        << checkpoint.error().message;
  }
}

}  // namespace
}  // namespace nibble
