#include "compress/convert.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "checkpoint/weight_writer.h"
#include "solve/rtn.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// llama3 is the tiny model that has a tokenizer.
const fs::path kGolden = fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models/llama3";

struct Grid {
  const char* name;
  FolderFormat format;
  WeightSpec spec;  // of the linears; group_size 0: whole rows
};
const WeightSpec kW4 = {.kind = CodecKind::kUniform, .bits = 4, .group_size = 32};
WeightSpec With(WeightSpec spec, int bits, std::int64_t group, bool zero_points) {
  spec.bits = bits;
  spec.group_size = group;
  spec.has_zero_points = zero_points;
  return spec;
}
const WeightSpec kNf4 = {.kind = CodecKind::kCodebook,
                         .bits = 4,
                         .group_size = 64,
                         .has_f32_scales = true,
                         .codebook = Codebook::kNf4};
WeightSpec Table(Codebook codebook, std::int64_t group, ScaleGrid grid) {
  WeightSpec spec = kNf4;
  spec.codebook = codebook;
  spec.group_size = group;
  spec.has_f32_scales = codebook == Codebook::kE2M1;
  spec.scale_grid = grid;
  return spec;
}
const Grid kGrids[] = {
    {"int4", FolderFormat::kCompressedTensors, kW4},
    {"int4 zp", FolderFormat::kCompressedTensors, With(kW4, 4, 32, true)},
    {"int3", FolderFormat::kGptqV2, With(kW4, 3, 32, false)},
    {"int8", FolderFormat::kGptq, With(kW4, 8, 32, false)},
    {"nf4", FolderFormat::kBitsandbytes, kNf4},
    {"log4", FolderFormat::kNibble, Table(Codebook::kLog4, 32, ScaleGrid::kAny)},
    {"mxfp4", FolderFormat::kCompressedTensors,
     Table(Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo)},
    {"nvfp4", FolderFormat::kCompressedTensors, Table(Codebook::kE2M1, 16, ScaleGrid::kE4M3)},
};

// Which targets hold which grid.
const std::set<std::pair<std::string, ModelFormat>> kHolds = {
    {"int4", ModelFormat::kCompressedTensors},
    {"int4", ModelFormat::kGptq},
    {"int4", ModelFormat::kGptqV2},
    {"int4", ModelFormat::kAwq},
    {"int4", ModelFormat::kGguf},
    {"int4", ModelFormat::kSafetensors},
    {"int4 zp", ModelFormat::kCompressedTensors},
    {"int4 zp", ModelFormat::kGptqV2},
    {"int4 zp", ModelFormat::kAwq},
    {"int4 zp", ModelFormat::kGguf},
    {"int4 zp", ModelFormat::kSafetensors},
    {"int3", ModelFormat::kCompressedTensors},
    {"int3", ModelFormat::kGptq},
    {"int3", ModelFormat::kGptqV2},
    {"int3", ModelFormat::kAwq},
    {"int3", ModelFormat::kGguf},
    {"int3", ModelFormat::kSafetensors},
    {"int8", ModelFormat::kCompressedTensors},
    {"int8", ModelFormat::kGptq},
    {"int8", ModelFormat::kGptqV2},
    {"int8", ModelFormat::kGguf},
    {"int8", ModelFormat::kSafetensors},
    {"nf4", ModelFormat::kBitsandbytes},
    {"nf4", ModelFormat::kSafetensors},
    {"log4", ModelFormat::kNibble},
    {"log4", ModelFormat::kSafetensors},
    {"mxfp4", ModelFormat::kCompressedTensors},
    {"mxfp4", ModelFormat::kSafetensors},
    {"nvfp4", ModelFormat::kCompressedTensors},
    {"nvfp4", ModelFormat::kSafetensors},
};
constexpr ModelFormat kTargets[] = {ModelFormat::kCompressedTensors,
                                    ModelFormat::kGptq,
                                    ModelFormat::kGptqV2,
                                    ModelFormat::kAwq,
                                    ModelFormat::kBitsandbytes,
                                    ModelFormat::kBitsandbytesNested,
                                    ModelFormat::kNibble,
                                    ModelFormat::kGguf,
                                    ModelFormat::kSafetensors};

