#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace nibble {
namespace {

/// A scheduler and its sequences. A step is retired before the next is planned.
class SharesOfPrefill : public testing::Test {
 protected:
  void Add(std::int32_t prompt_size) {
    auto request = std::make_shared<Request>();
    request->id = RequestId{sequences_.size() + 1};
    for (std::int32_t i = 0; i < prompt_size; ++i) {
      request->params.prompt.push_back(TokenId{i});
    }
    request->max_output = 1;
    sequences_.push_back(std::make_unique<Sequence>(request, 0));
    scheduler_.Add(*sequences_.back());
  }

  /// Tokens of each step until all prompts are computed.
  std::vector<std::int32_t> Steps() {
    std::vector<std::int32_t> steps;
    while (true) {
      StepPlan plan;
      std::vector<Sequence*> members;
      scheduler_.Schedule({}, plan, members);
      if (plan.sequences.empty()) {
        return steps;
      }
      std::int32_t tokens = 0;
      for (std::size_t i = 0; i < members.size(); ++i) {
        Sequence& sequence = *members[i];
        tokens += plan.sequences[i].num_tokens;
        --sequence.in_flight_steps;
        if (plan.sequences[i].sample) {
          scheduler_.End(sequence);
        }
      }
      steps.push_back(tokens);
      scheduler_.Recycle(plan);
    }
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
  BlockManager blocks_{{.num_blocks = 1000, .block_size_tokens = 16}};
  Scheduler scheduler_{{.max_batched_tokens = 256, .enable_prefix_caching = false}, blocks_};
};

TEST_F(SharesOfPrefill, APromptThatFitsIsOneStep) {
  Add(256);
  EXPECT_EQ(Steps(), (std::vector<std::int32_t>{256}));
}

TEST_F(SharesOfPrefill, ALongerPromptTakesAsFewStepsOfOneSize) {
  Add(518);
  EXPECT_EQ(Steps(), (std::vector<std::int32_t>{173, 173, 172}));
}

TEST_F(SharesOfPrefill, PromptsThatWaitAreCounted) {
  Add(200);
  Add(200);
  Add(200);
  EXPECT_EQ(Steps(), (std::vector<std::int32_t>{200, 200, 200}));
}

TEST_F(SharesOfPrefill, ALongQueueTakesFullSteps) {
  Add(256 * 20 + 10);
  const std::vector<std::int32_t> steps = Steps();
  EXPECT_EQ(steps.size(), 21U);
  EXPECT_EQ(steps.front(), 256);
  EXPECT_GT(steps.back(), 200);
}

}  // namespace
}  // namespace nibble
