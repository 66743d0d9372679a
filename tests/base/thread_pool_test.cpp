#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

namespace nibble {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryWorkerRunsOncePerCall) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(GetParam()));
  for (int round = 0; round < 1000; ++round) {
    pool.Run([&](int worker) { calls[static_cast<std::size_t>(worker)].fetch_add(1); });
  }
  for (const auto& count : calls) {
    EXPECT_EQ(count.load(), 1000);
  }
}

TEST_P(ThreadPoolTest, BarrierSeparatesPhases) {
  ThreadPool pool(GetParam());
  const auto workers = static_cast<std::size_t>(GetParam());
  std::vector<int> values(workers, 0);
  bool torn = false;
  pool.Run([&](int worker) {
    for (int phase = 1; phase <= 200; ++phase) {
      values[static_cast<std::size_t>(worker)] = phase;
      pool.Barrier();
      if (std::accumulate(values.begin(), values.end(), 0) != phase * static_cast<int>(workers)) {
        torn = true;
      }
      pool.Barrier();
    }
  });
  EXPECT_FALSE(torn);
}

TEST_P(ThreadPoolTest, ForCoversEveryItemOnce) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> hits(1003);
  pool.For(1003, 7, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      hits[static_cast<std::size_t>(i)].fetch_add(1);
    }
  });
  for (const auto& hit : hits) {
    ASSERT_EQ(hit.load(), 1);
  }
}

TEST_P(ThreadPoolTest, SharesAreAdjacentAndInGrains) {
  ThreadPool pool(GetParam());
  std::int64_t expected_begin = 0;
  for (int worker = 0; worker < GetParam(); ++worker) {
    const auto [begin, end] = pool.Share(100, 16, worker);
    EXPECT_EQ(begin, expected_begin);
    EXPECT_TRUE(end % 16 == 0 || end == 100);
    expected_begin = end;
  }
  EXPECT_EQ(expected_begin, 100);
}

TEST_P(ThreadPoolTest, AnIdlePoolWakesUpAgain) {
  ThreadPool pool(GetParam());
  std::atomic<int> sum{0};
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(
        std::chrono::milliseconds(2));  // longer than the spin: workers sleep
    pool.Run([&](int) { sum.fetch_add(1); });
  }
  EXPECT_EQ(sum.load(), 5 * GetParam());
}

INSTANTIATE_TEST_SUITE_P(Workers, ThreadPoolTest, testing::Values(1, 2, 5));

TEST(UsableCpuCount, IsAtLeastOne) { EXPECT_GE(UsableCpuCount(), 1); }

}  // namespace
}  // namespace nibble
