#include "tensor/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace nibble {
namespace {

TEST(Float16, EveryHalfSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = F16ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value)))) << bits;
    } else {
      EXPECT_EQ(FloatToF16(value), half) << bits;
    }
  }
}

TEST(Float16, AgreesWithTheCompilersHalfOnEveryRoundingPattern) {
  for (std::uint64_t i = 0; i <= 0xffffffffULL; i += 1013) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(i));
    if (std::isnan(value)) {
      continue;
    }
    const auto expected = static_cast<_Float16>(value);
    std::uint16_t expected_bits = 0;
    std::memcpy(&expected_bits, &expected, sizeof expected_bits);
    ASSERT_EQ(FloatToF16(value), expected_bits) << i;
  }
}

TEST(BFloat16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(FloatToBF16(1.0F), 0x3f80);
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f808000U)), 0x3f80);  // tie to even
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f818000U)), 0x3f82);  // tie to even
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f808001U)), 0x3f81);
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(std::bit_cast<float>(0x7f800001U)))));
}

}  // namespace
}  // namespace nibble
