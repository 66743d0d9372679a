#include "solve/super_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "checkpoint/gguf_blocks.h"

namespace nibble {
namespace {

constexpr GgufType kTypes[] = {GgufType::kQ2_K, GgufType::kQ3_K, GgufType::kQ4_K, GgufType::kQ5_K,
                               GgufType::kQ6_K};

WeightSpec GridOf(GgufType type) { return *GgufSpecOf(static_cast<std::uint32_t>(type)); }

double Nmse(std::span<const float> x, const QuantizedTensor& tensor) {
  const std::vector<float> back = Dequantize(tensor);
  double error = 0.0, square = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(back[i] - x[i]), 2);
    square += std::pow(static_cast<double>(x[i]), 2);
  }
  return error / square;
}

std::vector<float> Normal(std::size_t count) {
  std::mt19937 rng(20261127);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> out(count);
  for (float& value : out) {
    value = normal(rng);
  }
  return out;
}

// Reference, section 13.3: what ggml reaches on this vector.
TEST(SuperBlocks, AreAsGoodAsThoseOfGgmlOnTheReferenceVector) {
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i) {
    x[static_cast<std::size_t>(i)] = static_cast<float>(37 * i % 101 - 50) / 16.0F;
  }
  const std::pair<GgufType, double> kNmse[] = {{GgufType::kQ2_K, 6.570e-2},
                                               {GgufType::kQ3_K, 1.781e-2},
                                               {GgufType::kQ4_K, 3.536e-3},
                                               {GgufType::kQ5_K, 8.525e-4},
                                               {GgufType::kQ6_K, 1.961e-4}};
  for (const auto& [type, nmse] : kNmse) {
    const auto tensor = QuantizeSuperBlocks(x, 1, 256, GridOf(type));
    ASSERT_TRUE(tensor) << tensor.error().message;
    EXPECT_TRUE(Validate(*tensor));
    EXPECT_LE(Nmse(x, *tensor), 1.01 * nmse) << GgufTypeName(static_cast<std::uint32_t>(type));
  }
}

TEST(SuperBlocks, MinimaAreNoWorseThanThoseOfGgml) {
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i) {
    x[static_cast<std::size_t>(i)] = static_cast<float>(37 * i % 101 - 50) / 16.0F;
  }
  for (const auto& [bits, nmse] : {std::pair{4, 4.215e-3}, std::pair{5, 8.939e-4}}) {
    const auto tensor = QuantizeMinima(x, 1, 256, bits, 32);
    ASSERT_TRUE(tensor);
    EXPECT_TRUE(Validate(*tensor));
    EXPECT_LE(Nmse(x, *tensor), nmse);
    EXPECT_TRUE(EncodeGgufRows(bits == 4 ? GgufType::kQ4_1 : GgufType::kQ5_1, *tensor));
  }
  // What is above zero all the time keeps its minimum.
  const std::vector<float> high(32, 7.0F);
  EXPECT_EQ(Dequantize(*QuantizeMinima(high, 1, 32, 4, 32)), high);
}

TEST(SuperBlocks, AreBlocksOfTheirType) {
  const std::vector<float> x = Normal(3 * 512);
  for (const GgufType type : kTypes) {
    const auto tensor = QuantizeSuperBlocks(x, 3, 512, GridOf(type));
    ASSERT_TRUE(tensor) << tensor.error().message;
    const auto blocks = EncodeGgufRows(type, *tensor);
    ASSERT_TRUE(blocks) << blocks.error().message;
    QuantizedTensor back = *tensor;
    for (std::int64_t row = 0; row < 3; ++row) {
      DecodeGgufRow(type,
                    reinterpret_cast<const std::byte*>(blocks->data()) +
                        static_cast<std::size_t>(row) * blocks->size() / 3,
                    back, row);
    }
    EXPECT_EQ(Dequantize(back), Dequantize(*tensor));
  }
}

TEST(SuperBlocks, RowsDoNotDependOnTheirNeighbours) {
  const std::vector<float> x = Normal(4 * 256);
  for (const GgufType type : kTypes) {
    const auto whole = QuantizeSuperBlocks(x, 4, 256, GridOf(type));
    const auto last = QuantizeSuperBlocks(std::span(x).subspan(3 * 256), 1, 256, GridOf(type));
    ASSERT_TRUE(whole && last);
    EXPECT_TRUE(std::equal(last->codes.begin(), last->codes.end(), whole->codes.begin() + 3 * 256));
  }
}

TEST(SuperBlocks, ImportantColumnsLoseLess) {
  const std::vector<float> x = Normal(8 * 256);
  std::vector<float> importance(256, 1.0F);
  for (std::size_t i = 0; i < 256; i += 5) {
    importance[i] = 100.0F;
  }
  const auto error = [&](const QuantizedTensor& tensor) {
    const std::vector<float> back = Dequantize(tensor);
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); i++) {
      sum += static_cast<double>(importance[i % 256]) *
             std::pow(static_cast<double>(back[i] - x[i]), 2);
    }
    return sum;
  };
  for (const GgufType type : kTypes) {
    const auto plain = QuantizeSuperBlocks(x, 8, 256, GridOf(type));
    const auto weighted = QuantizeSuperBlocks(x, 8, 256, GridOf(type), importance);
    ASSERT_TRUE(plain && weighted);
    EXPECT_LT(error(*weighted), error(*plain));
  }
}

TEST(SuperBlocks, ZerosStayAndWhatIsNoGridIsRefused) {
  const std::vector<float> zeros(256, 0.0F);
  for (const GgufType type : kTypes) {
    const auto tensor = QuantizeSuperBlocks(zeros, 1, 256, GridOf(type));
    ASSERT_TRUE(tensor);
    EXPECT_EQ(Dequantize(*tensor), zeros);
  }
  EXPECT_FALSE(QuantizeSuperBlocks(zeros, 1, 256, GridOf(GgufType::kQ4_0)));
  EXPECT_FALSE(QuantizeSuperBlocks(zeros, 2, 128, GridOf(GgufType::kQ4_K)));
  std::vector<float> broken = zeros;
  broken[70] = std::numeric_limits<float>::infinity();
  const auto refused = QuantizeSuperBlocks(broken, 1, 256, GridOf(GgufType::kQ4_K));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kCorruptFile);
}

}  // namespace
}  // namespace nibble
