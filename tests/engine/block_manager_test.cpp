#include "engine/block_manager.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace nibble {
namespace {

std::vector<TokenId> Tokens(std::int32_t first, std::int32_t count) {
  std::vector<TokenId> tokens;
  for (std::int32_t i = 0; i < count; ++i) {
    tokens.push_back(TokenId{first + i});
  }
  return tokens;
}

constexpr BlockManagerConfig kFourBlocks{.num_blocks = 4, .block_size_tokens = 2};

/// Allocates and registers the full blocks of `tokens`, as if a sequence had computed them.
BlockTable Fill(BlockManager& blocks, const std::vector<TokenId>& tokens, const char* salt = "") {
  std::vector<std::uint64_t> hashes;
  blocks.ExtendHashes(hashes, tokens, {}, salt);
  BlockTable table;
  ChainId parent = kChainRoot;
  for (std::size_t b = 0; b < hashes.size(); ++b) {
    table.Append(*blocks.Allocate());
    parent = *blocks.Register(table[static_cast<std::int32_t>(b)], hashes[b], parent,
                              std::span(tokens).subspan(b * 2, 2), salt);
  }
  return table;
}

std::size_t Hits(const BlockManager& blocks, const std::vector<TokenId>& tokens,
                 const char* salt = "") {
  std::vector<std::uint64_t> hashes;
  blocks.ExtendHashes(hashes, tokens, {}, salt);
  return blocks.FindPrefix(hashes, tokens, {}, salt, 100).blocks.size();
}

TEST(BlockManager, ALeaseReturnsItsBlockOnEveryPath) {
  BlockManager blocks(kFourBlocks);
  {
    auto first = blocks.Allocate();
    BlockLease second = *blocks.Allocate();
    EXPECT_EQ(blocks.num_held(), 2);
    BlockLease moved = std::move(second);
    moved = *std::move(first);  // returns what it held
    EXPECT_EQ(blocks.num_held(), 1);
  }
  EXPECT_EQ(blocks.num_free(), 4);
  EXPECT_TRUE(blocks.Audit(std::vector<std::int32_t>(4)));
}

TEST(BlockManager, AllocatesUntilNothingIsLeft) {
  BlockManager blocks(kFourBlocks);
  std::vector<BlockLease> held;
  for (int i = 0; i < 4; ++i) {
    held.push_back(*blocks.Allocate());
  }
  EXPECT_FALSE(blocks.Allocate());
}

TEST(BlockManager, APrefixIsFoundBlockByBlock) {
  BlockManager blocks(kFourBlocks);
  const BlockTable table = Fill(blocks, Tokens(10, 6));
  EXPECT_EQ(Hits(blocks, Tokens(10, 6)), 3U);
  EXPECT_EQ(Hits(blocks, Tokens(10, 5)), 2U);
  EXPECT_EQ(Hits(blocks, Tokens(11, 6)), 0U);
  std::vector<TokenId> other_end = Tokens(10, 6);
  other_end[5] = TokenId{99};
  EXPECT_EQ(Hits(blocks, other_end), 2U);
}

TEST(BlockManager, APrefixMayCrossFromPromptToOutput) {
  BlockManager blocks(kFourBlocks);
  const BlockTable table = Fill(blocks, Tokens(10, 6));
  const auto prompt = Tokens(10, 3);
  const auto output = Tokens(13, 3);
  std::vector<std::uint64_t> hashes;
  blocks.ExtendHashes(hashes, prompt, output, "");
  EXPECT_EQ(blocks.FindPrefix(hashes, prompt, output, "", 100).blocks.size(), 3U);
}

TEST(BlockManager, ATenantDoesNotSeeAnothersBlocks) {
  BlockManager blocks(kFourBlocks);
  const BlockTable table = Fill(blocks, Tokens(10, 4), "a");
  EXPECT_EQ(Hits(blocks, Tokens(10, 4), "a"), 2U);
  EXPECT_EQ(Hits(blocks, Tokens(10, 4), "b"), 0U);
  EXPECT_EQ(Hits(blocks, Tokens(10, 4), ""), 0U);
}

TEST(BlockManager, EqualHashesOfDifferentTokensAreNoHit) {
  BlockManagerConfig config = kFourBlocks;
  config.num_blocks = 64;
  config.prefix_hash_bits = 1;  // two hashes for everything
  BlockManager blocks(config);
  const BlockTable table = Fill(blocks, Tokens(0, 2));
  int false_hits = 0;
  for (std::int32_t first = 100; first < 150; ++first) {
    false_hits += Hits(blocks, Tokens(first, 2)) > 0 ? 1 : 0;
  }
  EXPECT_EQ(false_hits, 0);
  EXPECT_EQ(Hits(blocks, Tokens(0, 2)), 1U);
}

TEST(BlockManager, TheSameTokensBehindAnotherParentAreNoHit) {
  BlockManagerConfig config = kFourBlocks;
  config.prefix_hash_bits = 1;
  BlockManager blocks(config);
  BlockTable one;
  one.Append(*blocks.Allocate());
  one.Append(*blocks.Allocate());
  const auto a = Tokens(1, 2);
  const auto b = Tokens(5, 2);
  const ChainId root = *blocks.Register(one[0], 0, kChainRoot, a, "");
  ASSERT_TRUE(blocks.Register(one[1], 1, root, b, ""));
  // A chain that would be [b, b] with the hashes 1, 1: block one[1] holds b, but behind a.
  const std::vector<std::uint64_t> hashes = {1, 1};
  std::vector<TokenId> tokens = b;
  tokens.insert(tokens.end(), b.begin(), b.end());
  EXPECT_TRUE(blocks.FindPrefix(hashes, tokens, {}, "", 2).blocks.empty());
}

TEST(BlockManager, IdleBlocksStayCachedUntilTheOldestIsNeeded) {
  BlockManager blocks(kFourBlocks);
  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  { const BlockTable table = Fill(blocks, Tokens(20, 4)); }
  EXPECT_EQ(blocks.num_cached(), 4);
  EXPECT_EQ(blocks.num_available(), 4);
  const auto taken = blocks.Allocate();  // the end of the older prefix goes first
  EXPECT_EQ(Hits(blocks, Tokens(10, 4)), 1U);
  EXPECT_EQ(Hits(blocks, Tokens(20, 4)), 2U);
}

TEST(BlockManager, AHitSavesABlockFromEviction) {
  BlockManager blocks(kFourBlocks);
  { const BlockTable table = Fill(blocks, Tokens(10, 2)); }
  { const BlockTable table = Fill(blocks, Tokens(20, 2)); }
  std::vector<std::uint64_t> hashes;
  const auto tokens = Tokens(10, 2);
  blocks.ExtendHashes(hashes, tokens, {}, "");
  BlockTable reader;
  reader.Append(blocks.Hold(blocks.FindPrefix(hashes, tokens, {}, "", 1).blocks[0].block));
  std::vector<BlockLease> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(*blocks.Allocate());
  }
  EXPECT_FALSE(blocks.Allocate());
  EXPECT_EQ(Hits(blocks, tokens), 1U);
  EXPECT_EQ(Hits(blocks, Tokens(20, 2)), 0U);
}

