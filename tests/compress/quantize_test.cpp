#include "compress/quantize.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "compress/block_walk.h"
#include "io/safetensors.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path Golden(const std::string& name) {
  return fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
}

std::string Slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// llama3 is the tiny model that has a tokenizer.
class Quantize : public ::testing::Test {
 protected:
  void SetUp() override {
    auto source = Checkpoint::Open(Golden("llama3").string());
    ASSERT_TRUE(source) << source.error().message;
    source_ = std::move(*source);
    auto tokenizer = Tokenizer::FromFolder(Golden("llama3").string());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_ = std::move(*tokenizer);
    options_.text = std::string(DefaultCertificateText());
    options_.text_name = "prose";
    options_.text_context = 64;
    options_.max_windows = 3;
    options_.scheme.group_size = 32;
  }
  Result<QuantizeSummary> Run(const fs::path& out, const QuantizeProgress& progress = {}) {
    return QuantizeCheckpoint(*source_, *tokenizer_, out, options_, 2, progress);
  }
  // Opens, verifies and loads like `serve` does.
  static Result<void> Serve(const fs::path& folder, ActivationMode mode) {
    NIBBLE_TRY(checkpoint, Checkpoint::Open(folder.string()));
    NIBBLE_TRY(certificate, LoadCertificate(*checkpoint));
    if (!certificate) {
      return Fail(ErrorCode::kNotFound, "no certificate");
    }
    const auto device = MakeCpuDevice(1);
    NIBBLE_TRY(runner, ModelRunner::Create(*checkpoint,
                                           {.max_num_sequences = 1,
                                            .max_batched_tokens = 8,
                                            .max_model_len = 32,
                                            .activations = mode},
                                           *device, TensorHashes(*certificate)));
    NIBBLE_TRY(replay, ReplayGoldenLogits(*certificate, *runner));
    EXPECT_EQ(replay.difference, 0.0F);
    return {};
  }

  std::unique_ptr<Checkpoint> source_;
  std::unique_ptr<Tokenizer> tokenizer_;
  QuantizeOptions options_;
  testing::TempFolder temp_;
};

