#include "checkpoint/bitsandbytes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "codec/encode.h"
#include "io/safetensors.h"
#include "tests/checkpoint/tensor_folder.h"
#include "tests/checkpoint/tiny_model.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::BytesOf;
using testing::TempFolder;
using Tensors = testing::RawTensors;

const ModelConfig kConfig = {.hidden_size = 64,
                             .intermediate_size = 128,
                             .num_layers = 1,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = 32,
                             .vocab_size = 31,
                             .max_position_embeddings = 128,
                             .dtype = DType::kF16};
const std::string kName = "model.layers.0.mlp.down_proj.weight";

QuantizedTensor Nf4Rows(std::int64_t rows, std::int64_t cols) {
  std::vector<float> weights;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    weights.push_back(testing::Pattern(i) / static_cast<float>(1 + i / 64 % 5));
  }
  return EncodeCodebook(weights, rows, cols, Codebook::kNf4, 64);
}

std::string PackNibbles(const std::vector<std::uint8_t>& codes) {
  std::string out;
  for (std::size_t i = 0; i < codes.size(); i += 2) {
    out.push_back(static_cast<char>(codes[i] << 4 | codes[i + 1]));
  }
  return out;
}

Tensors MakeTensors() {
  Tensors out;
  for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
    if (!weight.is_linear) {
      const Shape shape = weight.rows == 1 ? Shape{weight.cols} : Shape{weight.rows, weight.cols};
      out[weight.name] = {DType::kF32, shape, testing::Floats(weight.rows * weight.cols, 1)};
      continue;
    }
    const QuantizedTensor rows = Nf4Rows(weight.rows, weight.cols);
    const std::int64_t count = weight.rows * weight.cols;
    const auto values = ValuesOf(Codebook::kNf4);
    const std::string state = BitsandbytesStateText(
        {.block_size = 64, .rows = weight.rows, .cols = weight.cols}, DType::kBF16);
    out[weight.name] = {DType::kU8, Shape{count / 2, 1}, PackNibbles(rows.codes)};
    out[weight.name + ".absmax"] = {DType::kF32, Shape{count / 64}, BytesOf(rows.scales)};
    out[weight.name + ".quant_map"] = {DType::kF32, Shape{16},
                                       BytesOf(std::vector<float>(values.begin(), values.end()))};
    out[weight.name + ".quant_state.bitsandbytes__nf4"] = {
        DType::kU8, Shape{static_cast<std::int64_t>(state.size())}, state};
  }
  return out;
}

Result<std::unique_ptr<Checkpoint>> OpenWith(const TempFolder& folder, const Tensors& tensors,
                                             const json::Object& quantization) {
  return testing::OpenWith(folder, kConfig, tensors, quantization);
}

TEST(Bitsandbytes, CodesAndScalesAreReadAsTheyAre) {
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, MakeTensors(), BitsandbytesConfig({}, DType::kBF16));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->warnings().empty());
  const WeightInfo* info = (*checkpoint)->Find(kName);
  ASSERT_NE(info, nullptr);
  const QuantizedTensor whole = Nf4Rows(64, 128);
  EXPECT_EQ(info->spec, whole.spec);
  EXPECT_EQ(info->stored_as, "bitsandbytes nf4");
  const auto rows = (*checkpoint)->ReadRows(*info, 5, 64);
  ASSERT_TRUE(rows) << rows.error().message;
  EXPECT_TRUE(std::equal(rows->codes.begin(), rows->codes.end(), whole.codes.begin() + 5 * 128));
  EXPECT_TRUE(std::equal(rows->scales.begin(), rows->scales.end(), whole.scales.begin() + 5 * 2));
  std::uint64_t bytes = 0;
  const auto parts = (*checkpoint)->RawParts(*info);
  ASSERT_TRUE(parts);
  for (const auto part : *parts) {
    bytes += part.size();
  }
  EXPECT_EQ(bytes, info->size_bytes);
}

