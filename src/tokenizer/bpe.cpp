#include "tokenizer/bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "tokenizer/byte_level.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr std::int32_t kNone = StringTable::kNone;
constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();
// Up to here a scan for the smallest rank beats a heap.
constexpr std::size_t kShortWord = 32;
static_assert(std::endian::native == std::endian::little);  // the cache's key
constexpr std::string_view kMetaSpace = "\xE2\x96\x81";     // U+2581

bool HasInnerMetaSpace(std::string_view token) {
  const std::size_t last = token.rfind(kMetaSpace);
  if (last == std::string_view::npos) {
    return false;
  }
  for (std::size_t at = 0; at < last; at += kMetaSpace.size()) {
    if (token.substr(at, kMetaSpace.size()) != kMetaSpace) {
      return true;
    }
  }
  return false;
}

}  // namespace

void Bpe::PairTable::Build(const std::vector<Merge>& merges) {
  constexpr int kMinBits = 4;
  int bits = kMinBits;
  while ((std::size_t{1} << bits) < 2 * merges.size()) {
    ++bits;
  }
  entries_.assign(std::size_t{1} << bits, Entry{});
  mask_ = entries_.size() - 1;
  shift_ = 64 - bits;
  for (const Merge& merge : merges) {
    const std::uint64_t key = Key(merge.left, merge.right);
    std::size_t i = Slot(key);
    while (entries_[i].key != kEmpty && entries_[i].key != key) {
      i = (i + 1) & mask_;
    }
    entries_[i] = {key, merge.rank, merge.merged};  // of two equal pairs the later one counts
  }
}

Result<Bpe> Bpe::Build(StringTable names, const std::vector<Merge>& merges, BpeOptions options) {
  Bpe bpe;
  bpe.names_ = std::move(names);
  bpe.options_ = std::move(options);
  bpe.pairs_.Build(merges);
  if (bpe.options_.unk_token) {
    bpe.unk_ = bpe.names_.Find(*bpe.options_.unk_token);
    if (bpe.unk_ == kNone) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("unk_token \"{}\" is not in the vocabulary",
                                                       *bpe.options_.unk_token));
    }
  }
  // If U+2581 is unknown itself, it may be fused with what stands before it.
  bpe.cuts_before_meta_space_ = !bpe.options_.byte_level && bpe.names_.Find(kMetaSpace) != kNone;
  for (std::int32_t id = 0; id < bpe.names_.bound(); ++id) {
    if (!bpe.names_.Has(id)) {
      continue;
    }
    const std::string_view name = bpe.names_.Text(id);
    if (bpe.options_.byte_level) {
      if (const auto bytes = CharsToBytes(name)) {
        bpe.words_.Add(*bytes, id);
      }
    } else if (bpe.cuts_before_meta_space_ && HasInnerMetaSpace(name)) {
      bpe.cuts_before_meta_space_ = false;
    }
  }
  for (unsigned byte = 0; byte < bpe.byte_tokens_.size(); ++byte) {
    const auto c = static_cast<char>(byte);
    bpe.byte_tokens_[byte] =
        bpe.options_.byte_level || byte < 0x80 ? bpe.FindWord(std::string_view(&c, 1)) : kNone;
    bpe.fallback_tokens_[byte] = bpe.names_.Find(fmt::format("<0x{:02X}>", byte));
  }
  return bpe;
}

std::vector<Merge> Bpe::SortedMerges() const {
  std::vector<Merge> merges;
  for (const PairTable::Entry& entry : pairs_.entries()) {
    const auto left = static_cast<std::int32_t>(entry.key >> 32);
    const auto right = static_cast<std::int32_t>(entry.key & 0xFFFFFFFFU);
    if (left >= 0) {
      merges.push_back({left, right, entry.merged, entry.rank});
    }
  }
  // Equal ranks act from left to right: in a run of one character the leftmost token grows one
  // character at a time, so the longest left side must come first.
  std::sort(merges.begin(), merges.end(), [this](const Merge& a, const Merge& b) {
    if (a.rank != b.rank) {
      return a.rank < b.rank;
    }
    const std::size_t a_size = names_.Text(a.left).size();
    const std::size_t b_size = names_.Text(b.left).size();
    return a_size != b_size ? a_size > b_size
                            : std::pair(a.left, a.right) < std::pair(b.left, b.right);
  });
  return merges;
}

std::int32_t Bpe::FindWord(std::string_view word) const {
  return options_.byte_level ? words_.Find(word) : names_.Find(word);
}

void Bpe::FirstSymbols(std::string_view word, std::vector<std::int32_t>& ids) const {
  ids.clear();
  std::int32_t pending_unk = kNone;
  std::string spelled;  // of an unknown byte in byte-level models
  for (std::size_t at = 0; at < word.size();) {
    const auto first = static_cast<unsigned char>(word[at]);
    std::int32_t id = kNone;
    std::string_view symbol;
    if (options_.byte_level || first < 0x80) {
      id = byte_tokens_[first];
      symbol = word.substr(at, 1);
      if (id == kNone && options_.byte_level) {
        spelled.clear();
        AppendUtf8(spelled, ByteToChar(first));
      }
      at += 1;
    } else {
      const unsigned size = DecodeAt(word, at).size;
      symbol = word.substr(at, size);
      id = names_.Find(symbol);
      at += size;
    }
    if (id != kNone) {
      if (pending_unk != kNone) {
        ids.push_back(std::exchange(pending_unk, kNone));
      }
      ids.push_back(id);
      continue;
    }
    const std::string_view text = options_.byte_level ? std::string_view(spelled) : symbol;
    if (options_.byte_fallback && std::all_of(text.begin(), text.end(), [this](char c) {
          return fallback_tokens_[static_cast<unsigned char>(c)] != kNone;
        })) {
      for (const char c : text) {
        ids.push_back(fallback_tokens_[static_cast<unsigned char>(c)]);
      }
      continue;
    }
    // Without an unknown token the character is dropped, as the reference library does.
    if (unk_ != kNone) {
      if (pending_unk != kNone && !options_.fuse_unk) {
        ids.push_back(pending_unk);
      }
      pending_unk = unk_;
    }
  }
  if (pending_unk != kNone) {
    ids.push_back(pending_unk);
  }
}

