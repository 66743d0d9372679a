#include "kernels/isa.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Isa, NamesRoundTrip) {
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    EXPECT_EQ(ParseIsa(Name(isa)), isa);
  }
  EXPECT_EQ(ParseIsa("sse2"), std::nullopt);
}

TEST(Isa, CanBeLoweredAndRaisedAgainButNotBeyondTheMachine) {
  const Isa before = CurrentIsa();
  EXPECT_TRUE(ForceIsa(Isa::kRef));
  EXPECT_EQ(CurrentIsa(), Isa::kRef);
  EXPECT_EQ(ForceIsa(Isa::kAmx), DetectIsa() == Isa::kAmx);
  EXPECT_TRUE(ForceIsa(before));
  EXPECT_EQ(CurrentIsa(), before);
}

TEST(Isa, TheCpuIsDescribed) { EXPECT_NE(DescribeCpu().find(':'), std::string::npos); }

}  // namespace
}  // namespace nibble
