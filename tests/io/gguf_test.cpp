#include "io/gguf.h"

#include <gtest/gtest.h>

#include <span>

#include "tests/io/gguf_builder.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::GgufBuilder;
using testing::TempFolder;

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

GgufBuilder Small() {
  GgufBuilder file;
  file.String("general.architecture", "llama")
      .U32("llama.block_count", 2)
      .F32("llama.rope.freq_base", 10000.0F)
      .Bool("tokenizer.ggml.add_bos_token", true)
      .U64("big", UINT64_MAX)
      .Strings("tokenizer.ggml.tokens", {"a", "", "\xC3\xA9"})
      .Array<float>("tokenizer.ggml.scores", 6, {0.0F, -1.5F})
      .Array<std::int32_t>("tokenizer.ggml.token_type", 5, {1, 3, -1})
      .Array<std::uint8_t>("flags", 7, {1, 0});
  file.Tensor("a.weight", {32, 2}, 3, std::string(40, '\x11'))
      .Tensor("b.weight", {3}, 0, std::string(12, '\x22'))
      .Tensor("c.weight", {32}, 8, std::string(34, '\x33'));
  return file;
}

std::string MessageOf(const std::string& bytes) {
  const auto header = ParseGguf(AsBytes(bytes));
  return header ? "" : header.error().message;
}

TEST(Gguf, ReadsMetadataOfEveryTypeAndTensors) {
  const TempFolder folder;
  const auto file = GgufFile::Open(folder.Write("m.gguf", Small().Build()));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ((*file)->String("general.architecture"), "llama");
  EXPECT_EQ((*file)->Int("llama.block_count"), 2);
  EXPECT_EQ((*file)->Double("llama.rope.freq_base"), 10000.0);
  EXPECT_EQ((*file)->Double("llama.block_count"), 2.0);
  EXPECT_EQ((*file)->Bool("tokenizer.ggml.add_bos_token"), true);
  EXPECT_EQ((*file)->Int("big"), std::nullopt);  // does not fit
  EXPECT_EQ((*file)->Int("absent"), std::nullopt);
  EXPECT_EQ((*file)->String("llama.block_count"), std::nullopt);
  const GgufHeader& header = (*file)->header();
  EXPECT_EQ(std::get<std::vector<std::string>>(*header.Find("tokenizer.ggml.tokens")),
            (std::vector<std::string>{"a", "", "\xC3\xA9"}));
  EXPECT_EQ(std::get<std::vector<double>>(*header.Find("tokenizer.ggml.scores")),
            (std::vector<double>{0.0, -1.5}));
  EXPECT_EQ(std::get<std::vector<std::int64_t>>(*header.Find("tokenizer.ggml.token_type")),
            (std::vector<std::int64_t>{1, 3, -1}));
  EXPECT_EQ(std::get<std::vector<bool>>(*header.Find("flags")), (std::vector<bool>{true, false}));
  ASSERT_EQ(header.tensors.size(), 3U);
  EXPECT_EQ(header.data_begin % 32, 0U);
  const auto bytes = (*file)->Bytes(header.tensors[1]);
  EXPECT_EQ(bytes.size(), 12U);
  EXPECT_EQ(bytes[0], std::byte{0x22});
  EXPECT_EQ(header.tensors[0].size_bytes, 40U);
}

TEST(Gguf, AVocabularyAloneIsAFile) {
  GgufBuilder file;
  file.String("tokenizer.ggml.model", "gpt2").Strings("tokenizer.ggml.tokens", {"a", "b"});
  const std::string whole = file.Build();
  EXPECT_EQ(MessageOf(whole), "");
  EXPECT_EQ(MessageOf(file.Header()), "");  // no padding after the header either
}

TEST(Gguf, AnAlignmentOfItsOwnIsHonoured) {
  GgufBuilder file;
  file.alignment = 128;
  file.U32("general.alignment", 128)
      .Tensor("a", {4}, 0, std::string(16, 'a'))
      .Tensor("b", {4}, 0, std::string(16, 'b'));
  const auto header = ParseGguf(AsBytes(file.Build()));
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->tensors[1].offset, 128U);
  EXPECT_EQ(header->data_begin % 128, 0U);
}

TEST(Gguf, TypesAreNamed) {
  EXPECT_EQ(GgufTypeName(12), "Q4_K");
  EXPECT_EQ(GgufTypeName(4), "type 4");
  EXPECT_FALSE(GgufBlockOf(4));
  EXPECT_EQ(GgufBlockOf(2)->bytes, 18);
}

struct WrongFile {
  const char* name;
  std::string bytes;
  ErrorCode code;
  const char* says;
};

