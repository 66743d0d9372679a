#include "compress/quantize.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "io/safetensors.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::Quantize;

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
  const std::string whole = temp_.Read(weights);
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
    files[entry.path().filename().string()] = temp_.Read(entry.path());
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
    EXPECT_EQ(temp_.Read(entry.path()),
              temp_.Read(temp_.path() / "resumed" / entry.path().filename()))
        << entry.path();
  }
}

// The weights are the same, but the rest of the output, and what passed the model, would not be.
TEST_F(Quantize, ARunIsNotResumedWithAnotherConfigTokenizerOrTemplate) {
  const struct {
    const char* file;
    const char* from;
    const char* to;
  } kChanges[] = {
      {"config.json", "500000.0", "10000.0"},
      {"tokenizer_config.json", "<|im_start|>assistant", "assistant"},
      {"tokenizer.json", "\"version\"", "\"version\" "},
      {"generation_config.json", "{", "{ "},
  };
  for (const auto& change : kChanges) {
    const fs::path folder = temp_.path() / fmt::format("source-{}", change.file);
    fs::copy(testing::Golden("llama3"), folder);
    const auto open = [&] {
      auto source = Checkpoint::Open(folder.string());
      ASSERT_TRUE(source) << source.error().message;
      source_ = std::move(*source);
    };
    open();
    const fs::path out = temp_.path() / fmt::format("out-{}", change.file);
    const auto stopped = Run(out, [](std::string_view phase, std::uint64_t, std::uint64_t,
                                     const std::string&) { return phase != "measuring"; });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled) << stopped.error().message;
    std::string text = temp_.Read(folder / change.file);
    const std::size_t at = text.find(change.from);
    ASSERT_NE(at, std::string::npos) << change.file;
    text.replace(at, std::string_view(change.from).size(), change.to);
    std::ofstream(folder / change.file, std::ios::binary) << text;
    open();
    const auto refused = Run(out);
    ASSERT_FALSE(refused) << change.file;
    EXPECT_NE(refused.error().message.find("left by a run with another source"), std::string::npos)
        << refused.error().message;
  }
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

TEST_F(Quantize, ACardRefusesByNameWhatItDoesNotDo) {
  options_.device = DeviceKind::kCuda;
  CalibrationSet calibration;
  const auto expect_refused = [&](QuantizeMethod method, const std::string& option) {
    const auto result = CheckDevice(options_, method, source_->config());
    ASSERT_FALSE(result) << option;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(result.error().message.find(option), std::string::npos) << result.error().message;
  };
  expect_refused(QuantizeMethod::kRtn, "--calibration");
  options_.calibration = &calibration;
  for (const QuantizeMethod method : {QuantizeMethod::kRtn, QuantizeMethod::kGptq}) {
    EXPECT_TRUE(CheckDevice(options_, method, source_->config()));
  }
  for (const QuantizeMethod method : {QuantizeMethod::kAwq, QuantizeMethod::kAwqGptq,
                                      QuantizeMethod::kLearned, QuantizeMethod::kSmoothQuant}) {
    expect_refused(method, std::string("--method ") + Name(method));
  }
  calibration.rows_folder = "somewhere";
  expect_refused(QuantizeMethod::kGptq, "--calibration-rows");
  calibration.rows_folder.clear();
  ModelConfig gemma = source_->config();
  gemma.architecture = Architecture::kGemma3;
  const auto model = CheckDevice(options_, QuantizeMethod::kGptq, gemma);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kUnsupported);
  options_.budget = Budget{};
  expect_refused(QuantizeMethod::kGptq, "--budget");
}

}  // namespace
}  // namespace nibble
