#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "compress/quantize.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::Golden;
using testing::Quantize;
using testing::QuantizeGptqModel;

TEST_F(Quantize, EveryFormatIsVerifiedAndServed) {
  const struct {
    int bits, group_size;
    ModelFormat format;
    bool symmetric;
    Codebook codebook;
    std::optional<GgufType> block_type;
    const char* stored_as;
  } kCases[] = {
      {4, 32, ModelFormat::kGptq, true, Codebook::kNone, {}, "gptq int4"},
      {3, 32, ModelFormat::kGptqV2, false, Codebook::kNone, {}, "gptq_v2 int3"},
      {4, 64, ModelFormat::kAwq, false, Codebook::kNone, {}, "awq int4"},
      {4, 0, ModelFormat::kBitsandbytes, true, Codebook::kFp4, {}, "bitsandbytes fp4"},
      {4,
       0,
       ModelFormat::kBitsandbytesNested,
       true,
       Codebook::kNf4,
       {},
       "bitsandbytes nf4, nested"},
      {8, 0, ModelFormat::kBitsandbytes, true, Codebook::kNone, {}, "bitsandbytes int8"},
      {4, 32, ModelFormat::kGguf, true, Codebook::kNone, {}, "Q4_0"},
      {4, 32, ModelFormat::kGguf, true, Codebook::kNone, GgufType::kQ5_1, "Q5_1"},
      // Rows of 64 are no block of 256: llama.cpp's stand-in.
      {4, 32, ModelFormat::kGguf, true, Codebook::kNone, GgufType::kQ4_K, "Q5_0"},
  };
  int number = 0;
  for (const auto& one : kCases) {
    options_.format = one.format;
    options_.scheme.bits = one.bits;
    options_.scheme.group_size = one.group_size;
    options_.scheme.symmetric = one.symmetric;
    options_.scheme.codebook = one.codebook;
    options_.scheme.block_type = one.block_type;
    const fs::path out = temp_.path() / fmt::format("out{}", ++number);
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << one.stored_as << ": " << summary.error().message;
    const auto served = Serve(out, ActivationMode::kInt16);
    ASSERT_TRUE(served) << one.stored_as << ": " << served.error().message;
    const auto back = Checkpoint::Open(out.string());
    ASSERT_TRUE(back);
    EXPECT_EQ((*back)->Find("model.layers.0.mlp.up_proj.weight")->stored_as, one.stored_as);
  }
}

TEST_F(Quantize, AFormatThatCannotHoldTheGridIsRefusedBeforeTheWork) {
  const struct {
    int bits;
    ModelFormat format;
    bool symmetric;
    Codebook codebook;
    const char* says;
  } kCases[] = {
      {4, ModelFormat::kGptq, false, Codebook::kNone, "gptq_v2"},
      {5, ModelFormat::kGptqV2, true, Codebook::kNone, "2, 3, 4 or 8"},
      {8, ModelFormat::kAwq, true, Codebook::kNone, "AWQ"},
      {4, ModelFormat::kGptq, true, Codebook::kNf4, "GPTQ"},
      {4, ModelFormat::kBitsandbytes, true, Codebook::kNone, "bitsandbytes"},
      {6, ModelFormat::kGguf, true, Codebook::kNone, "q6_k"},
      {4, ModelFormat::kSafetensors, true, Codebook::kNone, "nibble convert"},
  };
  for (const auto& one : kCases) {
    options_.format = one.format;
    options_.scheme.bits = one.bits;
    options_.scheme.symmetric = one.symmetric;
    options_.scheme.codebook = one.codebook;
    const auto refused = Run(temp_.path() / "out");
    ASSERT_FALSE(refused) << one.says;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().message.find(one.says), std::string::npos) << refused.error().message;
    EXPECT_FALSE(fs::exists(temp_.path() / ".out.partial"));
  }
}

// What a refusal recommends is taken.
TEST_F(Quantize, ARefusalNamesAWayOutThatWorks) {
  options_.format = ModelFormat::kCompressedTensors;
  options_.scheme = {.bits = 4, .group_size = kWholeTensor, .symmetric = false};
  const auto zeros = Run(temp_.path() / "out");
  ASSERT_FALSE(zeros);
  EXPECT_NE(zeros.error().message.find("leave out --no-symmetric"), std::string::npos)
      << zeros.error().message;
  options_.format = ModelFormat::kBitsandbytesNested;
  options_.scheme = {.bits = 8, .group_size = 0};
  const auto nested = Run(temp_.path() / "out");
  ASSERT_FALSE(nested);
  EXPECT_NE(nested.error().message.find("use --scheme nf4"), std::string::npos);
  EXPECT_EQ(nested.error().message.find("--scheme int8"), std::string::npos)
      << nested.error().message;
  options_.format = ModelFormat::kGguf;
  options_.scheme = {.bits = 4, .group_size = 64};
  const auto groups = Run(temp_.path() / "out");
  ASSERT_FALSE(groups);
  EXPECT_NE(groups.error().message.find("--group-size 32, or --scheme q4_0"), std::string::npos)
      << groups.error().message;
  options_.scheme.group_size = 32;
  EXPECT_TRUE(Run(temp_.path() / "out"));
  options_.format.reset();
  options_.scheme = {.keeps_floats = true};
  const auto floats = Run(temp_.path() / "floats");
  ASSERT_FALSE(floats);
  EXPECT_NE(floats.error().message.find("choose another scheme"), std::string::npos);
  EXPECT_FALSE(fs::exists(temp_.path() / ".floats.partial"));
}

