#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <set>

#include "io/safetensors.h"
#include "tensor/float16.h"
#include "tests/checkpoint/tiny_model.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;
using testing::TinyGguf;

fs::path Golden(const std::string& name) {
  return fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
}

std::unique_ptr<Checkpoint> MustOpen(const fs::path& path) {
  auto checkpoint = Checkpoint::Open(path.string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  return checkpoint ? std::move(*checkpoint) : nullptr;
}

Error MustFail(const fs::path& path) {
  auto checkpoint = Checkpoint::Open(path.string());
  EXPECT_FALSE(checkpoint) << path;
  return checkpoint ? Error{} : checkpoint.error();
}

#define EXPECT_SAYS(error, text) \
  EXPECT_NE((error).message.find(text), std::string::npos) << (error).message

std::vector<float> WholeWeight(const Checkpoint& checkpoint, const std::string& name) {
  const WeightInfo* info = checkpoint.Find(name);
  EXPECT_NE(info, nullptr) << name;
  const auto rows = checkpoint.ReadRows(*info, 0, info->spec.rows);
  EXPECT_TRUE(rows) << rows.error().message;
  EXPECT_TRUE(Validate(*rows));
  return Dequantize(*rows);
}

TEST(Checkpoint, OpensEveryGoldenModelWithEveryWeightThatItsConfigAsksFor) {
  int models = 0;
  for (const auto& entry : fs::directory_iterator(Golden(""))) {
    if (!entry.is_directory()) {
      continue;
    }
    const auto checkpoint = MustOpen(entry.path());
    ASSERT_TRUE(checkpoint) << entry.path();
    EXPECT_TRUE(checkpoint->warnings().empty()) << checkpoint->warnings()[0];
    const auto expected = ExpectedWeights(checkpoint->config());
    ASSERT_EQ(checkpoint->weights().size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const WeightInfo& weight = checkpoint->weights()[i];
      EXPECT_EQ(weight.name, expected[i].name);
      EXPECT_EQ(weight.spec.rows, expected[i].rows);
      EXPECT_EQ(weight.spec.cols, expected[i].cols);
      const auto rows = checkpoint->ReadRows(weight, 0, weight.spec.rows);
      ASSERT_TRUE(rows) << rows.error().message;
      EXPECT_TRUE(Validate(*rows)) << weight.name;
      const auto parts = checkpoint->RawParts(weight);
      ASSERT_TRUE(parts);
      std::uint64_t bytes = 0;
      for (const auto part : *parts) {
        bytes += part.size();
      }
      EXPECT_EQ(bytes, weight.size_bytes);
      checkpoint->Release(weight);
    }
    ++models;
  }
  EXPECT_GE(models, 14);
}

TEST(Checkpoint, AShardedFolderHoldsTheSameWeights) {
  const auto whole = MustOpen(Golden("llama_bias"));
  const auto sharded = MustOpen(Golden("llama_bias_sharded"));
  std::set<std::string> files;
  for (const WeightInfo& weight : whole->weights()) {
    EXPECT_EQ(WholeWeight(*whole, weight.name), WholeWeight(*sharded, weight.name));
    files.insert(sharded->Find(weight.name)->file);
  }
  EXPECT_EQ(files.size(), 3U);
}

TEST(Checkpoint, RowRangesAreTheRowsOfTheWhole) {
  for (const char* model : {"llama2", "ct_int4_sym_g32", "ct_int4_asym_g32", "ct_int8_channel"}) {
    const auto checkpoint = MustOpen(Golden(model));
    const std::string name = "model.layers.1.mlp.up_proj.weight";
    const std::vector<float> whole = WholeWeight(*checkpoint, name);
    const WeightInfo& info = *checkpoint->Find(name);
    for (const auto& [begin, end] : {std::pair{0, 1}, std::pair{3, 21}, std::pair{31, 64}}) {
      const auto rows = checkpoint->ReadRows(info, begin, end);
      ASSERT_TRUE(rows);
      const std::vector<float> some = Dequantize(*rows);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), whole.begin() + begin * info.spec.cols))
          << model;
    }
  }
}

