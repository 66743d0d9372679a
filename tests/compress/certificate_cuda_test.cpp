// A certificate's golden logits on a card.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "compress/quantize.h"
#include "io/safetensors.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class CudaCertificate : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto device = MakeCudaDevice(0, 2); !device) {
      GTEST_SKIP() << device.error().message;
    }
    const fs::path source_path = fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3";
    auto source = Checkpoint::Open(source_path.string());
    ASSERT_TRUE(source) << source.error().message;
    const auto tokenizer = Tokenizer::FromFolder(source_path.string());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    QuantizeOptions options;
    options.text = std::string(DefaultCertificateText());
    options.text_context = 64;
    options.max_windows = 3;
    options.scheme.group_size = 32;
    const auto summary = QuantizeCheckpoint(**source, **tokenizer, Folder(), options, 2, {});
    ASSERT_TRUE(summary) << summary.error().message;
  }
  fs::path Folder() const { return temp_.path() / "int4"; }

  /// Loads like `serve --device cuda`, but for the hashes of tensors.
  Result<GoldenReplay> Serve(KvDType kv_dtype) const {
    NIBBLE_TRY(device, MakeCudaDevice(0, 2));
    NIBBLE_TRY(checkpoint, Checkpoint::Open(Folder().string()));
    NIBBLE_TRY(certificate, LoadCertificate(*checkpoint));
    NIBBLE_TRY(runner, ModelRunner::Create(*checkpoint,
                                           {.max_num_sequences = 1,
                                            .max_batched_tokens = 8,
                                            .max_model_len = 32,
                                            .kv_dtype = kv_dtype,
                                            .num_blocks_override = 1},
                                           *device));
    return ReplayGoldenLogits(*certificate, *runner);
  }

  testing::TempFolder temp_;
};

TEST_F(CudaCertificate, GoldenLogitsComeOutWithinTheToleranceWhateverTheCache) {
  for (const KvDType dtype : {KvDType::kF16, KvDType::kBF16, KvDType::kFp8, KvDType::kInt8}) {
    const auto replay = Serve(dtype);
    ASSERT_TRUE(replay) << Name(dtype) << ": " << replay.error().message;
    RecordProperty(Name(dtype), fmt::format("{:.2e}", replay->difference));
    EXPECT_EQ(replay->kv_dtype, dtype == KvDType::kBF16 ? dtype : KvDType::kF16);
    EXPECT_GT(replay->difference, 0.0F);  // a card's bits are not a CPU's
    EXPECT_LT(replay->difference, kGoldenTolerance / 3.0F) << Name(dtype);
  }
}

TEST_F(CudaCertificate, AWrongScaleIsRefused) {
  const fs::path weights = Folder() / "model.safetensors";
  std::ifstream in(weights, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  auto file = SafetensorsFile::Open(weights);
  ASSERT_TRUE(file) << file.error().message;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    if (entry.name == "model.layers.1.mlp.down_proj.weight_scale") {
      ASSERT_EQ(entry.dtype, DType::kF16);
      const TensorView view = (*file)->View(entry);
      const auto begin =
          static_cast<std::size_t>(view.bytes.data() - (*file)->file().bytes().data());
      for (std::size_t i = 1; i < view.bytes.size(); i += 2) {
        bytes[begin + i] = static_cast<char>(bytes[begin + i] + 4);  // twice as much
      }
    }
  }
  std::ofstream(weights, std::ios::binary) << bytes;
  const auto refused = Serve(KvDType::kF16);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kCorruptFile);
  EXPECT_NE(refused.error().message.find("--device cpu"), std::string::npos)
      << refused.error().message;
}

}  // namespace
}  // namespace nibble
