// What a card is given, without one: the layouts are made and read on the host.
#include "kernels/cuda/weight_layout.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/pack.h"
#include "tests/device/host_card.h"
#include "tests/kernels/linear_fixture.h"

namespace nibble {
namespace {

using testing::HostCard;

WeightSpec Uniform(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group) {
  return {
      .rows = rows, .cols = cols, .kind = CodecKind::kUniform, .bits = bits, .group_size = group};
}

// Every kind of weight that a CPU runs, at one width and group.
std::vector<WeightSpec> KindsOf(std::int64_t rows, std::int64_t cols, std::int64_t group) {
  std::vector<WeightSpec> specs;
  for (int bits = 2; bits <= 8; ++bits) {
    WeightSpec spec = Uniform(rows, cols, bits, group);
    specs.push_back(spec);
    spec.has_f32_scales = true;
    specs.push_back(spec);
    spec.has_zero_points = true;
    specs.push_back(spec);
    spec.has_zero_points = false;
    spec.kind = CodecKind::kMinimum;
    specs.push_back(spec);
  }
  for (const Codebook codebook :
       {Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3, Codebook::kFp8E5M2, Codebook::kE2M1,
        Codebook::kLog4, Codebook::kLog3}) {
    specs.push_back({.rows = rows,
                     .cols = cols,
                     .kind = CodecKind::kCodebook,
                     .bits = BitsOf(codebook),
                     .group_size = group,
                     .has_f32_scales = true,
                     .codebook = codebook});
  }
  return specs;
}

/// The weight as a card would multiply it.
std::vector<float> ThroughACard(HostCard& card, const QuantizedTensor& tensor) {
  const auto packed = PackAll(card, tensor);
  EXPECT_TRUE(packed) << packed.error().message;
  if (!packed) {
    return {};
  }
  const auto layout = cuda::LayoutOf(tensor.spec);
  EXPECT_TRUE(layout);
  std::vector<float> values(static_cast<std::size_t>(tensor.spec.rows * tensor.spec.cols));
  for (int row = 0; row < layout->rows; ++row) {
    cuda::DequantizeTileRow(*layout, packed->memory.data(), row,
                            values.data() + static_cast<std::ptrdiff_t>(row) * layout->cols);
  }
  return values;
}

// Largest difference over the largest value of its row: a format that is taken for another one is
// off by tenths, roundings to fp16 of codebook, scale and weight by 3 * 2^-11.
float WorstOfRows(const QuantizedTensor& tensor, const std::vector<float>& found) {
  const std::vector<float> exact = Dequantize(tensor);
  const auto cols = static_cast<std::size_t>(tensor.spec.cols);
  float worst = 0.0F;
  for (std::size_t row = 0; row * cols < exact.size(); ++row) {
    float largest = 1e-20F;
    float difference = 0.0F;
    for (std::size_t i = row * cols; i < (row + 1) * cols; ++i) {
      largest = std::max(largest, std::fabs(exact[i]));
      const float off = std::fabs(found[i] - exact[i]);
      difference = std::isfinite(off) ? std::max(difference, off) : HUGE_VALF;
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

TEST(CudaWeightLayout, HoldsEveryKindOfWeightThatACpuRuns) {
  HostCard card;
  for (const std::int64_t cols : {16, 72, 200, 256, 576}) {
    for (const std::int64_t group : {16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 4096}) {
      for (const WeightSpec& spec : KindsOf(37, cols, std::min(group, cols))) {
        ASSERT_TRUE(LayoutOf(spec)) << "a CPU does not run it";
        const QuantizedTensor tensor = RandomWeight(spec, 7);
        const std::vector<float> found = ThroughACard(card, tensor);
        ASSERT_FALSE(found.empty()) << spec.ToString() << " of " << cols;
        EXPECT_LE(WorstOfRows(tensor, found), 2e-3F) << spec.ToString() << " of " << cols;
      }
    }
  }
}

TEST(CudaWeightLayout, ScalesAtTheEndOfABinadeStayFinite) {
  HostCard card;
  for (const float top :
       {0x1.fffffep-7F, 0x1.ffep-7F, 0x1.ffcp-7F, 0x1p-7F, 0x1.fffffep100F, 0x1.fffffep-130F}) {
    for (WeightSpec spec : KindsOf(16, 256, 64)) {
      if (spec.codebook != Codebook::kNone && top > 1e20F) {
        continue;  // 57344 times that is no number
      }
      QuantizedTensor tensor = RandomWeight(spec, 9);
      for (std::size_t i = 0; i < tensor.scales.size(); i += 3) {
        tensor.scales[i] = i % 2 == 0 ? top : -top;
        if (!tensor.minima.empty()) {
          tensor.minima[i] = 16.0F * top;
        }
      }
      const std::vector<float> found = ThroughACard(card, tensor);
      EXPECT_LE(WorstOfRows(tensor, found), 2e-3F) << spec.ToString() << " " << top;
    }
  }
}

// Rows of a model's largest matrices: 128 of them exceed what a write to a card may take.
TEST(CudaWeightLayout, WideRowsAreWrittenInPieces) {
  HostCard card;
  WeightSpec zeros = Uniform(200, 29568, 8, 32);
  zeros.has_zero_points = true;
  for (const WeightSpec& spec :
       {zeros, WeightSpec{.rows = 200, .cols = 28672}, WeightSpec{.rows = 33, .cols = 131072}}) {
    const QuantizedTensor tensor = RandomWeight(spec, 11);
    EXPECT_LE(WorstOfRows(tensor, ThroughACard(card, tensor)), 2e-3F) << spec.ToString();
  }
  EXPECT_LE(card.largest_write(), Device::kMaxWriteBytes);
}

TEST(CudaWeightLayout, AWidthThatNoKernelTakesIsRefusedWithAWayOut) {
  for (const std::int64_t cols : {12, 100, 131080}) {
    const auto layout = cuda::LayoutOf({.rows = 16, .cols = cols});
    ASSERT_FALSE(layout) << cols;
    EXPECT_EQ(layout.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(layout.error().message.find(fmt::format("16 x {}", cols)), std::string::npos);
    EXPECT_NE(layout.error().message.find("use --device cpu"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
