#pragma once

#include <chrono>

#include "base/clock.h"

namespace nibble {

/// Adds the seconds of its life to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(SystemClock().Now()) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(SystemClock().Now() - begin_).count(); }

 private:
  double& seconds_;
  Clock::TimePoint begin_;
};

}  // namespace nibble
