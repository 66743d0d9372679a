#include "engine/content_index.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "engine/mistake.h"

namespace nibble {

ContentIndex::ContentIndex(std::int32_t num_places, std::int32_t block_size_tokens)
    : block_size_(static_cast<std::size_t>(block_size_tokens)),
      entries_(static_cast<std::size_t>(num_places)),
      tokens_(entries_.size() * block_size_) {
  by_hash_.reserve(entries_.size());
}

std::optional<std::int32_t> ContentIndex::Find(std::uint64_t hash) const {
  const auto found = by_hash_.find(hash);
  return found != by_hash_.end() ? std::optional(found->second) : std::nullopt;
}

bool ContentIndex::Holds(std::int32_t place, const BlockContent& content) const {
  const BlockContent own = ContentAt(place);
  return own.parent == content.parent && std::ranges::equal(own.tokens, content.tokens) &&
         (own.parent != kChainRoot || own.salt == content.salt || MistakeIs(Mistake::kSaltIgnored));
}

BlockContent ContentIndex::ContentAt(std::int32_t place) const {
  const Entry& entry = At(place);
  return {.hash = entry.hash,
          .parent = entry.parent,
          .tokens = std::span(tokens_).subspan(static_cast<std::size_t>(place) * block_size_,
                                               block_size_),
          .salt = entry.salt};
}

void ContentIndex::Put(std::int32_t place, const BlockContent& content, ChainId chain) {
  NIBBLE_CHECK(!Has(place), "a place that is in use gets another content");
  const bool is_new = by_hash_.emplace(content.hash, place).second;
  NIBBLE_CHECK(is_new, "two contents with one hash in an index");
  At(place) = {.used = true,
               .hash = content.hash,
               .chain = chain,
               .parent = content.parent,
               .salt = std::string(content.parent == kChainRoot ? content.salt : "")};
  std::ranges::copy(
      content.tokens,
      tokens_.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(place) * block_size_));
}

void ContentIndex::Erase(std::int32_t place) {
  if (Has(place)) {
    by_hash_.erase(At(place).hash);
    At(place) = {};
  }
}

Result<void> ContentIndex::Audit() const {
  std::size_t num_used = 0;
  for (std::size_t place = 0; place < entries_.size(); ++place) {
    const Entry& entry = entries_[place];
    num_used += entry.used ? 1 : 0;
    if (entry.used && Find(entry.hash) != static_cast<std::int32_t>(place)) {
      return Fail(ErrorCode::kInternal, fmt::format("block {}: the index does not name it", place));
    }
  }
  if (num_used != by_hash_.size()) {
    return Fail(ErrorCode::kInternal, "the prefix index names blocks that are not in it");
  }
  return {};
}

}  // namespace nibble