TEST(BlockManager, SharedAndIndexedBlocksAreNotWritable) {
  BlockManager blocks(kFourBlocks);
  const auto fresh = blocks.Allocate();
  EXPECT_TRUE(blocks.IsWritable(fresh->id()));
  const BlockTable table = Fill(blocks, Tokens(10, 2));
  EXPECT_FALSE(blocks.IsWritable(table[0]));
}

TEST(BlockManager, ABlockIsFencedUntilTheLastStepInFlightRetires) {
  BlockManager blocks(kFourBlocks);
  auto lease = blocks.Allocate();
  blocks.StepLaunched(1);
  blocks.StepLaunched(2);
  lease.reset();
  EXPECT_EQ(blocks.num_fenced(), 1);
  EXPECT_EQ(blocks.num_available(), 3);
  blocks.StepRetired(1);
  EXPECT_EQ(blocks.num_fenced(), 1);
  blocks.StepRetired(2);
  EXPECT_EQ(blocks.num_fenced(), 0);
  EXPECT_EQ(blocks.num_free(), 4);
}

TEST(BlockManager, AFencedPrefixCanBeSharedAgainAtOnce) {
  BlockManager blocks(kFourBlocks);
  auto table = std::make_unique<BlockTable>(Fill(blocks, Tokens(10, 2)));
  const BlockId id = (*table)[0];
  blocks.StepLaunched(1);
  table.reset();
  EXPECT_EQ(blocks.num_fenced(), 1);
  BlockTable reader;
  reader.Append(blocks.Hold(id));
  EXPECT_EQ(blocks.num_fenced(), 0);
  blocks.StepRetired(1);  // the stale fence must not free a held block
  EXPECT_EQ(blocks.num_held(), 1);
  std::vector<std::int32_t> references(4);
  references[static_cast<std::size_t>(Raw(id))] = 1;
  EXPECT_TRUE(blocks.Audit(references));
}

