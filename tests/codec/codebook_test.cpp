#include "codec/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
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

// The upper half of binary16: what that rounds to, where it has the digits.
TEST(Codebook, E5M2RoundsToNearestEvenAndSaturates) {
  const std::pair<float, int> kKnown[] = {
      {57344.0F, 0x7b},  {49152.0F, 0x7a},  {1.0F, 0x3c},     {0.5F, 0x38},      {1.25F, 0x3d},
      {0x1p-14F, 0x04},  {0x1p-16F, 0x01},  {0x1p-17F, 0x00}, {3 * 0x1p-17F, 2}, {1.125F, 0x3c},
      {1.375F, 0x3e},    {7 * 0x1p-17F, 4}, {0.0F, 0x00},     {1e30F, 0x7b},     {61440.0F, 0x7b},
      {-57344.0F, 0xfb}, {-0x1p-17F, 0x80}, {-1e30F, 0xfb},   {0.1F, 0x2e},      {-3.0F, 0xc2},
  };
  for (const auto& [value, code] : kKnown) {
    EXPECT_EQ(NearestCode(Codebook::kFp8E5M2, value), code) << value;
  }
}

// OCP Microscaling 1.0, section 5.3.3.
TEST(Codebook, E2M1RoundsToNearestEvenAndSaturates) {
  const std::pair<float, int> kKnown[] = {
      {0.0F, 0},  {0.25F, 0}, {0.26F, 1}, {0.74F, 1},  {0.75F, 2}, {1.25F, 2},  {1.26F, 3},
      {1.74F, 3}, {1.75F, 4}, {2.5F, 4},  {2.51F, 5},  {3.49F, 5}, {3.5F, 6},   {5.0F, 6},
      {5.01F, 7}, {6.0F, 7},  {1e9F, 7},  {-0.25F, 8}, {-0.5F, 9}, {-6.5F, 15},
  };
  for (const auto& [value, code] : kKnown) {
    EXPECT_EQ(NearestCode(Codebook::kE2M1, value), code) << value;
  }
}

TEST(Codebook, LogarithmicCodesAreSignAndExponent) {
  for (const auto& [codebook, top] : {std::pair{Codebook::kLog4, 7}, {Codebook::kLog3, 3}}) {
    const auto values = ValuesOf(codebook);
    EXPECT_EQ(values[0], 0.0F);
    for (int code = 1; code <= 2 * top + 1; ++code) {
      const float sign = code > top ? -1.0F : 1.0F;
      const int exponent = code > top ? code - top - 1 : code;
      const float value = sign * std::ldexp(1.0F, exponent - top);
      EXPECT_EQ(values[static_cast<std::size_t>(code)], value);
      // Where a cell begins: in the middle, which belongs to the code nearer to 0.
      const bool first = code == 1 || code == top + 1;
      const float edge = (first ? 0.5F : 0.75F) * value;
      EXPECT_EQ(NearestCode(codebook, edge), first ? 0 : code - 1);
      EXPECT_EQ(NearestCode(codebook, std::nextafter(edge, sign)), code);
    }
    EXPECT_EQ(NearestCode(codebook, -0.0F), 0);
    EXPECT_EQ(NearestCode(codebook, 1e30F), top);
    EXPECT_EQ(NearestCode(codebook, -1e30F), 2 * top + 1);
  }
}

class EveryCodebook : public testing::TestWithParam<Codebook> {};

TEST_P(EveryCodebook, EveryValueIsItsOwnCode) {
  const auto values = ValuesOf(GetParam());
  ASSERT_EQ(values.size(), std::size_t{1} << BitsOf(GetParam()));
  for (std::size_t code = 0; code < values.size(); ++code) {
    if (IsNan(GetParam(), static_cast<std::uint8_t>(code))) {
      EXPECT_FALSE(std::isfinite(values[code]));
    } else if (GetParam() == Codebook::kFp4 && code == 8) {
      EXPECT_EQ(values[code], 0.0F);  // a second zero, with the sign
    } else {
      EXPECT_EQ(NearestCode(GetParam(), values[code]), code);
    }
  }
}

TEST_P(EveryCodebook, NoOtherValueIsNearer) {
  const auto values = ValuesOf(GetParam());
  const float largest = LargestOf(GetParam());
  std::mt19937 rng(20261124);
  std::uniform_real_distribution<float> uniform(-largest, largest);
  for (int i = 0; i < 5000; ++i) {
    const float v = std::ldexp(uniform(rng), -static_cast<int>(rng() % 12));
    const float error = std::fabs(values[NearestCode(GetParam(), v)] - v);
    for (const float value : values) {
      if (std::isfinite(value)) {
        // The midpoints of NF4 are rounded to fp32, those of FP4 to six digits.
        ASSERT_LE(error, std::fabs(value - v) + 1e-6F) << v;
      }
    }
  }
}

