#include "eval/python_sandbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using Kind = SandboxOutcome::Kind;

class PythonSandboxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = PythonSandbox::Create();
    if (!made) {
      GTEST_SKIP() << made.error().message;
    }
    sandbox_.emplace(std::move(*made));
  }
  SandboxOutcome Run(std::string_view program) const {
    const auto outcome = sandbox_->Run(program);
    EXPECT_TRUE(outcome) << outcome.error().message;
    return outcome.value_or(SandboxOutcome{});
  }
  void ExpectError(std::string_view program, const char* error) const {
    const SandboxOutcome outcome = Run(program);
    EXPECT_EQ(outcome.kind, Kind::kFailed) << program;
    EXPECT_THAT(outcome.error, ::testing::HasSubstr(error)) << program;
  }
  std::optional<PythonSandbox> sandbox_;
};

TEST_F(PythonSandboxTest, PassesWhatRunsToItsEndAndNothingElse) {
  EXPECT_EQ(Run("def add(a, b):\n  return a + b\nassert add(2, 3) == 5\n").kind, Kind::kPassed);
  EXPECT_EQ(Run("import math, threading\n"
                "t = threading.Thread(target=print)\nt.start()\nt.join()\n")
                .kind,
            Kind::kPassed);
  EXPECT_EQ(Run("if __name__ == '__main__':\n  assert False\n").kind, Kind::kPassed);
  ExpectError("assert 1 == 2, 'not \xC3\xA9qual'", "AssertionError: not \xC3\xA9qual");
  ExpectError("def f(:\n", "SyntaxError");
  EXPECT_EQ(Run("import sys\nsys.exit(0)\n").kind, Kind::kFailed);
  EXPECT_EQ(Run("import os\nos._exit(0)\n").kind, Kind::kFailed);
  EXPECT_EQ(Run("input()").kind, Kind::kFailed);
}

TEST_F(PythonSandboxTest, HasNoNetworkAndNoOtherProcess) {
  ExpectError("import socket\nsocket.socket()\n", "PermissionError");
  ExpectError("import os\nos.fork()\n", "PermissionError");
  ExpectError("import subprocess\nsubprocess.run(['/bin/true'])\n", "PermissionError");
  ExpectError("import os\nos.kill(os.getppid(), 9)\n", "PermissionError");
  ExpectError("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n", "Error");
}

TEST_F(PythonSandboxTest, WritesOnlyInItsFolderAndNotMuch) {
  EXPECT_EQ(
      Run("open('a.txt', 'w').write('x' * 1000)\nassert len(open('a.txt').read()) == 1000\n").kind,
      Kind::kPassed);
  EXPECT_EQ(Run("with open('big', 'wb') as f:\n  f.write(b'x' * (17 << 20))\n").kind,
            Kind::kFailed);
  if (sandbox_->layers().find("Landlock") == std::string::npos) {
    GTEST_SKIP() << "this kernel has no Landlock";
  }
  const testing::TempFolder outside;
  const auto file = outside.Write("kept.txt", "as it was");
  ExpectError("open('" + file.string() + "', 'w')", "PermissionError");
  ExpectError("import os\nos.remove('" + file.string() + "')", "PermissionError");
  EXPECT_EQ(testing::TempFolder::Read(file), "as it was");
}

TEST_F(PythonSandboxTest, ReadsNothingOfTheParentsEnvironmentOrFiles) {
  EXPECT_EQ(Run("import os\nassert 'HOME' not in os.environ and 'PATH' not in os.environ\n"
                "assert sorted(os.listdir('.')) == ['program.py']\n"
                "open_fds = os.listdir('/proc/self/fd')\nassert len(open_fds) <= 5, open_fds\n")
                .error,
            "");
}

TEST_F(PythonSandboxTest, EndsWhatTakesTooLongOrTooMuch) {
  auto hasty = PythonSandbox::Create({.cpu_seconds = 1, .wall = std::chrono::milliseconds(1500)});
  ASSERT_TRUE(hasty) << hasty.error().message;
  const auto sleeping = hasty->Run("import time\ntime.sleep(60)\n");
  ASSERT_TRUE(sleeping);
  EXPECT_EQ(sleeping->kind, Kind::kTimedOut);
  const auto spinning = hasty->Run("while True: pass\n");
  ASSERT_TRUE(spinning);
  EXPECT_EQ(spinning->kind, Kind::kTimedOut);
  ExpectError("x = bytearray(2 << 30)\n", "MemoryError");
  const auto flooding = hasty->Run("import sys\nwhile True: sys.stderr.write('x' * 10000)\n");
  ASSERT_TRUE(flooding);
  EXPECT_EQ(flooding->kind, Kind::kTimedOut);
}

TEST_F(PythonSandboxTest, LeavesNoFolderBehind) {
  const auto count = [] {
    int folders = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::temp_directory_path())) {
      folders += entry.path().filename().string().starts_with("nibble_program_") ? 1 : 0;
    }
    return folders;
  };
  const int before = count();
  Run("open('a', 'w').write('b')\nraise SystemExit\n");
  EXPECT_LE(count(), before);
}

}  // namespace
}  // namespace nibble
