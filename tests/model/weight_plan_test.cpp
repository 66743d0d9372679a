#include "model/weight_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/weight_stream.h"
#include "tests/io/temp_folder.h"
#include "tests/model/deep_gguf.h"

namespace nibble {
namespace {

constexpr std::uint32_t kF32 = DeepGguf::kF32;
constexpr std::uint32_t kQ4 = DeepGguf::kQ4_1;

/// A model on disk and its plan. Sizes are those of the CPU's layouts: the choice is the same.
class Planned {
 public:
  explicit Planned(std::vector<std::uint32_t> block_types) {
    const auto path = folder_.Write("model.gguf", DeepGguf{std::move(block_types)}.Build());
    auto checkpoint = Checkpoint::Open(path.string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    auto plan = PlanWeights(*checkpoint_, *device_, TableFormat::kAuto);
    EXPECT_TRUE(plan) << plan.error().message;
    all = std::move(*plan);
    block_bytes = StreamableBytes(all, config());
  }
  const ModelConfig& config() const { return checkpoint_->config(); }
  /// Host memory of the last `count` blocks.
  std::uint64_t Last(std::int64_t count) const {
    return MemoryOfBlocks(block_bytes, count).host_bytes;
  }
  Result<WeightPlan> Stream(std::uint64_t host_bytes) const {
    return StreamLastBlocks(all, config(), host_bytes);
  }

  WeightPlan all;
  std::vector<std::size_t> block_bytes;

 private:
  testing::TempFolder folder_;
  std::unique_ptr<Device> device_ = MakeCpuDevice(1);
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST(OverlapBlocks, TakesTheMemoryOfTheLargestBlockAlone) {
  const Planned model({kQ4, kF32, kQ4});
  const WeightPlan blocks = OverlapBlocks(model.all, model.config());
  ASSERT_EQ(blocks.weights.size(), model.all.weights.size());
  std::size_t end = 0;  // of the second block, whose floats take most
  for (const PlannedWeight& weight : blocks.weights) {
    if (weight.stored->name.starts_with("model.layers.1.")) {
      end = std::max(end, weight.offset + weight.size_bytes);
    } else if (!weight.stored->name.starts_with("model.layers.")) {
      EXPECT_EQ(weight.size_bytes, 0) << weight.stored->name;
    }
    EXPECT_LE(weight.offset + weight.size_bytes, blocks.arena_bytes) << weight.stored->name;
  }
  EXPECT_GE(blocks.arena_bytes, end);
  EXPECT_LT(blocks.arena_bytes, end + 64);
  EXPECT_LT(end, model.all.arena_bytes);
}

TEST(StreamLastBlocks, AsManyOfTheLastBlocksAsTheBytesHold) {
  const Planned model({kQ4, kQ4, kQ4, kQ4, kQ4, kQ4, kQ4});
  for (const std::int64_t count : {3, 4, 7}) {
    const auto plan = model.Stream(model.Last(count));
    ASSERT_TRUE(plan) << plan.error().message;
    EXPECT_EQ(std::ssize(plan->parts), count);
    EXPECT_EQ(plan->host_bytes, model.Last(count));
    const auto more = model.Stream(model.Last(count) + 1);
    ASSERT_TRUE(more);
    EXPECT_EQ(std::ssize(more->parts), count);
    if (count > 3) {
      const auto less = model.Stream(model.Last(count) - 1);
      ASSERT_TRUE(less);
      EXPECT_EQ(std::ssize(less->parts), count - 1);
    }
  }
  const auto more_than_all = model.Stream(std::uint64_t{1} << 40);
  ASSERT_TRUE(more_than_all);
  EXPECT_EQ(std::ssize(more_than_all->parts), 7);
}

TEST(StreamLastBlocks, EveryWeightHasOnePlaceAndOnlyMatricesOfTheLastBlocksMove) {
  const Planned model({kQ4, kF32, kQ4, kF32, kQ4, kQ4});
  const auto plan = model.Stream(model.Last(4));
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->weights.size(), model.all.weights.size());
  std::vector<std::pair<std::size_t, std::size_t>> places;  // of the arena, then of the parts
  for (const PlannedWeight& weight : plan->weights) {
    const std::string& name = weight.stored->name;
    const bool late = name.starts_with("model.layers.") && name.at(13) >= '2';
    EXPECT_EQ(weight.part >= 0, late && !weight.is_vector) << name;
    EXPECT_EQ(weight.offset % 64, 0U) << name;
    std::size_t begin = weight.offset;
    if (weight.part >= 0) {
      EXPECT_EQ(weight.part, name.at(13) - '2') << name;
      const WeightPlan::Part& part = plan->parts.at(static_cast<std::size_t>(weight.part));
      EXPECT_LE(weight.offset + weight.size_bytes, part.bytes) << name;
      begin += plan->arena_bytes + part.host_offset;
    } else {
      EXPECT_LE(weight.offset + weight.size_bytes, plan->arena_bytes) << name;
    }
    places.emplace_back(begin, begin + weight.size_bytes);
  }
  std::ranges::sort(places);
  for (std::size_t i = 1; i < places.size(); ++i) {
    EXPECT_LE(places[i - 1].second, places[i].first);
  }
  EXPECT_LE(places.back().second, plan->arena_bytes + plan->host_bytes);
}

TEST(StreamLastBlocks, SlotsHoldTheLargestPartAndTheSizesAreWhatWasForetold) {
  const Planned model({kQ4, kQ4, kF32, kQ4, kQ4});  // the F32 block is several times larger
  ASSERT_GT(model.block_bytes[2], 2 * model.block_bytes[3]);
  for (const std::int64_t count : {3, 4, 5}) {
    const auto plan = model.Stream(model.Last(count));
    ASSERT_TRUE(plan) << plan.error().message;
    EXPECT_EQ(std::ssize(plan->parts), count);
    EXPECT_GE(plan->slot_bytes, model.block_bytes[2]);
    std::uint64_t streamed = 0;
    for (const WeightPlan::Part& part : plan->parts) {
      EXPECT_LE(part.bytes, plan->slot_bytes);
      EXPECT_EQ(part.host_offset % 256, 0U);
      streamed += part.bytes;
    }
    const BlockMemory memory = MemoryOfBlocks(model.block_bytes, count);
    const BlockMemory none = MemoryOfBlocks(model.block_bytes, 0);
    EXPECT_EQ(memory.host_bytes, plan->host_bytes);
    EXPECT_EQ(plan->arena_bytes, model.all.arena_bytes - streamed);
    EXPECT_EQ(plan->arena_bytes + kWeightSlots * plan->slot_bytes,
              model.all.arena_bytes + memory.device_bytes - none.device_bytes);
  }
}

TEST(StreamLastBlocks, TooLittleToGainAnythingNamesTheLeastThatDoes) {
  const Planned model({kF32, kF32, kF32, kF32});
  for (const std::uint64_t bytes : {std::uint64_t{1}, model.Last(2), model.Last(3) - 1}) {
    const auto plan = model.Stream(bytes);
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(plan.error().message.find("--cpu-offload-gb: "), std::string::npos);
    EXPECT_NE(plan.error().message.find("give 0.01 or more (3 blocks)"), std::string::npos)
        << plan.error().message;
  }
  const auto two = Planned({kQ4, kQ4}).Stream(std::uint64_t{1} << 30);
  ASSERT_FALSE(two);
  EXPECT_NE(two.error().message.find("no more than 2 blocks: leave the flag out"),
            std::string::npos)
      << two.error().message;
}

TEST(StreamLastBlocks, TheAdvisedNumberHoldsTheBytes) {
  for (const std::uint64_t bytes :
       {std::uint64_t{1}, std::uint64_t{10'737'419}, std::uint64_t{1} << 30,
        (std::uint64_t{7} << 30) + 1, std::uint64_t{123'456'789'012}}) {
    const double advised = std::stod(std::to_string(CpuOffloadGib(bytes)));
    EXPECT_GE(static_cast<std::uint64_t>(std::ldexp(advised, 30)), bytes);
    EXPECT_LE(std::ldexp(advised, 30), static_cast<double>(bytes) + 1.1e-2 * std::ldexp(1.0, 30));
  }
}

}  // namespace
}  // namespace nibble