TEST_F(Quantize, EveryFormatIsVerifiedAndServed) {
  const struct {
    ModelFormat format;
    int bits;
    std::int64_t group_size;
    bool symmetric;
    Codebook codebook;
    std::optional<GgufType> block_type;
    const char* stored_as;
  } kCases[] = {
      {ModelFormat::kGptq, 4, 32, true, Codebook::kNone, {}, "gptq int4"},
      {ModelFormat::kGptqV2, 3, 32, false, Codebook::kNone, {}, "gptq_v2 int3"},
      {ModelFormat::kAwq, 4, 64, false, Codebook::kNone, {}, "awq int4"},
      {ModelFormat::kBitsandbytes, 4, 0, true, Codebook::kFp4, {}, "bitsandbytes fp4"},
      {ModelFormat::kBitsandbytesNested,
       4,
       0,
       true,
       Codebook::kNf4,
       {},
       "bitsandbytes nf4, nested"},
      {ModelFormat::kBitsandbytes, 8, 0, true, Codebook::kNone, {}, "bitsandbytes int8"},
      {ModelFormat::kGguf, 4, 32, true, Codebook::kNone, {}, "Q4_0"},
      {ModelFormat::kGguf, 4, 32, true, Codebook::kNone, GgufType::kQ5_1, "Q5_1"},
      // Rows of 64 are no block of 256: llama.cpp's stand-in.
      {ModelFormat::kGguf, 4, 32, true, Codebook::kNone, GgufType::kQ4_K, "Q5_0"},
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
    ModelFormat format;
    int bits;
    bool symmetric;
    Codebook codebook;
    const char* says;
  } kCases[] = {
      {ModelFormat::kGptq, 4, false, Codebook::kNone, "gptq_v2"},
      {ModelFormat::kGptqV2, 5, true, Codebook::kNone, "2, 3, 4 or 8"},
      {ModelFormat::kAwq, 8, true, Codebook::kNone, "AWQ"},
      {ModelFormat::kGptq, 4, true, Codebook::kNf4, "GPTQ"},
      {ModelFormat::kBitsandbytes, 4, true, Codebook::kNone, "bitsandbytes"},
      {ModelFormat::kGguf, 6, true, Codebook::kNone, "q6_k"},
      {ModelFormat::kSafetensors, 4, true, Codebook::kNone, "nibble convert"},
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

TEST_F(Quantize, TheResultIsVerifiedAndReplaysItsLogitsInBothModes) {
  const auto summary = Run(temp_.path() / "out");
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(summary->certificate.recipe.Find("group_size")->AsInt(), 32);
  EXPECT_GT(summary->certificate.int16.kl_mean, 0.0);
  EXPECT_NEAR(summary->bits_per_weight, 4.5, 1e-9);
  for (const ActivationMode mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
    const auto served = Serve(temp_.path() / "out", mode);
    EXPECT_TRUE(served) << served.error().message;
  }
  const auto log = json::ParseFile((temp_.path() / "out" / "quantization_log.json").string());
  ASSERT_TRUE(log);
  const json::Value* entry = log->Find("model.layers.0.mlp.down_proj.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_GT(entry->Find("relative_rms_error")->AsDouble().value_or(0), 0.0);
}

// What a card's replay rests on: another rounding of the same model stays within its tolerance, and
// the scales of one matrix, off by a factor of two, do not.
TEST_F(Quantize, RoundingIsWithinTheCardsToleranceAndAWrongScaleIsNot) {
  ASSERT_TRUE(Run(temp_.path() / "out"));
  const fs::path weights = temp_.path() / "out" / "model.safetensors";
  const std::string whole = Slurp(weights);
  const auto replay = [&](KvDType kv_dtype) -> Result<float> {
    NIBBLE_TRY(checkpoint, Checkpoint::Open((temp_.path() / "out").string()));
    NIBBLE_TRY(certificate, LoadCertificate(*checkpoint));
    const auto device = MakeCpuDevice(1);
    NIBBLE_TRY(runner, ModelRunner::Create(*checkpoint,
                                           {.max_num_sequences = 1, .max_model_len = 32}, *device));
    NIBBLE_TRY(logits, runner->LastLogits(certificate->golden_prompt, kv_dtype));
    return CompareGoldenLogits(certificate->golden_int16, logits, kGoldenTolerance);
  };
  const auto exact = replay(KvDType::kBF16);
  ASSERT_TRUE(exact) << exact.error().message;
  EXPECT_EQ(*exact, 0.0F);
  const auto unrounded = replay(KvDType::kF32);
  ASSERT_TRUE(unrounded) << unrounded.error().message;
  EXPECT_GT(*unrounded, 0.0F);
  EXPECT_LT(*unrounded, kGoldenTolerance / 4.0F);
  RecordProperty("unrounded", fmt::format("{:.2e}", *unrounded));
  auto file = SafetensorsFile::Open(weights);
  ASSERT_TRUE(file) << file.error().message;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    if (!entry.name.ends_with("weight_scale")) {
      continue;
    }
    ASSERT_EQ(entry.dtype, DType::kF16);
    std::string damaged = whole;
    const TensorView view = (*file)->View(entry);
    const auto begin = static_cast<std::size_t>(view.bytes.data() - (*file)->file().bytes().data());
    for (std::size_t i = 1; i < view.bytes.size(); i += 2) {
      damaged[begin + i] = static_cast<char>(damaged[begin + i] + 4);  // one more in the exponent
    }
    std::ofstream(weights, std::ios::binary) << damaged;
    EXPECT_FALSE(replay(KvDType::kBF16)) << entry.name;
  }
}

TEST_F(Quantize, DamageAnywhereInTheFolderIsRefused) {
  ASSERT_TRUE(Run(temp_.path() / "out"));
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(temp_.path() / "out")) {
    files[entry.path().filename().string()] = Slurp(entry.path());
  }
  ASSERT_GE(files.size(), 6U);
  for (const auto& [name, text] : files) {
    const std::size_t step = text.size() / 23 + 1;
    for (std::size_t at = 0; at < text.size(); at += step) {
      std::string damaged = text;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      std::ofstream(temp_.path() / "out" / name, std::ios::binary) << damaged;
      ASSERT_FALSE(Serve(temp_.path() / "out", ActivationMode::kInt16))
          << name << " at byte " << at;
    }
    std::ofstream(temp_.path() / "out" / name, std::ios::binary) << text.substr(0, text.size() / 2);
    ASSERT_FALSE(Serve(temp_.path() / "out", ActivationMode::kInt16)) << name << " cut in half";
    fs::remove(temp_.path() / "out" / name);
    ASSERT_FALSE(Serve(temp_.path() / "out", ActivationMode::kInt16)) << name << " taken away";
    std::ofstream(temp_.path() / "out" / name, std::ios::binary) << text;
  }
  const auto whole = Serve(temp_.path() / "out", ActivationMode::kInt16);
  EXPECT_TRUE(whole) << whole.error().message;
}

TEST_F(Quantize, AnInterruptedRunGoesOnAndGivesTheSameBytes) {
  options_.shard_bytes = 40'000;  // several shards, so that some are done when it stops
  ASSERT_TRUE(Run(temp_.path() / "whole"));
  const auto stopped = Run(temp_.path() / "resumed", [](std::string_view phase, std::uint64_t done,
                                                        std::uint64_t total, const std::string&) {
    return phase != "quantizing" || done < total / 2;
  });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_FALSE(fs::exists(temp_.path() / "resumed"));
  const auto resumed = Run(temp_.path() / "resumed");
  ASSERT_TRUE(resumed) << resumed.error().message;
  for (const auto& entry : fs::directory_iterator(temp_.path() / "whole")) {
    EXPECT_EQ(Slurp(entry.path()), Slurp(temp_.path() / "resumed" / entry.path().filename()))
        << entry.path();
  }
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

TEST_F(Quantize, WhatIsQuantizedAlreadyIsRefusedUnlessAskedFor) {
  ASSERT_TRUE(Run(temp_.path() / "first"));
  auto first = Checkpoint::Open((temp_.path() / "first").string());
  ASSERT_TRUE(first) << first.error().message;
  source_ = std::move(*first);
  const auto refused = Run(temp_.path() / "second");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("quantized already"), std::string::npos);
  options_.allow_requantize = true;
  EXPECT_TRUE(Run(temp_.path() / "second"));
}

TEST_F(Quantize, NothingIsOverwritten) {
  fs::create_directory(temp_.path() / "out");
  bool began = false;
  const auto refused = Run(temp_.path() / "out", [&](auto&&...) { return began = true; });
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("exists already"), std::string::npos);
  EXPECT_FALSE(began) << "said after the source was read";
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

Recipe RecipeOf(std::string_view text) {
  auto recipe = ParseRecipe(text, "r.yaml");
  EXPECT_TRUE(recipe) << recipe.error().message;
  return recipe ? *std::move(recipe) : Recipe{};
}

TEST_F(Quantize, TheExampleOfMixedPrecisionIsWrittenReadBackAndServed) {
  options_.recipe = RecipeOf(Slurp(fs::path(NIBBLE_SOURCE_DIR) / "examples/mixed_precision.yaml"));
  const fs::path out = temp_.path() / "mixed";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  for (const ActivationMode mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
    const auto served = Serve(out, mode);
    EXPECT_TRUE(served) << served.error().message;
  }
  const auto back = Checkpoint::Open(out.string());
  ASSERT_TRUE(back) << back.error().message;
  std::uint64_t bits = 0, elements = 0;
  for (const ExpectedWeight& weight : ExpectedWeights(source_->config())) {
    if (!weight.is_linear) {
      continue;
    }
    const WeightSpec& spec = (*back)->Find(weight.name)->spec;
    const bool attention = weight.name.find("self_attn") != std::string::npos;
    EXPECT_EQ(spec.bits, attention ? 4 : 8) << weight.name;
    EXPECT_EQ(spec.group_size, attention ? 32 : 64) << weight.name;
    elements += static_cast<std::uint64_t>(weight.rows * weight.cols);
    bits += static_cast<std::uint64_t>(weight.rows * weight.cols * spec.bits +
                                       weight.rows * spec.num_groups() * 16);
  }
  EXPECT_DOUBLE_EQ(summary->bits_per_weight,
                   static_cast<double>(bits) / static_cast<double>(elements));
  const auto config = json::ParseFile((out / "config.json").string());
  ASSERT_TRUE(config);
  EXPECT_EQ(config->Find("quantization_config")->Find("config_groups")->AsObject()->size(), 2U);
  EXPECT_EQ(*summary->certificate.recipe.Find("recipe")->Find("scheme")->AsString(), "int8");
}

TEST_F(Quantize, ARecipeKeepsWhatItSkipsAndQuantizesATableThatItNames) {
  options_.recipe = RecipeOf(
      "group_size: 32\n"
      "modules:\n"
      "  - {match: '*.mlp.*', skip: true}\n"
      "  - {match: model.embed_tokens, bits: 8}\n");
  const fs::path out = temp_.path() / "skipped";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
  const auto back = Checkpoint::Open(out.string());
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ((*back)->Find("model.layers.0.mlp.up_proj.weight")->spec.kind, CodecKind::kFloat);
  EXPECT_EQ((*back)->Find("model.layers.0.self_attn.v_proj.weight")->spec.bits, 4);
  EXPECT_EQ((*back)->Find("model.embed_tokens.weight")->spec.bits, 8);
  EXPECT_EQ(summary->certificate.tables_stored, "w8 g32 sym");
}

TEST_F(Quantize, AMixThatTheFormatCannotHoldNamesTheRuleAndTheTensor) {
  options_.recipe = RecipeOf("group_size: 32\nmodules:\n  - {match: '*.down_proj', scheme: nf4}\n");
  options_.format = ModelFormat::kCompressedTensors;
  const auto refused = Run(temp_.path() / "out");
  ASSERT_FALSE(refused);
  for (const char* word : {"r.yaml:3", "model.layers.0.mlp.down_proj", "nf4"}) {
    EXPECT_NE(refused.error().message.find(word), std::string::npos) << refused.error().message;
  }
  options_.recipe = RecipeOf("modules:\n  - {match: '*.down_proj', group_size: 48}\n");
  const auto uneven = Run(temp_.path() / "out");
  ASSERT_FALSE(uneven);
  EXPECT_NE(uneven.error().message.find("r.yaml:2: groups of 48"), std::string::npos)
      << uneven.error().message;
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

TEST_F(Quantize, Fp8AndIntegersMixInOneFolder) {
  options_.recipe = RecipeOf(
      "scheme: fp8\nmodules:\n  - {match: '*.self_attn.*', scheme: int4, group_size: 32}\n");
  const fs::path out = temp_.path() / "mixed";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
  const auto config = json::ParseFile((out / "config.json").string());
  ASSERT_TRUE(config);
  EXPECT_EQ(*config->Find("quantization_config")->Find("format")->AsString(), "mixed-precision");
}

// The tiny model calibrated on the built-in prose.
class QuantizeGptqModel : public Quantize {
 protected:
  void SetUp() override {
    Quantize::SetUp();
    const fs::path file = temp_.path() / "calibration.txt";
    std::ofstream(file) << DefaultCertificateText();
    auto set = LoadCalibration(file, *source_, *tokenizer_, {.num_samples = 8, .length = 48});
    ASSERT_TRUE(set) << set.error().message;
    calibration_ = std::move(*set);
    options_.method = QuantizeMethod::kGptq;
    options_.calibration = &calibration_;
  }
  Result<QuantizeSummary> RunOn(int threads, const fs::path& out,
                                const QuantizeProgress& progress = {}) {
    return QuantizeCheckpoint(*source_, *tokenizer_, out, options_, threads, progress);
  }
  void ExpectSameFolder(const fs::path& a, const fs::path& b) {
    std::size_t files = 0;
    for (const auto& entry : fs::directory_iterator(a)) {
      EXPECT_EQ(Slurp(entry.path()), Slurp(b / entry.path().filename())) << entry.path();
      ++files;
    }
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(b)) {
      --files;
    }
    EXPECT_EQ(files, 0U);
  }
  CalibrationSet calibration_;
};

TEST_F(QuantizeGptqModel, BeatsRoundingAndSaysHowItWasMade) {
  const auto solved = Run(temp_.path() / "gptq");
  ASSERT_TRUE(solved) << solved.error().message;
  options_.correct_inputs = false;
  const auto uncorrected = Run(temp_.path() / "uncorrected");
  ASSERT_TRUE(uncorrected) << uncorrected.error().message;
  options_.method = QuantizeMethod::kRtn;
  options_.calibration = nullptr;
  const auto rounded = Run(temp_.path() / "rtn");
  ASSERT_TRUE(rounded) << rounded.error().message;
  EXPECT_LT(solved->certificate.int16.kl_mean, 0.7 * rounded->certificate.int16.kl_mean);
  EXPECT_LT(uncorrected->certificate.int16.kl_mean, 0.9 * rounded->certificate.int16.kl_mean);
  const json::Value& recipe = solved->certificate.recipe;
  EXPECT_EQ(*recipe.Find("method")->AsString(), "gptq");
  const json::Value* identity = recipe.Find("calibration");
  ASSERT_NE(identity, nullptr);
  EXPECT_EQ(identity->Find("samples")->AsInt(), 8);
  EXPECT_EQ(identity->Find("tokens_sha256")->AsString()->size(), 64U);
  for (const ActivationMode mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
    const auto served = Serve(temp_.path() / "gptq", mode);
    EXPECT_TRUE(served) << served.error().message;
  }
  const auto log = json::ParseFile((temp_.path() / "gptq" / "quantization_log.json").string());
  ASSERT_TRUE(log);
  const json::Value* entry = log->Find("model.layers.1.mlp.down_proj.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_GT(entry->Find("relative_output_error")->AsDouble().value_or(0), 0.0);
}

TEST_F(QuantizeGptqModel, TheNumberOfThreadsChangesNoByte) {
  ASSERT_TRUE(RunOn(1, temp_.path() / "one"));
  ASSERT_TRUE(RunOn(2, temp_.path() / "two"));
  ASSERT_TRUE(RunOn(5, temp_.path() / "five"));
  ExpectSameFolder(temp_.path() / "one", temp_.path() / "two");
  ExpectSameFolder(temp_.path() / "one", temp_.path() / "five");
}

TEST_F(QuantizeGptqModel, ATruthOfEveryFourthWindowIsEnoughAndSurvivesAStop) {
  options_.truth_tokens = 2 * calibration_.length;
  const auto solved = RunOn(1, temp_.path() / "one");
  ASSERT_TRUE(solved) << solved.error().message;
  const fs::path stopped = temp_.path() / "stopped";
  ASSERT_FALSE(
      Run(stopped, [](std::string_view now, std::uint64_t done, std::uint64_t total,
                      const std::string&) { return now != "calibrating" || 2 * done < total; }));
  ASSERT_TRUE(Run(stopped));
  ExpectSameFolder(temp_.path() / "one", stopped);
  options_.method = QuantizeMethod::kRtn;
  options_.calibration = nullptr;
  const auto rounded = Run(temp_.path() / "rtn");
  ASSERT_TRUE(rounded) << rounded.error().message;
  EXPECT_LT(solved->certificate.int16.kl_mean, 0.8 * rounded->certificate.int16.kl_mean);
}

TEST_F(QuantizeGptqModel, StoppedAnywhereItGoesOnToTheSameBytes) {
  options_.shard_bytes = 40'000;
  ASSERT_TRUE(Run(temp_.path() / "whole"));
  int number = 0;
  struct Moment {
    std::string_view phase;
    double share;
  };
  for (const Moment moment :
       {Moment{"calibrating", 0.3}, Moment{"calibrating", 0.55}, Moment{"calibrating", 0.99},
        Moment{"quantizing", 0.1}, Moment{"quantizing", 0.7}, Moment{"measuring", 0.5}}) {
    const fs::path out = temp_.path() / ("stopped-" + std::to_string(number++));
    const auto stopped = Run(out, [&](std::string_view now, std::uint64_t done, std::uint64_t total,
                                      const std::string&) {
      return now != moment.phase ||
             static_cast<double>(done) < moment.share * static_cast<double>(total);
    });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    EXPECT_FALSE(fs::exists(out));
    const auto resumed = Run(out);
    ASSERT_TRUE(resumed) << resumed.error().message;
    ExpectSameFolder(temp_.path() / "whole", out);
  }
}

TEST_F(QuantizeGptqModel, BlocksThatLearnComeCloserOnAnyNumberOfThreadsAndSurviveStops) {
  options_.method = QuantizeMethod::kLearned;
  options_.scheme.bits = 2;
  options_.learn_iterations = 40;
  options_.learn_batch_tokens = 96;
  const auto whole = RunOn(1, temp_.path() / "whole");
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_EQ(*whole->certificate.recipe.Find("method")->AsString(), "learned");
  for (const char* name :
       {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"}) {
    const json::Value* entry = whole->log.Find(name);
    ASSERT_NE(entry, nullptr);
    EXPECT_LT(entry->Find("block_error")->AsDouble().value_or(1.0),
              0.9 * entry->Find("block_error_before")->AsDouble().value_or(0.0));
  }
  EXPECT_TRUE(Serve(temp_.path() / "whole", ActivationMode::kInt16));
  ASSERT_TRUE(RunOn(3, temp_.path() / "three"));
  ExpectSameFolder(temp_.path() / "whole", temp_.path() / "three");
  for (const double share : {0.2, 0.4, 0.8}) {
    const fs::path out = temp_.path() / fmt::format("stopped-{}", share);
    const auto stopped = Run(out, [&](std::string_view now, std::uint64_t done, std::uint64_t total,
                                      const std::string&) {
      return now != "calibrating" || static_cast<double>(done) < share * static_cast<double>(total);
    });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    ASSERT_TRUE(Run(out));
    ExpectSameFolder(temp_.path() / "whole", out);
  }
}

TEST_F(QuantizeGptqModel, TablesAndZeroPointsLearnToo) {
  options_.method = QuantizeMethod::kLearned;
  options_.learn_iterations = 10;
  options_.scheme.symmetric = false;
  options_.scheme.bits = 3;
  ASSERT_TRUE(Run(temp_.path() / "asym"));
  EXPECT_TRUE(Serve(temp_.path() / "asym", ActivationMode::kInt16));
  options_.scheme.symmetric = true;
  options_.scheme = {.group_size = kNf4Group, .codebook = Codebook::kNf4};
  ASSERT_TRUE(Run(temp_.path() / "nf4"));
  EXPECT_TRUE(Serve(temp_.path() / "nf4", ActivationMode::kInt16));
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

TEST_F(QuantizeGptqModel, FoldedScalesAndAStopGoWithTablesToo) {
  for (const char* word : {"log3", "nvfp4"}) {
    options_.scheme = *ParseScheme(word);
    options_.method = QuantizeMethod::kAwqGptq;
    const fs::path whole = temp_.path() / word;
    const auto summary = Run(whole);
    ASSERT_TRUE(summary) << word << ": " << summary.error().message;
    EXPECT_TRUE(Serve(whole, ActivationMode::kInt16)) << word;
    // Stopped after its blocks were solved, which then come from their files.
    const fs::path stopped = temp_.path() / (std::string(word) + "-stopped");
    const auto half = Run(stopped, [](std::string_view phase, std::uint64_t, std::uint64_t,
                                      const std::string&) { return phase != "quantizing"; });
    ASSERT_FALSE(half);
    ASSERT_TRUE(Run(stopped));
    ExpectSameFolder(whole, stopped);
  }
}

TEST_F(QuantizeGptqModel, RoundingFollowsTheInputsIfItIsToldThem) {
  options_.method = QuantizeMethod::kRtn;
  const auto weighted = Run(temp_.path() / "weighted");
  ASSERT_TRUE(weighted) << weighted.error().message;
  EXPECT_EQ(*weighted->certificate.recipe.Find("search_scale")->AsString(), "mean(x^2)");
  EXPECT_NE(weighted->certificate.recipe.Find("calibration"), nullptr);
  EXPECT_TRUE(Serve(temp_.path() / "weighted", ActivationMode::kInt16));
  options_.calibration = nullptr;
  const auto plain = Run(temp_.path() / "plain");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_LT(weighted->certificate.int16.kl_mean, plain->certificate.int16.kl_mean);
}

TEST_F(QuantizeGptqModel, ScalesAreFoldedInAndSurviveAStop) {
  for (const QuantizeMethod method :
       {QuantizeMethod::kAwq, QuantizeMethod::kAwqGptq, QuantizeMethod::kSmoothQuant}) {
    options_.method = method;
    options_.scheme.bits = 8;  // so that a scale that is folded in on one side only would show
    const fs::path out = temp_.path() / Name(method);
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    EXPECT_LT(summary->certificate.int16.kl_mean, 0.03);
    EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
    const fs::path again = temp_.path() / (std::string(Name(method)) + "-again");
    for (const std::string_view phase : {"scaling", "calibrating"}) {
      const auto stopped =
          Run(again, [&](std::string_view now, std::uint64_t done, std::uint64_t total,
                         const std::string&) { return now != phase || done < total / 2; });
      ASSERT_FALSE(stopped);
      EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    }
    ASSERT_TRUE(Run(again));
    ExpectSameFolder(out, again);
    // The norms carry the scales.
    const auto quantized = Checkpoint::Open(out.string());
    ASSERT_TRUE(quantized);
    const auto norm = [](const Checkpoint& checkpoint) {
      const WeightInfo* info = checkpoint.Find("model.layers.0.input_layernorm.weight");
      return checkpoint.ReadRows(*info, 0, 1)->values;
    };
    const std::vector<float> before = norm(*source_);
    const std::vector<float> after = norm(**quantized);
    float change = 0.0F;
    for (std::size_t i = 0; i < before.size(); ++i) {
      change = std::max(change, std::abs(after[i] / before[i] - 1.0F));
    }
    EXPECT_GT(change, 0.02F);
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

TEST_F(QuantizeGptqModel, MixedModulesAreSolvedTogetherAndAStopChangesNothing) {
  options_.method = QuantizeMethod::kAuto;
  // Two sizes of groups and a rounded linear meet in one input, a float and a solved one in
  // another.
  options_.recipe = RecipeOf(
      "modules:\n"
      "  - {match: '*.q_proj', bits: 3, group_size: 32}\n"
      "  - {match: '*.k_proj', bits: 8}\n"
      "  - {match: '*.v_proj', bits: 4, group_size: 64}\n"
      "  - {match: '*.o_proj', bits: 4, method: rtn}\n"
      "  - {match: '*.up_proj', skip: true}\n");
  const fs::path out = temp_.path() / "mixed";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(*summary->certificate.recipe.Find("method")->AsString(), "gptq");
  EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
  const auto log = json::ParseFile((out / "quantization_log.json").string());
  ASSERT_TRUE(log);
  const auto solved = [&](const char* linear) {
    const json::Value* entry = log->Find(WeightName(0, linear));
    return entry != nullptr && entry->Find("relative_output_error") != nullptr;
  };
  EXPECT_TRUE(solved("self_attn.q_proj"));
  EXPECT_FALSE(solved("self_attn.k_proj"));
  EXPECT_TRUE(solved("self_attn.v_proj"));
  EXPECT_FALSE(solved("self_attn.o_proj"));
  EXPECT_TRUE(solved("mlp.gate_proj"));
  EXPECT_EQ(log->Find(WeightName(0, "mlp.up_proj")), nullptr);
  const fs::path again = temp_.path() / "again";
  const auto stopped =
      Run(again, [](std::string_view now, std::uint64_t done, std::uint64_t total,
                    const std::string&) { return now != "calibrating" || done < total * 3 / 4; });
  ASSERT_FALSE(stopped);
  ASSERT_TRUE(Run(again));
  ExpectSameFolder(out, again);
  // Solved alone, all at the same grid, the modules lose more than the mix does.
  options_.recipe = RecipeOf("method: rtn\nbits: 3\ngroup_size: 32\n");
  const auto rounded = Run(temp_.path() / "rounded");
  ASSERT_TRUE(rounded) << rounded.error().message;
  EXPECT_LT(summary->certificate.int16.kl_mean, rounded->certificate.int16.kl_mean);
}

TEST_F(QuantizeGptqModel, ABudgetIsKeptAndItsRecipeGivesTheSameWeights) {
  options_.method = QuantizeMethod::kAuto;
  options_.budget = *ParseBudget("4.9bpw");
  options_.candidates = {
      {.bits = 3, .group_size = 32}, {.bits = 4, .group_size = 32}, {.bits = 8, .group_size = 64}};
  const fs::path out = temp_.path() / "searched";
  const auto summary = Run(out);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_LE(summary->bits_per_weight, 4.9);
  EXPECT_GT(summary->bits_per_weight, 4.5);
  EXPECT_TRUE(Serve(out, ActivationMode::kInt16));
  EXPECT_EQ(*summary->certificate.recipe.Find("budget")->AsString(), "4.9bpw");
  for (const auto& entry : fs::directory_iterator(out)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("sensitivity")) << entry.path();
  }
  // Better than the uniform grid of at least as many bits that is nearest.
  QuantizeOptions uniform = options_;
  std::swap(uniform, options_);
  options_.budget.reset();
  options_.scheme = {.bits = 4, .group_size = 32};
  const auto plain = Run(temp_.path() / "uniform");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_LT(summary->certificate.int16.kl_mean, plain->certificate.int16.kl_mean);
  // Its recipe, given by hand.
  options_.recipe = RecipeOf(Slurp(out / "recipe.yaml"));
  const fs::path again = temp_.path() / "again";
  ASSERT_TRUE(Run(again));
  EXPECT_EQ(Slurp(out / "model.safetensors"), Slurp(again / "model.safetensors"));
  // Stopped while it measures and while it solves.
  std::swap(uniform, options_);
  const fs::path stopped = temp_.path() / "stopped";
  for (const std::string_view phase : {"measuring sensitivity", "calibrating"}) {
    const auto half =
        Run(stopped, [&](std::string_view now, std::uint64_t done, std::uint64_t total,
                         const std::string&) { return now != phase || done < total * 2 / 3; });
    ASSERT_FALSE(half);
    EXPECT_EQ(half.error().code, ErrorCode::kCancelled) << half.error().message;
  }
  ASSERT_TRUE(Run(stopped));
  ExpectSameFolder(out, stopped);
}

TEST_F(QuantizeGptqModel, ASizeOrAKlIsABudgetToo) {
  options_.candidates = {{.bits = 3, .group_size = 32}, {.bits = 8, .group_size = 64}};
  options_.budget = Budget{.bytes = 120'000, .text = "120kB"};
  const auto small = Run(temp_.path() / "small");
  ASSERT_TRUE(small) << small.error().message;
  EXPECT_LE(small->output_bytes, 120'000U);
  EXPECT_GT(small->output_bytes, 110'000U);
  options_.budget = Budget{.bytes = 1'000, .text = "1kB"};
  const auto never = Run(temp_.path() / "never");
  ASSERT_FALSE(never);
  EXPECT_NE(never.error().message.find("the budget leaves 0"), std::string::npos)
      << never.error().message;
  fs::remove_all(temp_.path() / ".never.partial");
  options_.budget = Budget{.max_kl = 0.2, .text = "a KL of 0.2"};
  const auto good = Run(temp_.path() / "good");
  ASSERT_TRUE(good) << good.error().message;
  EXPECT_LT(good->bits_per_weight, 8.25);
  options_.calibration = nullptr;
  const auto blind = Run(temp_.path() / "blind");
  ASSERT_FALSE(blind);
  EXPECT_NE(blind.error().message.find("--calibration"), std::string::npos);
}

TEST(ChooseMethod, SaysWhatAutoTakesAndWhatIsMissing) {
  const CalibrationSet set;
  const auto reason = [](const QuantizeOptions& options) {
    const auto choice = ChooseMethod(options);
    return choice ? Name(choice->method) + std::string(": ") + choice->reason
                  : choice.error().message;
  };
  EXPECT_EQ(reason({}), "rtn: there is no --calibration");
  EXPECT_NE(reason({.calibration = &set}).find("gptq: "), std::string::npos);
  EXPECT_NE(reason({.calibration = &set, .scheme = {.bits = 8}}).find("rtn: "), std::string::npos);
  EXPECT_NE(reason({.calibration = &set, .scheme = {.bits = 8, .codebook = Codebook::kNf4}})
                .find("gptq: "),
            std::string::npos);
  EXPECT_NE(reason({.method = QuantizeMethod::kGptq}).find("needs --calibration"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