class Convert : public ::testing::Test {
 protected:
  void SetUp() override {
    auto plain = Checkpoint::Open(kGolden.string());
    ASSERT_TRUE(plain) << plain.error().message;
    plain_ = std::move(*plain);
    auto tokenizer = Tokenizer::FromFolder(kGolden.string());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_ = std::move(*tokenizer);
  }

  // The golden model, its linears rounded to a grid, in a folder.
  std::unique_ptr<Checkpoint> Quantized(const Grid& grid) {
    std::vector<WeightToWrite> plan;
    for (const ExpectedWeight& weight : ExpectedWeights(plain_->config())) {
      WeightSpec spec = weight.is_linear ? grid.spec : WeightSpec{};
      spec.rows = weight.rows;
      spec.cols = weight.cols;
      if (weight.is_linear && spec.group_size == 0) {
        spec.group_size = weight.cols;
      }
      plan.push_back({weight.name, spec});
    }
    const fs::path target = temp_.path() / fmt::format("source{}", ++number_);
    const WeightWriter::Options options{.format = grid.format};
    auto out = AtomicWriter::Create(target, {}, 0);
    auto writer = WeightWriter::Create(**out, plan, options);
    EXPECT_TRUE(writer) << writer.error().message;
    for (const WeightToWrite& weight : plan) {
      const auto rows = plain_->ReadRows(*plain_->Find(weight.name), 0, weight.spec.rows);
      QuantizedTensor tensor = *rows;
      if (weight.spec.kind == CodecKind::kCodebook) {
        ThreadPool pool(1);
        const std::vector<float> alike(static_cast<std::size_t>(weight.spec.cols), 1.0F);
        tensor = *QuantizeWeighted(pool, rows->values, weight.spec, alike, DType::kF16,
                                   /*search_scale=*/false);
      } else if (weight.spec.kind == CodecKind::kUniform) {
        tensor = *QuantizeRtn(rows->values, weight.spec.rows, weight.spec.cols,
                              {.bits = weight.spec.bits,
                               .group_size = weight.spec.group_size,
                               .symmetric = !weight.spec.has_zero_points,
                               .search_scale = false});
      }
      const auto written = (*writer)->Write(weight.name, tensor);
      EXPECT_TRUE(written) << written.error().message;
    }
    EXPECT_TRUE((*writer)->Finish());
    json::Object config = ToHuggingFaceConfig(plain_->config());
    config.Set("quantization_config", *QuantizationConfigOf(grid.format, plan, DType::kF16, "1.0"));
    EXPECT_TRUE((*out)->WriteWhole("config.json", json::Dump(config)));
    EXPECT_TRUE((*out)->Commit());
    auto checkpoint = Checkpoint::Open(target.string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    return checkpoint ? std::move(*checkpoint) : nullptr;
  }

  std::unique_ptr<Checkpoint> plain_;
  std::unique_ptr<Tokenizer> tokenizer_;
  testing::TempFolder temp_;
  int number_ = 0;
};

std::vector<float> ValuesOf(const Checkpoint& checkpoint, const std::string& name) {
  const WeightInfo* info = checkpoint.Find(name);
  const auto rows = checkpoint.ReadRows(*info, 0, info->spec.rows);
  EXPECT_TRUE(rows) << rows.error().message;
  return Dequantize(*rows);
}

TEST_F(Convert, EveryFormatThatHoldsTheCodesKeepsEveryValue) {
  for (const Grid& grid : kGrids) {
    const auto source = Quantized(grid);
    ASSERT_TRUE(source);
    for (const ModelFormat format : kTargets) {
      const ConvertOptions options{.to = format};
      const std::string what = fmt::format("{} -> {}", grid.name, Name(format));
      const auto conversion = PlanConversion(*source, *tokenizer_, options, 2, {});
      if (!kHolds.contains({grid.name, format})) {
        ASSERT_FALSE(conversion) << what;
        EXPECT_EQ(conversion.error().code, ErrorCode::kInvalidArgument);
        continue;
      }
      ASSERT_TRUE(conversion) << what << ": " << conversion.error().message;
      const bool file = format == ModelFormat::kGguf;
      const fs::path out = temp_.path() / fmt::format("out{}{}", ++number_, file ? ".gguf" : "");
      const auto written = WriteConversion(*source, *tokenizer_, *conversion, out, options, {});
      ASSERT_TRUE(written) << what << ": " << written.error().message;
      EXPECT_EQ(conversion->size_bytes, fs::file_size(file ? out : out / "model.safetensors"))
          << what;
      const auto back = Checkpoint::Open(out.string());
      ASSERT_TRUE(back) << what << ": " << back.error().message;
      EXPECT_TRUE((*back)->warnings().empty()) << what << (*back)->warnings()[0];
      for (const WeightInfo& weight : source->weights()) {
        EXPECT_EQ(ValuesOf(**back, weight.name), ValuesOf(*source, weight.name))
            << what << " " << weight.name;
      }
      const auto tokenizer = file ? Tokenizer::FromGguf(*(*back)->gguf_vocabulary())
                                  : Tokenizer::FromFolder(out.string());
      ASSERT_TRUE(tokenizer) << tokenizer.error().message;
      const std::string text = "One block, two blocks: the wind 123 and the rain.";
      EXPECT_EQ((*tokenizer)->Encode(text), tokenizer_->Encode(text)) << what;
    }
  }
}

TEST_F(Convert, RowsOfInt8AreLlmInt8IfTheirScalesAre) {
  // Scales of f16, which are also 127th parts of F32 numbers.
  const auto source = Quantized({"", FolderFormat::kGptq, With(kW4, 8, 0, false)});
  ASSERT_TRUE(source);
  const ConvertOptions options{.to = ModelFormat::kBitsandbytes};
  const auto conversion = PlanConversion(*source, *tokenizer_, options, 2, {});
  ASSERT_TRUE(conversion) << conversion.error().message;
  const fs::path out = temp_.path() / "int8";
  ASSERT_TRUE(WriteConversion(*source, *tokenizer_, *conversion, out, options, {}));
  const auto back = Checkpoint::Open(out.string());
  ASSERT_TRUE(back) << back.error().message;
  for (const WeightInfo& weight : source->weights()) {
    EXPECT_EQ(ValuesOf(**back, weight.name), ValuesOf(*source, weight.name)) << weight.name;
  }
}

TEST_F(Convert, FloatsAreRoundedOnlyWhereThatIsAsked) {
  const auto exact = PlanConversion(*plain_, *tokenizer_, {.to = ModelFormat::kSafetensors}, 2, {});
  ASSERT_TRUE(exact) << exact.error().message;
  EXPECT_EQ(exact->model_dtype, DType::kF32);
  EXPECT_EQ(exact->notes.size(), 1U);
  const auto rounded = PlanConversion(
      *plain_, *tokenizer_, {.to = ModelFormat::kSafetensors, .float_dtype = DType::kBF16}, 2, {});
  ASSERT_TRUE(rounded);
  EXPECT_EQ(rounded->model_dtype, DType::kBF16);
  EXPECT_NEAR(static_cast<double>(rounded->size_bytes) / static_cast<double>(exact->size_bytes),
              0.5, 0.01);  // headers are as long
  EXPECT_TRUE(rounded->notes.empty());
}

TEST_F(Convert, ARunIsNotResumedWithOtherTypes) {
  const auto plan = [&](std::optional<DType> dtype) {
    const ConvertOptions options{.to = ModelFormat::kSafetensors, .float_dtype = dtype};
    return std::pair(options, *PlanConversion(*plain_, *tokenizer_, options, 2, {}));
  };
  const fs::path out = temp_.path() / "out";
  const auto [exact_options, exact] = plan({});
  ASSERT_EQ(exact.model_dtype, DType::kF32);
  ConvertOptions shards = exact_options;
  shards.shard_bytes = 40'000;
  const auto stopped = WriteConversion(*plain_, *tokenizer_, exact, out, shards,
                                       [](std::string_view, std::uint64_t done, std::uint64_t total,
                                          const std::string&) { return done < total / 2; });
  ASSERT_FALSE(stopped);
  auto [options, mixed] = plan({});
  options.shard_bytes = shards.shard_bytes;
  mixed.weights.back().spec.float_dtype = DType::kBF16;  // of one weight alone
  const auto refused = WriteConversion(*plain_, *tokenizer_, mixed, out, options, {});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("left by a run with another source"), std::string::npos)
      << refused.error().message;
  EXPECT_TRUE(WriteConversion(*plain_, *tokenizer_, exact, out, shards, {}));
}