constexpr BlockManagerConfig kFourBlocksAndTwoSlots{
    .num_blocks = 4, .num_host_slots = 2, .block_size_tokens = 2};

/// Allocates every block, and gives them back: what was cached is evicted.
void EvictAll(BlockManager& blocks) {
  BlockTable all;
  while (auto lease = blocks.Allocate()) {
    all.Append(*std::move(lease));
  }
}

BlockManager::Prefix Find(const BlockManager& blocks, const std::vector<TokenId>& tokens,
                          const char* salt = "") {
  std::vector<std::uint64_t> hashes;
  blocks.ExtendHashes(hashes, tokens, {}, salt);
  return blocks.FindPrefix(hashes, tokens, {}, salt, 100);
}

StepPlan Copies(BlockManager& blocks) {
  StepPlan plan;
  blocks.TakeCopies(plan);
  return plan;
}

TEST(HostMemory, AnEvictedPrefixComesBackInItsOrder) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  std::vector<BlockId> before;
  {
    const BlockTable table = Fill(blocks, Tokens(10, 4));
    before = {table[0], table[1]};
  }
  EvictAll(blocks);
  const StepPlan out = Copies(blocks);
  ASSERT_EQ(out.spills.size(), 2U);  // the end of a prefix leaves first
  EXPECT_EQ(out.spills[0].block, before[1]);
  EXPECT_EQ(out.spills[1].block, before[0]);

  const auto prefix = Find(blocks, Tokens(10, 5));
  ASSERT_EQ(prefix.blocks.size(), 2U);
  EXPECT_EQ(prefix.num_in_pool, 0);
  BlockTable reader;
  blocks.Claim(prefix, reader);
  const StepPlan back = Copies(blocks);
  ASSERT_EQ(back.restores.size(), 2U);
  EXPECT_TRUE(back.spills.empty());
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(back.restores[i].block, reader[static_cast<std::int32_t>(i)]);
    EXPECT_EQ(back.restores[i].slot, out.spills[1 - i].slot);
  }
  EXPECT_EQ(Find(blocks, Tokens(10, 5)).num_in_pool, 2);  // others may share it from now on
  reader.Clear();
  EXPECT_TRUE(blocks.Audit(std::vector<std::int32_t>(4)));
}

TEST(HostMemory, WhatIsThereAlreadyIsNotCopiedAgain) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  EvictAll(blocks);
  EXPECT_EQ(Copies(blocks).spills.size(), 2U);
  {
    BlockTable reader;
    blocks.Claim(Find(blocks, Tokens(10, 4)), reader);
  }
  EXPECT_EQ(Copies(blocks).restores.size(), 2U);
  EvictAll(blocks);
  EXPECT_TRUE(Copies(blocks).spills.empty());
  EXPECT_EQ(Hits(blocks, Tokens(10, 4)), 2U);
}