TEST(Checkpoint, TextFilesComeAlong) {
  const auto checkpoint = MustOpen(Golden("llama3"));
  EXPECT_TRUE(checkpoint->tokenizer_json());
  EXPECT_TRUE(checkpoint->tokenizer_config_json());
  EXPECT_TRUE(checkpoint->generation_config_json());
  EXPECT_TRUE(checkpoint->chat_template());
  EXPECT_FALSE(checkpoint->gguf_vocabulary());
  EXPECT_FALSE(checkpoint->certificate());
  EXPECT_EQ(checkpoint->config().rope.type, RopeType::kLlama3);
  EXPECT_EQ(checkpoint->config().eos_token_ids.size(), 2U);
}

// A golden folder copied so that it can be damaged.
class Copy {
 public:
  explicit Copy(const std::string& model) {
    fs::copy(Golden(model), path(), fs::copy_options::recursive);
  }
  fs::path path() const { return folder_.path() / "model"; }
  std::string Text(const std::string& name) const { return TempFolder::Read(path() / name); }
  void Set(const std::string& name, const std::string& text) const {
    fs::remove(path() / name);
    folder_.Write("model/" + name, text);
  }
  void Replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = Text(name);
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    Set(name, text.replace(at, from.size(), to));
  }

 private:
  TempFolder folder_;
};

TEST(Checkpoint, MissingExtraAndMisshapenTensorsAreNamed) {
  // Names of the same length keep the header's length.
  Copy copy("llama2");
  copy.Replace("model.safetensors", "layers.1.mlp.down_proj", "layers.1.mlp.dawn_proj");
  const Error missing = MustFail(copy.path());
  EXPECT_SAYS(missing, "model.layers.1.mlp.down_proj.weight");
  Copy shape("llama2");
  shape.Replace("config.json", "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2");
  const Error misshapen = MustFail(shape.path());
  EXPECT_SAYS(misshapen, "self_attn.k_proj.weight");
  EXPECT_SAYS(misshapen, "[64, 64]");
  EXPECT_SAYS(misshapen, "[32, 64]");
  EXPECT_EQ(misshapen.code, ErrorCode::kCorruptFile);
  Copy fewer("llama2");
  fewer.Replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  const auto extra = MustOpen(fewer.path());
  ASSERT_TRUE(extra);
  EXPECT_FALSE(extra->warnings().empty());
  EXPECT_NE(extra->warnings()[0].find("model.layers.1."), std::string::npos);
}

TEST(Checkpoint, FilesThatAreMissingOrForeignAreNamed) {
  const TempFolder folder;
  EXPECT_SAYS(MustFail(folder.path()), "config.json");
  EXPECT_EQ(MustFail(folder.path() / "nothing").code, ErrorCode::kNotFound);
  Copy copy("llama2");
  fs::remove(copy.path() / "model.safetensors");
  EXPECT_SAYS(MustFail(copy.path()), "model.safetensors");
  copy.Set("pytorch_model.bin", "x");
  const Error pickled = MustFail(copy.path());
  EXPECT_EQ(pickled.code, ErrorCode::kUnsupported);
  EXPECT_SAYS(pickled, "pytorch_model.bin");
}

TEST(Checkpoint, OtherQuantizedLayoutsAreRefusedByWhatTheyAre) {
  const struct {
    const char* config;
    const char* says;
  } kMethods[] = {
      {R"({"quant_method":"gptq","bits":5,"group_size":32})", "5 bits"},
      {R"({"quant_method":"gptq","bits":4,"group_size":32,"format":"gptq_p"})", "gptq_p"},
      {R"({"quant_method":"awq","bits":8,"group_size":32})", "8 bits"},
      {R"({"quant_method":"awq","bits":4,"group_size":32,"version":"gemv"})", "gemv"},
      {R"({"quant_method":"awq","bits":4,"group_size":32,"zero_point":false})", "zero_point"},
      {R"({"quant_method":"modelopt"})", "ModelOpt"},
      {R"({"quant_method":"fp8","fmt":"e5m2"})", "FP8"},
      {R"({"quant_method":"fp8","weight_block_size":[64,64]})", "FP8"},
      {R"({"quant_method":"fbgemm_fp8"})", "FP8"},
      {R"({"quant_method":"hqq"})", "hqq"},
      {R"({"bits":4})", "quant_method"},
  };
  for (const auto& method : kMethods) {
    Copy copy("llama2");
    copy.Replace("config.json", "{",
                 std::string("{\"quantization_config\":") + method.config + ",");
    const Error error = MustFail(copy.path());
    EXPECT_EQ(error.code, ErrorCode::kUnsupported) << error.message;
    EXPECT_SAYS(error, method.says);
  }
  Copy by_tensor("llama2");
  by_tensor.Replace("model.safetensors", "model.layers.1.mlp.down_proj.weight\"",
                    "model.layers.1.mlp.down_p.qweight\"  ");
  EXPECT_SAYS(MustFail(by_tensor.path()), "qweight");
  Copy by_file("llama2");
  by_file.Set("hf_quant_config.json", "{}");
  EXPECT_SAYS(MustFail(by_file.path()), "hf_quant_config.json");
}

