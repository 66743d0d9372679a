#include "base/random.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Philox, MatchesTheKnownAnswersOfTheReferenceImplementation) {
  // kat_vectors of Random123: philox4x32 10.
  EXPECT_EQ(Philox({0, 0}, {0, 0, 0, 0}),
            (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(UniformAt, DependsOnSeedChoiceAndPositionAndStaysBelowOne) {
  EXPECT_NE(UniformAt(1, 0, 0), UniformAt(2, 0, 0));
  EXPECT_NE(UniformAt(1, 0, 0), UniformAt(1, 1, 0));
  EXPECT_NE(UniformAt(1, 0, 0), UniformAt(1, 0, 1));
  double sum = 0;
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const float u = UniformAt(7, 0, i);
    ASSERT_GE(u, 0.0F);
    ASSERT_LT(u, 1.0F);
    sum += static_cast<double>(u);
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
}

}  // namespace
}  // namespace nibble
