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
  reader.Append(blocks.Hold(blocks.FindPrefix(hashes, tokens, {}, "", 1).blocks[0]));
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

TEST(BlockManager, AuditSeesAWrongCount) {
  BlockManager blocks(kFourBlocks);
  const auto lease = blocks.Allocate();
  EXPECT_FALSE(blocks.Audit(std::vector<std::int32_t>(4)));
}

}  // namespace
}  // namespace nibble
