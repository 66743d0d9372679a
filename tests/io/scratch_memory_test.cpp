#include "io/scratch_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <utility>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

TEST(ScratchMemory, HoldsWhatWasReleasedAndLeavesNothingBehind) {
  const testing::TempFolder folder;
  constexpr std::size_t kBytes = (std::size_t{3} << 20) + 100;
  {
    auto memory = ScratchMemory::Create(folder.path(), kBytes);
    ASSERT_TRUE(memory) << memory.error().message;
    ASSERT_EQ(memory->bytes().size(), kBytes);
    EXPECT_EQ(memory->bytes()[kBytes - 1], std::byte{0});
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // the file has no name
    std::memset(memory->bytes().data(), 7, kBytes);
    memory->Release(0, kBytes);
    memory->Release(100, 50);  // less than a page
    ScratchMemory moved = std::move(*memory);
    for (std::size_t i = 0; i < kBytes; i += 1000) {
      ASSERT_EQ(moved.bytes()[i], std::byte{7}) << i;
    }
    EXPECT_EQ(moved.bytes()[kBytes - 1], std::byte{7});
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(ScratchMemory, ADiskThatIsTooSmallIsAnErrorBeforeTheWork) {
  const testing::TempFolder folder;
  const auto memory = ScratchMemory::Create(folder.path(), std::size_t{1} << 55);
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code, ErrorCode::kIo);
  EXPECT_NE(memory.error().message.find(folder.path().string()), std::string::npos);
}

TEST(ScratchMemory, AFolderThatDoesNotExistIsNamed) {
  const auto memory = ScratchMemory::Create("/nowhere/at/all", 4096);
  ASSERT_FALSE(memory);
  EXPECT_NE(memory.error().message.find("/nowhere/at/all"), std::string::npos);
}

TEST(ScratchMemory, NoBytesNeedNoFile) {
  const auto memory = ScratchMemory::Create("/nowhere/at/all", 0);
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->bytes().empty());
}

}  // namespace
}  // namespace nibble