TEST(Checkpoint, AMethodWithoutItsMembersOrItsWeightsSaysWhatToDo) {
  const struct {
    const char* config;
    const char* says;
  } kCases[] = {
      {R"({"quant_method":"gptq","group_size":32})", "bits is missing"},
      {R"({"quant_method":"gptq","bits":4})", "group_size is missing"},
      {R"({"quant_method":"gptq","bits":4,"group_size":0})", "group_size is 0"},
      {R"({"quant_method":"gptq","bits":4,"group_size":32,"dynamic":{"-:(":{}}})", "expression"},
      {R"({"quant_method":"awq","group_size":32})", "bits is missing"},
      {R"({"quant_method":"awq","bits":4})", "group_size is missing"},
      {R"({"quant_method":"bitsandbytes"})", "load_in_4bit"},
      {R"({"quant_method":"bitsandbytes","load_in_4bit":true})", "remove quantization_config"},
      {R"({"quant_method":"gptq","bits":4,"group_size":32})", "remove quantization_config"},
  };
  for (const auto& wrong : kCases) {
    Copy copy("llama2");
    copy.Replace("config.json", "{", std::string("{\"quantization_config\":") + wrong.config + ",");
    const Error error = MustFail(copy.path());
    EXPECT_EQ(error.code, ErrorCode::kCorruptFile) << error.message;
    EXPECT_SAYS(error, wrong.says);
  }
}

TEST(Checkpoint, WhatCompressedTensorsDeclaresMustBeWhatIsStored) {
  const struct {
    const char* model;
    const char* from;
    const char* to;
    const char* says;
  } kCases[] = {
      {"ct_int4_sym_g32", "\"num_bits\": 4", "\"num_bits\": 8", "bits"},
      {"ct_int4_sym_g32", "\"num_bits\": 4", "\"num_bits\": 3", "bits"},
      {"ct_int4_sym_g32", "\"num_bits\": 4", "\"num_bits\": 1", "bits"},
      {"ct_int4_sym_g32", "\"symmetric\": true", "\"symmetric\": false", "zero point"},
      {"ct_int4_asym_g32", "\"symmetric\": false", "\"symmetric\": true", "zero point"},
      {"ct_int4_sym_g32", "\"group_size\": 32", "\"group_size\": 16", "group"},
      {"ct_int4_sym_g32", "\"type\": \"int\"", "\"type\": \"float\"", "float"},
      {"ct_int4_sym_g32", "\"format\": \"pack-quantized\"", "\"format\": \"marlin-24\"",
       "marlin-24"},
      {"ct_int4_sym_g32", "\"Linear\"", "\"re:.*q_proj\"", "k_proj"},
      {"ct_int4_sym_g32", "\"lm_head\"", "\"re:.*up_proj$\"", "up_proj"},
      {"ct_int4_sym_g32", "\"lm_head\"", "\"re:(\"", "regular expression"},
      {"ct_int4_sym_g32", "\"quant_method\"", "\"transform_config\": {\"a\": 1}, \"quant_method\"",
       "transform_config"},
  };
  for (const auto& wrong : kCases) {
    Copy copy(wrong.model);
    copy.Replace("config.json", wrong.from, wrong.to);
    const Error error = MustFail(copy.path());
    EXPECT_SAYS(error, wrong.says);
  }
  // Other ways to say the same.
  for (const char* target : {"re:model\\\\.layers\\\\..*_proj", "re:.*(self_attn|mlp).*"}) {
    Copy copy("ct_int4_sym_g32");
    copy.Replace("config.json", "\"Linear\"", std::string("\"") + target + "\"");
    EXPECT_TRUE(MustOpen(copy.path()));
  }
}

TEST(Checkpoint, PackedPartsWithWrongShapesAreNamed) {
  for (const auto& [from, to, says] :
       {std::tuple{"gate_proj.weight_scale", "gate_proj.weight_scole", "weight_scale"},
        std::tuple{"gate_proj.weight_packed", "gate_proj.weight_pocked", "gate_proj.weight"},
        std::tuple{"gate_proj.weight_zero_point", "gate_proj.weight_zero_paint", "zero point"}}) {
    Copy copy("ct_int4_asym_g32");
    copy.Replace("model.safetensors", from, to);
    EXPECT_SAYS(MustFail(copy.path()), says);
  }
}

TEST(Checkpoint, AnIndexThatDisagreesWithItsFilesIsRefused) {
  const std::string index = "model.safetensors.index.json";
  Copy missing("llama_bias_sharded");
  fs::remove(missing.path() / "model-00002-of-00003.safetensors");
  EXPECT_SAYS(MustFail(missing.path()), "model-00002-of-00003.safetensors");
  Copy moved("llama_bias_sharded");
  moved.Replace(index, "model-00001-of", "model-00003-of");
  EXPECT_FALSE(Checkpoint::Open(moved.path().string()));
  Copy unlisted("llama_bias_sharded");
  unlisted.Replace(index, "\"model.norm.weight\"", "\"model.narm.weight\"");
  EXPECT_SAYS(MustFail(unlisted.path()), "norm.weight");
  for (const char* outside : {"../x.safetensors", "/etc/passwd", "..", ""}) {
    Copy copy("llama_bias_sharded");
    copy.Replace(index, "\"model-00001-of-00003.safetensors\"", std::string("\"") + outside + "\"");
    EXPECT_FALSE(Checkpoint::Open(copy.path().string())) << outside;
  }
}

TEST(Checkpoint, LinksMayNotLeaveTheFolderExceptInTheHubCache) {
  Copy copy("llama2");
  const TempFolder outside;
  fs::rename(copy.path() / "model.safetensors", outside.path() / "weights");
  fs::create_symlink(outside.path() / "weights", copy.path() / "model.safetensors");
  EXPECT_SAYS(MustFail(copy.path()), "link");
  Copy config("llama2");
  fs::rename(config.path() / "config.json", outside.path() / "config");
  fs::create_symlink(outside.path() / "config", config.path() / "config.json");
  EXPECT_SAYS(MustFail(config.path()), "link");

  const TempFolder hub;
  const fs::path model = hub.path() / "models--org--tiny";
  fs::create_directories(model / "blobs");
  fs::create_directories(model / "snapshots" / "abc123");
  for (const auto& entry : fs::directory_iterator(Golden("llama2"))) {
    const std::string name = entry.path().filename().string();
    fs::copy(entry.path(), model / "blobs" / ("b" + name));
    fs::create_symlink(fs::path("../../blobs") / ("b" + name), model / "snapshots/abc123" / name);
  }
  hub.Write("models--org--tiny/refs/main", "abc123\n");
  for (const char* name : {"org/tiny", "org/tiny@main", "org/tiny@abc123"}) {
    const auto found = Checkpoint::Open(name, hub.path());
    EXPECT_TRUE(found) << found.error().message;
  }
  const auto absent = Checkpoint::Open("org/other", hub.path());
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, ErrorCode::kNotFound);
  EXPECT_SAYS(absent.error(), "hf download org/other");
  EXPECT_FALSE(Checkpoint::Open("org/tiny@dev", hub.path()));
  EXPECT_FALSE(Checkpoint::Open("../tiny", hub.path()));
  fs::remove(model / "blobs" / "bmodel.safetensors");
  const auto incomplete = Checkpoint::Open("org/tiny", hub.path());
  ASSERT_FALSE(incomplete);
  EXPECT_EQ(incomplete.error().code, ErrorCode::kCorruptFile) << incomplete.error().message;
  EXPECT_SAYS(incomplete.error(), "model.safetensors");
}

