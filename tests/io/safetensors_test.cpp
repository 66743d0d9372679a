#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <span>

#include "base/limits.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

std::string File(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

const std::string kTwo =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]},)"
    R"("a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}})";

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const TempFolder folder;
  const auto file =
      SafetensorsFile::Open(folder.Write("m.safetensors", File(kTwo + "  ", "0123456789abcdef")));
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ((*file)->entries().size(), 2U);
  const SafetensorsEntry& a = (*file)->entries()[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF16);
  EXPECT_EQ(a.shape, (Shape{2, 2}));
  const TensorView b = (*file)->View((*file)->entries()[1]);
  EXPECT_EQ(b.shape.rank(), 0);
  EXPECT_EQ(std::memcmp(b.bytes.data(), "89abcdef", 8), 0);
}

TEST(Safetensors, EmptyTensorsAndNoTensorsAreLegal) {
  EXPECT_TRUE(ParseSafetensorsHeader(AsBytes(File("{}", ""))));
  EXPECT_TRUE(ParseSafetensorsHeader(
      AsBytes(File(R"({"a":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                   R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                   "x"))));
}

TEST(Safetensors, AFileThatIsNotThereIsNamed) {
  const auto file = SafetensorsFile::Open("/nonexistent/model.safetensors");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_NE(file.error().message.find("/nonexistent/model.safetensors"), std::string::npos);
}

TEST(Safetensors, WrongHeadersAreRefusedByWhatIsWrong) {
  const auto tensor = [](const std::string& body) { return "{\"a\":" + body + "}"; };
  const struct {
    std::string header;
    std::string data;
    ErrorCode code;
    const char* says;
  } kCases[] = {
      {"[1]", "", ErrorCode::kCorruptFile, "begin with"},
      {"{\"a\":", "", ErrorCode::kCorruptFile, "header"},
      {tensor("1"), "", ErrorCode::kCorruptFile, "object"},
      {tensor(R"({"dtype":"C64","shape":[1],"data_offsets":[0,8]})"), "12345678",
       ErrorCode::kUnsupported, "C64"},
      {tensor(R"({"shape":[1],"data_offsets":[0,1]})"), "x", ErrorCode::kCorruptFile, "dtype"},
      {tensor(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})"), "x", ErrorCode::kCorruptFile,
       "dimension"},
      {tensor(R"({"dtype":"U8","shape":[1.5],"data_offsets":[0,1]})"), "x", ErrorCode::kCorruptFile,
       "dimension"},
      {tensor(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]})"), "x",
       ErrorCode::kCorruptFile, "8 dimensions"},
      {tensor(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,1]})"), "x",
       ErrorCode::kCorruptFile, "overflow"},
      {tensor(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]})"), "x",
       ErrorCode::kCorruptFile, "dimension"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":1})"), "x",
       ErrorCode::kCorruptFile, "extra"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0]})"), "x", ErrorCode::kCorruptFile,
       "data_offsets"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})"), "x", ErrorCode::kCorruptFile,
       "outside"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,2]})"), "xx", ErrorCode::kCorruptFile,
       "takes 1 bytes"},
      {tensor(R"({"dtype":"U8","shape":[2],"data_offsets":[0,2]})"), "x", ErrorCode::kCorruptFile,
       "outside"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})"), "xx", ErrorCode::kCorruptFile,
       "hole"},
      {tensor(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})"), "xy", ErrorCode::kCorruptFile,
       "cover 1 bytes"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       "xx", ErrorCode::kCorruptFile, "overlap"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       "xx", ErrorCode::kCorruptFile, "header"},
      {R"({"__metadata__":{"a":1}})", "", ErrorCode::kCorruptFile, "__metadata__"},
      {R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x", ErrorCode::kCorruptFile,
       "name"},
      {R"({"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x",
       ErrorCode::kCorruptFile, "name"},
      {"{\"" + std::string(600, 'n') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x",
       ErrorCode::kCorruptFile, "name"},
  };
  for (const auto& wrong : kCases) {
    const auto header = ParseSafetensorsHeader(AsBytes(File(wrong.header, wrong.data)));
    ASSERT_FALSE(header) << wrong.header;
    EXPECT_EQ(header.error().code, wrong.code) << wrong.header << " " << header.error().message;
    EXPECT_NE(header.error().message.find(wrong.says), std::string::npos)
        << wrong.header << " " << header.error().message;
  }
}

TEST(Safetensors, AHeaderLengthThatLiesIsRefused) {
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{200}, std::uint64_t{1} << 63,
                                     UINT64_MAX, limits::kSafetensorsHeaderBytes + 1}) {
    std::string bytes = File("{}", "");
    std::memcpy(bytes.data(), &length, sizeof length);
    EXPECT_FALSE(ParseSafetensorsHeader(AsBytes(bytes))) << length;
  }
}

Result<SafetensorsHeader> ParseExact(const std::string& bytes, std::size_t size) {
  const std::vector<std::byte> copy(AsBytes(bytes).begin(),
                                    AsBytes(bytes).begin() + static_cast<std::ptrdiff_t>(size));
  return ParseSafetensorsHeader(copy);
}

TEST(Safetensors, EveryTruncationIsAnErrorAndEveryFlippedByteAnErrorOrAValidFile) {
  const std::string bytes = File(kTwo, "0123456789abcdef");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ParseExact(bytes, size)) << size;
  }
  for (std::size_t at = 0; at < bytes.size() - 16; ++at) {
    for (int flip = 1; flip < 256; flip += 6) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ static_cast<char>(flip));
      const auto header = ParseExact(damaged, damaged.size());
      std::uint64_t covered = 0;
      for (std::size_t i = 0; header && i < header->entries.size(); ++i) {
        const SafetensorsEntry& entry = header->entries[i];
        ASSERT_EQ(entry.begin, covered);
        ASSERT_EQ(entry.end - entry.begin,
                  static_cast<std::uint64_t>(entry.shape.num_elements()) * SizeBytes(entry.dtype));
        covered = entry.end;
      }
    }
  }
}

TEST(Safetensors, AHeaderBuiltHereReadsBackAlignedWithTheKeyThatTransformersWants) {
  for (std::size_t length = 1; length < 70; ++length) {
    std::vector<SafetensorsEntry> entries = {
        {.name = std::string(length, 'n'), .dtype = DType::kF32, .shape = Shape{3, 5}},
        {.name = "quote\"\\", .dtype = DType::kI64, .shape = Shape{2}}};
    const std::string header = BuildSafetensorsHeader(entries);
    EXPECT_EQ(header.size() % 64, 0U);
    EXPECT_NE(header.find(R"("__metadata__":{"format":"pt"})"), std::string::npos);
    const auto parsed = ParseSafetensorsHeader(AsBytes(header + std::string(76, 'x')));
    ASSERT_TRUE(parsed) << parsed.error().message;
    ASSERT_EQ(parsed->entries.size(), 2U);
    EXPECT_EQ(parsed->entries[1].name, "quote\"\\");
    EXPECT_EQ(parsed->entries[1].begin, 60U);
  }
}

}  // namespace
}  // namespace nibble
