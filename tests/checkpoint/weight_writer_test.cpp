#include "checkpoint/weight_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>

#include "checkpoint/checkpoint.h"
#include "codec/encode.h"
#include "io/safetensors.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

// Pseudo-random rows that the spec allows.
QuantizedTensor Rows(const WeightSpec& spec, DType scale_dtype, std::uint32_t seed) {
  QuantizedTensor out;
  out.spec = spec;
  std::uint32_t state = seed * 2654435761U + 1;
  const auto next = [&] { return (state = state * 1664525U + 1013904223U) >> 8U; };
  const auto elements = static_cast<std::size_t>(spec.rows * spec.cols);
  if (spec.kind == CodecKind::kFloat) {
    for (std::size_t i = 0; i < elements; ++i) {
      out.values.push_back(static_cast<float>(next() % 257) / 64.0F - 2.0F);
    }
    return out;
  }
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  const std::uint32_t top = 1U << static_cast<unsigned>(spec.bits);
  for (std::size_t i = 0; i < elements; ++i) {
    out.codes.push_back(static_cast<std::uint8_t>(next() % top));
  }
  for (std::size_t i = 0; i < groups; ++i) {
    out.scales.push_back(
        RoundToDType(0.001F + static_cast<float>(next() % 1000) / 7000.0F, scale_dtype));
    if (spec.has_zero_points) {
      out.zero_points.push_back(static_cast<std::uint8_t>(next() % top));
    }
  }
  return out;
}

QuantizedTensor Slice(const QuantizedTensor& whole, std::int64_t begin, std::int64_t end) {
  QuantizedTensor out;
  out.spec = whole.spec;
  out.spec.rows = end - begin;
  const auto cut = [&](const auto& from, auto& to, std::int64_t width) {
    if (!from.empty()) {
      to.assign(from.begin() + begin * width, from.begin() + end * width);
    }
  };
  cut(whole.codes, out.codes, whole.spec.cols);
  cut(whole.values, out.values, whole.spec.cols);
  cut(whole.scales, out.scales, whole.spec.num_groups());
  cut(whole.zero_points, out.zero_points, whole.spec.num_groups());
  return out;
}

struct Model {
  ModelConfig config;
  std::vector<WeightToWrite> plan;
  std::vector<QuantizedTensor> weights;
};

Model MakeModel(int bits, std::int64_t group_size, bool symmetric, DType scale_dtype) {
  Model model;
  model.config = {.hidden_size = 64,
                  .intermediate_size = 96,
                  .num_layers = 2,
                  .num_heads = 2,
                  .num_kv_heads = 1,
                  .head_dim = 32,
                  .vocab_size = 31,  // odd counts, to try the alignment
                  .max_position_embeddings = 128,
                  .dtype = scale_dtype};
  std::uint32_t seed = 0;
  for (const ExpectedWeight& weight : ExpectedWeights(model.config)) {
    WeightSpec spec{.rows = weight.rows, .cols = weight.cols, .float_dtype = scale_dtype};
    if (weight.is_linear) {
      spec.kind = CodecKind::kUniform;
      spec.bits = bits;
      spec.group_size = group_size == 0 ? weight.cols : group_size;
      spec.has_zero_points = !symmetric;
      spec.float_dtype = DType::kF32;
    }
    model.plan.push_back({weight.name, spec});
    model.weights.push_back(Rows(spec, scale_dtype, ++seed));
  }
  return model;
}

Result<void> WriteAll(WeightWriter& writer, const Model& model, std::int64_t chunk_rows) {
  for (std::size_t i = 0; i < model.plan.size(); ++i) {
    if (writer.IsDone(model.plan[i].name)) {
      continue;
    }
    const QuantizedTensor& whole = model.weights[i];
    for (std::int64_t row = 0; row < whole.spec.rows; row += chunk_rows) {
      NIBBLE_TRY_VOID(writer.Write(model.plan[i].name,
                                   Slice(whole, row, std::min(whole.spec.rows, row + chunk_rows)),
                                   json::Value(static_cast<std::int64_t>(i))));
    }
  }
  return writer.Finish();
}

json::Object ConfigOf(const Model& model, int bits, std::int64_t group, bool symmetric) {
  json::Object config = ToHuggingFaceConfig(model.config);
  config.Set("quantization_config", CompressedTensorsConfig(bits, group, symmetric, {"lm_head"}));
  return config;
}