TEST(Checkpoint, NumbersThatAreNotFiniteAreRefusedByName) {
  Copy copy("llama2");
  std::string bytes = copy.Text("model.safetensors");
  const auto parsed = SafetensorsFile::Open(copy.path() / "model.safetensors");
  ASSERT_TRUE(parsed);
  for (const SafetensorsEntry& entry : (*parsed)->entries()) {
    if (entry.name == "model.layers.0.self_attn.v_proj.weight") {
      const float nan = NAN;
      const auto at = static_cast<std::size_t>((*parsed)->View(entry).bytes.data() -
                                               (*parsed)->file().bytes().data());
      std::memcpy(bytes.data() + at + 64, &nan, 4);
    }
  }
  copy.Set("model.safetensors", bytes);
  const auto checkpoint = MustOpen(copy.path());
  const auto rows =
      checkpoint->ReadRows(*checkpoint->Find("model.layers.0.self_attn.v_proj.weight"), 0, 8);
  ASSERT_FALSE(rows);
  EXPECT_EQ(rows.error().code, ErrorCode::kCorruptFile);
  EXPECT_SAYS(rows.error(), "model.layers.0.self_attn.v_proj.weight");
}

TEST(Checkpoint, AFileCutWhileItIsReadIsAnError) {
  Copy copy("ct_int4_asym_g32");
  const auto checkpoint = MustOpen(copy.path());
  fs::resize_file(copy.path() / "model.safetensors", 4096);
  const WeightInfo& last = checkpoint->weights().back();
  EXPECT_FALSE(checkpoint->ReadRows(last, 0, last.spec.rows));
}