TEST_P(EveryCodebook, LargerValuesHaveNoSmallerOnes) {
  const auto values = ValuesOf(GetParam());
  const float largest = LargestOf(GetParam());
  EXPECT_EQ(*std::ranges::max_element(values, {}, [](float v) { return std::isfinite(v) ? v : 0; }),
            largest);
  float before = values[NearestCode(GetParam(), -2.0F * largest)];
  EXPECT_EQ(before, -largest);
  for (int i = -4096; i <= 4096; ++i) {
    const float v = 1.5F * largest * static_cast<float>(i) / 4096.0F;
    const float now = values[NearestCode(GetParam(), v)];
    ASSERT_GE(now, before) << v;
    before = now;
  }
  EXPECT_EQ(before, largest);
}

TEST_P(EveryCodebook, ANameIsRead) {
  EXPECT_EQ(ParseCodebook(Name(GetParam())), GetParam());
  EXPECT_FALSE(ParseCodebook("nf5"));
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
    // Of a normal distribution, absmax scales: NF4, FP4 and e2m1 by the reference's 13.5.
    const std::map<Codebook, double> kBounds = {
        {Codebook::kNf4, 0.0105},    {Codebook::kFp4, 0.019},  {Codebook::kFp8E4M3, 0.001},
        {Codebook::kFp8E5M2, 0.004}, {Codebook::kE2M1, 0.014}, {Codebook::kLog4, 0.042},
        {Codebook::kLog3, 0.09}};
    EXPECT_LT(error / square, kBounds.at(GetParam()));
  }
}

TEST_P(EveryCodebook, AZeroGroupStaysZero) {
  const std::vector<float> zeros(64, 0.0F);
  EXPECT_EQ(Dequantize(EncodeCodebook(zeros, 1, 64, GetParam(), 64)), zeros);
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodebook,
                         testing::Values(Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3,
                                         Codebook::kFp8E5M2, Codebook::kE2M1, Codebook::kLog4,
                                         Codebook::kLog3),
                         [](const auto& of) {
                           return of.param == Codebook::kFp8E5M2 ? "e5m2"
                                                                 : std::string(Name(of.param));
                         });

// Reference, section 13.3: the bytes of ggml's MXFP4 and NVFP4, whose blocks have the first half of
// their codes in the low nibbles. Where two codes are equally near, ggml takes the lower magnitude.
std::vector<std::uint8_t> GgmlNibbles(const QuantizedTensor& tensor,
                                      std::span<const float> weights) {
  const auto block = static_cast<std::size_t>(tensor.spec.group_size);
  const auto values = ValuesOf(Codebook::kE2M1);
  const auto code_of = [&](std::size_t i) {
    std::uint32_t code = tensor.codes[i];
    const std::uint32_t magnitude = code & 7U;
    const float v = std::fabs(weights[i]) / tensor.scales[i / block];
    if (magnitude > 0 && 2.0F * v == values[magnitude] + values[magnitude - 1]) {
      --code;
    }
    return code == 8 ? 0U : code;
  };
  std::vector<std::uint8_t> bytes;
  for (std::size_t at = 0; at < tensor.codes.size(); at += block) {
    for (std::size_t i = 0; i < block / 2; ++i) {
      bytes.push_back(
          static_cast<std::uint8_t>(code_of(at + i) | code_of(at + i + block / 2) << 4U));
    }
  }
  return bytes;
}

TEST(Codebook, BytesOfMxfp4AreThoseOfGgml) {
  const QuantizedTensor tensor =
      EncodeCodebook(Pattern(256), 1, 256, Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo);
  ASSERT_TRUE(Validate(tensor));
  EXPECT_EQ(tensor.spec.ToString(), "e2m1 g32 e8m0 scales");
  const auto nibbles = GgmlNibbles(tensor, Pattern(256));
  std::vector<std::uint8_t> bytes;
  for (std::size_t block = 0; block < 8; ++block) {
    bytes.push_back(static_cast<std::uint8_t>(std::ilogb(tensor.scales[block]) + 127));
    bytes.insert(bytes.end(), nibbles.begin() + static_cast<std::ptrdiff_t>(16 * block),
                 nibbles.begin() + static_cast<std::ptrdiff_t>(16 * block + 16));
  }
  const std::vector<std::uint8_t> first = {0x7e, 0x6f, 0xdb, 0x25, 0x7e, 0xc9, 0x46, 0xfe, 0xa2,
                                           0x67, 0xec, 0x14, 0x6f, 0xda, 0x35, 0x7e, 0xb0};
  EXPECT_EQ(std::vector<std::uint8_t>(bytes.begin(), bytes.begin() + 17), first);
  EXPECT_EQ(Crc32(bytes), 0x76eb06c1U);
}

