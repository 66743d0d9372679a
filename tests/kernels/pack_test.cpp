#include "kernels/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/linear_fixture.h"

namespace nibble {
namespace {

WeightSpec Int4(std::int64_t rows, std::int64_t cols, std::int64_t group) {
  WeightSpec spec;
  spec.rows = rows;
  spec.cols = cols;
  spec.kind = CodecKind::kUniform;
  spec.bits = 4;
  spec.group_size = group;
  return spec;
}

TEST(Pack, SizesFollowTheFormatDocument) {
  const auto device = MakeCpuDevice(1);
  // 3 panels of 9 units of 512 + 32 bytes, and 64 bytes of factors.
  EXPECT_EQ(*PackedSizeBytes(*device, Int4(48, 576, 64)), 3U * (9 * 544 + 64));
  EXPECT_EQ(*PackedSizeBytes(*device, Int4(33, 576, 32)), 3U * (18 * 288 + 64));
  WeightSpec int8 = Int4(16, 128, 128);
  int8.bits = 8;
  int8.has_zero_points = true;
  EXPECT_EQ(*PackedSizeBytes(*device, int8), 2U * (1024 + 32 + 16) + 64);
  WeightSpec nf4 = Int4(16, 128, 64);
  nf4.kind = CodecKind::kCodebook;
  nf4.codebook = Codebook::kNf4;
  nf4.has_f32_scales = true;
  EXPECT_EQ(*PackedSizeBytes(*device, nf4), 2U * (512 + 64) + 64);
}

TEST(Pack, UnsupportedFormatsAreNamed) {
  const auto device = MakeCpuDevice(1);
  WeightSpec nameless = Int4(16, 128, 64);
  nameless.kind = CodecKind::kCodebook;
  const auto odd = PackedSizeBytes(*device, nameless);
  ASSERT_FALSE(odd);
  EXPECT_EQ(odd.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(odd.error().message, testing::HasSubstr("4 bits"));
  WeightSpec wide = Int4(16, 128, 64);
  wide.bits = 9;
  EXPECT_THAT(PackedSizeBytes(*device, wide).error().message, testing::HasSubstr("w9 g64 sym"));
}

TEST(Pack, GroupsThatNoUnitDividesArePackedAsTheirValues) {
  const auto device = MakeCpuDevice(1);
  WeightSpec fp4 = Int4(20, 128, 16);
  fp4.kind = CodecKind::kCodebook;
  fp4.codebook = Codebook::kFp4;
  for (const WeightSpec& spec : {Int4(20, 100, 50), Int4(20, 128, 16), fp4}) {
    const QuantizedTensor whole = RandomWeight(spec, 1);
    const auto packed = PackAll(*device, whole);
    ASSERT_TRUE(packed);
    EXPECT_EQ(packed->memory.size(), static_cast<std::size_t>(2 * 16 * spec.cols * 4));
    const auto layout = LayoutOf(spec);
    ASSERT_TRUE(layout);
    const std::vector<float> expected = Dequantize(whole);
    std::vector<float> row(static_cast<std::size_t>(spec.cols));
    for (std::int64_t i = 0; i < spec.rows; ++i) {
      DequantizePackedRow(*layout, reinterpret_cast<const std::uint8_t*>(packed->memory.data()), i,
                          row.data());
      EXPECT_TRUE(std::equal(row.begin(), row.end(), expected.begin() + i * spec.cols));
    }
  }
}

TEST(Pack, PartsOfRowsGiveTheBytesOfTheWhole) {
  const auto device = MakeCpuDevice(1);
  const QuantizedTensor whole = RandomWeight(Int4(45, 192, 64), 1);
  const auto packed = PackAll(*device, whole);
  ASSERT_TRUE(packed);
  std::vector<std::byte> memory(packed->memory.size());
  PackedWeight weight{whole.spec, memory.data(), memory.size()};
  for (const std::int64_t begin : {std::int64_t{32}, std::int64_t{0}}) {
    const std::int64_t end = begin == 0 ? 32 : 45;
    QuantizedTensor part;
    part.spec = whole.spec;
    part.spec.rows = end - begin;
    part.codes.assign(whole.codes.begin() + begin * 192, whole.codes.begin() + end * 192);
    part.scales.assign(whole.scales.begin() + begin * 3, whole.scales.begin() + end * 3);
    const auto done = PackRows(*device, part, begin, weight);
    ASSERT_TRUE(done) << done.error().message;
  }
  EXPECT_EQ(memory, packed->memory);
  QuantizedTensor misplaced = RandomWeight(Int4(16, 192, 64), 1);
  EXPECT_FALSE(PackRows(*device, misplaced, 8, weight));
  EXPECT_FALSE(PackRows(*device, misplaced, 32, weight));
  misplaced.spec.group_size = 32;
  EXPECT_FALSE(PackRows(*device, misplaced, 0, weight));
}

// bf16 scales far below what f16 holds survive exactly through the factor of the row.
TEST(Pack, SmallBF16ScalesAreExact) {
  const auto device = MakeCpuDevice(1);
  QuantizedTensor tensor = RandomWeight(Int4(20, 640, 64), 2);
  std::mt19937 rng(3);
  for (float& scale : tensor.scales) {
    scale = BF16ToFloat(FloatToBF16(std::ldexp(1.0F + static_cast<float>(rng() % 128) / 128.0F,
                                               -30 - static_cast<int>(rng() % 16))));
  }
  const auto packed = PackAll(*device, tensor);
  ASSERT_TRUE(packed);
  const auto layout = LayoutOf(tensor.spec);
  const std::vector<float> weights = Dequantize(tensor);
  std::vector<float> row(640);
  for (std::int64_t n = 0; n < 20; ++n) {
    DequantizePackedRow(*layout, reinterpret_cast<const std::uint8_t*>(packed->weight.data), n,
                        row.data());
    for (std::size_t k = 0; k < 640; ++k) {
      ASSERT_EQ(row[k], weights[static_cast<std::size_t>(n) * 640 + k]);
    }
  }
}

TEST(Pack, F32ScalesAndMinimaAreKept) {
  const auto device = MakeCpuDevice(1);
  std::mt19937 rng(4);
  for (const bool minima : {false, true}) {
    for (const int bits : {4, 8}) {
      WeightSpec spec = Int4(20, 192, 64);
      spec.bits = bits;
      spec.has_f32_scales = true;
      spec.kind = minima ? CodecKind::kMinimum : CodecKind::kUniform;
      QuantizedTensor tensor = RandomWeight(spec, 5);
      for (float& scale : tensor.scales) {  // of every size, beside each other
        scale = std::ldexp(1.0F / static_cast<float>(3 + rng() % 1000),
                           static_cast<int>(rng() % 160) - 80);
      }
      const auto packed = PackAll(*device, tensor);
      ASSERT_TRUE(packed);
      const auto layout = LayoutOf(spec);
      const std::vector<float> weights = Dequantize(tensor);
      std::vector<float> row(192);
      for (std::int64_t n = 0; n < 20; ++n) {
        DequantizePackedRow(*layout, reinterpret_cast<const std::uint8_t*>(packed->weight.data), n,
                            row.data());
        for (std::size_t k = 0; k < 192; ++k) {
          ASSERT_EQ(row[k], weights[static_cast<std::size_t>(n) * 192 + k]) << spec.ToString();
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
