#include "compress/rounded_checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "codec/encode.h"
#include "engine/model_runner.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

std::unique_ptr<Checkpoint> Open(const std::string& name) {
  const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
  auto checkpoint = Checkpoint::Open(path.string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  return std::move(*checkpoint);
}

constexpr const char* kLinear = "model.layers.0.mlp.down_proj.weight";

TEST(RoundedCheckpoint, LinearsAreRoundedWhateverRowsAreAskedFor) {
  const RoundedCheckpoint rounded(Open("llama3"), {.bits = 4, .group_size = 32});
  const WeightInfo* weight = rounded.Find(kLinear);
  ASSERT_NE(weight, nullptr);
  const auto source = Open("llama3");
  const auto all = source->ReadRows(*source->Find(kLinear), 0, weight->spec.rows);
  ASSERT_TRUE(all);
  const auto expected = QuantizeRtn(Dequantize(*all), weight->spec.rows, weight->spec.cols,
                                    {.bits = 4, .group_size = 32});
  const auto part = rounded.ReadRows(*weight, 3, 7);
  ASSERT_TRUE(expected && part);
  EXPECT_EQ(part->codes, SliceRows(*expected, 3, 7).codes);
  EXPECT_EQ(part->spec, SliceRows(*expected, 3, 7).spec);
}

TEST(RoundedCheckpoint, Bf16TakesTheTablesTooAndLeavesNorms) {
  const RoundedCheckpoint rounded(Open("ct_int4_sym_g32"), {.bits = 16});
  for (const WeightInfo& weight : rounded.weights()) {
    const auto rows = rounded.ReadRows(weight, 0, weight.spec.rows);
    ASSERT_TRUE(rows) << rows.error().message;
    if (weight.spec.rows > 1) {
      EXPECT_EQ(weight.spec.ToString(), "bf16") << weight.name;
      EXPECT_EQ(rows->values[0], RoundToDType(rows->values[0], DType::kBF16));
    }
  }
}

TEST(RoundedCheckpoint, RunsAndTakesLessMemoryWithFewerBits) {
  std::uint64_t bytes_before = ~std::uint64_t{0};
  for (const int bits : {16, 8, 4}) {
    const RoundedCheckpoint rounded(Open("llama3"), {.bits = bits, .group_size = 32});
    const auto device = MakeCpuDevice(1);
    auto runner = ModelRunner::Create(
        rounded, {.max_num_sequences = 1, .max_batched_tokens = 8, .max_model_len = 32}, *device);
    ASSERT_TRUE(runner) << runner.error().message;
    const std::vector<TokenId> tokens = {TokenId{1}, TokenId{2}};
    EXPECT_TRUE((*runner)->RunWindow(
        tokens, [](std::int64_t, std::int64_t) -> Result<void> { return {}; }));
    std::uint64_t weights = 0;
    for (const MemoryLedger::Line& line : device->ledger().lines()) {
      weights += line.name == "weights" ? line.planned_bytes : 0;
    }
    EXPECT_LT(weights, bytes_before) << bits;
    EXPECT_GT(weights, 0U);
    bytes_before = weights;
  }
}

}  // namespace
}  // namespace nibble
