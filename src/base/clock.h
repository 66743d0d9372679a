#pragma once

#include <chrono>

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

}  // namespace nibble
