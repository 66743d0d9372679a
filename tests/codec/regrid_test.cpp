#include "codec/regrid.h"

#include <gtest/gtest.h>

#include <functional>

#include "codec/encode.h"

namespace nibble {
namespace {

// Two rows of 64 columns, scales exact in f16.
QuantizedTensor Rows(WeightSpec spec, int lowest = 0, int highest = 1000) {
  QuantizedTensor out;
  spec.rows = 2;
  spec.cols = 64;
  out.spec = spec;
  for (int i = 0; i < 128; ++i) {
    const int top = std::min(highest, (1 << spec.bits) - 1);
    out.codes.push_back(static_cast<std::uint8_t>(lowest + i * 37 % (top - lowest + 1)));
  }
  for (std::int64_t i = 0; i < 2 * spec.num_groups(); ++i) {
    out.scales.push_back(RoundToDType(0.01F + static_cast<float>(i) / 700.0F, DType::kF16));
    if (spec.has_zero_points) {
      out.zero_points.push_back(static_cast<std::uint8_t>(i % 2 == 0 ? 4 : 8));
    }
    if (spec.kind == CodecKind::kMinimum) {
      out.minima.push_back(-out.scales.back() * 4.0F);
    }
  }
  return out;
}

WeightSpec Uniform(int bits, std::int64_t group, bool zero_points = false) {
  return {.kind = CodecKind::kUniform,
          .bits = bits,
          .group_size = group,
          .has_zero_points = zero_points};
}
WeightSpec Minima(int bits, std::int64_t group) {
  return {.kind = CodecKind::kMinimum, .bits = bits, .group_size = group};
}

TEST(Regrid, ValuesStayWhatTheyAre) {
  const struct {
    QuantizedTensor from;
    WeightSpec to;
  } kCases[] = {
      {Rows(Uniform(4, 64)), Uniform(4, 32)},            // repeats scales
      {Rows(Uniform(3, 64)), Uniform(4, 32)},            // the middle moves
      {Rows(Uniform(4, 64)), Uniform(8, 64)},            //
      {Rows(Uniform(8, 64), 120, 135), Uniform(4, 64)},  // codes that fit fewer bits
      {Rows(Uniform(4, 32, true)), Uniform(5, 32)},      // asymmetric 4 bits are signed 5
      {Rows(Uniform(4, 32)), Uniform(4, 32, true)},      //
      {Rows(Uniform(4, 32, true)), Minima(4, 32)},       // zero points of few bits
      {Rows(Minima(4, 32)), Uniform(4, 32, true)},       //
      {Rows(Minima(4, 64)), Minima(4, 32)},              //
      {EncodeCodebook(std::vector<float>(128, 0.5F), 2, 64, Codebook::kNf4, 64),
       {.kind = CodecKind::kCodebook, .bits = 4, .group_size = 32, .codebook = Codebook::kNf4}},
      {Rows(Uniform(8, 64)), {.float_dtype = DType::kF32}},
      {Rows(Uniform(2, 64)), {.float_dtype = DType::kF16}},
  };
  for (const auto& one : kCases) {
    const auto moved =
        Regrid(one.from, one.to, one.from.spec.has_f32_scales ? DType::kF32 : DType::kF16);
    ASSERT_TRUE(moved) << one.from.spec.ToString() << " -> " << one.to.ToString() << ": "
                       << moved.error().message;
    EXPECT_TRUE(Validate(*moved));
    WeightSpec expected = one.to;
    expected.rows = 2;
    expected.cols = 64;
    expected.has_f32_scales = one.from.spec.has_f32_scales && one.to.kind != CodecKind::kFloat;
    EXPECT_EQ(moved->spec, expected);
    EXPECT_EQ(Dequantize(*moved), Dequantize(one.from));
  }
}

TEST(Regrid, WhatDoesNotFitIsNamed) {
  QuantizedTensor inexact = Rows(Uniform(4, 64));
  inexact.scales[1] = 0.1F;
  QuantizedTensor odd = Rows(Minima(4, 32));
  odd.minima[2] *= 1.01F;
  const struct {
    QuantizedTensor from;
    WeightSpec to;
    const char* says;
  } kCases[] = {
      {Rows(Uniform(8, 64)), Uniform(4, 64), "steps from zero"},
      {Rows(Uniform(4, 32)), Uniform(4, 64), "groups of 64"},
      {Rows(Uniform(8, 32, true)), Uniform(8, 32), "steps from zero"},
      {inexact, Uniform(4, 64), "row 1, column 0: the scale 0.1"},
      {odd, Uniform(4, 32, true), "row 1, column 0: the minimum"},
      {Rows(Minima(5, 32)), Minima(4, 32), "does not become"},
      {Rows(Uniform(4, 64)),
       {.kind = CodecKind::kCodebook, .bits = 4, .group_size = 64, .codebook = Codebook::kNf4},
       "does not become"},
      {Rows(Uniform(8, 64)), {.float_dtype = DType::kBF16}, "BF16"},
  };
  for (const auto& one : kCases) {
    const auto moved = Regrid(one.from, one.to, DType::kF16);
    ASSERT_FALSE(moved) << one.says;
    EXPECT_NE(moved.error().message.find(one.says), std::string::npos) << moved.error().message;
  }
}

}  // namespace
}  // namespace nibble
