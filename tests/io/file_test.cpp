#include "io/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

TEST(ReadFile, ReadsWholeFilesUpToALimit) {
  const TempFolder folder;
  const auto path = folder.Write("a.txt", std::string(3'000'000, 'x'));
  const auto text = ReadFile(path, 3'000'000);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(text->size(), 3'000'000U);
  EXPECT_EQ(ReadFile(path, 2'999'999).error().code, ErrorCode::kLimitExceeded);
  EXPECT_EQ(ReadFile(folder.path() / "none", 10).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(ReadFile(folder.path(), 10).error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(ReadFile(folder.path() / "none", 10).error().message.find("none"), std::string::npos);
}

TEST(ReadFile, TakesNoMoreMemoryThanTheFile) {
  const TempFolder folder;
  const auto text = ReadFile(folder.Write("a.txt", std::string(300, 'x')), 1000);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_LE(text->capacity(), 1000U);
}

// /proc says 0 bytes of what it makes when it is read.
TEST(ReadFile, ReadsFilesThatDoNotKnowTheirSize) {
  const auto text = ReadFile("/proc/self/maps", 10'000'000);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_NE(text->find("[stack]"), std::string::npos);
}

TEST(ReplaceFile, WritesAFileOrItsSuccessor) {
  const TempFolder folder;
  const auto path = folder.path() / "a.json";
  for (const char* text : {"first, longer", "second", ""}) {
    const auto written = ReplaceFile(path, text);
    ASSERT_TRUE(written) << written.error().message;
    EXPECT_EQ(TempFolder::Read(path), text);
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "a.json.partial"));
  const auto nowhere = ReplaceFile(folder.path() / "no" / "a.json", "x");
  ASSERT_FALSE(nowhere);
  EXPECT_NE(nowhere.error().message.find("no/a.json"), std::string::npos);
}

TEST(ReplaceFile, LeavesNothingWhereItFails) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.path() / "taken");
  EXPECT_FALSE(ReplaceFile(folder.path() / "taken", "text"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "taken.partial"));
}

TEST(Utf8Text, IsTextWithoutAMarkOrSaysWhereNot) {
  EXPECT_EQ(Utf8Text("\xEF\xBB\xBF\xC3\xA9t\xC3\xA9", "a.txt"), "\xC3\xA9t\xC3\xA9");
  EXPECT_EQ(Utf8Text("", "a.txt"), "");
  const auto latin = Utf8Text("one\ntwo\nni\xE9", "a.txt");
  ASSERT_FALSE(latin);
  EXPECT_EQ(latin.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(latin.error().message.find("a.txt, line 3: no UTF-8 text (byte \\xe9)"),
            std::string::npos)
      << latin.error().message;
  EXPECT_FALSE(Utf8Text(std::string_view("a\0b", 3), "a.txt"));
}

TEST(MappedFile, MapsBytesAndSeesChanges) {
  const TempFolder folder;
  const auto path = folder.Write("a.bin", "hello");
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ((*file)->bytes().size(), 5U);
  EXPECT_EQ((*file)->bytes()[1], std::byte{'e'});
  EXPECT_TRUE((*file)->CheckUnchanged());
  (*file)->Release((*file)->bytes());
  EXPECT_EQ((*file)->bytes()[4], std::byte{'o'});  // read again after Release
  folder.Write("a.bin", "hello, world");
  EXPECT_EQ((*file)->CheckUnchanged().error().code, ErrorCode::kCorruptFile);
}

TEST(MappedFile, EmptyFilesAndFoldersAreNoTrouble) {
  const TempFolder folder;
  const auto empty = MappedFile::Open(folder.Write("empty", ""));
  ASSERT_TRUE(empty);
  EXPECT_TRUE((*empty)->bytes().empty());
  EXPECT_FALSE(MappedFile::Open(folder.path()));
}

int TouchEveryPage(std::span<const std::byte> bytes) {
  int sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 4096) {
    sum += std::to_integer<int>(*const_cast<const volatile std::byte*>(&bytes[i]));
  }
  return sum;
}

TEST(GuardMappedReads, ATruncatedFileIsAnErrorOnEveryThreadAndAgain) {
  const TempFolder folder;
  const auto path = folder.Write("a.bin", std::string(1 << 20, 'x'));
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file);
  std::filesystem::resize_file(path, 4096);
  const auto read = [&] {
    return GuardMappedReads("a.bin", [&]() -> Result<void> {
      TouchEveryPage((*file)->bytes());
      return {};
    });
  };
  for (int i = 0; i < 2; ++i) {
    const auto result = read();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kIo);
    EXPECT_NE(result.error().message.find("a.bin"), std::string::npos);
  }
  bool failed = false;
  std::thread([&] { failed = !read(); }).join();
  EXPECT_TRUE(failed);
}

TEST(GuardMappedReads, EndsNoBodyEarlyAndFailsUntilTheFileIsClosed) {
  const TempFolder folder;
  const auto path = folder.Write("a.bin", std::string(1 << 16, 'x'));
  auto file = MappedFile::Open(path);
  ASSERT_TRUE(file);
  std::filesystem::resize_file(path, 4096);
  bool destroyed = false;
  int sum = -1;
  const auto result = GuardMappedReads("a.bin", [&]() -> Result<void> {
    const std::shared_ptr<void> owned(nullptr, [&](void*) { destroyed = true; });
    sum = TouchEveryPage((*file)->bytes());
    return {};
  });
  EXPECT_FALSE(result);
  EXPECT_TRUE(destroyed);
  EXPECT_EQ(sum, 'x');  // the first page is there, the others read as zeros
  const auto nothing = []() -> Result<void> { return {}; };
  EXPECT_FALSE(GuardMappedReads("b.bin", nothing));
  *file = nullptr;
  EXPECT_TRUE(GuardMappedReads("b.bin", nothing));
}

TEST(GuardMappedReads, PassesResultsThroughAndNests) {
  EXPECT_TRUE(GuardMappedReads("x", []() -> Result<void> { return {}; }));
  const auto inner = [] {
    return GuardMappedReads(
        "x", []() -> Result<void> { return Fail(ErrorCode::kCorruptFile, "inner"); });
  };
  const auto result = GuardMappedReads("y", [&]() -> Result<void> { return inner(); });
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message, "inner");
}

TEST(GuardMappedReadsDeathTest, ASigbusOutsideAGuardStillKills) {
  const TempFolder folder;
  const auto path = folder.Write("a.bin", std::string(1 << 16, 'x'));
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file);
  ASSERT_TRUE(GuardMappedReads("install", []() -> Result<void> { return {}; }));
  std::filesystem::resize_file(path, 0);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  EXPECT_DEATH(TouchEveryPage((*file)->bytes()), "BUS");  // by their own handler
#else
  EXPECT_EXIT(TouchEveryPage((*file)->bytes()), ::testing::KilledBySignal(SIGBUS), "");
#endif
}

}  // namespace
}  // namespace nibble
