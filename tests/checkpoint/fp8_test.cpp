#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>

#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "tests/checkpoint/tiny_model.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::BytesOf;
using testing::TempFolder;

// Widths and heights beyond one block of 128, and no multiple of it.
const ModelConfig kConfig = {.hidden_size = 160,
                             .intermediate_size = 288,
                             .num_layers = 1,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = 80,
                             .vocab_size = 31,
                             .max_position_embeddings = 128,
                             .dtype = DType::kBF16};
const std::string kModule = "model.layers.0.mlp.down_proj";
const std::string kName = kModule + ".weight";  // [160, 288]

enum class Scales { kTensor, kRow, kBlock };

struct Tensor {
  DType dtype;
  Shape shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

std::uint8_t CodeAt(std::int64_t i) {
  const auto code = static_cast<std::uint8_t>(i * 37 % 251);
  return IsNan(Codebook::kFp8E4M3, code) ? 0 : code;
}

Tensors MakeTensors(Scales scales) {
  Tensors out;
  for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
    const std::int64_t count = weight.rows * weight.cols;
    if (!weight.is_linear) {
      const Shape shape = weight.rows == 1 ? Shape{weight.cols} : Shape{weight.rows, weight.cols};
      out[weight.name] = {DType::kF32, shape, testing::Floats(count, 1)};
      continue;
    }
    std::string codes;
    for (std::int64_t i = 0; i < count; ++i) {
      codes.push_back(static_cast<char>(CodeAt(i)));
    }
    out[weight.name] = {DType::kF8E4M3, Shape{weight.rows, weight.cols}, codes};
    const Shape shape = scales == Scales::kTensor ? Shape{}
                        : scales == Scales::kRow
                            ? Shape{weight.rows, 1}
                            : Shape{(weight.rows + 127) / 128, (weight.cols + 127) / 128};
    out[weight.name + (scales == Scales::kBlock ? "_scale_inv" : "_scale")] = {
        DType::kF32, shape, testing::Floats(shape.num_elements(), 3)};
  }
  return out;
}

json::Object Fp8Config(bool blocks) {
  json::Object out;
  out.Set("quant_method", "fp8");
  out.Set("activation_scheme", "dynamic");
  if (blocks) {
    out.Set("weight_block_size", json::Array{128, 128});
  }
  return out;
}

json::Object CompressedTensorsFp8(const char* strategy) {
  const auto parsed = json::Parse(
      std::string(R"({"quant_method":"compressed-tensors","format":"float-quantized",)"
                  R"("ignore":["lm_head"],"config_groups":{"group_0":{"targets":["Linear"],)"
                  R"("weights":{"num_bits":8,"type":"float","symmetric":true,"strategy":")") +
      strategy + "\"}}}}");
  EXPECT_TRUE(parsed);
  return *parsed->AsObject();
}

Result<std::unique_ptr<Checkpoint>> OpenWith(const TempFolder& folder, const Tensors& tensors,
                                             const json::Object& quantization) {
  std::vector<SafetensorsEntry> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
    data += tensor.bytes;
  }
  const std::string header = BuildSafetensorsHeader(entries);
  std::ofstream(folder.path() / "model.safetensors", std::ios::binary) << header << data;
  json::Object config = ToHuggingFaceConfig(kConfig);
  config.Set("quantization_config", quantization);
  std::ofstream(folder.path() / "config.json", std::ios::binary) << json::Dump(config);
  return Checkpoint::Open(folder.path().string());
}

class Fp8Scales : public ::testing::TestWithParam<Scales> {};

TEST_P(Fp8Scales, EveryWeightIsItsCodeTimesItsScale) {
  const Scales scales = GetParam();
  for (const bool compressed_tensors : {false, true}) {
    const TempFolder folder;
    const auto checkpoint =
        OpenWith(folder, MakeTensors(scales),
                 compressed_tensors ? CompressedTensorsFp8(scales == Scales::kTensor ? "tensor"
                                                           : scales == Scales::kRow  ? "channel"
                                                                                     : "block")
                                    : Fp8Config(scales == Scales::kBlock));
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const WeightInfo* info = (*checkpoint)->Find(kName);
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->spec.group_size, scales == Scales::kBlock ? 128 : 288);
    const auto rows = (*checkpoint)->ReadRows(*info, 100, 160);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_TRUE(Validate(*rows));
    const std::vector<float> values = Dequantize(*rows);
    for (std::int64_t row = 100; row < 160; ++row) {
      for (std::int64_t col = 0; col < 288; ++col) {
        const std::int64_t at = scales == Scales::kTensor ? 0
                                : scales == Scales::kRow  ? row
                                                          : row / 128 * 3 + col / 128;
        const float want =
            ValuesOf(Codebook::kFp8E4M3)[CodeAt(row * 288 + col)] * testing::Pattern(at + 3);
        ASSERT_EQ(values[static_cast<std::size_t>((row - 100) * 288 + col)], want);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Fp8Scales,
                         ::testing::Values(Scales::kTensor, Scales::kRow, Scales::kBlock));

TEST(Fp8, ContradictionsAndCodesThatAreNoNumberAreNamed) {
  const struct {
    std::function<void(Tensors&)> change;
    const char* says;
  } kCases[] = {
      {[](Tensors& t) { t.erase(kName + "_scale"); }, "without scales"},
      {[](Tensors& t) {
         t[kName].shape = Shape{288, 160};
       },
       "expected F8_E4M3 [160, 288]"},
      {[](Tensors& t) {
         t[kName + "_scale"].shape = Shape{1, 160};
       },
       "[160, 1] or [2, 3]"},
      {[](Tensors& t) { t[kName + "_scale"].dtype = DType::kI32; }, "F32, F16 or BF16"},
  };
  for (const auto& wrong : kCases) {
    Tensors tensors = MakeTensors(Scales::kRow);
    wrong.change(tensors);
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, tensors, Fp8Config(false));
    ASSERT_FALSE(checkpoint) << wrong.says;
    EXPECT_NE(checkpoint.error().message.find(wrong.says), std::string::npos)
        << checkpoint.error().message;
  }
  Tensors tensors = MakeTensors(Scales::kRow);
  tensors[kName].bytes[7] = '\x7f';
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, tensors, Fp8Config(false));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto rows = (*checkpoint)->ReadRows(*(*checkpoint)->Find(kName), 0, 1);
  ASSERT_FALSE(rows);
  EXPECT_EQ(rows.error().code, ErrorCode::kCorruptFile);
}

}  // namespace
}  // namespace nibble
