// What BlockSolver's host does beside a card, with a CPU in its place: ThreadSanitizer sees all of
// it but the card's own copies.
#include "compress/block_solver.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "compress/output_plan.h"
#include "tests/compress/quantize_fixture.h"

namespace nibble {
namespace {

class WorksAhead : public testing::QuantizeGptqModel {
 protected:
  void SetUp() override {
    QuantizeGptqModel::SetUp();
    auto plan = PlanOutput(*source_, options_);
    ASSERT_TRUE(plan) << plan.error().message;
    plan_ = std::move(*plan);
  }
  std::unique_ptr<AtomicWriter> Folder(const char* name) const {
    auto out = AtomicWriter::Create(temp_.path() / name, "the same", 0);
    EXPECT_TRUE(out) << out.error().message;
    return std::move(*out);
  }
  // With several windows of which one in two has a truth.
  Result<SolveTimes> Solve(SolvedBlocks& store, bool works_ahead, BlockMethod method,
                           const SolveProgress& progress = {}) const {
    const auto device = MakeCpuDevice(2);
    const BlockSolver solver(*source_, plan_.weights, calibration_,
                             {.method = method,
                              .scale_dtype = plan_.scale_dtype,
                              .truth_tokens = std::ssize(calibration_.tokens) / 2,
                              .works_ahead = works_ahead},
                             *device);
    return solver.Run(store, progress);
  }
  std::int64_t num_blocks() const { return source_->config().num_layers; }
  void ExpectSameBlocks(const SolvedBlocks& expected, const SolvedBlocks& found) const {
    for (std::int64_t block = 0; block < num_blocks(); ++block) {
      const auto a = expected.Load(block), b = found.Load(block);
      ASSERT_TRUE(a) << a.error().message;
      ASSERT_TRUE(b) << b.error().message;
      ASSERT_EQ(a->size(), b->size());
      for (std::size_t i = 0; i < a->size(); ++i) {
        EXPECT_EQ((*a)[i].name, (*b)[i].name);
        EXPECT_EQ((*a)[i].tensor.codes, (*b)[i].tensor.codes) << (*a)[i].name;
        EXPECT_EQ((*a)[i].tensor.scales, (*b)[i].tensor.scales) << (*a)[i].name;
        const json::Object* facts = (*b)[i].facts.AsObject();
        ASSERT_NE(facts, nullptr);
        EXPECT_EQ(facts->size(), (*a)[i].facts.AsObject()->size()) << (*a)[i].name;
      }
    }
  }

  OutputPlan plan_;
};

TEST_F(WorksAhead, SolvesAsItDoesInTurn) {
  for (const BlockMethod method : {BlockMethod::kGptq, BlockMethod::kWeighted}) {
    const bool is_gptq = method == BlockMethod::kGptq;
    const auto in_turn = Folder(is_gptq ? "in_turn" : "rounded_in_turn");
    const auto ahead = Folder(is_gptq ? "ahead" : "rounded_ahead");
    SolvedBlocks expected(*in_turn, plan_.weights), found(*ahead, plan_.weights);
    ASSERT_TRUE(Solve(expected, false, method));
    const auto times = Solve(found, true, method);
    ASSERT_TRUE(times) << times.error().message;
    EXPECT_EQ(times->num_blocks, num_blocks());
    ExpectSameBlocks(expected, found);
  }
}

// A block in the middle is solved, and saved, while those behind it are loaded.
TEST_F(WorksAhead, TakesWhatTheStoreHasWhileItSaves) {
  const auto in_turn = Folder("in_turn"), ahead = Folder("ahead");
  SolvedBlocks expected(*in_turn, plan_.weights), found(*ahead, plan_.weights);
  ASSERT_TRUE(Solve(expected, false, BlockMethod::kGptq));
  ASSERT_TRUE(Solve(found, true, BlockMethod::kGptq));
  ASSERT_TRUE(found.Clear(1));
  ASSERT_FALSE(found.Has(0));
  ASSERT_TRUE(found.Has(1));
  const auto times = Solve(found, true, BlockMethod::kGptq);
  ASSERT_TRUE(times) << times.error().message;
  EXPECT_EQ(times->num_blocks, 1);
  ExpectSameBlocks(expected, found);
}

// Jobs in flight end before what they refer to does, and the next run goes on.
TEST_F(WorksAhead, StopsAnywhereAndGoesOn) {
  const auto in_turn = Folder("in_turn"), ahead = Folder("ahead");
  SolvedBlocks expected(*in_turn, plan_.weights), found(*ahead, plan_.weights);
  std::uint64_t num_steps = 0;
  ASSERT_TRUE(
      Solve(expected, false, BlockMethod::kGptq, [&](std::uint64_t, std::uint64_t total, auto&) {
        num_steps = total;
        return true;
      }));
  for (std::uint64_t last = 1; last < num_steps; last += 7) {
    const auto stopped =
        Solve(found, true, BlockMethod::kGptq,
              [&](std::uint64_t done, std::uint64_t, auto&) { return done < last; });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  }
  ASSERT_TRUE(Solve(found, true, BlockMethod::kGptq));
  ExpectSameBlocks(expected, found);
}

// The truth at 8 bits then has a scale a row.
TEST(BlockSolver, WidthsOf48And72AreSolvedInWholeRows) {
  const auto source = Checkpoint::Open(testing::Golden("llama_bias").string());
  ASSERT_TRUE(source) << source.error().message;
  const auto plan = PlanOutput(**source, {});
  ASSERT_TRUE(plan) << plan.error().message;
  CalibrationSet calibration{.length = 16};
  for (std::int32_t i = 0; i < 64; ++i) {
    calibration.tokens.push_back(TokenId{i * 7 % 131});
  }
  const testing::TempFolder temp;
  const auto out = AtomicWriter::Create(temp.path() / "out", "any", 0);
  ASSERT_TRUE(out) << out.error().message;
  for (const BlockMethod method : {BlockMethod::kGptq, BlockMethod::kWeighted}) {
    SolvedBlocks store(**out, plan->weights);
    const auto device = MakeCpuDevice(1);
    const BlockSolver solver(**source, plan->weights, calibration,
                             {.method = method, .scale_dtype = plan->scale_dtype}, *device);
    const auto times = solver.Run(store, {});
    ASSERT_TRUE(times) << times.error().message;
    EXPECT_EQ(times->num_blocks, (*source)->config().num_layers);
    ASSERT_TRUE(store.Clear(times->num_blocks));
  }
}

}  // namespace
}  // namespace nibble
