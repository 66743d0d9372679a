#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// Some of the numbers 0 .. count-1 in the order of their last use. Every call takes constant time.
class LruOrder {
 public:
  explicit LruOrder(std::int32_t count) : links_(static_cast<std::size_t>(count)) {}

  std::int32_t oldest() const { return oldest_; }  // -1: empty
  std::int32_t newer(std::int32_t item) const { return At(item).newer; }

  void PushNewest(std::int32_t item) {
    At(item) = {.newer = -1, .older = newest_};
    (newest_ >= 0 ? At(newest_).newer : oldest_) = item;
    newest_ = item;
  }
  void Remove(std::int32_t item) {
    const Links links = At(item);
    (links.older >= 0 ? At(links.older).newer : oldest_) = links.newer;
    (links.newer >= 0 ? At(links.newer).older : newest_) = links.older;
    At(item) = {};
  }

 private:
  struct Links {
    std::int32_t newer = -1, older = -1;
  };
  Links& At(std::int32_t item) { return links_[static_cast<std::size_t>(item)]; }
  const Links& At(std::int32_t item) const { return links_[static_cast<std::size_t>(item)]; }

  std::vector<Links> links_;
  std::int32_t oldest_ = -1, newest_ = -1;
};

}  // namespace nibble
