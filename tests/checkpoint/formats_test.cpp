// Folders that bitsandbytes and gptqmodel wrote, against the weights that they decode.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "checkpoint/bitsandbytes.h"
#include "checkpoint/checkpoint.h"
#include "codec/encode.h"
#include "tests/checkpoint/tensor_folder.h"

namespace nibble {
namespace {

const std::filesystem::path kGolden =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/formats";

std::vector<float> FloatsOf(const std::string& bytes) {
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

testing::RawTensors ReadFile(const std::string& name) {
  testing::RawTensors out;
  const auto file = SafetensorsFile::Open(kGolden / name);
  EXPECT_TRUE(file) << name;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const TensorView view = (*file)->View(entry);
    out[entry.name] = {entry.dtype,
                       entry.shape,
                       {reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()}};
  }
  return out;
}

struct Case {
  const char* name;
  const char* stored_as;
  const char* spec;
  std::size_t num_warnings = 0;
};

class ForeignFormat : public ::testing::TestWithParam<Case> {};

TEST_P(ForeignFormat, DecodesToWhatItsLibraryDecodes) {
  const Case& one = GetParam();
  const auto checkpoint = Checkpoint::Open((kGolden / one.name).string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->warnings().size(), one.num_warnings);
  const auto decoded = ReadFile(std::string(one.name) + ".decoded.safetensors");
  ASSERT_EQ(decoded.size(), 2U);
  for (const auto& [name, tensor] : decoded) {
    const WeightInfo* info = (*checkpoint)->Find(name);
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->stored_as, one.stored_as);
    EXPECT_EQ(info->spec.ToString(), one.spec);
    const auto rows = (*checkpoint)->ReadRows(*info, 0, info->spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_TRUE(Validate(*rows));
    const std::vector<float> found = Dequantize(*rows);
    const std::vector<float> expected = FloatsOf(tensor.bytes);
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], expected[i]) << name << " at " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Golden, ForeignFormat,
    ::testing::Values(Case{"bnb_nf4", "bitsandbytes nf4", "nf4 g64 f32 scales"},
                      Case{"bnb_nf4_nested", "bitsandbytes nf4, nested", "nf4 g64 f32 scales"},
                      Case{"bnb_fp4", "bitsandbytes fp4", "fp4 g64 f32 scales"},
                      Case{"bnb_fp4_nested", "bitsandbytes fp4, nested", "fp4 g64 f32 scales"},
                      Case{"gptq_int2", "gptq int2", "w2 g32 sym"},
                      Case{"gptq_int3", "gptq int3", "w3 g32 sym"},
                      Case{"gptq_int4", "gptq int4", "w4 g32 sym"},
                      Case{"gptq_int8", "gptq int8", "w8 g64 sym"},
                      Case{"gptq_int4_order", "gptq int4, activation order", "f32", 1},
                      Case{"gptq_int4_asym", "gptq int4", "w4 g32 zp"},
                      Case{"gptq_v2_int4_asym", "gptq_v2 int4", "w4 g32 zp"},
                      Case{"gptq_v2_int8_asym", "gptq_v2 int8", "w8 g64 zp"},
                      Case{"awq_int4", "awq int4", "w4 g32 zp"}),
    [](const auto& param) { return std::string(param.param.name); });

// What compressed-tensors decodes, and what its own rule makes of the same weights.
class Fp4OfCompressedTensors : public ::testing::TestWithParam<const char*> {};
TEST_P(Fp4OfCompressedTensors, DecodesAndEncodesTheSame) {
  const std::filesystem::path folder = kGolden.parent_path() / "fp4" / GetParam();
  const auto checkpoint = Checkpoint::Open(folder.string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->warnings().empty());
  const auto decoded = ReadFile(folder.string() + ".decoded.safetensors");
  ASSERT_EQ(decoded.size(), 4U);
  for (const auto& [name, tensor] : decoded) {
    if (name.starts_with("source.")) {
      continue;
    }
    const WeightInfo* info = (*checkpoint)->Find(name);
    ASSERT_NE(info, nullptr);
    const auto rows = (*checkpoint)->ReadRows(*info, 0, info->spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_TRUE(Validate(*rows)) << Validate(*rows).error().message;
    EXPECT_EQ(Dequantize(*rows), FloatsOf(tensor.bytes)) << name;
    const QuantizedTensor ours = EncodeCodebook(
        FloatsOf(decoded.at("source." + name).bytes), info->spec.rows, info->spec.cols,
        Codebook::kE2M1, info->spec.group_size, info->spec.scale_grid, rows->scale_divisor);
    EXPECT_EQ(Dequantize(ours), Dequantize(*rows)) << name;
    EXPECT_EQ(ours.codes, rows->codes);
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, Fp4OfCompressedTensors, ::testing::Values("ct_mxfp4", "ct_nvfp4"),
                         [](const auto& of) { return std::string(of.param); });

// int8 has whole rows, whose width differs between the two weights.
TEST(ForeignFormat, Int8DecodesToWhatBitsandbytesDecodes) {
  const auto checkpoint = Checkpoint::Open((kGolden / "bnb_int8").string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->warnings().empty());
  for (const auto& [name, tensor] : ReadFile("bnb_int8.decoded.safetensors")) {
    const WeightInfo* info = (*checkpoint)->Find(name);
    EXPECT_EQ(info->stored_as, "bitsandbytes int8");
    EXPECT_EQ(info->spec.group_size, info->spec.cols);
    const auto rows = (*checkpoint)->ReadRows(*info, 3, info->spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    const std::vector<float> found = Dequantize(*rows);
    const std::vector<float> expected = FloatsOf(tensor.bytes);
    const auto skipped = static_cast<std::size_t>(3 * info->spec.cols);
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], expected[skipped + i]) << name << " at " << i;
    }
  }
}

// Reference, section 13.2.
TEST(ForeignFormat, TheTestVectorHasTheBytesOfBitsandbytes) {
  const auto golden = ReadFile("bnb_vector.safetensors");
  std::vector<float> x;
  for (int i = 0; i < 256; ++i) {
    x.push_back(static_cast<float>(37 * i % 101 - 50) / 16.0F);
  }
  for (const Codebook codebook : {Codebook::kNf4, Codebook::kFp4}) {
    const std::string name = Name(codebook);
    const QuantizedTensor rows = EncodeCodebook(x, 1, 256, codebook, 64);
    std::string bytes;
    for (std::size_t i = 0; i < rows.codes.size(); i += 2) {
      bytes.push_back(static_cast<char>(rows.codes[i] << 4 | rows.codes[i + 1]));
    }
    EXPECT_EQ(bytes, golden.at(name + ".codes").bytes);
    EXPECT_EQ(rows.scales, FloatsOf(golden.at(name + ".absmax").bytes));
    const auto values = ValuesOf(codebook);
    EXPECT_TRUE(std::ranges::equal(values, FloatsOf(golden.at(name + ".quant_map").bytes)));
  }
  const auto map = BitsandbytesNestedMap();
  EXPECT_TRUE(std::ranges::equal(map, FloatsOf(golden.at("nested_quant_map").bytes)));
}

TEST(ForeignFormat, DoubleQuantizationOfScalesIsAsCloseAsItsMap) {
  std::vector<float> absmax;
  for (int i = 0; i < 1000; ++i) {
    absmax.push_back(1.0F + static_cast<float>(37 * i % 101) / 50.0F);
  }
  const NestedAbsmax nested = NestAbsmax(absmax);
  ASSERT_EQ(nested.codes.size(), absmax.size());
  ASSERT_EQ(nested.absmax.size(), 4U);
  const auto map = BitsandbytesNestedMap();
  for (std::size_t i = 0; i < absmax.size(); ++i) {
    const float back = map[nested.codes[i]] * nested.absmax[i / 256] + nested.offset;
    // The steps of the map are 1/71 of its range at most, and nearest is chosen.
    EXPECT_NEAR(back, absmax[i], nested.absmax[i / 256] / 140.0F);
  }
}

}  // namespace
}  // namespace nibble