TEST(WeightWriter, WhatIsWrittenReadsBackTheSameAndEveryTensorIsAligned) {
  int number = 0;
  const TempFolder folder;
  for (const int bits : {4, 8}) {
    for (const std::int64_t group : {0, 32}) {
      for (const bool symmetric : {true, false}) {
        for (const DType scale : {DType::kF16, DType::kBF16, DType::kF32}) {
          const Model model = MakeModel(bits, group, symmetric, scale);
          const fs::path target = folder.path() / std::to_string(++number);
          const WeightWriter::Options options{.scale_dtype = scale};
          auto out = AtomicWriter::Create(target, {}, WeightWriter::SizeBytes(model.plan, options));
          ASSERT_TRUE(out) << out.error().message;
          auto writer = WeightWriter::Create(**out, model.plan, options);
          ASSERT_TRUE(writer) << writer.error().message;
          const auto written = WriteAll(**writer, model, /*chunk_rows=*/7 + number);
          ASSERT_TRUE(written) << written.error().message;
          ASSERT_TRUE((*out)->WriteWhole("config.json",
                                         json::Dump(ConfigOf(model, bits, group, symmetric))));
          const auto checkpoint = Checkpoint::Open((*out)->partial_path().string());
          ASSERT_TRUE(checkpoint) << checkpoint.error().message;
          for (std::size_t i = 0; i < model.plan.size(); ++i) {
            const WeightInfo* info = (*checkpoint)->Find(model.plan[i].name);
            ASSERT_NE(info, nullptr);
            WeightSpec expected = model.plan[i].spec;
            expected.has_f32_scales = expected.kind != CodecKind::kFloat && scale == DType::kF32;
            EXPECT_EQ(info->spec, expected) << info->name;
            const auto rows = (*checkpoint)->ReadRows(*info, 0, info->spec.rows);
            ASSERT_TRUE(rows) << rows.error().message;
            EXPECT_EQ(rows->codes, model.weights[i].codes);
            EXPECT_EQ(rows->scales, model.weights[i].scales);
            EXPECT_EQ(rows->zero_points, model.weights[i].zero_points);
            EXPECT_EQ(rows->values, model.weights[i].values);
          }
          const auto file = SafetensorsFile::Open((*out)->partial_path() / "model.safetensors");
          ASSERT_TRUE(file);
          for (const SafetensorsEntry& entry : (*file)->entries()) {
            EXPECT_EQ(entry.begin % SizeBytes(entry.dtype), 0U) << entry.name;
          }
        }
      }
    }
  }
}

TEST(WeightWriter, PackedWordsAreThoseOfTheFormat) {
  const TempFolder folder;
  WeightSpec spec{.rows = 8, .cols = 8, .kind = CodecKind::kUniform, .bits = 4, .group_size = 8};
  spec.has_zero_points = true;
  QuantizedTensor rows;
  rows.spec = spec;
  for (int row = 0; row < 8; ++row) {
    for (int col = 0; col < 8; ++col) {
      // Row 0: -8..-1, row 1: 0..7, as signed codes of compressed-tensors.
      rows.codes.push_back(static_cast<std::uint8_t>(row == 1 ? 8 + col : col));
    }
    rows.scales.push_back(1.0F);
    rows.zero_points.push_back(static_cast<std::uint8_t>(row));
  }
  auto out = AtomicWriter::Create(folder.path() / "m", {}, 0);
  auto writer = WeightWriter::Create(**out, {{"a.weight", spec}}, {});
  ASSERT_TRUE((*writer)->Write("a.weight", rows));
  ASSERT_TRUE((*writer)->Finish());
  const auto file = SafetensorsFile::Open((*out)->partial_path() / "model.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  std::uint32_t words[2] = {0, 0};
  std::uint32_t zeros = 0;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const TensorView view = (*file)->View(entry);
    if (entry.name == "a.weight_packed") {
      std::memcpy(words, view.bytes.data(), sizeof words);
    } else if (entry.name == "a.weight_zero_point") {
      EXPECT_EQ(entry.shape, (Shape{1, 1}));
      std::memcpy(&zeros, view.bytes.data(), sizeof zeros);
    }
  }
  EXPECT_EQ(words[0], 0x76543210U);
  EXPECT_EQ(words[1], 0xfedcba98U);
  EXPECT_EQ(zeros, 0x76543210U);
}

