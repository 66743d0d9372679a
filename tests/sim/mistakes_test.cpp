#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/log.h"
#include "engine/mistake.h"
#include "tests/sim/simulator.h"

// Built from the engine's sources with NIBBLE_TEST_MISTAKES: each mistake is switched on alone.

namespace nibble::sim {
namespace {

constexpr std::uint64_t kSeeds = 150;

/// Runs the simulator with a mistake in a child process, since the engine's own checks may abort.
/// How it was caught; empty: not at all.
std::string Caught(Mistake mistake) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) {
    return {};
  }
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(pipe_ends[0]);
    dup2(pipe_ends[1], STDERR_FILENO);
    SetLogLevel(LogLevel::kError);
    active_mistake = mistake;
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      for (int depth = 0; depth <= 2; ++depth) {
        const Report report = Simulate({.seed = seed, .depth = depth});
        if (!report.failure.empty()) {
          std::fprintf(stderr, "%s\n", report.failure.c_str());
          _exit(1);
        }
      }
    }
    _exit(0);
  }
  close(pipe_ends[1]);
  std::string how;
  char buffer[512];
  for (ssize_t n = 0; (n = read(pipe_ends[0], buffer, sizeof(buffer))) > 0;) {
    how.append(buffer, static_cast<std::size_t>(n));
  }
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    return {};
  }
  return how.empty() ? "died without a word" : how.substr(0, how.find('\n'));
}

class Mistakes : public testing::TestWithParam<int> {};

TEST_P(Mistakes, IsCaught) {
  const std::string how = Caught(static_cast<Mistake>(GetParam()));
  EXPECT_NE(how, "");
  std::printf("mistake %2d: %s\n", GetParam(), how.c_str());
}

INSTANTIATE_TEST_SUITE_P(Each, Mistakes,
                         testing::Range(static_cast<int>(Mistake::kNone) + 1,
                                        static_cast<int>(Mistake::kCount)));

TEST(NoMistake, IsNotCaught) { EXPECT_EQ(Caught(Mistake::kNone), ""); }

}  // namespace
}  // namespace nibble::sim
