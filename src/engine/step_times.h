#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <optional>

#include "base/clock.h"

namespace nibble {

/// How long steps took on the device, by kind (ModelRunner: recorded for so many rows, or of about
/// so many): the shortest of the last few, so that who plans by it is early rather than late.
class StepTimes {
 public:
  void Note(std::size_t kind, Clock::Duration time) {
    Recent& recent = recent_[kind];
    recent.times[recent.count++ % recent.times.size()] = time;
  }
  /// Nothing before `kLeastKnown` steps of the kind.
  std::optional<Clock::Duration> Shortest(std::size_t kind) const {
    const auto found = recent_.find(kind);
    if (found == recent_.end() || found->second.count < kLeastKnown) {
      return std::nullopt;
    }
    const Recent& recent = found->second;
    const auto known = std::min(recent.count, recent.times.size());
    return *std::min_element(recent.times.begin(),
                             recent.times.begin() + static_cast<std::ptrdiff_t>(known));
  }
  static constexpr std::size_t kLeastKnown = 2;

 private:
  struct Recent {
    std::array<Clock::Duration, 8> times{};
    std::size_t count = 0;
  };
  std::map<std::size_t, Recent> recent_;
};

}  // namespace nibble