// ---- GGUF

std::unique_ptr<Checkpoint> OpenTiny(const TempFolder& folder, const TinyGguf& model) {
  // A name for each: an open checkpoint notices when its file is written again.
  static int number = 0;
  return MustOpen(folder.Write(std::to_string(++number) + ".gguf", model.Build()));
}

Error FailTiny(const TinyGguf& model) {
  const TempFolder folder;
  return MustFail(folder.Write("m.gguf", model.Build()));
}

TEST(GgufCheckpoint, BlocksStayCodes) {
  const TempFolder folder;
  const struct {
    std::uint32_t type;
    CodecKind kind;
    int bits;
    const char* name;
  } kTypes[] = {{2, CodecKind::kUniform, 4, "Q4_0"},
                {3, CodecKind::kMinimum, 4, "Q4_1"},
                {8, CodecKind::kUniform, 8, "Q8_0"}};
  for (const auto& expected : kTypes) {
    TinyGguf model;
    model.type = expected.type;
    const auto checkpoint = OpenTiny(folder, model);
    const WeightInfo& info = *checkpoint->Find("model.layers.0.mlp.down_proj.weight");
    EXPECT_EQ(info.stored_as, expected.name);
    EXPECT_EQ(info.spec.kind, expected.kind);
    EXPECT_EQ(info.spec.bits, expected.bits);
    EXPECT_EQ(info.spec.group_size, 32);
    EXPECT_FALSE(info.spec.has_zero_points);
    const auto rows = checkpoint->ReadRows(info, 5, 7);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_TRUE(Validate(*rows));
    // Decoded here from the file's own words, block by block.
    const std::string bytes = model.MatrixBytes(96, 64);
    const std::size_t block_bytes = bytes.size() / (96 * 64 / 32);
    const std::vector<float> values = Dequantize(*rows);
    const auto half = [&](std::size_t at) {
      std::uint16_t word = 0;
      std::memcpy(&word, bytes.data() + at, 2);
      return F16ToFloat(word);
    };
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t at = (5 * 3 + i / 32) * block_bytes;
      const std::size_t j = i % 32;
      float wanted = 0.0F;
      if (expected.type == 8) {
        wanted = half(at) * static_cast<float>(static_cast<signed char>(bytes[at + 2 + j]));
      } else {
        const std::size_t head = expected.type == 3 ? 4 : 2;
        const auto byte = static_cast<unsigned char>(bytes[at + head + j % 16]);
        const int q = j < 16 ? byte & 15 : byte >> 4;
        wanted = expected.type == 3 ? half(at) * static_cast<float>(q) + half(at + 2)
                                    : half(at) * static_cast<float>(q - 8);
      }
      ASSERT_EQ(values[i], wanted) << expected.name << " " << i;
    }
  }
}