TEST_F(Quantize, AGroupThatDoesNotDivideIsAnErrorNamingTheTensor) {
  options_.scheme.group_size = 48;
  const auto refused = Run(temp_.path() / "out");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("self_attn.q_proj"), std::string::npos)
      << refused.error().message;
  EXPECT_NE(refused.error().message.find("this model takes 64, 32, or 0"), std::string::npos)
      << refused.error().message;
  options_.scheme.group_size = 8;  // divides, but solvers work on sixteen columns at a time
  const auto too_fine = Run(temp_.path() / "out");
  ASSERT_FALSE(too_fine);
  EXPECT_NE(too_fine.error().message.find("multiple of 16"), std::string::npos);
}

TEST_F(Quantize, Nf4IsWrittenAsBitsandbytesDoesAndServed) {
  options_.scheme.codebook = Codebook::kNf4;
  const fs::path out = temp_.path() / "nf4";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_NEAR(summary->bits_per_weight, 4.5, 1e-9);
  EXPECT_EQ(*summary->certificate.recipe.Find("codebook")->AsString(), "nf4");
  EXPECT_GT(summary->certificate.int16.kl_mean, 0.0);
  const auto config = json::ParseFile((out / "config.json").string());
  ASSERT_TRUE(config);
  const json::Value* quantization = config->Find("quantization_config");
  EXPECT_EQ(*quantization->Find("bnb_4bit_quant_type")->AsString(), "nf4");
  for (const ActivationMode mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
    const auto served = Serve(out, mode);
    EXPECT_TRUE(served) << served.error().message;
  }
}

TEST_F(Quantize, Nf4OfAWidthThatItsBlocksDoNotDivideIsRefused) {
  auto source = Checkpoint::Open(Golden("llama_bias").string());  // 48 wide
  ASSERT_TRUE(source) << source.error().message;
  source_ = std::move(*source);
  options_.scheme.codebook = Codebook::kNf4;
  const auto summary = Run(temp_.path() / "nf4");
  ASSERT_FALSE(summary);
  EXPECT_EQ(summary.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(summary.error().message.find("q_proj"), std::string::npos) << summary.error().message;
}

TEST_F(Quantize, AsymmetricAndInt8AndWholeRowsWorkToo) {
  double last = 1e9;
  for (const auto& [bits, group, symmetric] :
       {std::tuple{4, 0, true}, {4, 32, false}, {8, 32, true}}) {
    options_.scheme.bits = bits;
    options_.scheme.group_size = group;
    options_.scheme.symmetric = symmetric;
    const fs::path out =
        temp_.path() / (std::to_string(bits) + std::to_string(group) + std::to_string(symmetric));
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    EXPECT_LT(summary->certificate.int16.kl_mean, last);
    last = summary->certificate.int16.kl_mean;
    EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
  }
}

TEST_F(Quantize, Fp8IsWrittenReadBackAndServed) {
  for (const char* word : {"fp8", "fp8-block"}) {
    options_.scheme = *ParseScheme(word);
    const fs::path out = temp_.path() / word;
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    // Four bits cost this random model 1.7.
    EXPECT_LT(summary->certificate.int16.kl_mean, 0.3);
    EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
    const auto back = Checkpoint::Open(out.string());
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ((*back)->Find("model.layers.0.mlp.up_proj.weight")->stored_as, "fp8 e4m3");
    const auto config = json::ParseFile((out / "config.json").string());
    ASSERT_TRUE(config);
    const json::Value* weights = config->Find("quantization_config")
                                     ->Find("config_groups")
                                     ->Find("group_0")
                                     ->Find("weights");
    EXPECT_EQ(*weights->Find("type")->AsString(), "float");
  }
  options_.scheme = *ParseScheme("fp8");
  options_.format = ModelFormat::kGptq;
  const auto refused = Run(temp_.path() / "out");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("compressed-tensors"), std::string::npos)
      << refused.error().message;
}

