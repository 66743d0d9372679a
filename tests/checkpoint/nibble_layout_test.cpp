#include "checkpoint/nibble_layout.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "codec/encode.h"
#include "io/atomic_writer.h"
#include "io/file.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

const ModelConfig kConfig = {.hidden_size = 64,
                             .intermediate_size = 96,
                             .num_layers = 1,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .head_dim = 32,
                             .vocab_size = 31,
                             .max_position_embeddings = 128,
                             .dtype = DType::kF16};
const std::string kName = "model.layers.0.mlp.down_proj.weight";  // [64, 96]

struct Case {
  const char* name;
  FolderFormat format;
  WeightSpec spec;  // group_size 0: whole rows
  const char* stored_as;
};
void PrintTo(const Case& value, std::ostream* os) { *os << value.name; }

WeightSpec Table(Codebook codebook, std::int64_t group, ScaleGrid grid = ScaleGrid::kAny) {
  return {.kind = CodecKind::kCodebook,
          .bits = BitsOf(codebook),
          .group_size = group,
          .has_f32_scales = codebook == Codebook::kE2M1 || codebook == Codebook::kFp8E5M2,
          .codebook = codebook,
          .scale_grid = grid};
}
WeightSpec OneScale(WeightSpec spec) {
  spec.has_one_scale = true;
  spec.group_size = 0;
  return spec;
}
WeightSpec Uniform(int bits, std::int64_t group) {
  return {.kind = CodecKind::kUniform, .bits = bits, .group_size = group};
}

const Case kCases[] = {
    {"log4", FolderFormat::kNibble, Table(Codebook::kLog4, 32), "nibble log4"},
    {"log4_row", FolderFormat::kNibble, Table(Codebook::kLog4, 0), "nibble log4"},
    {"log3", FolderFormat::kNibble, Table(Codebook::kLog3, 32), "nibble log3"},
    {"e5m2", FolderFormat::kNibble, Table(Codebook::kFp8E5M2, 0), "nibble fp8-e5m2"},
    {"mxfp4", FolderFormat::kCompressedTensors, Table(Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo),
     "mxfp4-pack-quantized"},
    {"nvfp4", FolderFormat::kCompressedTensors, Table(Codebook::kE2M1, 16, ScaleGrid::kE4M3),
     "nvfp4-pack-quantized"},
    {"fp8_tensor", FolderFormat::kCompressedTensors, OneScale(Table(Codebook::kFp8E4M3, 0)),
     "fp8 e4m3"},
    {"int8_tensor", FolderFormat::kCompressedTensors, OneScale(Uniform(8, 0)),
     "pack-quantized int8"},
    {"int3_tensor", FolderFormat::kCompressedTensors, OneScale(Uniform(3, 0)),
     "pack-quantized int3"},
    {"int4_g16", FolderFormat::kCompressedTensors, Uniform(4, 16), "pack-quantized int4"},
};

std::vector<float> RandomWeights(std::int64_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) {
    value = normal(random);
  }
  return out;
}

// Codes and scales that the spec allows.
QuantizedTensor Encode(const std::vector<float>& values, const WeightSpec& spec) {
  QuantizedTensor out = spec.kind == CodecKind::kUniform
                            ? EncodeAbsmax(values, spec.rows, spec.cols, spec.bits, spec.group_size)
                            : EncodeCodebook(values, spec.rows, spec.cols, spec.codebook,
                                             spec.group_size, spec.scale_grid, 8192.0F);
  out.spec = spec;
  for (float& scale : out.scales) {
    scale = spec.has_f32_scales  ? scale
            : spec.has_one_scale ? 0x1p-8F
                                 : RoundToDType(scale, DType::kF16);
  }
  return out;
}

