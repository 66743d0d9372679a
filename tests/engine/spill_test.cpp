// KV blocks in host memory, with a real model: what comes back is what left.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "tests/engine/service.h"

namespace nibble {
namespace {

/// A CPU device always; a CUDA device where there is one.
class KvSpill : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::kCuda) {
      if (const auto device = MakeCudaDevice(0, 2); !device) {
        GTEST_SKIP() << device.error().message;
      }
    }
  }
  static std::unique_ptr<Device> MakeDevice() {
    return GetParam() == DeviceKind::kCpu ? MakeCpuDevice(2) : std::move(*MakeCudaDevice(0, 2));
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, KvSpill, testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& which) {
                           return which.param == DeviceKind::kCpu ? "Cpu" : "Cuda";
                         });

TEST_P(KvSpill, WhatComesBackFromHostMemoryIsAsGoodAsWhatStayed) {
  Service large(MakeDevice(), {});
  const std::vector<Answer> expected = large.OneByOne(3);
  ASSERT_EQ(large.stats().bytes_spilled, 0U);
  EXPECT_GT(expected.back().num_cached, kPromptTokens / 2);

  // A pool for one sequence: every prompt evicts the one before.
  const std::int32_t one = large.BlocksFor(kPromptTokens + kOutputTokens);
  Service small(MakeDevice(), {.num_blocks = one, .spill_bytes = std::uint64_t{4} << 20});
  EXPECT_EQ(small.OneByOne(3), expected);
  const EngineStats stats = small.stats();
  EXPECT_GT(stats.bytes_restored, 0U);
  EXPECT_GT(stats.host_cache_hits, 0U);
  EXPECT_GT(stats.num_host_blocks_used, 0);
  EXPECT_EQ(stats.num_blocks_held, 0);
  // What left once stays in host memory: later rounds copy only what is new, their outputs' blocks.
  EXPECT_GT(stats.bytes_restored, stats.bytes_spilled);

  Service forgetful(MakeDevice(), {.num_blocks = one});
  EXPECT_EQ(forgetful.OneByOne(2).back().num_cached, 0);
}

TEST_P(KvSpill, CompanyChangesNothing) {
  Service service(MakeDevice(), {});
  const std::vector<Answer> alone = service.OneByOne(1);
  const std::vector<Answer> together = service.Together(kOutputTokens);
  for (std::size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].tokens, together[i].tokens);
    EXPECT_EQ(alone[i].logprobs, together[i].logprobs);
  }
}

TEST_P(KvSpill, PreemptedSequencesComeBackFromHostMemory) {
  Service large(MakeDevice(), {});
  const std::vector<Answer> expected = large.Together(100);
  // Room for two sequences at their beginning but not at their end.
  const std::int32_t one = large.BlocksFor(kPromptTokens + 100);
  const std::int32_t two = 2 * one - one / 4;
  Service small(MakeDevice(), {.num_blocks = two, .spill_bytes = std::uint64_t{4} << 20});
  const std::vector<Answer> answers = small.Together(100);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i].tokens, expected[i].tokens);
    EXPECT_EQ(answers[i].logprobs, expected[i].logprobs);
  }
  EXPECT_GT(small.stats().num_preemptions, 0U);
  if (GetParam() == DeviceKind::kCpu) {  // of blocks of 64 tokens, none is evicted meanwhile
    EXPECT_GT(small.stats().bytes_restored, 0U);
  }
}

}  // namespace
}  // namespace nibble
