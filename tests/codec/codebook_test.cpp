#include "codec/codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/encode.h"

namespace nibble {
namespace {

// CRC-32 (IEEE) of bytes.
std::uint32_t Crc32(std::span<const std::uint8_t> bytes) {
  std::uint32_t crc = ~0U;
  for (const std::uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0xedb88320U : 0U);
    }
  }
  return ~crc;
}

// x[i] = ((37 i) mod 101 - 50) / 16, exact in 16 bits.
std::vector<float> Pattern(int count) {
  std::vector<float> values;
  for (int i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(37 * i % 101 - 50) / 16.0F);
  }
  return values;
}

// Reference, section 13.2.
TEST(Codebook, BytesOfTheTablesAreThoseOfBitsandbytes) {
  const struct {
    Codebook codebook;
    std::vector<std::uint8_t> first;
    std::uint32_t crc;
  } kTables[] = {{Codebook::kNf4, {0x04, 0xc1, 0x6e, 0x29, 0xf3, 0xb0, 0x5d, 0x17}, 0xdb50407bU},
                 {Codebook::kFp4, {0xbf, 0x5a, 0x92, 0xa6, 0x3c, 0x4b, 0xe5, 0xa0}, 0x15d8b283U}};
  for (const auto& table : kTables) {
    const QuantizedTensor tensor = EncodeCodebook(Pattern(256), 1, 256, table.codebook, 64);
    ASSERT_TRUE(Validate(tensor));
    EXPECT_EQ(tensor.scales, (std::vector<float>(4, 3.125F)));
    std::vector<std::uint8_t> bytes;  // the first of two codes in the high nibble
    for (std::size_t i = 0; i < 256; i += 2) {
      bytes.push_back(static_cast<std::uint8_t>(tensor.codes[i] << 4 | tensor.codes[i + 1]));
    }
    EXPECT_EQ(std::vector<std::uint8_t>(bytes.begin(), bytes.begin() + 8), table.first);
    EXPECT_EQ(Crc32(bytes), table.crc);
  }
}

TEST(Codebook, E4M3RoundsToNearestEvenAndSaturates) {
  const std::pair<float, int> kKnown[] = {
      {448.0F, 0x7e},  {240.0F, 0x77},     {1.0F, 0x38},     {0.5F, 0x30},      {0x1p-4F, 0x18},
      {0x1p-6F, 0x08}, {0x1p-9F, 0x01},    {0x1p-10F, 0x00}, {3 * 0x1p-10F, 2}, {0.1F, 0x1d},
      {1.0625F, 0x38}, {17.0F, 0x58},      {300.0F, 0x79},   {0.0F, 0x00},      {1e30F, 0x7e},
      {464.0F, 0x7e},  {15 * 0x1p-10F, 8}, {-1.0F, 0xb8},    {-1e30F, 0xfe},    {-0x1p-10F, 0x80},
  };
  for (const auto& [value, code] : kKnown) {
    EXPECT_EQ(NearestCode(Codebook::kFp8E4M3, value), code) << value;
  }
}

class EveryCodebook : public testing::TestWithParam<Codebook> {};

TEST_P(EveryCodebook, EveryValueIsItsOwnCode) {
  const auto values = ValuesOf(GetParam());
  ASSERT_EQ(values.size(), std::size_t{1} << BitsOf(GetParam()));
  for (std::size_t code = 0; code < values.size(); ++code) {
    if (IsNan(GetParam(), static_cast<std::uint8_t>(code))) {
      EXPECT_TRUE(std::isnan(values[code]));
    } else if (GetParam() == Codebook::kFp4 && code == 8) {
      EXPECT_EQ(values[code], 0.0F);  // a second zero, with the sign
    } else {
      EXPECT_EQ(NearestCode(GetParam(), values[code]), code);
    }
  }
}

TEST_P(EveryCodebook, NoOtherValueIsNearer) {
  const auto values = ValuesOf(GetParam());
  const float largest = GetParam() == Codebook::kFp8E4M3 ? 448.0F : 1.0F;
  std::mt19937 rng(20261124);
  std::uniform_real_distribution<float> uniform(-largest, largest);
  for (int i = 0; i < 5000; ++i) {
    const float v = std::ldexp(uniform(rng), -static_cast<int>(rng() % 12));
    const float error = std::fabs(values[NearestCode(GetParam(), v)] - v);
    for (const float value : values) {
      if (!std::isnan(value)) {
        // The midpoints of NF4 are rounded to fp32, those of FP4 to six digits.
        ASSERT_LE(error, std::fabs(value - v) + 1e-6F) << v;
      }
    }
  }
}

TEST_P(EveryCodebook, ARangeThatWasOnTheGridStaysThere) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> weights(6 * 192);
  for (float& w : weights) {
    w = normal(rng);
  }
  for (const std::int64_t group : {64, 128, 192}) {  // 128: the second group is short
    const QuantizedTensor once = EncodeCodebook(weights, 6, 192, GetParam(), group);
    ASSERT_TRUE(Validate(once));
    const auto values = Dequantize(once);
    const QuantizedTensor twice = EncodeCodebook(values, 6, 192, GetParam(), group);
    EXPECT_EQ(values, Dequantize(twice));  // FP4 has two codes of zero
    double error = 0.0, square = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      error += std::pow(static_cast<double>(values[i] - weights[i]), 2);
      square += std::pow(static_cast<double>(weights[i]), 2);
    }
    EXPECT_LT(error / square, GetParam() == Codebook::kNf4   ? 0.0105
                              : GetParam() == Codebook::kFp4 ? 0.019
                                                             : 0.001);
  }
}

TEST_P(EveryCodebook, AZeroGroupStaysZero) {
  const std::vector<float> zeros(64, 0.0F);
  EXPECT_EQ(Dequantize(EncodeCodebook(zeros, 1, 64, GetParam(), 64)), zeros);
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodebook,
                         testing::Values(Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3),
                         [](const auto& of) { return std::string(Name(of.param)); });

TEST(Codebook, CodesThatAreNoNumberOrHaveNoBookAreRefused) {
  QuantizedTensor tensor = EncodeCodebook(Pattern(64), 1, 64, Codebook::kFp8E4M3, 64);
  ASSERT_TRUE(Validate(tensor));
  tensor.codes[5] = 0xff;
  EXPECT_FALSE(Validate(tensor));
  tensor = EncodeCodebook(Pattern(64), 1, 64, Codebook::kNf4, 64);
  EXPECT_EQ(tensor.spec.ToString(), "nf4 g64 f32 scales");
  tensor.spec.bits = 8;
  EXPECT_FALSE(Validate(tensor));
  tensor.spec.bits = 4;
  tensor.spec.codebook = Codebook::kNone;
  EXPECT_FALSE(Validate(tensor));
}

}  // namespace
}  // namespace nibble
