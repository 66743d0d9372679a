#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/sim/simulator.h"

namespace nibble::sim {
namespace {

TEST(SimFast, HundredSeedsAtEachDepthHoldEveryInvariant) {
  SetLogLevel(LogLevel::kError);  // simulated failures are no news
  Report total;
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const Report report = Simulate({.seed = seed, .depth = static_cast<int>(seed % 3)});
    ASSERT_EQ(report.failure, "");
    total.Add(report);
  }
  // The seeds reach what they are there for.
  EXPECT_GT(total.num_stopped, 0U);
  EXPECT_GT(total.num_length, 0U);
  EXPECT_GT(total.num_cancelled, 0U);
  EXPECT_GT(total.num_deadline, 0U);
  EXPECT_GT(total.num_queue_timeout, 0U);
  EXPECT_GT(total.num_failed, 0U);
  EXPECT_GT(total.num_rejected, 0U);
  EXPECT_GT(total.num_shutdown, 0U);
  EXPECT_GT(total.num_preemptions, 0U);
  EXPECT_GT(total.num_prefix_hits, 0U);
  EXPECT_GT(total.num_lookaheads, 0U);
  EXPECT_GT(total.num_fenced, 0U);
  EXPECT_GT(total.num_prompt_logprobs, 0U);
  EXPECT_GT(total.num_stop_strings, 0U);
  EXPECT_GT(total.num_spills, 0U);
  EXPECT_GT(total.num_restores, 0U);
}

TEST(SimFast, ARunIsAPureFunctionOfItsSeed) {
  const Report first = Simulate({.seed = 7, .depth = 2});
  const Report second = Simulate({.seed = 7, .depth = 2});
  EXPECT_EQ(first.failure, "");
  EXPECT_EQ(first.num_steps, second.num_steps);
  EXPECT_EQ(first.virtual_seconds, second.virtual_seconds);
  EXPECT_EQ(first.num_preemptions, second.num_preemptions);
}

}  // namespace
}  // namespace nibble::sim