TEST(Codebook, BytesOfNvfp4AreThoseOfGgml) {
  const QuantizedTensor tensor =
      EncodeCodebook(Pattern(256), 1, 256, Codebook::kE2M1, 16, ScaleGrid::kE4M3);
  ASSERT_TRUE(Validate(tensor));
  EXPECT_EQ(tensor.spec.ToString(), "e2m1 g16 e4m3 scales");
  const auto nibbles = GgmlNibbles(tensor, Pattern(256));
  std::vector<std::uint8_t> bytes;
  for (std::size_t block = 0; block < 4; ++block) {  // of 64, with four scales
    for (std::size_t i = 0; i < 4; ++i) {
      bytes.push_back(NearestCode(Codebook::kFp8E4M3, tensor.scales[4 * block + i]));
    }
    bytes.insert(bytes.end(), nibbles.begin() + static_cast<std::ptrdiff_t>(32 * block),
                 nibbles.begin() + static_cast<std::ptrdiff_t>(32 * block + 32));
  }
  const std::vector<std::uint8_t> first = {0x30, 0x30, 0x30, 0x30, 0x7f, 0xcb, 0x45, 0xfe, 0xa9,
                                           0x56, 0xee, 0x02, 0x66, 0xed, 0x12, 0x67, 0xdc, 0x34,
                                           0x7f, 0xba, 0x45, 0xff, 0xb9, 0x56, 0xee, 0x01, 0x67,
                                           0xdd, 0x02, 0x67, 0xdc, 0x34, 0x7f, 0xca, 0x56, 0xfe};
  EXPECT_EQ(std::vector<std::uint8_t>(bytes.begin(), bytes.begin() + 36), first);
  EXPECT_EQ(Crc32(bytes), 0x3dc32196U);
}

// The rule of compressed-tensors: absmax goes up to a power of two from 1.75 on.
TEST(Codebook, ScalesThatArePowersOfTwo) {
  const std::pair<float, float> kKnown[] = {{6.0F, 1.0F},       {6.9F, 1.0F},   {7.0F, 2.0F},
                                            {8.0F, 2.0F},       {3.125F, 0.5F}, {0.0F, 1.0F},
                                            {1e-40F, 0x1p-127F}};
  for (const auto& [absmax, scale] : kKnown) {
    std::vector<float> block(32, 0.0F);
    block[3] = -absmax;
    const auto tensor = EncodeCodebook(block, 1, 32, Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo);
    EXPECT_EQ(tensor.scales.front(), scale) << absmax;
    EXPECT_TRUE(Validate(tensor));
  }
  EXPECT_EQ(ScaleOnGrid(1.40F, ScaleGrid::kPowersOfTwo, 1.0F), 1.0F);
  EXPECT_EQ(ScaleOnGrid(1.42F, ScaleGrid::kPowersOfTwo, 1.0F), 2.0F);
  EXPECT_EQ(ScaleOnGrid(0x1p-20F, ScaleGrid::kPowersOfTwo, 1.0F), 0x1p-20F);
}

TEST(Codebook, ScalesOffTheirGridAreRefused) {
  QuantizedTensor tensor =
      EncodeCodebook(Pattern(64), 2, 32, Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo);
  tensor.scales[1] = 0.75F;
  EXPECT_EQ(Validate(tensor).error().message, "0.75 is no scale of e2m1 g32 e8m0 scales");
  tensor.scales[1] = -1.0F;
  EXPECT_FALSE(Validate(tensor));
  tensor = EncodeCodebook(Pattern(64), 2, 32, Codebook::kE2M1, 16, ScaleGrid::kE4M3, 3.0F);
  EXPECT_TRUE(Validate(tensor));
  tensor.scale_divisor = 1.1F;
  EXPECT_FALSE(Validate(tensor));
}

TEST(Codebook, OneScaleIsThatOfEveryRow) {
  QuantizedTensor tensor = EncodeAbsmax(Pattern(64), 2, 32, 8, 32);
  tensor.scales[1] = tensor.scales[0];
  tensor.spec.has_one_scale = true;
  EXPECT_TRUE(Validate(tensor));
  EXPECT_EQ(tensor.spec.ToString(), "w8 tensor sym");
  tensor.scales[1] *= 2.0F;
  EXPECT_FALSE(Validate(tensor));
}

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