TEST(WeightWriter, ShardsAreResumedAndTheFolderIsTheSameAsInOneRun) {
  const Model model = MakeModel(4, 32, false, DType::kF16);
  const TempFolder folder;
  const WeightWriter::Options options{.shard_bytes = 20'000};
  const auto whole = [&](const std::string& name, std::size_t stop_after) {
    auto out = AtomicWriter::Create(folder.path() / name, {}, 0);
    auto writer = WeightWriter::Create(**out, model.plan, options);
    for (std::size_t i = 0; i < stop_after; ++i) {
      EXPECT_TRUE((*writer)->Write(model.plan[i].name, model.weights[i], json::Value(int(i))));
    }
    return std::pair{std::move(*out), std::move(*writer)};
  };
  { const auto interrupted = whole("resumed", 9); }
  auto [out, writer] = whole("resumed", 0);
  EXPECT_TRUE(writer->IsDone(model.plan[0].name));
  EXPECT_EQ(writer->DoneFacts(model.plan[1].name), json::Value(1));
  EXPECT_FALSE(writer->IsDone(model.plan.back().name));
  EXPECT_FALSE(writer->DoneFacts(model.plan.back().name));
  ASSERT_TRUE(WriteAll(*writer, model, 64));
  ASSERT_TRUE(out->WriteWhole("config.json", json::Dump(ConfigOf(model, 4, 32, false))));
  ASSERT_TRUE(out->Commit());
  auto [straight_out, straight] = whole("straight", 0);
  ASSERT_TRUE(WriteAll(*straight, model, 5));
  ASSERT_TRUE(straight_out->WriteWhole("config.json", json::Dump(ConfigOf(model, 4, 32, false))));
  ASSERT_TRUE(straight_out->Commit());
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder.path() / "straight")) {
    EXPECT_EQ(TempFolder::Read(entry.path()),
              TempFolder::Read(folder.path() / "resumed" / entry.path().filename()));
    ++files;
  }
  EXPECT_GE(files, 4);  // shards, index, config
  const auto checkpoint = Checkpoint::Open((folder.path() / "resumed").string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
}

TEST(WeightWriter, MistakesOfTheCallerAreNamed) {
  const TempFolder folder;
  auto out = AtomicWriter::Create(folder.path() / "m", {}, 0);
  const WeightSpec w4{
      .rows = 4, .cols = 64, .kind = CodecKind::kUniform, .bits = 4, .group_size = 32};
  for (const auto& change : std::vector<std::function<void(WeightSpec&)>>{
           [](WeightSpec& s) {
             s.codebook = Codebook::kNf4;
             s.kind = CodecKind::kCodebook;
           },
           [](WeightSpec& s) { s.group_size = 48; },
           [](WeightSpec& s) { s.kind = CodecKind::kMinimum; }}) {
    WeightSpec wrong = w4;
    change(wrong);
    const auto writer = WeightWriter::Create(**out, {{"model.x.weight", wrong}}, {});
    ASSERT_FALSE(writer);
    EXPECT_NE(writer.error().message.find("model.x.weight"), std::string::npos);
  }
  auto writer = WeightWriter::Create(**out, {{"a.weight", w4}, {"b.weight", w4}}, {});
  ASSERT_TRUE(writer);
  const QuantizedTensor rows = Rows(w4, DType::kF16, 1);
  EXPECT_FALSE((*writer)->Write("b.weight", rows));
  QuantizedTensor inexact = rows;
  inexact.scales[3] = 0.1F;  // no f16 number
  EXPECT_FALSE((*writer)->Write("a.weight", inexact));
  QuantizedTensor broad = rows;
  broad.codes[3] = 16;
  EXPECT_FALSE((*writer)->Write("a.weight", broad));
  ASSERT_TRUE((*writer)->Write("a.weight", rows));
  EXPECT_FALSE((*writer)->Finish());  // b is missing
  auto large = Rows({.rows = 1, .cols = 4, .float_dtype = DType::kF16}, DType::kF16, 1);
  large.values[2] = 1e6F;
  auto other = AtomicWriter::Create(folder.path() / "n", {}, 0);
  auto floats = WeightWriter::Create(**other, {{"n.weight", large.spec}}, {});
  const auto refused = (*floats)->Write("n.weight", large);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("n.weight"), std::string::npos);
}

}  // namespace
}  // namespace nibble
