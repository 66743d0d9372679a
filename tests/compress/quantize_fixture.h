#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "compress/quantize.h"
#include "tests/io/temp_folder.h"

namespace nibble::testing {

/// A folder of tests/golden/models.
inline std::filesystem::path Golden(const std::string& name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
}

/// Quantizes the tiny model that has a tokenizer, llama3, into a folder of its own.
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
  Result<QuantizeSummary> Run(const std::filesystem::path& out,
                              const QuantizeProgress& progress = {}) {
    return QuantizeCheckpoint(*source_, *tokenizer_, out, options_, 2, progress);
  }
  // Opens, verifies and loads like `serve` does.
  static Result<void> Serve(const std::filesystem::path& folder, ActivationMode mode) {
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
  TempFolder temp_;
};

/// The same, solved by GPTQ with the built-in prose as calibration data.
class QuantizeGptqModel : public Quantize {
 protected:
  void SetUp() override {
    Quantize::SetUp();
    const std::filesystem::path file = temp_.path() / "calibration.txt";
    std::ofstream(file) << DefaultCertificateText();
    auto set = LoadCalibration(file, *source_, *tokenizer_, {.num_samples = 8, .length = 48});
    ASSERT_TRUE(set) << set.error().message;
    calibration_ = std::move(*set);
    options_.method = QuantizeMethod::kGptq;
    options_.calibration = &calibration_;
  }
  Result<QuantizeSummary> RunOn(int threads, const std::filesystem::path& out,
                                const QuantizeProgress& progress = {}) {
    return QuantizeCheckpoint(*source_, *tokenizer_, out, options_, threads, progress);
  }
  void ExpectSameFolder(const std::filesystem::path& a, const std::filesystem::path& b) {
    std::size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(a)) {
      EXPECT_EQ(temp_.Read(entry.path()), temp_.Read(b / entry.path().filename())) << entry.path();
      ++files;
    }
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(b)) {
      --files;
    }
    EXPECT_EQ(files, 0U);
  }
  CalibrationSet calibration_;
};

}  // namespace nibble::testing