TEST(GgufCheckpoint, QueriesAndKeysOfLlamaComeUnpermuted) {
  const TempFolder folder;
  for (const std::uint32_t type : {0U, 3U}) {
    TinyGguf model;
    model.type = type;
    model.biases = true;
    const auto llama = OpenTiny(folder, model);
    ASSERT_TRUE(llama);
    EXPECT_TRUE(llama->config().qkv_bias);
    model.architecture = "qwen2";
    const auto qwen = OpenTiny(folder, model);  // rows as they lie in the file
    ASSERT_TRUE(qwen);
    for (const auto& [projection, rows] : {std::pair{"q", 64}, std::pair{"k", 32}}) {
      const std::string name = std::string("model.layers.0.self_attn.") + projection + "_proj.";
      const std::vector<float> plain = WholeWeight(*qwen, name + "weight");
      const std::vector<float> moved = WholeWeight(*llama, name + "weight");
      const std::vector<float> plain_bias = WholeWeight(*qwen, name + "bias");
      const std::vector<float> moved_bias = WholeWeight(*llama, name + "bias");
      for (int row = 0; row < rows; ++row) {
        const int in_head = row % 32;
        const int from = row - in_head + (in_head < 16 ? 2 * in_head : 2 * (in_head - 16) + 1);
        for (int col = 0; col < 64; ++col) {
          ASSERT_EQ(moved[static_cast<std::size_t>(row * 64 + col)],
                    plain[static_cast<std::size_t>(from * 64 + col)]);
        }
        ASSERT_EQ(moved_bias[static_cast<std::size_t>(row)],
                  plain_bias[static_cast<std::size_t>(from)]);
      }
      // A range of rows is a range of the un-permuted matrix.
      const auto some = llama->ReadRows(*llama->Find(name + "weight"), 15, 18);
      ASSERT_TRUE(some);
      const std::vector<float> values = Dequantize(*some);
      EXPECT_TRUE(std::equal(values.begin(), values.end(), moved.begin() + 15 * 64));
    }
    EXPECT_EQ(WholeWeight(*qwen, "model.layers.0.self_attn.v_proj.weight"),
              WholeWeight(*llama, "model.layers.0.self_attn.v_proj.weight"));
  }
}

TEST(GgufCheckpoint, ConfigVocabularyAndTemplateComeFromTheMetadata) {
  const TempFolder folder;
  TinyGguf model;
  const auto checkpoint = OpenTiny(folder, model);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.architecture, Architecture::kLlama);
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.num_kv_heads, 1);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.vocab_size, 8);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.bos_token_id, TokenId{0});
  EXPECT_EQ(config.eos_token_ids, std::vector<TokenId>{TokenId{1}});
  EXPECT_EQ(checkpoint->format(), CheckpointFormat::kGguf);
  EXPECT_EQ(checkpoint->chat_template(), "{{ messages }}");
  EXPECT_EQ(checkpoint->bos_token(), "<s>");
  EXPECT_EQ(checkpoint->eos_token(), "</s>");
  ASSERT_TRUE(checkpoint->gguf_vocabulary());
  const GgufVocabulary& vocabulary = *checkpoint->gguf_vocabulary();
  EXPECT_EQ(vocabulary.model, "gpt2");
  EXPECT_EQ(vocabulary.pre, "smollm");
  EXPECT_EQ(vocabulary.tokens.size(), 8U);
  EXPECT_EQ(vocabulary.token_types[1], 3);
  EXPECT_EQ(vocabulary.merges, std::vector<std::string>{"a b"});
  EXPECT_EQ(vocabulary.add_bos, false);
  EXPECT_EQ(vocabulary.add_eos, std::nullopt);
  model.tied = false;
  EXPECT_FALSE(OpenTiny(folder, model)->config().tie_word_embeddings);
  model.architecture = "qwen3";
  EXPECT_TRUE(OpenTiny(folder, model)->config().qk_norm);
}

TEST(GgufCheckpoint, AVocabularyAloneOpensForItsText) {
  testing::GgufBuilder file;
  file.String("general.architecture", "llama")
      .String("tokenizer.ggml.model", "llama")
      .Strings("tokenizer.ggml.tokens", {"a", "b"})
      .Array<float>("tokenizer.ggml.scores", 6, {0.5F, -1.0F});
  const TempFolder folder;
  const auto checkpoint = MustOpen(folder.Write("v.gguf", file.Build()));
  ASSERT_TRUE(checkpoint);
  EXPECT_TRUE(checkpoint->weights().empty());
  EXPECT_EQ(checkpoint->gguf_vocabulary()->scores, (std::vector<float>{0.5F, -1.0F}));
}