class Stored : public ::testing::TestWithParam<Case> {
 protected:
  // Linears of the case's spec, random; the other weights floats.
  void Write() {
    const Case& c = GetParam();
    for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
      WeightSpec spec{.float_dtype = DType::kF16};
      if (weight.is_linear) {
        spec = c.spec;
        spec.group_size = spec.group_size == 0 ? weight.cols : spec.group_size;
      }
      spec.rows = weight.rows;
      spec.cols = weight.cols;
      plan_.push_back({weight.name, spec});
      const auto values =
          RandomWeights(weight.rows * weight.cols, static_cast<std::uint32_t>(plan_.size()));
      if (!weight.is_linear) {
        QuantizedTensor tensor{.spec = spec, .values = values};
        for (float& value : tensor.values) {
          value = RoundToDType(value, DType::kF16);
        }
        weights_.push_back(std::move(tensor));
        continue;
      }
      weights_.push_back(Encode(values, spec));
      ASSERT_TRUE(Validate(weights_.back())) << Validate(weights_.back()).error().message;
    }
    auto out = AtomicWriter::Create(folder(), {}, 0);
    ASSERT_TRUE(out);
    auto writer = WeightWriter::Create(**out, plan_, {.format = c.format});
    ASSERT_TRUE(writer) << writer.error().message;
    for (std::size_t i = 0; i < plan_.size(); ++i) {
      const std::int64_t rows = plan_[i].spec.rows;
      const std::int64_t half = rows / 2;  // rows come in parts
      for (const auto& [begin, end] :
           {std::pair<std::int64_t, std::int64_t>{0, half}, {half, rows}}) {
        if (begin < end) {
          const auto written = (*writer)->Write(plan_[i].name, SliceRows(weights_[i], begin, end));
          ASSERT_TRUE(written) << written.error().message;
        }
      }
    }
    ASSERT_TRUE((*writer)->Finish());
    auto quantization = QuantizationConfigOf(c.format, plan_, DType::kF16, "1");
    ASSERT_TRUE(quantization) << quantization.error().message;
    json::Object config = ToHuggingFaceConfig(kConfig);
    config.Set("quantization_config", std::move(*quantization));
    ASSERT_TRUE((*out)->WriteWhole("config.json", json::Dump(config)));
    ASSERT_TRUE((*out)->Commit());
  }
  fs::path folder() const { return temp_.path() / "model"; }
  // config.json with `from` replaced.
  void Edit(const std::string& from, const std::string& to) const {
    auto text = *ReadFile(folder() / "config.json", 1 << 20);
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    std::ofstream(folder() / "config.json", std::ios::binary) << text;
  }

  TempFolder temp_;
  std::vector<WeightToWrite> plan_;
  std::vector<QuantizedTensor> weights_;
};

TEST_P(Stored, WhatIsWrittenReadsBackTheSame) {
  Write();
  const auto back = Checkpoint::Open(folder().string());
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ((*back)->warnings().size(), GetParam().name == std::string("fp8_tensor") ? 1U : 0U);
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    const WeightInfo* info = (*back)->Find(plan_[i].name);
    ASSERT_NE(info, nullptr);
    const std::int64_t begin = plan_[i].spec.rows / 3;
    const auto rows = (*back)->ReadRows(*info, begin, plan_[i].spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_TRUE(Validate(*rows)) << plan_[i].name << ": " << Validate(*rows).error().message;
    const QuantizedTensor expected = SliceRows(weights_[i], begin, plan_[i].spec.rows);
    EXPECT_EQ(rows->spec, expected.spec) << plan_[i].name << " " << rows->spec.ToString();
    EXPECT_EQ(rows->codes, expected.codes);
    EXPECT_EQ(rows->scales, expected.scales);
    EXPECT_EQ(rows->scale_divisor, expected.scale_divisor);
    EXPECT_EQ(Dequantize(*rows), Dequantize(expected));
  }
  EXPECT_EQ((*back)->Find(kName)->stored_as, GetParam().stored_as);
}

TEST_P(Stored, AFileOrAConfigThatSaysOtherwiseIsRefused) {
  Write();
  // One more column in the model than in the file.
  Edit("\"intermediate_size\":96", "\"intermediate_size\":128");
  const auto wider = Checkpoint::Open(folder().string());
  ASSERT_FALSE(wider);
  EXPECT_EQ(wider.error().code, ErrorCode::kCorruptFile) << wider.error().message;
}

INSTANTIATE_TEST_SUITE_P(All, Stored, ::testing::ValuesIn(kCases),
                         [](const auto& of) { return std::string(of.param.name); });

class NibbleFolder : public Stored {};
TEST_P(NibbleFolder, ErrorsNameWhatContradicts) {
  const std::pair<const char*, std::pair<const char*, const char*>> kEdits[] = {
      {"\"type\":\"log4\"", {"\"type\":\"log3\"", "weight_packed is I32 [64, 8]"}},
      {"\"type\":\"log4\"", {"\"type\":\"int\"", "log4, log3 and fp8-e5m2 are stored so"}},
      {"\"nibble_version\":1",
       {"\"nibble_version\":2", "version 2 of nibble's layout is not read"}},
      {"\"group_size\":32", {"\"group_size\":16", "weight_scale is F16 [64, 2]"}},
      {"\"group_size\":32", {"\"group_size\":-1", "no number of columns"}},
      {"\"format\":\"nibble-codebook\"", {"\"format\":\"pack-quantized\"", "weights of type log4"}},
      {"\"model.layers.0.mlp.down_proj\"", {"\"model.layers.0.mlp.gate_proj\"", "is there twice"}},
      {"\"model.layers.0.mlp.down_proj\"",
       {"\"model.layers.0.mlp.other\"", "says nibble's own layout"}},
  };
  Write();
  const auto whole = *ReadFile(folder() / "config.json", 1 << 20);
  for (const auto& [from, edit] : kEdits) {
    std::ofstream(folder() / "config.json", std::ios::binary) << whole;
    Edit(from, edit.first);
    const auto opened = Checkpoint::Open(folder().string());
    ASSERT_FALSE(opened) << edit.first;
    EXPECT_NE(opened.error().message.find(edit.second), std::string::npos)
        << opened.error().message;
  }
}
INSTANTIATE_TEST_SUITE_P(Log4, NibbleFolder, ::testing::Values(kCases[0]));

