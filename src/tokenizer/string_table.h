#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

/// Strings <-> numbers, all bytes in one block: a vocabulary of 150,000 costs three allocations.
/// Numbers may have gaps. Append-only.
class StringTable {
 public:
  static constexpr std::int32_t kNone = -1;

  /// Adds `text` under `id`. False if the text or the id is taken already.
  bool Add(std::string_view text, std::int32_t id) {
    if (id < 0 || Find(text) != kNone || Has(id)) {
      return false;
    }
    if (2 * (count_ + 1) > slots_.size()) {
      Grow();
    }
    if (static_cast<std::size_t>(id) >= entries_.size()) {
      entries_.resize(static_cast<std::size_t>(id) + 1);
    }
    entries_[static_cast<std::size_t>(id)] = {bytes_.size(),
                                              static_cast<std::uint32_t>(text.size()), true};
    bytes_ += text;
    Insert(id);
    ++count_;
    return true;
  }

  /// The number of `text`, or kNone.
  std::int32_t Find(std::string_view text) const {
    if (slots_.empty()) {
      return kNone;
    }
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = Hash(text) & mask;; i = (i + 1) & mask) {
      if (slots_[i] == kNone || Text(slots_[i]) == text) {
        return slots_[i];
      }
    }
  }

  bool Has(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < entries_.size() &&
           entries_[static_cast<std::size_t>(id)].used;
  }

  /// The text of a number that Has() it.
  std::string_view Text(std::int32_t id) const {
    const Entry& entry = entries_[static_cast<std::size_t>(id)];
    return std::string_view(bytes_).substr(entry.begin, entry.size);
  }

  std::size_t count() const { return count_; }
  /// Largest number plus one.
  std::int32_t bound() const { return static_cast<std::int32_t>(entries_.size()); }

 private:
  struct Entry {
    std::size_t begin = 0;
    std::uint32_t size = 0;
    bool used = false;
  };

  static std::size_t Hash(std::string_view text) { return std::hash<std::string_view>{}(text); }

  void Insert(std::int32_t id) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = Hash(Text(id)) & mask;
    while (slots_[i] != kNone) {
      i = (i + 1) & mask;
    }
    slots_[i] = id;
  }

  void Grow() {
    constexpr std::size_t kFirstSlots = 1024;
    slots_.assign(slots_.empty() ? kFirstSlots : 2 * slots_.size(), kNone);
    for (std::int32_t id = 0; id < bound(); ++id) {
      if (Has(id)) {
        Insert(id);
      }
    }
  }

  std::string bytes_;
  std::vector<Entry> entries_;       // by number
  std::vector<std::int32_t> slots_;  // open addressing, a power of two
  std::size_t count_ = 0;
};

}  // namespace nibble::text
