#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace nibble {

/// A block's place in a chain of full blocks. Ids are never used twice, so naming the parent's id
/// names all tokens before the block and the salt, exactly and without hashing.
enum class ChainId : std::uint64_t {};
inline constexpr ChainId kChainRoot{0};

/// What a full block holds. Two contents are the same if parent and tokens are, and on a chain's
/// first block the salt; the hash only finds them.
struct BlockContent {
  std::uint64_t hash = 0;  // chained: over all tokens up to the block's end
  ChainId parent = kChainRoot;
  std::span<const TokenId> tokens;
  std::string_view salt;
};

/// Which content lies at which place, a place being a block of the pool or a slot of host memory.
/// One content a hash: of two that collide, only one is here.
class ContentIndex {
 public:
  ContentIndex(std::int32_t num_places, std::int32_t block_size_tokens);

  bool Has(std::int32_t place) const { return At(place).used; }
  std::size_t size() const { return by_hash_.size(); }
  /// The place whose content has this hash, whatever it is.
  std::optional<std::int32_t> Find(std::uint64_t hash) const;
  /// Whether the content at `place` is this one, compared token by token.
  bool Holds(std::int32_t place, const BlockContent& content) const;
  /// The content of a place in use; borrowed until the place changes.
  BlockContent ContentAt(std::int32_t place) const;
  ChainId ChainAt(std::int32_t place) const { return At(place).chain; }

  /// `content`, whose own place in its chain is `chain`, now lies at the unused place.
  void Put(std::int32_t place, const BlockContent& content, ChainId chain);
  void Erase(std::int32_t place);

  Result<void> Audit() const;

 private:
  struct Entry {
    bool used = false;
    std::uint64_t hash = 0;
    ChainId chain = kChainRoot;
    ChainId parent = kChainRoot;
    std::string salt;  // of a chain's first block only
  };
  Entry& At(std::int32_t place) { return entries_[static_cast<std::size_t>(place)]; }
  const Entry& At(std::int32_t place) const { return entries_[static_cast<std::size_t>(place)]; }

  std::size_t block_size_;
  std::vector<Entry> entries_;
  std::vector<TokenId> tokens_;  // block_size_ a place
  std::unordered_map<std::uint64_t, std::int32_t> by_hash_;
};

}  // namespace nibble