class Fp4Folder : public Stored {};
TEST_P(Fp4Folder, ErrorsNameWhatContradicts) {
  const bool nv = GetParam().spec.group_size == 16;
  Write();
  const auto whole = *ReadFile(folder() / "config.json", 1 << 20);
  const std::string size = nv ? "\"group_size\":16" : "\"group_size\":32";
  const std::pair<std::string, std::pair<std::string, std::string>> kEdits[] = {
      {size, {"\"group_size\":64", nv ? "in groups of 16" : "in groups of 32"}},
      {"\"num_bits\":4", {"\"num_bits\":8", "has 4 bits, num_bits says 8"}},
      {"\"type\":\"float\"", {"\"type\":\"int\"", "are not read yet as"}},
  };
  for (const auto& [from, edit] : kEdits) {
    std::ofstream(folder() / "config.json", std::ios::binary) << whole;
    Edit(from, edit.first);
    const auto opened = Checkpoint::Open(folder().string());
    ASSERT_FALSE(opened) << edit.first;
    EXPECT_NE(opened.error().message.find(edit.second), std::string::npos)
        << opened.error().message;
  }
}
INSTANTIATE_TEST_SUITE_P(All, Fp4Folder, ::testing::Values(kCases[4], kCases[5]),
                         [](const auto& of) { return std::string(of.param.name); });

// Reference, section 8: the even element in the low nibble; 2^(byte - 127); the global scale
// divides.
TEST(Fp4Bytes, AreThoseOfCompressedTensors) {
  const std::vector<float> codes_of_each = {0,     0.5,  1,  1.5,  2,  3,  4,  6,
                                            -0.0F, -0.5, -1, -1.5, -2, -3, -4, -6};
  std::vector<float> row = codes_of_each;
  row.insert(row.end(), codes_of_each.begin(), codes_of_each.end());
  for (const bool nv : {false, true}) {
    WeightSpec spec =
        Table(Codebook::kE2M1, nv ? 16 : 32, nv ? ScaleGrid::kE4M3 : ScaleGrid::kPowersOfTwo);
    spec.rows = 1;
    spec.cols = 32;
    const QuantizedTensor tensor =
        EncodeCodebook(row, 1, 32, Codebook::kE2M1, spec.group_size, spec.scale_grid, 2.0F);
    auto encoder = MakeCompressedTensorsEncoder({"x.weight", spec}, {});
    ASSERT_TRUE(encoder) << encoder.error().message;
    const auto parts = (*encoder)->Parts();
    EXPECT_EQ(parts[0].name, "x.weight_packed");
    EXPECT_EQ(parts[0].dtype, DType::kU8);
    const auto bytes = (*encoder)->Add(tensor);
    ASSERT_TRUE(bytes);
    const std::string half = "\x10\x32\x54\x76\x98\xba\xdc\xfe";
    EXPECT_EQ(*bytes, half + half);
    const auto rest = (*encoder)->Finish();
    if (nv) {
      EXPECT_EQ(rest[1], "\x40\x40");  // 2, over a divisor of 2
      const float two = 2.0F;
      EXPECT_EQ(rest[2], std::string(reinterpret_cast<const char*>(&two), 4));
    } else {
      EXPECT_EQ(rest[1], "\x7f");
    }
  }
}

TEST(NibbleEncoder, RefusesWhatAnotherFormatHolds) {
  for (const auto& [spec, says] :
       {std::pair{Uniform(4, 32), "w4 g32 sym has no place in nibble's own layout"},
        {Table(Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo), "stores log4, log3 and fp8-e5m2"},
        {Table(Codebook::kLog4, 48), "groups of 48 do not divide its width of 64"}}) {
    WeightSpec whole = spec;
    whole.rows = 8;
    whole.cols = 64;
    const auto encoder = MakeNibbleEncoder({"x.weight", whole}, {});
    ASSERT_FALSE(encoder);
    EXPECT_NE(encoder.error().message.find(says), std::string::npos) << encoder.error().message;
  }
}

}  // namespace
}  // namespace nibble
