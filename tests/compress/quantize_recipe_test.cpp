#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "compress/block_walk.h"
#include "compress/quantize.h"
#include "model/weight_plan.h"
#include "tests/compress/quantize_fixture.h"
#include "tests/device/host_card.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::Quantize;
using testing::QuantizeGptqModel;

Recipe RecipeOf(std::string_view text) {
  auto recipe = ParseRecipe(text, "r.yaml");
  EXPECT_TRUE(recipe) << recipe.error().message;
  return recipe ? *std::move(recipe) : Recipe{};
}

TEST_F(Quantize, TheExampleOfMixedPrecisionIsWrittenReadBackAndServed) {
  options_.recipe =
      RecipeOf(temp_.Read(fs::path(NIBBLE_SOURCE_DIR) / "examples/mixed_precision.yaml"));
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

// A card reads single rows of an embedding, and no layout there stores those by a codebook.
TEST_F(Quantize, AnEmbeddingByACodebookRunsAsItsValuesOnACard) {
  const testing::HostCard card;
  for (const std::string scheme : {"nf4", "fp4", "log4", "fp8", "fp8-block", "mxfp4", "nvfp4"}) {
    options_.recipe =
        RecipeOf("scheme: " + scheme +
                 "\nmodules:\n  - {match: model.embed_tokens, scheme: " + scheme + "}\n");
    const fs::path out = temp_.path() / scheme;
    const auto summary = Run(out);
    ASSERT_TRUE(summary) << summary.error().message;
    const auto back = Checkpoint::Open(out.string());
    ASSERT_TRUE(back) << back.error().message;
    ASSERT_EQ((*back)->Find("model.embed_tokens.weight")->spec.kind, CodecKind::kCodebook);
    const auto plan = PlanWeights(**back, card, TableFormat::kAuto);
    ASSERT_TRUE(plan) << plan.error().message;
    EXPECT_NE(plan->Find("model.embed_tokens.weight")->packed.kind, CodecKind::kCodebook) << scheme;
    EXPECT_EQ(plan->Find("model.layers.0.mlp.up_proj.weight")->packed.kind, CodecKind::kCodebook);
  }
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
  options_.recipe = RecipeOf(temp_.Read(out / "recipe.yaml"));
  const fs::path again = temp_.path() / "again";
  ASSERT_TRUE(Run(again));
  EXPECT_EQ(temp_.Read(out / "model.safetensors"), temp_.Read(again / "model.safetensors"));
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
  EXPECT_EQ(small->output_bytes, fs::file_size(temp_.path() / "small" / "model.safetensors"));
  EXPECT_LE(small->output_bytes, 120'000U);
  EXPECT_GT(small->output_bytes, 110'000U);
  options_.budget = Budget{.max_kl = 0.2, .text = "a KL of 0.2"};
  const auto good = Run(temp_.path() / "good");
  ASSERT_TRUE(good) << good.error().message;
  EXPECT_LT(good->bits_per_weight, 8.25);
  options_.calibration = nullptr;
  const auto blind = Run(temp_.path() / "blind");
  ASSERT_FALSE(blind);
  EXPECT_NE(blind.error().message.find("--calibration"), std::string::npos);
}

// What no choice of candidates reaches is said before hours of measuring, in the budget's own unit,
// and nothing is left of it.
TEST_F(QuantizeGptqModel, ABudgetOutOfReachIsRefusedBeforeTheWork) {
  options_.method = QuantizeMethod::kAuto;
  options_.candidates = {{.bits = 3, .group_size = 32}, {.bits = 8, .group_size = 64}};
  const fs::path out = temp_.path() / "never";
  const auto refused = [&](Budget budget, const QuantizeProgress& progress = {}) {
    options_.budget = std::move(budget);
    const auto summary = Run(out, progress);
    EXPECT_FALSE(summary);
    EXPECT_FALSE(fs::exists(temp_.path() / ".never.partial"));
    EXPECT_FALSE(fs::exists(temp_.path() / ".never.partial.journal"));
    EXPECT_EQ(summary ? ErrorCode::kInternal : summary.error().code, ErrorCode::kInvalidArgument);
    return summary ? "" : summary.error().message;
  };
  const QuantizeProgress no_work = [](std::string_view now, std::uint64_t, std::uint64_t,
                                      const std::string&) {
    ADD_FAILURE() << now;
    return true;
  };
  const std::string bits = refused(*ParseBudget("0.5bpw"), no_work);
  EXPECT_NE(bits.find("--budget 0.5bpw"), std::string::npos) << bits;
  EXPECT_NE(bits.find("give 3.5bpw at least"), std::string::npos) << bits;
  const std::string bytes = refused(*ParseBudget("1kB"), no_work);
  EXPECT_NE(bytes.find("--budget 1kB"), std::string::npos) << bytes;
  const std::size_t give = bytes.find("give ");
  ASSERT_NE(give, std::string::npos) << bytes;
  const auto least = ParseBudget(bytes.substr(give + 5, bytes.find(" at least") - give - 5));
  ASSERT_TRUE(least) << least.error().message;
  const std::string kl = refused(Budget{.max_kl = 1e-12, .text = "a KL of 1e-12"});
  EXPECT_NE(kl.find("the largest candidates still cost"), std::string::npos) << kl;
  options_.budget = *least;
  const auto smallest = Run(temp_.path() / "smallest");
  ASSERT_TRUE(smallest) << smallest.error().message;
  EXPECT_EQ(fs::file_size(temp_.path() / "smallest" / "model.safetensors"), *least->bytes);
  EXPECT_DOUBLE_EQ(smallest->bits_per_weight, 3.5);
  // A GGUF file counts with its vocabulary.
  options_.candidates = {*ParseScheme("q4_0"), *ParseScheme("q8_0")};
  options_.budget = Budget{.bytes = 140'000, .text = "140kB"};
  const auto gguf = Run(temp_.path() / "gguf");
  ASSERT_TRUE(gguf) << gguf.error().message;
  EXPECT_EQ(fs::file_size(temp_.path() / "gguf" / "model.gguf"), gguf->output_bytes);
  EXPECT_LE(gguf->output_bytes, 140'000U);
}

TEST_F(QuantizeGptqModel, CandidatesThatOneFormatCannotMixAreRefusedBeforeTheWork) {
  options_.method = QuantizeMethod::kAuto;
  options_.budget = *ParseBudget("4.5bpw");
  options_.candidates = {{.bits = 4, .group_size = 32}, {.bits = 4, .group_size = 64}};
  options_.format = ModelFormat::kAwq;
  const auto refused = Run(temp_.path() / "never");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("awq has one scheme for all modules"), std::string::npos)
      << refused.error().message;
  EXPECT_FALSE(fs::exists(temp_.path() / ".never.partial"));
}

TEST_F(Quantize, ARecipeThatLeavesNothingToQuantizeIsRefusedByItsLine) {
  options_.recipe = RecipeOf("modules:\n  - {match: '*', skip: true}\n");
  const auto refused = Run(temp_.path() / "never");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("r.yaml:1: no weight would be quantized"),
            std::string::npos)
      << refused.error().message;
  EXPECT_FALSE(fs::exists(temp_.path() / ".never.partial"));
}

}  // namespace
}  // namespace nibble