TEST(Bitsandbytes, NestedScalesAreTheSumThatBitsandbytesComputes) {
  Tensors tensors = MakeTensors();
  std::vector<float> map;
  for (int i = 0; i < 256; ++i) {
    map.push_back(static_cast<float>(i - 127) / 128.0F);
  }
  std::string codes;
  for (int i = 0; i < 128; ++i) {
    codes.push_back(static_cast<char>(i * 7));
  }
  // 128 blocks, in nested blocks of 64: an outer scale for each half.
  tensors[kName + ".absmax"] = {DType::kU8, Shape{128}, codes};
  tensors[kName + ".nested_absmax"] = {DType::kF32, Shape{2}, BytesOf(std::vector{0.5F, 0.25F})};
  tensors[kName + ".nested_quant_map"] = {DType::kF32, Shape{256}, BytesOf(map)};
  const std::string state =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 128], )"
      R"("nested_blocksize": 64, "nested_dtype": "float32", "nested_offset": 0.625})";
  tensors[kName + ".quant_state.bitsandbytes__nf4"] = {
      DType::kU8, Shape{static_cast<std::int64_t>(state.size())}, state};
  const TempFolder folder;
  const auto checkpoint = OpenWith(folder, tensors, BitsandbytesConfig({}, DType::kBF16));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const WeightInfo* info = (*checkpoint)->Find(kName);
  EXPECT_EQ(info->stored_as, "bitsandbytes nf4, nested");
  const auto rows = (*checkpoint)->ReadRows(*info, 30, 34);  // across the nested blocks
  ASSERT_TRUE(rows) << rows.error().message;
  for (std::size_t i = 0; i < rows->scales.size(); ++i) {
    const std::size_t block = 60 + i;
    const float outer = block < 64 ? 0.5F : 0.25F;
    EXPECT_EQ(rows->scales[i], map[block * 7 % 256] * outer + 0.625F);
  }
}

TEST(Bitsandbytes, WhatContradictsItselfIsNamed) {
  const struct {
    std::function<void(Tensors&)> change;
    const char* says;
  } kCases[] = {
      {[](Tensors& t) { t.erase(kName + ".absmax"); }, "absmax"},
      {[](Tensors& t) { t.erase(kName + ".quant_map"); }, "quant_map"},
      {[](Tensors& t) { t.erase(kName + ".quant_state.bitsandbytes__nf4"); }, "quant_state"},
      {[](Tensors& t) { t[kName + ".quant_map"].bytes[4] ^= 1; }, "table of nf4"},
      {[](Tensors& t) {
         t[kName].shape = Shape{1, 64 * 64};
       },
       "expected U8 [4096, 1]"},
      {[](Tensors& t) { t[kName + ".absmax"].dtype = DType::kI32; }, "expected F32 [128]"},
      {[](Tensors& t) {
         t[kName + ".nested_absmax"] = {DType::kU8, Shape{1}, "x"};
       },
       "nested"},
  };
  for (const auto& wrong : kCases) {
    Tensors tensors = MakeTensors();
    wrong.change(tensors);
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, tensors, BitsandbytesConfig({}, DType::kF16));
    ASSERT_FALSE(checkpoint) << wrong.says;
    EXPECT_EQ(checkpoint.error().code, ErrorCode::kCorruptFile);
    EXPECT_NE(checkpoint.error().message.find(wrong.says), std::string::npos)
        << checkpoint.error().message;
  }
}