// A scheme as the command line gives it, and what becomes of it.
struct NamedScheme {
  const char* word;
  std::int64_t group_size;  // -1: the scheme's own
  const char* stored_as;
  const char* method;    // quant_method of the folder
  const char* strategy;  // of compressed-tensors
};
constexpr NamedScheme kNamedSchemes[] = {
    {"log4", 32, "nibble log4", "compressed-tensors", nullptr},
    {"log3", 16, "nibble log3", "compressed-tensors", nullptr},
    {"log4", 0, "nibble log4", "compressed-tensors", nullptr},
    {"mxfp4", -1, "mxfp4-pack-quantized", "compressed-tensors", "group"},
    {"nvfp4", -1, "nvfp4-pack-quantized", "compressed-tensors", "tensor_group"},
    {"fp8-tensor", -1, "fp8 e4m3", "compressed-tensors", "tensor"},
    {"fp8-e5m2", -1, "nibble fp8-e5m2", "compressed-tensors", nullptr},
    {"int8", kWholeTensor, "pack-quantized int8", "compressed-tensors", "tensor"},
    {"int4", kWholeTensor, "pack-quantized int4", "compressed-tensors", "tensor"},
    {"int4", 16, "pack-quantized int4", "compressed-tensors", "group"},
    {"int8", 16, "pack-quantized int8", "compressed-tensors", "group"},
};
Scheme SchemeOf(const NamedScheme& named) {
  Scheme scheme = *ParseScheme(named.word);
  scheme.group_size = named.group_size == -1 ? scheme.group_size : named.group_size;
  return scheme;
}

void ExpectFolderOf(const NamedScheme& named, const fs::path& out) {
  const auto back = Checkpoint::Open(out.string());
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ((*back)->Find("model.layers.0.mlp.up_proj.weight")->stored_as, named.stored_as);
  EXPECT_EQ((*back)->warnings().empty(), std::string_view(named.word) != "fp8-tensor");
  const auto config = json::ParseFile((out / "config.json").string());
  ASSERT_TRUE(config);
  const json::Value* quantization = config->Find("quantization_config");
  EXPECT_EQ(*quantization->Find("quant_method")->AsString(), named.method);
  const bool ours = std::string_view(named.stored_as).starts_with("nibble");
  EXPECT_EQ(*quantization->Find("format")->AsString() == "nibble-codebook", ours);
  if (named.strategy != nullptr) {
    const json::Value* group = quantization->Find("config_groups")->Find("group_0");
    EXPECT_EQ(*group->Find("weights")->Find("strategy")->AsString(), named.strategy);
  }
}

TEST_F(Quantize, EverySchemeIsWrittenReadBackAndServed) {
  int number = 0;
  for (const NamedScheme& named : kNamedSchemes) {
    options_.scheme = SchemeOf(named);
    const fs::path out = temp_.path() / fmt::format("{}-{}", named.word, ++number);
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << named.word << ": " << summary.error().message;
    const auto served = Serve(out, ActivationMode::kInt16);
    EXPECT_TRUE(served) << named.word << ": " << served.error().message;
    ExpectFolderOf(named, out);
  }
}

// q, k and v are one matrix to some consumers, and so are gate and up.
TEST_F(Quantize, MatricesOfOneInputShareTheDivisorOfNvfp4) {
  options_.scheme = *ParseScheme("nvfp4");
  for (const bool calibrated : {false, true}) {
    const fs::path file = temp_.path() / "calibration.txt";
    std::ofstream(file) << DefaultCertificateText();
    auto set = LoadCalibration(file, *source_, *tokenizer_, {.num_samples = 2, .length = 32});
    ASSERT_TRUE(set) << set.error().message;
    options_.calibration = calibrated ? &*set : nullptr;
    const fs::path out = temp_.path() / (calibrated ? "gptq" : "rtn");
    ASSERT_TRUE(Run(out));
    const auto back = Checkpoint::Open(out.string());
    ASSERT_TRUE(back);
    const auto divisor = [&](const std::string& linear) {
      const auto rows =
          (*back)->ReadRows(*(*back)->Find("model.layers.0." + linear + ".weight"), 0, 1);
      EXPECT_TRUE(rows);
      return rows->scale_divisor;
    };
    EXPECT_EQ(divisor("self_attn.q_proj"), divisor("self_attn.k_proj"));
    EXPECT_EQ(divisor("self_attn.q_proj"), divisor("self_attn.v_proj"));
    EXPECT_EQ(divisor("mlp.gate_proj"), divisor("mlp.up_proj"));
    EXPECT_NE(divisor("mlp.gate_proj"), divisor("mlp.down_proj"));
  }
}