TEST_F(Convert, WhatCannotBeNamesTheReasonAndTheWayOut) {
  const struct {
    const Grid& grid;
    ModelFormat format;
    const char* says;
  } kCases[] = {
      {kGrids[1], ModelFormat::kGptq, "gptq_v2, awq and compressed-tensors hold zero points"},
      {kGrids[3], ModelFormat::kAwq, "AWQ stores uniform integers of 4 bits"},
      {kGrids[4], ModelFormat::kGptq, "nf4 is no uniform integer"},
      {kGrids[4], ModelFormat::kGguf, "no block type for nf4"},
      {kGrids[4], ModelFormat::kBitsandbytesNested, "rounds the scales"},
      {kGrids[0], ModelFormat::kBitsandbytes, "no data type of bitsandbytes"},
      {kGrids[5], ModelFormat::kCompressedTensors,
       "log4 is no data type of compressed-tensors: use nibble"},
      {kGrids[6], ModelFormat::kGguf, "no block type for e2m1: use compressed-tensors"},
      {kGrids[4], ModelFormat::kNibble, "not nf4: use bitsandbytes"},
      // What is recommended holds it.
      {kGrids[4], ModelFormat::kAwq, "not nf4: use bitsandbytes"},
      {kGrids[5], ModelFormat::kBitsandbytes, "one scale a row: use nibble"},
  };
  for (const auto& one : kCases) {
    const auto source = Quantized(one.grid);
    const auto refused = PlanConversion(*source, *tokenizer_, {.to = one.format}, 2, {});
    ASSERT_FALSE(refused) << one.says;
    EXPECT_NE(refused.error().message.find(one.says), std::string::npos) << refused.error().message;
  }
  const auto plain = PlanConversion(*plain_, *tokenizer_, {.to = ModelFormat::kAwq}, 2, {});
  ASSERT_FALSE(plain);
  EXPECT_NE(plain.error().message.find("nibble quantize"), std::string::npos);
}

