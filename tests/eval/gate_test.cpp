#include "eval/gate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

TEST(Gate, HoldsOnItsSideOfTheBoundAndNeverForNaN) {
  const struct {
    const char* text;
    const char* name;
    bool below, at, above;
  } cases[] = {
      {"kl<=0.2", "kl", true, true, false},
      {"kl < 0.2", "kl", true, false, false},
      {"arc_easy.acc>=0.2", "arc_easy.acc", false, true, true},
      {" top1 > 2e-1 ", "top1", false, false, true},
  };
  for (const auto& expected : cases) {
    const auto gate = ParseGate(expected.text);
    ASSERT_TRUE(gate) << gate.error().message;
    EXPECT_EQ(gate->name, expected.name);
    EXPECT_EQ(gate->Holds(0.1), expected.below) << expected.text;
    EXPECT_EQ(gate->Holds(0.2), expected.at) << expected.text;
    EXPECT_EQ(gate->Holds(0.3), expected.above) << expected.text;
    EXPECT_FALSE(gate->Holds(std::nan(""))) << expected.text;
  }
}

TEST(Gate, AnythingElseIsRefusedWithAnExample) {
  for (const char* text : {"", "kl", "kl=0.2", "kl<=", "<=0.2", "kl<=0.2x", "kl<=inf", "kl<=nan",
                           "kl<=0.2<=3", "kl=<0.2"}) {
    const auto gate = ParseGate(text);
    ASSERT_FALSE(gate) << text;
    EXPECT_EQ(gate.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(gate.error().message.find("'kl<=0.2'"), std::string::npos) << gate.error().message;
  }
}

}  // namespace
}  // namespace nibble
