#include "engine/sequence.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/sampler.h"

namespace nibble {
namespace {

using enum SequenceState;

TEST(SequenceState, OnlyTheTransitionsOfTheTableAreLegal) {
  const std::vector<std::pair<SequenceState, SequenceState>> legal = {
      {kNew, kQueued},       {kQueued, kPrefill},   {kPrefill, kDecode}, {kPrefill, kPreempted},
      {kDecode, kPreempted}, {kPreempted, kQueued}, {kNew, kEnded},      {kQueued, kEnded},
      {kPrefill, kEnded},    {kDecode, kEnded},     {kPreempted, kEnded}};
  for (const auto from : {kNew, kQueued, kPrefill, kDecode, kPreempted, kEnded}) {
    for (const auto to : {kNew, kQueued, kPrefill, kDecode, kPreempted, kEnded}) {
      const bool expected = std::ranges::find(legal, std::pair(from, to)) != legal.end();
      EXPECT_EQ(IsLegal(from, to), expected) << Name(from) << " -> " << Name(to);
    }
  }
}

TEST(SequenceStateDeathTest, AnIllegalTransitionAborts) {
  auto request = std::make_shared<Request>();
  Sequence sequence(request, 0);
  EXPECT_DEATH(sequence.Become(kDecode), "illegal transition");
}

std::shared_ptr<Request> MakeRequest() {
  auto request = std::make_shared<Request>();
  request->id = RequestId{7};
  request->params.prompt = {TokenId{1}, TokenId{2}, TokenId{3}};
  request->max_output = 5;
  request->end_tokens = {TokenId{9}};
  return request;
}

TEST(SampleRow, EndTokensAreForbiddenUntilMinTokens) {
  auto request = MakeRequest();
  request->params.sampling.min_tokens = 2;
  const Sequence sequence(request, 0);
  EXPECT_EQ(BuildSampleRow(sequence, 3).forbidden.size(), 1U);
  EXPECT_EQ(BuildSampleRow(sequence, 4).forbidden.size(), 1U);
  EXPECT_EQ(BuildSampleRow(sequence, 5).forbidden.size(), 0U);
}

TEST(SampleRow, RandomnessDependsOnSeedChoiceAndPosition) {
  auto request = MakeRequest();
  request->params.sampling.seed = 42;
  const Sequence sequence(request, 2);
  const SampleRow row = BuildSampleRow(sequence, 4);
  EXPECT_EQ(row.seed, 42U);
  EXPECT_EQ(row.choice, 2U);
  EXPECT_EQ(row.position, 4U);
}

TEST(SampleRow, HistoryIsGivenOnlyToWhatReadsIt) {
  auto request = MakeRequest();
  Sequence sequence(request, 0);
  sequence.output = {TokenId{4}};
  EXPECT_TRUE(BuildSampleRow(sequence, 4).output.empty());
  request->params.sampling.frequency_penalty = 0.5F;
  EXPECT_EQ(BuildSampleRow(sequence, 4).output.size(), 1U);
  EXPECT_TRUE(BuildSampleRow(sequence, 4).prompt.empty());
  request->params.sampling.repetition_penalty = 1.1F;
  EXPECT_EQ(BuildSampleRow(sequence, 4).prompt.size(), 3U);
}

}  // namespace
}  // namespace nibble