TEST(Bitsandbytes, StatesThatNibbleCannotFollowAreNamed) {
  const struct {
    const char* text;
    const char* says;
  } kCases[] = {
      {R"({"quant_type":"fp4","blocksize":64,"shape":[64,128]})", "fp4"},
      {R"({"quant_type":"af4","blocksize":64,"shape":[64,128]})", "af4"},
      {R"({"quant_type":"nf4","blocksize":96,"shape":[64,128]})", "blocksize"},
      {R"({"quant_type":"nf4","blocksize":0,"shape":[64,128]})", "blocksize"},
      {R"({"quant_type":"nf4","blocksize":64,"shape":[64]})", "shape"},
      {R"({"quant_type":"nf4","blocksize":64,"shape":[128,64]})", "[128, 64]"},
      {R"({"quant_type":"nf4","blocksize":64,"shape":[64,128],"nested_blocksize":256})", "nested"},
      {R"({"quant_type":"nf4","blocksize":64,"shape":[64,128],"nested_blocksize":256,)"
       R"("nested_offset":0.5})",
       "absmax"},
      {R"({"quant_type)", "JSON"},
  };
  for (const auto& wrong : kCases) {
    Tensors tensors = MakeTensors();
    const std::string text = wrong.text;
    tensors[kName + ".quant_state.bitsandbytes__nf4"] = {
        DType::kU8, Shape{static_cast<std::int64_t>(text.size())}, text};
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, tensors, BitsandbytesConfig({}, DType::kF16));
    ASSERT_FALSE(checkpoint) << wrong.says;
    EXPECT_NE(checkpoint.error().message.find(wrong.says), std::string::npos)
        << checkpoint.error().message;
  }
}

TEST(Bitsandbytes, AConfigThatSaysAnotherMethodIsNamed) {
  for (const auto& [key, value, says] :
       {std::tuple{"load_in_8bit", json::Value(true), "load_in_8bit"},
        std::tuple{"load_in_4bit", json::Value(false), "load_in_4bit"},
        std::tuple{"bnb_4bit_quant_type", json::Value("fp4"), "quantization_config fp4"},
        std::tuple{"bnb_4bit_quant_type", json::Value("af4"), "af4"}}) {
    json::Object config = BitsandbytesConfig({}, DType::kF16);
    config.Set(key, value);
    const TempFolder folder;
    const auto checkpoint = OpenWith(folder, MakeTensors(), config);
    ASSERT_FALSE(checkpoint) << says;
    EXPECT_NE(checkpoint.error().message.find(says), std::string::npos)
        << checkpoint.error().message;
  }
}

TEST(Bitsandbytes, WhatTheWriterWritesIsThisLayoutAndEveryTensorIsAligned) {
  std::vector<WeightToWrite> plan;
  std::vector<QuantizedTensor> weights;
  for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
    if (weight.is_linear) {
      weights.push_back(Nf4Rows(weight.rows, weight.cols));
    } else {
      QuantizedTensor floats{.spec = {.rows = weight.rows, .cols = weight.cols}};
      floats.spec.float_dtype = DType::kF16;
      floats.values.assign(static_cast<std::size_t>(weight.rows * weight.cols), 0.5F);
      weights.push_back(floats);
    }
    plan.push_back({weight.name, weights.back().spec});
  }
  const TempFolder folder;
  const WeightWriter::Options options{.format = FolderFormat::kBitsandbytes};
  auto out = AtomicWriter::Create(folder.path() / "m", {}, WeightWriter::SizeBytes(plan, options));
  ASSERT_TRUE(out) << out.error().message;
  auto writer = WeightWriter::Create(**out, plan, options);
  ASSERT_TRUE(writer) << writer.error().message;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const auto written = (*writer)->Write(plan[i].name, weights[i]);
    ASSERT_TRUE(written) << written.error().message;
  }
  ASSERT_TRUE((*writer)->Finish());
  json::Object config = ToHuggingFaceConfig(kConfig);
  config.Set("quantization_config", BitsandbytesConfig({}, DType::kF16));
  ASSERT_TRUE((*out)->WriteWhole("config.json", json::Dump(config)));
  const auto checkpoint = Checkpoint::Open((*out)->partial_path().string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const WeightInfo* info = (*checkpoint)->Find(plan[i].name);
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->spec, plan[i].spec) << info->name;
    const auto rows = (*checkpoint)->ReadRows(*info, 0, info->spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    EXPECT_EQ(rows->codes, weights[i].codes);
    EXPECT_EQ(rows->scales, weights[i].scales);
    EXPECT_EQ(rows->values, weights[i].values);
  }
  const auto file = SafetensorsFile::Open((*out)->partial_path() / "model.safetensors");
  ASSERT_TRUE(file);
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    EXPECT_EQ(entry.begin % SizeBytes(entry.dtype), 0U) << entry.name;
  }
}

}  // namespace
}  // namespace nibble