TEST(ConsumersOf, SayWhoLoadsWhat) {
  const auto loads = [](ModelFormat format, int bits, bool zero_points, std::string_view name) {
    WeightSpec spec = With(kW4, bits, 32, zero_points);
    spec.rows = 64;
    spec.cols = 64;
    const std::vector<WeightToWrite> weights = {{"model.layers.0.mlp.up_proj.weight", spec}};
    const auto all = ConsumersOf(format, weights);
    EXPECT_EQ(all.size(), 5U);
    const auto found = std::ranges::find(all, name, &Consumer::name);
    EXPECT_TRUE(found->loads || !found->how.empty());
    return found->loads;
  };
  EXPECT_TRUE(loads(ModelFormat::kGptq, 4, false, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kGptq, 3, false, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kGptqV2, 4, true, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kGptq, 3, false, "llama.cpp"));
  EXPECT_TRUE(loads(ModelFormat::kAwq, 4, true, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kAwq, 4, true, "llama.cpp"));
  EXPECT_TRUE(loads(ModelFormat::kCompressedTensors, 4, true, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kCompressedTensors, 3, true, "vLLM"));
  EXPECT_FALSE(loads(ModelFormat::kCompressedTensors, 3, false, "llama.cpp"));
  EXPECT_TRUE(loads(ModelFormat::kGguf, 4, false, "llama.cpp"));
  EXPECT_FALSE(loads(ModelFormat::kGguf, 4, false, "TensorRT"));
  for (const auto& consumer : ConsumersOf(ModelFormat::kNibble, {})) {
    EXPECT_FALSE(consumer.loads);
    EXPECT_EQ(consumer.how, "only nibble loads its own layout");
  }
}

TEST(ModelFormatNames, ComeBack) {
  for (const ModelFormat format : kTargets) {
    EXPECT_EQ(ParseModelFormat(Name(format)), format);
  }
  EXPECT_FALSE(ParseModelFormat("onnx"));
}

}  // namespace
}  // namespace nibble
