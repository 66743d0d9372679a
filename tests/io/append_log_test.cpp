#include "io/append_log.h"

#include <gtest/gtest.h>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

TEST(AppendLog, LinesStayAndATornOneIsCutOff) {
  const TempFolder folder;
  const auto path = folder.path() / "log";
  {
    const auto log = AppendLog::Open(path, 1000);
    ASSERT_TRUE(log) << log.error().message;
    EXPECT_TRUE((*log)->lines().empty());
    ASSERT_TRUE((*log)->Append("one"));
    ASSERT_TRUE((*log)->Append(""));
  }
  folder.Write("log", TempFolder::Read(path) + "thr");  // killed while it wrote "three"
  {
    const auto log = AppendLog::Open(path, 1000);
    ASSERT_TRUE(log) << log.error().message;
    EXPECT_EQ((*log)->lines(), (std::vector<std::string>{"one", ""}));
    ASSERT_TRUE((*log)->Append("two"));
  }
  EXPECT_EQ(TempFolder::Read(path), "one\n\ntwo\n");
}

TEST(AppendLog, BelongsToOneWriter) {
  const TempFolder folder;
  const auto log = AppendLog::Open(folder.path() / "log", 1000);
  ASSERT_TRUE(log);
  const auto second = AppendLog::Open(folder.path() / "log", 1000);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  ASSERT_TRUE((*log)->Remove());
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "log"));
}

TEST(AppendLog, ErrorsNameTheFile) {
  const TempFolder folder;
  folder.Write("large", std::string(1001, 'x'));
  EXPECT_EQ(AppendLog::Open(folder.path() / "large", 1000).error().code, ErrorCode::kLimitExceeded);
  const auto none = AppendLog::Open(folder.path() / "no/such/folder", 1000);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("no/such/folder"), std::string::npos);
}

}  // namespace
}  // namespace nibble
