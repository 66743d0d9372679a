// What the host does beside a card, with a CPU in its place.
#include "compress/card_matrices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <vector>

#include "compress/block_walk.h"
#include "compress/read_weights.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

class Matrices : public ::testing::Test {
 protected:
  void SetUp() override {
    auto source = Checkpoint::Open(testing::Golden("llama3").string());
    ASSERT_TRUE(source) << source.error().message;
    source_ = std::move(*source);
    auto matrices = CardMatrices::Create(*device_, std::uint64_t{1} << 20, std::uint64_t{1} << 20);
    ASSERT_TRUE(matrices) << matrices.error().message;
    matrices_ = std::move(*matrices);
  }
  std::vector<const WeightInfo*> Of(LinearGroup group) const {
    std::vector<const WeightInfo*> matrices;
    for (const std::string_view linear : LinearsOf(group)) {
      matrices.push_back(source_->Find(WeightName(0, linear)));
    }
    return matrices;
  }

  std::unique_ptr<Device> device_ = MakeCpuDevice(2);
  std::unique_ptr<Checkpoint> source_;
  std::unique_ptr<CardMatrices> matrices_;
};

TEST_F(Matrices, WhatWasReadAheadIsTheSource) {
  for (const LinearGroup group : kLinearGroups) {
    matrices_->Read(*source_, Of(group));
    for (const WeightInfo* matrix : Of(group)) {
      const auto expected = ReadWeights(*source_, *matrix, device_->pool());
      ASSERT_TRUE(expected);
      const auto values = matrices_->Values(*matrix);
      ASSERT_TRUE(values) << values.error().message;
      EXPECT_EQ(std::vector<float>(values->begin(), values->end()), *expected) << matrix->name;
      const auto on_card = matrices_->OnCard(*values);
      EXPECT_EQ(std::vector<float>(on_card.begin(), on_card.end()), *expected) << matrix->name;
    }
  }
}

TEST_F(Matrices, AMatrixDoesNotWaitForWhatWasGivenAfterIt) {
  const auto group = Of(LinearGroup::kQkv);
  matrices_->Read(*source_, group);
  std::promise<void> taken;
  matrices_->Behind([&taken]() -> Result<void> {
    taken.get_future().wait();
    return {};
  });
  for (const WeightInfo* matrix : group) {
    const auto values = matrices_->Values(*matrix);
    ASSERT_TRUE(values) << values.error().message;
    EXPECT_EQ(std::ssize(*values), matrix->spec.rows * matrix->spec.cols);
  }
  taken.set_value();
  EXPECT_TRUE(matrices_->Finish());
}

TEST_F(Matrices, JobsRunInOrderAndTheFirstErrorEndsThem) {
  std::vector<int> ran;
  for (int i = 0; i < 20; ++i) {
    matrices_->Behind([&ran, i]() -> Result<void> {
      ran.push_back(i);
      return i < 12 ? Result<void>{} : Fail(ErrorCode::kIo, "full");
    });
  }
  const auto finished = matrices_->Finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code, ErrorCode::kIo);
  EXPECT_EQ(ran.size(), 13U);
  EXPECT_TRUE(std::ranges::is_sorted(ran));
  EXPECT_TRUE(matrices_->Finish());
}

}  // namespace
}  // namespace nibble
