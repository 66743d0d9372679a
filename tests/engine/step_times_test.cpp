#include "engine/step_times.h"

#include <gtest/gtest.h>

#include <chrono>

namespace nibble {
namespace {

using std::chrono::milliseconds;

TEST(StepTimes, NothingIsKnownOfAKindThatWasSeenOnce) {
  StepTimes times;
  EXPECT_FALSE(times.Shortest(3).has_value());
  times.Note(3, milliseconds(7));
  EXPECT_FALSE(times.Shortest(3).has_value());
  times.Note(3, milliseconds(9));
  EXPECT_EQ(times.Shortest(3), milliseconds(7));
  EXPECT_FALSE(times.Shortest(4).has_value());
}

TEST(StepTimes, OldTimesAreForgotten) {
  StepTimes times;
  times.Note(1, milliseconds(2));
  for (int i = 0; i < 7; ++i) {
    times.Note(1, milliseconds(5));
  }
  EXPECT_EQ(times.Shortest(1), milliseconds(2));
  times.Note(1, milliseconds(6));
  EXPECT_EQ(times.Shortest(1), milliseconds(5));
}

}  // namespace
}  // namespace nibble
