#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "compress/quantize.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::QuantizeGptqModel;

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

}  // namespace
}  // namespace nibble