std::vector<WrongFile> WrongFiles() {
  std::vector<WrongFile> all;
  const auto add = [&](const char* name, const GgufBuilder& file, ErrorCode code,
                       const char* says) {
    all.push_back({name, file.Build(), code, says});
  };
  GgufBuilder file = Small();
  file.magic = 1;
  add("Magic", file, ErrorCode::kCorruptFile, "GGUF");
  file = Small();
  file.version = 2;
  add("Version", file, ErrorCode::kUnsupported, "version 2");
  file = Small();
  file.version = 0x03000000;
  add("BigEndian", file, ErrorCode::kUnsupported, "big-endian");
  file = Small();
  file.claimed_tensors = std::uint64_t{1} << 63;
  add("TensorCount", file, ErrorCode::kLimitExceeded, "tensors");
  file = Small();
  file.claimed_keys = UINT64_MAX - 1;
  add("KeyCount", file, ErrorCode::kLimitExceeded, "keys");
  file = Small();
  file.claimed_keys = 60000;
  add("MoreKeysThanBytes", file, ErrorCode::kCorruptFile, "ends");
  file = Small();
  add("RepeatedKey", file.U32("llama.block_count", 3), ErrorCode::kCorruptFile, "repeated");
  file = Small();
  add("UnknownValueType", file.Raw("x", 13, "1234"), ErrorCode::kCorruptFile, "type 13");
  file = Small();
  add("NestedArray",
      file.Raw("x", 9, GgufBuilder::Bytes(std::uint32_t{9}) + GgufBuilder::Bytes(std::uint64_t{0})),
      ErrorCode::kUnsupported, "array");
  file = Small();
  add("HugeArray",
      file.Raw("x", 9,
               GgufBuilder::Bytes(std::uint32_t{10}) + GgufBuilder::Bytes(std::uint64_t{1} << 63)),
      ErrorCode::kCorruptFile, "array");
  file = Small();
  add("HugeString", file.Raw("x", 8, GgufBuilder::Bytes(std::uint64_t{1} << 40)),
      ErrorCode::kLimitExceeded, "string");
  file = Small();
  add("BooleanOfTwo", file.Raw("x", 7, "\x02"), ErrorCode::kCorruptFile, "boolean");
  for (const std::uint32_t alignment : {0U, 24U, 8192U}) {
    GgufBuilder other;
    add("Alignment", other.U32("general.alignment", alignment), ErrorCode::kCorruptFile,
        "power of two");
  }
  file = Small();
  add("RepeatedTensor", file.Tensor("a.weight", {4}, 0, std::string(16, 'x')),
      ErrorCode::kCorruptFile, "twice");
  file = Small();
  add("RemovedType", file.Tensor("x", {32}, 4, std::string(20, 'x')), ErrorCode::kUnsupported,
      "type 4");
  file = Small();
  add("PartOfABlock", file.Tensor("x", {33}, 2, std::string(36, 'x')), ErrorCode::kCorruptFile,
      "block of 32");
  file = Small();
  add("NegativeDimension", file.Tensor("x", {-1}, 0, ""), ErrorCode::kCorruptFile, "dimension");
  file = Small();
  add("ShapeOverflow", file.Tensor("x", {std::int64_t{1} << 40, std::int64_t{1} << 40}, 0, ""),
      ErrorCode::kCorruptFile, "dimension");
  file = Small();
  add("BytesOverflow", file.Tensor("x", {std::int64_t{1} << 62}, 0, ""), ErrorCode::kCorruptFile,
      "overflows");
  file = Small();
  add("FiveDimensions", file.Tensor("x", {1, 1, 1, 1, 1}, 0, "1234"), ErrorCode::kCorruptFile,
      "5 dimensions");
  file = Small();
  add("BeyondTheFile", file.Tensor("x", {1000}, 0, "1234"), ErrorCode::kCorruptFile, "needs bytes");
  file = Small();
  add("Overlap", file.TensorAt("x", {4}, 0, 32, std::string(16, 'x')), ErrorCode::kCorruptFile,
      "overlaps");
  file = Small();
  add("Unaligned", file.TensorAt("x", {4}, 0, 161, std::string(16, 'x')), ErrorCode::kCorruptFile,
      "alignment");
  file = Small();
  add("Hole", file.TensorAt("x", {4}, 0, 320, std::string(400, 'x')), ErrorCode::kCorruptFile,
      "hole");
  file = Small();
  add("BrokenName", file.Tensor("\xFFx", {4}, 0, std::string(16, 'x')), ErrorCode::kCorruptFile,
      "name");
  all.push_back({"TrailingBytes", Small().Build() + std::string(10000, 'x'),
                 ErrorCode::kCorruptFile, "follow"});
  all.push_back({"Empty", "", ErrorCode::kCorruptFile, "ends"});
  return all;
}

TEST(Gguf, WrongFilesAreRefusedByWhatIsWrong) {
  for (const WrongFile& file : WrongFiles()) {
    const auto header = ParseGguf(AsBytes(file.bytes));
    ASSERT_FALSE(header) << file.name;
    EXPECT_EQ(header.error().code, file.code) << file.name << ": " << header.error().message;
    EXPECT_NE(header.error().message.find(file.says), std::string::npos)
        << file.name << ": " << header.error().message;
    EXPECT_LT(header.error().message.size(), 400U);
  }
}

// A copy that ends where the file ends, so that a sanitizer sees one byte too far.
Result<GgufHeader> ParseExact(const std::string& bytes, std::size_t size) {
  const std::vector<std::byte> copy(AsBytes(bytes).begin(),
                                    AsBytes(bytes).begin() + static_cast<std::ptrdiff_t>(size));
  return ParseGguf(copy);
}

TEST(Gguf, EveryTruncationOfTheHeaderIsAnError) {
  const GgufBuilder builder = Small();
  const std::string bytes = builder.Build();
  for (std::size_t size = 0; size < bytes.size() - 32; ++size) {
    EXPECT_FALSE(ParseExact(bytes, size)) << size;
  }
}

TEST(Gguf, EveryFlippedByteIsAnErrorOrAValidFile) {
  const GgufBuilder builder = Small();
  const std::string bytes = builder.Build();
  for (std::size_t at = 0; at < builder.Header().size(); ++at) {
    for (const char flip : {'\x01', '\x80', '\xFF'}) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ flip);
      const auto header = ParseExact(damaged, damaged.size());
      if (!header) {
        EXPECT_FALSE(header.error().message.empty());
        continue;
      }
      for (const GgufTensor& tensor : header->tensors) {
        ASSERT_LE(header->data_begin + tensor.offset + tensor.size_bytes, damaged.size()) << at;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
