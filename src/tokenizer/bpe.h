#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "tokenizer/string_table.h"

namespace nibble::text {

/// One rule of a BPE: the neighbours left and right become `merged`. The smallest rank goes first;
/// equal ranks are served from left to right.
struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t merged = 0;
  std::int32_t rank = 0;
};

struct BpeOptions {
  bool byte_level = false;     // words are raw bytes; else characters of UTF-8
  bool byte_fallback = false;  // an unknown character becomes tokens <0x00> to <0xFF>
  bool fuse_unk = false;       // neighbouring unknown characters are one unknown token
  bool ignore_merges = false;  // a word that is a token is that token
  std::optional<std::string> unk_token;
};

/// Byte pair encoding of one word. Immutable after Build; any number of threads may use it.
class Bpe {
 public:
  /// Working memory of one thread, reused from word to word.
  struct Scratch {
    struct Symbol {
      std::int32_t id;
      std::int32_t previous;  // -1: first
      std::int32_t next;      // -1: last
      bool dead;
    };
    struct Candidate {
      std::int32_t rank;
      std::int32_t position;
      std::int32_t merged;
    };
    /// A short word and its tokens. The key is the word's bytes and, in the last, its length.
    struct CachedWord {
      static constexpr std::size_t kMaxBytes = 15;
      static constexpr std::size_t kMaxTokens = 6;
      std::array<std::uint64_t, 2> key{};  // zero: empty
      std::array<std::int32_t, kMaxTokens> ids{};
      std::int32_t num_ids = 0;
    };
    std::vector<std::int32_t> ids;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<CachedWord> cache;  // direct-mapped, by hash; empty: no cache

    /// Worth its 200 kB for texts of some length. One cache serves one Bpe and one `blocked`.
    void UseCache() { cache.resize(kCacheSlots); }
    static constexpr int kCacheBits = 12;
    static constexpr std::size_t kCacheSlots = std::size_t{1} << kCacheBits;
  };

  Bpe() = default;
  /// names: the vocabulary as the file spells it (in byte-level models, in the byte alphabet).
  /// Errors: kCorruptFile if the unknown token is not in it.
  static Result<Bpe> Build(StringTable names, const std::vector<Merge>& merges, BpeOptions options);

  /// Appends the tokens of one word. blocked: per id, tokens that ignore_merges may not produce
  /// (special tokens in a client's text); empty: none.
  void Encode(std::string_view word, const std::vector<bool>& blocked, Scratch& scratch,
              std::vector<TokenId>& out) const;

  const StringTable& names() const { return names_; }
  const BpeOptions& options() const { return options_; }
  /// All merges, in the order in which a file lists them: by rank, and so that a reader who gives
  /// every merge a rank of its own keeps the order of equal ones as well as he can.
  std::vector<Merge> SortedMerges() const;
  /// True if no token holds U+2581 after another character: then a text may be cut before the first
  /// U+2581 of each run without changing its tokens.
  bool cuts_before_meta_space() const { return cuts_before_meta_space_; }

 private:
  /// (left, right) -> (merged, rank), open addressing.
  class PairTable {
   public:
    struct Entry {
      std::uint64_t key = kEmpty;
      std::int32_t rank = 0;
      std::int32_t merged = 0;
    };
    void Build(const std::vector<Merge>& merges);
    const Entry* Find(std::int32_t left, std::int32_t right) const {
      const std::uint64_t key = Key(left, right);
      for (std::size_t i = Slot(key);; i = (i + 1) & mask_) {
        const Entry& entry = entries_[i];
        if (entry.key == key) {
          return &entry;
        }
        if (entry.key == kEmpty) {
          return nullptr;
        }
      }
    }
    const std::vector<Entry>& entries() const { return entries_; }
    static std::uint64_t Key(std::int32_t left, std::int32_t right) {
      return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
             static_cast<std::uint32_t>(right);
    }

   private:
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // ids are never negative
    std::size_t Slot(std::uint64_t key) const {
      const std::uint64_t mixed = (key ^ (key >> 29)) * 0x9E3779B97F4A7C15ULL;
      return static_cast<std::size_t>(mixed >> shift_);
    }
    std::vector<Entry> entries_;
    std::size_t mask_ = 0;
    int shift_ = 0;
  };

  std::int32_t FindWord(std::string_view word) const;
  void FirstSymbols(std::string_view word, std::vector<std::int32_t>& ids) const;
  void EncodeUncached(std::string_view word, const std::vector<bool>& blocked,
                      Scratch& scratch) const;
  void MergeShort(Scratch& scratch) const;
  void MergeLong(Scratch& scratch) const;

  StringTable names_;
  StringTable words_;  // byte-level: the tokens as raw bytes; otherwise empty, names_ serves
  PairTable pairs_;
  BpeOptions options_;
  std::array<std::int32_t, 256> byte_tokens_{};      // byte-level: of each byte; else of each ASCII
  std::array<std::int32_t, 256> fallback_tokens_{};  // <0x00> to <0xFF>
  std::int32_t unk_ = StringTable::kNone;
  bool cuts_before_meta_space_ = false;
};

}  // namespace nibble::text