TEST(GgufCheckpoint, WhatIsMissingOrUnsupportedIsNamed) {
  TinyGguf model;
  model.leave_out = {"blk.0.ffn_up.weight"};
  EXPECT_SAYS(FailTiny(model), "blk.0.ffn_up.weight");
  model = {};
  model.architecture = "gemma2";
  Error error = FailTiny(model);
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_SAYS(error, "gemma2");
  model = {};
  model.with_config = false;
  EXPECT_SAYS(FailTiny(model), "llama.");
  const TempFolder folder;
  auto builder = TinyGguf{}.Builder();
  builder.Tensor("x.weight", {256}, 12, std::string(144, 'x'));
  const auto with_extra = MustOpen(folder.Write("x.gguf", builder.Build()));
  ASSERT_TRUE(with_extra);
  ASSERT_EQ(with_extra->warnings().size(), 1U);
  EXPECT_NE(with_extra->warnings()[0].find("x.weight"), std::string::npos);
  model = {};
  model.leave_out = {"blk.0.attn_v.weight"};
  builder = model.Builder();
  builder.Tensor("blk.0.attn_v.weight", {64, 32}, 20, std::string(18 * 64, 'x'));  // IQ4_NL
  error = MustFail(folder.Write("q5.gguf", builder.Build()));
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_SAYS(error, "IQ4_NL");
  EXPECT_SAYS(error, "blk.0.attn_v.weight");
  builder = TinyGguf{}.Builder();
  builder.U32("split.count", 2);
  EXPECT_SAYS(MustFail(folder.Write("s.gguf", builder.Build())), "split");
}

std::string Llama3Divisors(double theta, double factor, double low, double high, double original) {
  std::vector<float> out;
  for (int i = 0; i < 16; ++i) {
    const double inverse = std::pow(theta, -2.0 * i / 32.0);
    const double wave = 2.0 * std::numbers::pi / inverse;
    const double smooth = (original / wave - low) / (high - low);
    out.push_back(static_cast<float>(
        wave < original / high
            ? 1.0
            : (wave > original / low ? factor : 1.0 / ((1.0 - smooth) / factor + smooth))));
  }
  return testing::BytesOf(out);
}

TEST(GgufCheckpoint, Llama3ScalingIsRecognisedFromItsDivisors) {
  const TempFolder folder;
  TinyGguf model;
  model.extra_f32 = {{"rope_freqs.weight", Llama3Divisors(10000.0, 32.0, 1.0, 4.0, 8192.0)}};
  const auto checkpoint = OpenTiny(folder, model);
  ASSERT_TRUE(checkpoint);
  EXPECT_EQ(checkpoint->config().rope.type, RopeType::kLlama3);
  EXPECT_EQ(checkpoint->config().rope.factor, 32.0);
  EXPECT_EQ(checkpoint->config().rope.original_max_position_embeddings, 8192.0);
  EXPECT_TRUE(checkpoint->warnings().empty());
  std::string odd = Llama3Divisors(10000.0, 32.0, 1.0, 4.0, 8192.0);
  odd[7 * 4 + 2] = static_cast<char>(odd[7 * 4 + 2] ^ 0x40);
  model.extra_f32 = {{"rope_freqs.weight", odd}};
  EXPECT_SAYS(FailTiny(model), "rope_freqs.weight");
}

// Every byte of the header, flipped: an error, or a checkpoint whose rows can all be read or give
// an error in turn. Nothing else may happen.
TEST(GgufCheckpoint, DamageGivesAnErrorOrReadableRows) {
  const TempFolder folder;
  const auto builder = TinyGguf{}.Builder();
  const std::string bytes = builder.Build();
  const std::size_t header = builder.Header().size();
  int opened = 0;
  for (std::size_t at = 0; at < header; at += 13) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ (at % 2 == 0 ? 0x01 : 0x84));
    const auto checkpoint = Checkpoint::Open(folder.Write("d.gguf", damaged).string());
    if (!checkpoint) {
      continue;
    }
    ++opened;
    for (const WeightInfo& weight : (*checkpoint)->weights()) {
      const auto rows = (*checkpoint)->ReadRows(weight, 0, weight.spec.rows);
      ASSERT_TRUE(!rows || Validate(*rows));
    }
  }
  EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace nibble