TEST_F(Quantize, SchemesThatNoOtherFormatHoldsSayWhereTheyGo) {
  const struct {
    const char* word;
    ModelFormat format;
    const char* says;
  } kCases[] = {
      {"log4", ModelFormat::kCompressedTensors, "only --format nibble"},
      {"log3", ModelFormat::kGguf, "no block type of GGUF"},
      {"fp8-e5m2", ModelFormat::kGptq, "only --format nibble"},
      {"mxfp4", ModelFormat::kBitsandbytes, "written as compressed-tensors"},
      {"nvfp4", ModelFormat::kNibble, "written as compressed-tensors"},
      {"int4", ModelFormat::kNibble, "leave out --format"},
  };
  for (const auto& one : kCases) {
    options_.scheme = *ParseScheme(one.word);
    options_.format = one.format;
    const auto refused = Run(temp_.path() / "out");
    ASSERT_FALSE(refused) << one.word;
    EXPECT_NE(refused.error().message.find(one.says), std::string::npos) << refused.error().message;
  }
  options_.format.reset();
  options_.scheme = *ParseScheme("log4");
  options_.scheme.group_size = kWholeTensor;
  const auto whole = Run(temp_.path() / "out");
  ASSERT_FALSE(whole);
  EXPECT_NE(whole.error().message.find("no scale for a whole tensor"), std::string::npos)
      << whole.error().message;
}

TEST_F(QuantizeGptqModel, Nf4AndZeroPointsAndWholeRowsAndEightBitsWorkToo) {
  for (const auto& [bits, group, symmetric, codebook] : {std::tuple{4, 32, true, Codebook::kNf4},
                                                         {4, 0, true, Codebook::kNone},
                                                         {4, 32, false, Codebook::kNone},
                                                         {8, 32, true, Codebook::kNone}}) {
    options_.scheme.bits = bits;
    options_.scheme.group_size = group;
    options_.scheme.symmetric = symmetric;
    options_.scheme.codebook = codebook;
    const fs::path out = temp_.path() / (std::to_string(bits) + std::to_string(group) +
                                         std::to_string(symmetric) + Name(codebook));
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    const auto served = Serve(out, ActivationMode::kInt16);
    EXPECT_TRUE(served) << served.error().message;
    options_.method = QuantizeMethod::kRtn;
    const auto rounded = Run(out.string() + "-rtn");
    options_.method = QuantizeMethod::kGptq;
    ASSERT_TRUE(rounded) << rounded.error().message;
    EXPECT_LT(summary->certificate.int16.kl_mean, rounded->certificate.int16.kl_mean)
        << out.filename();
  }
}

TEST_F(QuantizeGptqModel, EverySchemeIsSolvedBetterThanRounded) {
  int number = 0;
  for (const NamedScheme& named : kNamedSchemes) {
    options_.scheme = SchemeOf(named);
    options_.method = QuantizeMethod::kGptq;
    const fs::path out = temp_.path() / fmt::format("{}-{}", named.word, ++number);
    const auto solved = Run(out);
    ASSERT_TRUE(solved) << named.word << ": " << solved.error().message;
    const auto served = Serve(out, ActivationMode::kInt16);
    EXPECT_TRUE(served) << named.word << ": " << served.error().message;
    ExpectFolderOf(named, out);
    options_.method = QuantizeMethod::kRtn;
    const auto rounded = Run(out.string() + "-rtn");
    ASSERT_TRUE(rounded) << named.word << ": " << rounded.error().message;
    EXPECT_LT(solved->certificate.int16.kl_mean, rounded->certificate.int16.kl_mean) << named.word;
  }
}

TEST_F(QuantizeGptqModel, Fp8IsSolvedOrRoundedForItsInputs) {
  options_.scheme = *ParseScheme("fp8");
  const auto solved = Run(temp_.path() / "solved");
  ASSERT_TRUE(solved) << solved.error().message;
  EXPECT_TRUE(Serve(temp_.path() / "solved", ActivationMode::kInt16));
  options_.method = QuantizeMethod::kAuto;
  const auto weighted = Run(temp_.path() / "weighted");
  ASSERT_TRUE(weighted) << weighted.error().message;
  EXPECT_EQ(*weighted->certificate.recipe.Find("method")->AsString(), "rtn");
  EXPECT_LT(solved->certificate.int16.kl_mean, weighted->certificate.int16.kl_mean);
}

TEST_F(QuantizeGptqModel, EveryNumberOfBitsIsWrittenAndServed) {
  double last = 1e9;
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    options_.scheme.bits = bits;
    const fs::path out = temp_.path() / std::to_string(bits);
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    const auto served = Serve(out, ActivationMode::kInt16);
    EXPECT_TRUE(served) << served.error().message;
    EXPECT_LT(summary->certificate.int16.kl_mean, last) << bits << " bits";
    last = summary->certificate.int16.kl_mean;
  }
}

}  // namespace
}  // namespace nibble
