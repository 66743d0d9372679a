#pragma once

#include <chrono>
#include <cstdint>

namespace nibble {

/// Time through an interface, so that the simulator can own it. Monotonic, nanoseconds since an
/// arbitrary start.
class Clock {
 public:
  using Duration = std::chrono::nanoseconds;
  using TimePoint = std::chrono::time_point<Clock, Duration>;
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;

  // For std::chrono::time_point<Clock>.
  using duration = Duration;
  using rep = Duration::rep;
  using period = Duration::period;
  using time_point = TimePoint;
  static constexpr bool is_steady = true;
};

/// The machine's steady clock.
const Clock& SystemClock();

/// The date: seconds since 1970-01-01 UTC, for what people read. Nothing is computed from it.
std::int64_t UnixSeconds();

}  // namespace nibble
