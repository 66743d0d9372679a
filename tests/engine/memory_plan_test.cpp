#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include <limits>

namespace nibble {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// An 80 GiB card with the context of this process on it.
MemoryBudget Card(double utilization = 0.9) {
  return {.is_card = true,
          .total_bytes = 80 * kGiB,
          .free_bytes = 80 * kGiB - 500 * kMiB,
          .utilization = utilization};
}

MemoryBudget Machine(std::uint64_t free) {
  return {.is_card = false, .total_bytes = 64 * kGiB, .free_bytes = free};
}

// Llama-2-7B with an fp16 cache: 512 KiB a token, blocks of 64 tokens.
KvPoolRequest Llama7B() {
  return {.block_bytes = 32 * kMiB,
          .block_size_tokens = 64,
          .extra_blocks = 1,
          .max_model_len = 4096,
          .max_num_sequences = 64};
}

// A pool of 16 tokens of 1 KiB each a block, as on a CPU.
KvPoolRequest Small() {
  return {.block_bytes = 16 * 1024,
          .block_size_tokens = 16,
          .max_model_len = 1024,
          .max_num_sequences = 4};
}

std::string ErrorOf(const Result<std::int64_t>& result) {
  EXPECT_FALSE(result);
  if (result) {
    return {};
  }
  EXPECT_EQ(result.error().code, ErrorCode::kOutOfMemory);
  return result.error().message;
}

void ExpectSays(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is missing in: " << text;
}

TEST(PlanKvPool, ACardIsFilledToItsShareLessContextAndTheRest) {
  const auto blocks = PlanKvPool(Card(), Llama7B(), 4 * kGiB, "weights 4 GB");
  ASSERT_TRUE(blocks) << blocks.error().message;
  // 72 GiB less 0.49 of context and 4 of weights, in blocks of 32 MiB, one of them for padding.
  EXPECT_EQ(*blocks, (72 * 1024 - 500 - 4 * 1024) / 32 - 1);
}

TEST(PlanKvPool, AShareOfTheCardIsOfTheWholeCard) {
  const auto half = PlanKvPool(Card(0.5), Llama7B(), 4 * kGiB, "");
  ASSERT_TRUE(half);
  EXPECT_EQ(*half, (40 * 1024 - 500 - 4 * 1024) / 32 - 1);
}

TEST(PlanKvPool, AShareThatOthersHoldIsRefusedWithTheShareThatIsFree) {
  MemoryBudget budget = Card();
  budget.free_bytes = 30 * kGiB;
  const std::string text = ErrorOf(PlanKvPool(budget, Llama7B(), 4 * kGiB, ""));
  ExpectSays(text, "--gpu-memory-utilization 0.9 asks for 77.3 GB");
  ExpectSays(text, "--gpu-memory-utilization 0.38 or less");
  budget.utilization = 0.38;
  EXPECT_TRUE(PlanKvPool(budget, Llama7B(), 4 * kGiB, ""));
}

TEST(PlanKvPool, BytesGoBesideTheShare) {
  KvPoolRequest request = Llama7B();
  request.kv_cache_bytes = 75 * kGiB;
  const auto blocks = PlanKvPool(Card(0.1), request, 4 * kGiB, "");
  ASSERT_TRUE(blocks) << blocks.error().message;
  EXPECT_EQ(*blocks, 75 * 1024 / 32);
}

TEST(PlanKvPool, MoreBytesThanFreeAreRefusedWithTheMostThatFits) {
  KvPoolRequest request = Llama7B();
  request.kv_cache_bytes = 78 * kGiB;
  const std::string text = ErrorOf(PlanKvPool(Card(), request, 4 * kGiB, "weights 4.29 GB"));
  ExpectSays(text, "the plan needs 88.1 GB");
  ExpectSays(text, "(weights 4.29 GB)");
  ExpectSays(text, "85.4 GB of the card's 85.9 GB are free, of which 67.1 MB stay so");
  const std::uint64_t most = 80 * kGiB - 500 * kMiB - 4 * kGiB - 64 * kMiB;  // for kernels
  ExpectSays(text, "at most --kv-cache-memory-bytes " + std::to_string(most));
  request.kv_cache_bytes = most - 32 * kMiB;
  EXPECT_TRUE(PlanKvPool(Card(), request, 4 * kGiB, ""));
}

TEST(PlanKvPool, AWholeCardLeavesRoomForItsKernels) {
  const auto blocks = PlanKvPool(Card(1.0), Llama7B(), 4 * kGiB, "");
  ASSERT_TRUE(blocks) << blocks.error().message;
  EXPECT_EQ(*blocks, (80 * 1024 - 500 - 64 - 4 * 1024) / 32 - 1);
}

TEST(PlanKvPool, AModelThatDoesNotFitIsRefusedWithWhatHelps) {
  const std::string text = ErrorOf(PlanKvPool(Card(), Llama7B(), 140 * kGiB, "weights 150 GB"));
  ExpectSays(text, "the model needs 150 GB (weights 150 GB)");
  ExpectSays(text, "may be used (--gpu-memory-utilization 0.9)");
  ExpectSays(text, "quantize the model");
  EXPECT_EQ(text.find("use --gpu-memory-utilization"), std::string::npos) << text;
}

// 40 GiB of a model's 140 may be in host memory, ten at a time: so much stays on the card.
KvPoolRequest Offloadable() {
  KvPoolRequest request = Llama7B();
  for (std::uint64_t gib = 10; gib <= 80; gib += 10) {
    request.offloads.push_back(
        {.host_bytes = gib * kGiB, .device_bytes = 140 * kGiB - gib * kGiB + 4 * kGiB});
  }
  return request;
}

TEST(PlanKvPool, AModelThatDoesNotFitNamesTheOffloadThatSuffices) {
  // 71.5 GiB may be used and 2.03 are for one sequence: 144 less 80 fit, 144 less 70 do not.
  const std::string text = ErrorOf(PlanKvPool(Card(), Offloadable(), 140 * kGiB, "weights 150 GB"));
  ExpectSays(text, "keep 85.9 GB of it in host memory with --cpu-offload-gb 80.00");
  EXPECT_TRUE(PlanKvPool(Card(), Offloadable(), Offloadable().offloads[7].device_bytes, ""));
  EXPECT_FALSE(PlanKvPool(Card(), Offloadable(), Offloadable().offloads[6].device_bytes, ""));
  KvPoolRequest little = Offloadable();  // the host has no room for more
  little.offloads.resize(7);
  EXPECT_EQ(ErrorOf(PlanKvPool(Card(), little, 140 * kGiB, "")).find("--cpu-offload-gb"),
            std::string::npos);
}

TEST(PlanKvPool, AnOffloadMakesRoomForASequenceAndForBytesAskedFor) {
  const std::uint64_t others = 72 * kGiB - 500 * kMiB - 33 * 32 * kMiB;  // room for 33 blocks
  KvPoolRequest request = Llama7B();
  request.offloads = {{.host_bytes = 3 * kGiB, .device_bytes = others - kMiB},
                      {.host_bytes = 5 * kGiB, .device_bytes = others - 2 * kGiB}};
  ExpectSays(ErrorOf(PlanKvPool(Card(), request, others, "")), "--cpu-offload-gb 5.00");
  request.kv_cache_bytes = 12 * kGiB;
  request.offloads.push_back({.host_bytes = 9 * kGiB, .device_bytes = others - 5 * kGiB});
  ExpectSays(ErrorOf(PlanKvPool(Card(), request, others, "")), "--cpu-offload-gb 9.00");
  request.kv_cache_bytes = kGiB;  // less than a sequence takes: no matter of the card's memory
  EXPECT_EQ(ErrorOf(PlanKvPool(Card(), request, others, "")).find("--cpu-offload-gb"),
            std::string::npos);
}

TEST(PlanKvPool, AShareTooSmallForTheModelNamesOneThatHoldsIt) {
  const std::string text = ErrorOf(PlanKvPool(Card(0.5), Llama7B(), 45 * kGiB, "weights 48.3 GB"));
  ExpectSays(text, "use --gpu-memory-utilization 0.60");
  EXPECT_TRUE(PlanKvPool(Card(0.60), Llama7B(), 45 * kGiB, ""));
}

TEST(PlanKvPool, ASequenceThatDoesNotFitNamesTheLongestThatDoes) {
  const std::uint64_t others = 72 * kGiB - 500 * kMiB - 33 * 32 * kMiB;  // room for 33 blocks
  const std::string text = ErrorOf(PlanKvPool(Card(), Llama7B(), others, ""));
  ExpectSays(text, "one sequence of 4096 tokens takes 2.18 GB and 1.11 GB are left");
  ExpectSays(text, "use --max-model-len 2048");
  KvPoolRequest shorter = Llama7B();
  shorter.max_model_len = 2048;
  EXPECT_TRUE(PlanKvPool(Card(), shorter, others, ""));
  ExpectSays(text, "use --gpu-memory-utilization 0.92");
  EXPECT_TRUE(PlanKvPool(Card(0.92), Llama7B(), others, ""));
  ExpectSays(text, "use --kv-cache-dtype fp8");
  ExpectSays(text, "use --kv-cache-memory-bytes " + std::to_string(65 * 32 * kMiB));
}

TEST(PlanKvPool, FewBytesForASequenceNameTheLeastThatWorks) {
  KvPoolRequest request = Small();
  request.kv_cache_bytes = 100 * 1024;
  const std::string text = ErrorOf(PlanKvPool(Machine(kGiB), request, 0, ""));
  ExpectSays(text, "use --max-model-len 96");
  ExpectSays(text, "use --kv-cache-memory-bytes 1048576");
  request.kv_cache_bytes = 1048576;
  EXPECT_EQ(PlanKvPool(Machine(kGiB), request, 0, "").value_or(0), 64);
}

TEST(PlanKvPool, ACpuTakesWhatTheSequencesCanUseAndNoMoreThan512MiB) {
  EXPECT_EQ(PlanKvPool(Machine(8 * kGiB), Small(), kGiB, "").value_or(0), 4 * 64);
  KvPoolRequest many = Small();
  many.max_num_sequences = 100'000;
  EXPECT_EQ(PlanKvPool(Machine(8 * kGiB), many, kGiB, "").value_or(0), 512 * 1024 / 16);
  many.max_model_len = 1 << 20;  // one sequence takes 1 GiB
  EXPECT_EQ(PlanKvPool(Machine(8 * kGiB), many, kGiB, "").value_or(0), 1 << 16);
}

TEST(PlanKvPool, ACpuShortOfMemoryTakesLess) {
  EXPECT_EQ(PlanKvPool(Machine(kGiB + 2 * kMiB), Small(), kGiB, "").value_or(0), 128);
  const std::string text = ErrorOf(PlanKvPool(Machine(kGiB + kMiB / 2), Small(), kGiB, ""));
  ExpectSays(text, "use --max-model-len 512");
  ExpectSays(text, "--kv-cache-dtype int8");
  EXPECT_EQ(text.find("--gpu"), std::string::npos) << text;
}

TEST(PlanKvPool, ANumberOfBlocksIsTakenAsItIsIfItFits) {
  KvPoolRequest request = Small();
  request.num_blocks = 3;  // less than one sequence: long requests are refused one by one
  EXPECT_EQ(PlanKvPool(Machine(kGiB), request, 0, "").value_or(0), 3);
  request.num_blocks = 1 << 20;
  ExpectSays(ErrorOf(PlanKvPool(Machine(kGiB), request, 0, "")), "--num-gpu-blocks-override");
}

// So many that their bytes come to little again in 64 bits, or their numbers in 32.
TEST(PlanKvPool, ANumberOfBlocksThatNoCacheHasIsRefused) {
  for (KvPoolRequest request : {Small(), Llama7B()}) {
    for (const std::int64_t blocks :
         {std::int64_t{1} << 62, (std::int64_t{1} << 62) + 10, (std::int64_t{1} << 32) + 10,
          std::numeric_limits<std::int64_t>::max()}) {
      request.num_blocks = blocks;
      const auto plan = PlanKvPool(Card(), request, 0, "");
      ASSERT_FALSE(plan) << blocks;
      EXPECT_EQ(plan.error().code, ErrorCode::kInvalidArgument);
      ExpectSays(plan.error().message, "--num-gpu-blocks-override " + std::to_string(blocks));
    }
  }
  KvPoolRequest tiny = Small();  // a block of 1 byte: only their numbers are the limit
  tiny.block_bytes = 1;
  tiny.kv_cache_bytes = kGiB;
  EXPECT_EQ(PlanKvPool(Machine(8 * kGiB), tiny, 0, "").value_or(0), (1 << 27) - 1);
}

TEST(PlanKvPool, ASmallModelDoesNotFillALargeCardWithBlocksNobodyUses) {
  KvPoolRequest request = Llama7B();
  request.block_bytes = 8192;
  EXPECT_EQ(PlanKvPool(Card(), request, kGiB, "").value_or(0), 1 << 18);
}

}  // namespace
}  // namespace nibble
