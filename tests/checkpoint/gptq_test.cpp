#include "checkpoint/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "checkpoint/awq.h"
#include "checkpoint/code_words.h"
#include "checkpoint/weight_writer.h"
#include "codec/encode.h"
#include "tests/checkpoint/tensor_folder.h"

namespace nibble {
namespace {

using testing::BytesOf;
using testing::RawTensors;
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
const std::string kModule = "model.layers.0.mlp.down_proj";
const std::string kName = kModule + ".weight";  // [64, 96]

std::vector<std::uint32_t> WordsOf(const std::string& bytes) {
  std::vector<std::uint32_t> words(bytes.size() / 4);
  std::memcpy(words.data(), bytes.data(), bytes.size());
  return words;
}

QuantizedTensor Rows(const WeightSpec& spec, std::uint32_t seed) {
  QuantizedTensor out;
  out.spec = spec;
  std::uint32_t state = seed * 2654435761U + 1;
  const auto next = [&] { return (state = state * 1664525U + 1013904223U) >> 8U; };
  for (std::int64_t i = 0; i < spec.rows * spec.cols; ++i) {
    if (spec.kind == CodecKind::kFloat) {
      out.values.push_back(static_cast<float>(next() % 257) / 64.0F - 2.0F);
    } else {
      out.codes.push_back(static_cast<std::uint8_t>(next() % (1U << spec.bits)));
    }
  }
  for (std::int64_t i = 0; i < spec.rows * spec.num_groups(); ++i) {
    out.scales.push_back(
        RoundToDType(0.001F + static_cast<float>(next() % 1000) / 7000.0F, DType::kF16));
    if (spec.has_zero_points) {
      out.zero_points.push_back(static_cast<std::uint8_t>(next() % (1U << spec.bits)));
    }
  }
  return out;
}

struct Model {
  std::vector<WeightToWrite> plan;
  std::vector<QuantizedTensor> weights;
};

Model MakeModel(int bits, std::int64_t group_size, bool symmetric) {
  Model model;
  std::uint32_t seed = 0;
  for (const ExpectedWeight& weight : ExpectedWeights(kConfig)) {
    WeightSpec spec{.rows = weight.rows, .cols = weight.cols, .float_dtype = DType::kF16};
    if (weight.is_linear) {
      spec = {.rows = weight.rows,
              .cols = weight.cols,
              .kind = CodecKind::kUniform,
              .bits = bits,
              .group_size = group_size == 0 ? weight.cols : group_size,
              .has_zero_points = !symmetric};
    }
    model.plan.push_back({weight.name, spec});
    model.weights.push_back(Rows(spec, ++seed));
  }
  return model;
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

// The folder of a model as the writer writes it: its tensors and its config.
struct Written {
  RawTensors tensors;
  json::Object config;
};
Written Write(const Model& model, FolderFormat format) {
  const TempFolder folder;
  const WeightWriter::Options options{.format = format};
  auto out =
      AtomicWriter::Create(folder.path() / "m", {}, WeightWriter::SizeBytes(model.plan, options));
  EXPECT_TRUE(out) << out.error().message;
  auto writer = WeightWriter::Create(**out, model.plan, options);
  EXPECT_TRUE(writer) << writer.error().message;
  for (std::size_t i = 0; i < model.plan.size(); ++i) {
    for (std::int64_t row = 0; row < model.plan[i].spec.rows; row += 24) {
      const auto written = (*writer)->Write(
          model.plan[i].name,
          Slice(model.weights[i], row, std::min(model.plan[i].spec.rows, row + 24)));
      EXPECT_TRUE(written) << written.error().message;
    }
  }
  EXPECT_TRUE((*writer)->Finish());
  auto config = QuantizationConfigOf(format, model.plan, DType::kF16, "1.0");
  EXPECT_TRUE(config) << config.error().message;
  return {testing::ReadTensors((*out)->partial_path()), std::move(*config)};
}

Error MustFail(const Written& written) {
  const TempFolder folder;
  const auto checkpoint = testing::OpenWith(folder, kConfig, written.tensors, written.config);
  EXPECT_FALSE(checkpoint);
  return checkpoint ? Error{} : checkpoint.error();
}

#define EXPECT_SAYS(error, text) \
  EXPECT_NE((error).message.find(text), std::string::npos) << (error).message

class RoundTrip : public ::testing::TestWithParam<FolderFormat> {};

TEST_P(RoundTrip, WhatIsWrittenReadsBackTheSameInAnyRows) {
  const FolderFormat format = GetParam();
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    for (const std::int64_t group : {0, 32}) {
      for (const bool symmetric : {true, false}) {
        const Model model = MakeModel(bits, group, symmetric);
        const auto encoder = MakeWeightEncoder(
            format, *std::ranges::find(model.plan, kName, &WeightToWrite::name), {});
        if (!encoder) {
          EXPECT_SAYS(encoder.error(), kName);
          continue;
        }
        const Written written = Write(model, format);
        const TempFolder folder;
        const auto checkpoint = testing::OpenWith(folder, kConfig, written.tensors, written.config);
        ASSERT_TRUE(checkpoint) << checkpoint.error().message;
        EXPECT_TRUE((*checkpoint)->warnings().empty());
        for (std::size_t i = 0; i < model.plan.size(); ++i) {
          const WeightInfo* info = (*checkpoint)->Find(model.plan[i].name);
          ASSERT_NE(info, nullptr);
          WeightSpec expected = model.plan[i].spec;
          QuantizedTensor whole = model.weights[i];
          if (format == FolderFormat::kAwq && expected.kind != CodecKind::kFloat && symmetric) {
            expected.has_zero_points = true;
            whole.zero_points.assign(whole.scales.size(), 8);
          }
          EXPECT_EQ(info->spec, expected) << info->name << info->spec.ToString();
          for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, expected.rows},
                                           {expected.rows / 3, expected.rows}}) {
            const auto rows = (*checkpoint)->ReadRows(*info, begin, end);
            ASSERT_TRUE(rows) << rows.error().message;
            const QuantizedTensor part = Slice(whole, begin, end);
            EXPECT_EQ(rows->codes, part.codes);
            EXPECT_EQ(rows->scales, part.scales);
            EXPECT_EQ(rows->zero_points, part.zero_points);
            EXPECT_EQ(rows->values, part.values);
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, RoundTrip,
                         ::testing::Values(FolderFormat::kCompressedTensors, FolderFormat::kGptq,
                                           FolderFormat::kGptqV2, FolderFormat::kAwq));

// Reference, section 13.1.
TEST(CodeWords, AreThoseOfTheReference) {
  const auto pack = [](int bits, std::int64_t count) {
    std::vector<std::uint32_t> words(static_cast<std::size_t>(CodeWords(count, bits)));
    for (std::int64_t i = 0; i < count; ++i) {
      PutCode(words, 1, bits, i, static_cast<std::uint32_t>(i) % (1U << bits));
    }
    return words;
  };
  EXPECT_EQ(pack(4, 8), (std::vector{0x76543210U}));
  EXPECT_EQ(pack(3, 32), (std::vector{0x88fac688U, 0xc688fac6U, 0xfac688faU}));
  for (const int bits : {2, 3, 5, 6, 7, 8}) {
    const auto words = pack(bits, 100);
    for (std::int64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(CodeAt(reinterpret_cast<const std::byte*>(words.data()), 1, bits, i),
                static_cast<std::uint32_t>(i) % (1U << bits));
    }
  }
}

// Until May 2026 words held whole codes: the first word of codes i mod 8 is the reference's.
TEST(CodeWords, TheOldPackingOfCompressedTensorsIsToldByItsShape) {
  for (const int bits : {3, 5, 6, 7}) {
    Model model = MakeModel(bits, 32, false);
    for (QuantizedTensor& weight : model.weights) {
      for (std::size_t i = 0; i < weight.codes.size(); ++i) {
        weight.codes[i] = static_cast<std::uint8_t>(i % (1U << bits));
      }
    }
    Written written = Write(model, FolderFormat::kCompressedTensors);
    const std::int64_t per_word = 32 / bits;
    for (const WeightToWrite& weight : model.plan) {
      const WeightSpec& spec = weight.spec;
      if (spec.kind == CodecKind::kFloat) {
        continue;
      }
      testing::RawTensor& packed = written.tensors.at(weight.name + "_packed");
      testing::RawTensor& zero = written.tensors.at(weight.name + "_zero_point");
      const auto found = std::ranges::find(model.plan, weight.name, &WeightToWrite::name);
      const auto& rows = model.weights[static_cast<std::size_t>(found - model.plan.begin())];
      const std::int64_t groups = spec.num_groups();
      packed.shape = Shape{spec.rows, WholeCodeWords(spec.cols, bits)};
      zero.shape = Shape{WholeCodeWords(spec.rows, bits), groups};
      std::vector<std::uint32_t> words(static_cast<std::size_t>(packed.shape.num_elements()));
      std::vector<std::uint32_t> zeros(static_cast<std::size_t>(zero.shape.num_elements()));
      for (std::int64_t row = 0; row < spec.rows; ++row) {
        for (std::int64_t col = 0; col < spec.cols; ++col) {
          words[static_cast<std::size_t>(row * packed.shape[1] + col / per_word)] |=
              std::uint32_t{rows.codes[static_cast<std::size_t>(row * spec.cols + col)]}
              << (col % per_word * bits);
        }
        for (std::int64_t group = 0; group < groups; ++group) {
          zeros[static_cast<std::size_t>(row / per_word * groups + group)] |=
              std::uint32_t{rows.zero_points[static_cast<std::size_t>(row * groups + group)]}
              << (row % per_word * bits);
        }
      }
      EXPECT_TRUE(bits != 3 || words[0] == 0x08fac688U);
      packed.bytes = BytesOf(words);
      zero.bytes = BytesOf(zeros);
    }
    const TempFolder folder;
    const auto open = testing::OpenWith(folder, kConfig, written.tensors, written.config);
    ASSERT_TRUE(open) << open.error().message;
    for (std::size_t i = 0; i < model.plan.size(); ++i) {
      const WeightInfo* info = (*open)->Find(model.plan[i].name);
      const auto rows = (*open)->ReadRows(*info, 0, info->spec.rows);
      ASSERT_TRUE(rows) << rows.error().message;
      EXPECT_EQ(rows->codes, model.weights[i].codes) << bits;
      EXPECT_EQ(rows->zero_points, model.weights[i].zero_points) << bits;
    }
  }
}

TEST(Gptq, SymmetricZeroPointsAreTheWordsOfTheReference) {
  const struct {
    int bits;
    std::vector<std::uint32_t> v1, v2;  // repeated
  } kCases[] = {
      {2, {0x55555555U}, {0xaaaaaaaaU}},
      {3, {0xdb6db6dbU, 0xb6db6db6U, 0x6db6db6dU}, {0x24924924U, 0x49249249U, 0x92492492U}},
      {4, {0x77777777U}, {0x88888888U}},
      {8, {0x7f7f7f7fU}, {0x80808080U}}};
  for (const auto& one : kCases) {
    const Model model = MakeModel(one.bits, 32, true);
    for (const bool v2 : {false, true}) {
      const Written written = Write(model, v2 ? FolderFormat::kGptqV2 : FolderFormat::kGptq);
      const auto words = WordsOf(written.tensors.at(kModule + ".qzeros").bytes);
      const auto& expected = v2 ? one.v2 : one.v1;
      for (std::size_t i = 0; i < words.size(); ++i) {
        ASSERT_EQ(words[i], expected[i % expected.size()]) << one.bits << " bits, word " << i;
      }
    }
  }
}

// Eight codes 0 to 7 of the columns of an AWQ file: reference, section 13.1.
TEST(Awq, OutputsOfAWordAreInterleavedAsTheReferenceSays) {
  Model model = MakeModel(4, 32, false);
  for (QuantizedTensor& weight : model.weights) {
    for (std::size_t i = 0; i < weight.codes.size(); ++i) {
      weight.codes[i] =
          static_cast<std::uint8_t>(i / static_cast<std::size_t>(weight.spec.cols) % 8);
    }
    const auto groups = static_cast<std::size_t>(weight.spec.num_groups());
    for (std::size_t i = 0; i < weight.zero_points.size(); ++i) {
      weight.zero_points[i] = static_cast<std::uint8_t>(i / std::max<std::size_t>(1, groups) % 8);
    }
  }
  const Written written = Write(model, FolderFormat::kAwq);
  for (const char* part : {".qweight", ".qzeros"}) {
    for (const std::uint32_t word : WordsOf(written.tensors.at(kModule + part).bytes)) {
      ASSERT_EQ(word, 0x75316420U);
    }
  }
}

TEST(Gptq, TheVersionOfSymmetricZeroPointsIsTakenFromThemWhereNobodySaysIt) {
  for (const FolderFormat format : {FolderFormat::kGptq, FolderFormat::kGptqV2}) {
    Written written = Write(MakeModel(4, 32, true), format);
    const bool v2 = format == FolderFormat::kGptqV2;
    written.config.Erase("checkpoint_format");
    written.config.Erase("format");
    {
      const TempFolder folder;
      const auto open = testing::OpenWith(folder, kConfig, written.tensors, written.config);
      ASSERT_TRUE(open) << open.error().message;
      EXPECT_EQ((*open)->Find(kName)->stored_as, v2 ? "gptq_v2 int4" : "gptq int4");
      EXPECT_FALSE((*open)->Find(kName)->spec.has_zero_points);
    }
    written.config.Set("checkpoint_format", v2 ? "gptq" : "gptq_v2");
    EXPECT_SAYS(MustFail(written), "correct it");
  }
}

TEST(Gptq, ZeroPointsOfVersionOneWrapAsTheirQuantizerDid) {
  Written written = Write(MakeModel(4, 32, false), FolderFormat::kGptqV2);
  // Version 1 of zero points 0 and 5 side by side, one taken from each code, or from the word.
  RawTensors& tensors = written.tensors;
  const auto set = [&](std::uint32_t word) {
    std::string& bytes = tensors.at(kModule + ".qzeros").bytes;
    std::memcpy(bytes.data(), &word, sizeof word);
  };
  written.config.Set("checkpoint_format", "gptq");
  written.config.Set("format", "gptq");
  const auto zeros = [&] {
    const TempFolder folder;
    const auto open = testing::OpenWith(folder, kConfig, tensors, written.config);
    EXPECT_TRUE(open) << open.error().message;
    EXPECT_EQ((*open)->warnings().empty(), written.config.Find("meta") != nullptr);
    const auto rows = (*open)->ReadRows(*(*open)->Find(kName), 0, 8);
    std::vector<int> out;
    for (std::size_t row = 0; row < 8; ++row) {
      out.push_back(rows->zero_points[row * 3]);
    }
    return out;
  };
  const std::vector<int> expected = {0, 5, 15, 1, 2, 3, 4, 0};
  set(0xf3210e4fU);
  written.config.Erase("meta");
  EXPECT_EQ(zeros(), expected);
  set(0x04321f50U - 0x11111111U);
  json::Object meta;
  meta.Set("quantizer", json::Array{"gptqmodel:7.7.0"});
  written.config.Set("meta", std::move(meta));
  EXPECT_EQ(zeros(), expected);
}

TEST(Gptq, ColumnsInActivationOrderAreServedAsExactValues) {
  for (const bool symmetric : {true, false}) {
    const Model model = MakeModel(4, 32, symmetric);
    Written written = Write(model, FolderFormat::kGptqV2);
    std::vector<std::int32_t> groups(96);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      groups[i] = static_cast<std::int32_t>(i * 37 % 96 / 32);
    }
    written.tensors.at(kModule + ".g_idx").bytes = BytesOf(groups);
    written.config.Erase("desc_act");
    const TempFolder folder;
    const auto open = testing::OpenWith(folder, kConfig, written.tensors, written.config);
    ASSERT_TRUE(open) << open.error().message;
    const WeightInfo* info = (*open)->Find(kName);
    EXPECT_EQ(info->stored_as, "gptq_v2 int4, activation order");
    ASSERT_EQ((*open)->warnings().size(), 1U);
    EXPECT_NE((*open)->warnings()[0].find("desc_act"), std::string::npos);
    const auto rows = (*open)->ReadRows(*info, 16, 48);
    ASSERT_TRUE(rows) << rows.error().message;
    const auto found = std::ranges::find(model.plan, kName, &WeightToWrite::name);
    const QuantizedTensor& whole =
        model.weights[static_cast<std::size_t>(found - model.plan.begin())];
    for (std::size_t row = 0; row < 32; ++row) {
      for (std::size_t col = 0; col < 96; ++col) {
        const std::size_t group = (row + 16) * 3 + static_cast<std::size_t>(groups[col]);
        const int zero = symmetric ? 8 : whole.zero_points[group];
        EXPECT_EQ(
            rows->values[row * 96 + col],
            static_cast<float>(whole.codes[(row + 16) * 96 + col] - zero) * whole.scales[group]);
      }
    }
  }
}

TEST(Gptq, WhatContradictsItselfIsNamed) {
  using Change = std::function<void(Written&)>;
  const auto shape = [](const char* part, Shape to) -> Change {
    return [=](Written& w) { w.tensors.at(kModule + part).shape = to; };
  };
  const auto config = [](const char* key, const json::Value& value) -> Change {
    return [=](Written& w) { w.config.Set(key, value); };
  };
  const auto group = [](std::size_t i, std::int32_t to) -> Change {
    return [=](Written& w) {
      std::memcpy(w.tensors.at(kModule + ".g_idx").bytes.data() + i * 4, &to, 4);
    };
  };
  const struct {
    Change change;
    const char* says;
  } cases[] = {
      {[](Written& w) { w.tensors.erase(kModule + ".qzeros"); }, "qzeros is missing"},
      {[](Written& w) { w.tensors.erase(kModule + ".qweight"); }, "qweight is missing"},
      {shape(".qweight", Shape{64, 12}), "take I32 [12, 64]"},
      {shape(".scales", Shape{64, 3}), "group_size"},
      {config("bits", 8), "8 bits of [64, 64]"},
      {config("group_size", 64), "group_size 64"},
      {config("quant_method", "awq"), "set quant_method to \"gptq\""},
      {config("quant_method", "bitsandbytes"), "GPTQ or AWQ"},
      {config("quant_method", "fp8"), "set quant_method to \"gptq\" or \"awq\""},
      {config("dynamic", json::Object()), ""},  // nothing wrong
      {group(5, 3), "g_idx[5] is 3, but there are 3 groups"},
      {group(5, -1), "g_idx[5] is -1"},
      {group(5, 1), "desc_act is false"},
      {[](Written& w) { w.tensors.at(kModule + ".qzeros").bytes[3] ^= 1; }, "sym is true"},
      {[](Written& w) {
         json::Object rules;
         rules.Set("-:.*mlp", json::Object());
         w.config.Set("dynamic", std::move(rules));
       },
       "leaves it out"},
  };
  for (const auto& wrong : cases) {
    Written written = Write(MakeModel(4, 32, true), FolderFormat::kGptq);
    written.config.Set("load_in_4bit", true);
    wrong.change(written);
    if (*wrong.says == '\0') {
      const TempFolder folder;
      EXPECT_TRUE(testing::OpenWith(folder, kConfig, written.tensors, written.config));
      continue;
    }
    const Error error = MustFail(written);
    EXPECT_SAYS(error, wrong.says);
  }
  Written bare = Write(MakeModel(4, 32, true), FolderFormat::kGptq);
  bare.config = {};
  EXPECT_SAYS(MustFail(bare), "quantize_config.json");
  Written awq = Write(MakeModel(4, 32, true), FolderFormat::kAwq);
  awq.config.Set("quant_method", "gptq");
  EXPECT_SAYS(MustFail(awq), "set quant_method to \"awq\"");
}

TEST(Gptq, OldFoldersTellTheirMethodInAFileOfItsOwn) {
  for (const auto& [format, file] : {std::pair{FolderFormat::kGptq, "quantize_config.json"},
                                     std::pair{FolderFormat::kAwq, "quant_config.json"}}) {
    Written written = Write(MakeModel(4, 32, true), format);
    const TempFolder folder;
    written.config.Erase("quant_method");
    folder.Write(file, json::Dump(written.config));
    const auto open = testing::OpenWith(folder, kConfig, written.tensors, {});
    ASSERT_TRUE(open) << open.error().message;
    EXPECT_EQ((*open)->Find(kName)->spec.bits, 4);
  }
}

TEST(Gptq, ModulesThatDifferAreNamedInDynamic) {
  Model model = MakeModel(4, 32, false);
  for (std::size_t i = 0; i < model.plan.size(); ++i) {
    WeightSpec& spec = model.plan[i].spec;
    if (model.plan[i].name.find("down_proj") != std::string::npos) {
      spec.bits = 8;
    } else if (model.plan[i].name.find("o_proj") != std::string::npos) {
      spec = {.rows = spec.rows, .cols = spec.cols, .float_dtype = DType::kF16};
    }
    model.weights[i] = Rows(spec, 7);
  }
  for (const FolderFormat format : {FolderFormat::kGptqV2, FolderFormat::kCompressedTensors}) {
    const Written written = Write(model, format);
    const TempFolder folder;
    const auto open = testing::OpenWith(folder, kConfig, written.tensors, written.config);
    ASSERT_TRUE(open) << open.error().message;
    EXPECT_EQ((*open)->Find(kName)->spec.bits, 8);
    EXPECT_EQ((*open)->Find("model.layers.0.self_attn.o_proj.weight")->spec.kind,
              CodecKind::kFloat);
  }
  EXPECT_FALSE(QuantizationConfigOf(FolderFormat::kAwq, model.plan, DType::kF16, "1").has_value() &&
               MakeWeightEncoder(FolderFormat::kAwq, model.plan.back(), {}).has_value());
}

// A row as wide as the groups of other modules is one such group, not another scheme.
TEST(Awq, GroupsMayBeAsWideAsTheRowsOfSomeModules) {
  const WeightSpec narrow{.rows = 8,
                          .cols = 64,
                          .kind = CodecKind::kUniform,
                          .bits = 4,
                          .group_size = 64,
                          .has_zero_points = true};
  WeightSpec wide = narrow;
  wide.cols = 128;
  std::vector<WeightToWrite> weights = {{"model.layers.0.self_attn.q_proj.weight", narrow},
                                        {"model.layers.0.mlp.down_proj.weight", wide}};
  const auto config = QuantizationConfigOf(FolderFormat::kAwq, weights, DType::kF16, "1");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->Find("group_size")->AsInt(), 64);
  const auto gptq = QuantizationConfigOf(FolderFormat::kGptqV2, weights, DType::kF16, "1");
  ASSERT_TRUE(gptq) << gptq.error().message;
  EXPECT_EQ(gptq->Find("dynamic"), nullptr);
  weights[1].spec.group_size = 128;  // whole rows of two widths
  const auto rows = QuantizationConfigOf(FolderFormat::kAwq, weights, DType::kF16, "1");
  ASSERT_TRUE(rows) << rows.error().message;
  EXPECT_EQ(rows->Find("group_size")->AsInt(), -1);
}

}  // namespace
}  // namespace nibble