TEST(HostMemory, ContentComputedAgainFindsItsChildrenThere) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  EvictAll(blocks);
  Copies(blocks);
  // As a sequence does that may not read the cache: its first block has the same place in the
  // chain.
  const BlockTable table = Fill(blocks, Tokens(10, 2));
  const auto prefix = Find(blocks, Tokens(10, 4));
  EXPECT_EQ(prefix.blocks.size(), 2U);
  EXPECT_EQ(prefix.num_in_pool, 1);
}

TEST(HostMemory, AReusedSlotTakesItsCopyOutOfThePlan) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 8)); }
  EvictAll(blocks);
  const StepPlan plan = Copies(blocks);
  ASSERT_EQ(plan.spills.size(), 2U);
  EXPECT_NE(plan.spills[0].slot, plan.spills[1].slot);
  EXPECT_EQ(Hits(blocks, Tokens(10, 8)), 2U);  // the beginning of the prefix
  EXPECT_TRUE(blocks.Audit(std::vector<std::int32_t>(4)));
}

TEST(HostMemory, ASlotIsNotReusedWhileItsRestoreIsPlanned) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  EvictAll(blocks);
  Copies(blocks);
  { const BlockTable table = Fill(blocks, Tokens(20, 8)); }  // the pool is full of other content
  BlockTable reader;
  blocks.Claim(Find(blocks, Tokens(10, 4)), reader);  // evicts two blocks, for which is no slot
  const StepPlan plan = Copies(blocks);
  EXPECT_EQ(plan.restores.size(), 2U);
  EXPECT_TRUE(plan.spills.empty());
}

TEST(HostMemory, ATenantDoesNotSeeAnothersBlocks) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 4), "a"); }
  EvictAll(blocks);
  EXPECT_EQ(Hits(blocks, Tokens(10, 4), "a"), 2U);
  EXPECT_EQ(Hits(blocks, Tokens(10, 4), "b"), 0U);
}

TEST(HostMemory, EqualHashesOfDifferentTokensAreNoHit) {
  BlockManagerConfig config = kFourBlocksAndTwoSlots;
  config.prefix_hash_bits = 1;
  BlockManager blocks(config);
  { const BlockTable table = Fill(blocks, Tokens(0, 2)); }
  EvictAll(blocks);
  for (std::int32_t first = 100; first < 150; ++first) {
    EXPECT_EQ(Hits(blocks, Tokens(first, 2)), 0U);
  }
  EXPECT_EQ(Hits(blocks, Tokens(0, 2)), 1U);
}

TEST(HostMemory, CopiesOfAFailedLaunchAreForgotten) {
  BlockManager blocks(kFourBlocksAndTwoSlots);
  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  EvictAll(blocks);
  blocks.LaunchFailed(Copies(blocks));
  EXPECT_EQ(Hits(blocks, Tokens(10, 4)), 0U);
  EXPECT_EQ(blocks.host().num_used(), 0);

  { const BlockTable table = Fill(blocks, Tokens(10, 4)); }
  EvictAll(blocks);
  Copies(blocks);
  BlockTable reader;
  blocks.Claim(Find(blocks, Tokens(10, 4)), reader);
  blocks.LaunchFailed(Copies(blocks));
  reader.Clear();
  EXPECT_EQ(blocks.num_free(), 4);  // nothing came back, but the slots still hold it
  EXPECT_EQ(Hits(blocks, Tokens(10, 4)), 2U);
  EXPECT_TRUE(blocks.Audit(std::vector<std::int32_t>(4)));
}

TEST(BlockManager, AuditSeesAWrongCount) {
  BlockManager blocks(kFourBlocks);
  const auto lease = blocks.Allocate();
  EXPECT_FALSE(blocks.Audit(std::vector<std::int32_t>(4)));
}

}  // namespace
}  // namespace nibble