void Bpe::MergeShort(Scratch& scratch) const {
  std::vector<std::int32_t>& ids = scratch.ids;
  std::array<std::int32_t, kShortWord> ranks;   // of the pair (i, i + 1)
  std::array<std::int32_t, kShortWord> merged;  // what it becomes
  std::size_t size = ids.size();
  const auto look_up = [&](std::size_t i) {
    const PairTable::Entry* entry = pairs_.Find(ids[i], ids[i + 1]);
    ranks[i] = entry == nullptr ? kNoRank : entry->rank;
    merged[i] = entry == nullptr ? kNone : entry->merged;
  };
  for (std::size_t i = 0; i + 1 < size; ++i) {
    look_up(i);
  }
  while (size > 1) {
    const auto last = ranks.begin() + static_cast<std::ptrdiff_t>(size) - 1;
    const auto best = std::min_element(ranks.begin(), last);  // the leftmost of equals
    if (*best == kNoRank) {
      break;
    }
    const auto at = static_cast<std::size_t>(best - ranks.begin());
    ids[at] = merged[at];
    for (std::size_t i = at + 1; i + 1 < size; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    --size;
    if (at > 0) {
      look_up(at - 1);
    }
    if (at + 1 < size) {
      look_up(at);
    }
  }
  ids.resize(size);
}

void Bpe::MergeLong(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<Scratch::Candidate>& heap = scratch.heap;
  const auto count = static_cast<std::int32_t>(scratch.ids.size());
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto at = [&](std::int32_t i) -> Scratch::Symbol& {
    return symbols[static_cast<std::size_t>(i)];
  };
  symbols.clear();
  heap.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    symbols.push_back(
        {scratch.ids[static_cast<std::size_t>(i)], i - 1, i + 1 == count ? -1 : i + 1, false});
    if (i > 0) {
      if (const PairTable::Entry* entry = pairs_.Find(at(i - 1).id, at(i).id)) {
        heap.push_back({entry->rank, i - 1, entry->merged});
      }
    }
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto offer = [&](std::int32_t left) {
    const std::int32_t right = at(left).next;
    if (right < 0) {
      return;
    }
    if (const PairTable::Entry* entry = pairs_.Find(at(left).id, at(right).id)) {
      heap.push_back({entry->rank, left, entry->merged});
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };
  while (!heap.empty()) {
    const Scratch::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    Scratch::Symbol& left = at(top.position);
    if (left.dead || left.next < 0) {
      continue;
    }
    Scratch::Symbol& right = at(left.next);
    const PairTable::Entry* entry = pairs_.Find(left.id, right.id);
    if (entry == nullptr || entry->merged != top.merged) {
      continue;  // one of the two was merged since
    }
    left.id = top.merged;
    left.next = right.next;
    right.dead = true;
    if (right.next >= 0) {
      at(right.next).previous = top.position;
    }
    if (left.previous >= 0) {
      offer(left.previous);
    }
    offer(top.position);
  }
  scratch.ids.clear();
  for (std::int32_t i = 0; i >= 0; i = at(i).next) {
    scratch.ids.push_back(at(i).id);
  }
}

void Bpe::EncodeUncached(std::string_view word, const std::vector<bool>& blocked,
                         Scratch& scratch) const {
  if (options_.ignore_merges) {
    const std::int32_t id = FindWord(word);
    if (id != kNone && (static_cast<std::size_t>(id) >= blocked.size() ||
                        !blocked[static_cast<std::size_t>(id)])) {
      scratch.ids.assign(1, id);
      return;
    }
  }
  FirstSymbols(word, scratch.ids);
  if (scratch.ids.size() > kShortWord) {
    MergeLong(scratch);
  } else if (scratch.ids.size() > 1) {
    MergeShort(scratch);
  }
}

void Bpe::Encode(std::string_view word, const std::vector<bool>& blocked, Scratch& scratch,
                 std::vector<TokenId>& out) const {
  using CachedWord = Scratch::CachedWord;
  const auto append = [&out](const std::int32_t* ids, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      out.push_back(TokenId{ids[i]});
    }
  };
  CachedWord* slot = nullptr;
  std::array<std::uint64_t, 2> key{};
  if (!scratch.cache.empty() && !word.empty() && word.size() <= CachedWord::kMaxBytes) {
    std::memcpy(key.data(), word.data(), word.size());
    key[1] |= static_cast<std::uint64_t>(word.size()) << 56;
    const std::uint64_t mixed = (key[0] ^ (key[1] * 0xC2B2AE3D27D4EB4FULL)) * 0x9E3779B97F4A7C15ULL;
    slot = &scratch.cache[mixed >> (64 - Scratch::kCacheBits)];
    if (slot->key == key) {
      append(slot->ids.data(), static_cast<std::size_t>(slot->num_ids));
      return;
    }
  }
  EncodeUncached(word, blocked, scratch);
  append(scratch.ids.data(), scratch.ids.size());
  if (slot != nullptr && scratch.ids.size() <= CachedWord::kMaxTokens) {
    slot->key = key;
    std::copy(scratch.ids.begin(), scratch.ids.end(), slot->ids.begin());
    slot->num_ids = static_cast<std::int32_t>(scratch.ids.size());
  }
}

}  // namespace nibble::text
