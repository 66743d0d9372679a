#include "kernels/linear.h"

#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/linear_fixture.h"

namespace nibble {
namespace {

WeightSpec Uniform(int bits, std::int64_t group, bool zero_points) {
  WeightSpec spec;
  spec.kind = CodecKind::kUniform;
  spec.bits = bits;
  spec.group_size = group;
  spec.has_zero_points = zero_points;
  return spec;
}

WeightSpec Minimum(int bits, std::int64_t group) {
  WeightSpec spec = Uniform(bits, group, false);
  spec.kind = CodecKind::kMinimum;
  return spec;
}

WeightSpec Wide(WeightSpec spec) {
  spec.has_f32_scales = true;
  return spec;
}

WeightSpec Float(DType dtype) {
  WeightSpec spec;
  spec.float_dtype = dtype;
  return spec;
}

WeightSpec Of(Codebook codebook, std::int64_t group) {
  WeightSpec spec = Uniform(BitsOf(codebook), group, false);
  spec.kind = CodecKind::kCodebook;
  spec.codebook = codebook;
  return spec;
}

// A group larger than any width stands for whole rows.
constexpr std::int64_t kRow = 1 << 20;

const std::vector<WeightSpec>& Formats() {
  static const std::vector<WeightSpec> formats = {
      Uniform(4, 32, false),
      Uniform(4, 64, false),
      Uniform(4, 128, false),
      Uniform(4, kRow, false),
      Uniform(4, 32, true),
      Uniform(4, 64, true),
      Uniform(4, kRow, true),
      Minimum(4, 32),
      Minimum(4, 64),
      Uniform(8, 32, false),
      Uniform(8, 64, false),
      Uniform(8, kRow, false),
      Uniform(8, 32, true),
      Uniform(8, 128, true),
      Minimum(8, 64),
      Uniform(3, 64, false),
      Uniform(6, 32, false),
      Uniform(2, 96, true),
      Float(DType::kF32),
      Float(DType::kF16),
      Float(DType::kBF16),
      Wide(Uniform(4, 64, false)),
      Wide(Uniform(4, 32, true)),
      Wide(Minimum(4, 64)),
      Wide(Uniform(8, kRow, false)),
      Wide(Uniform(8, 64, true)),
      Wide(Minimum(8, 32)),
      Of(Codebook::kNf4, 32),
      Wide(Of(Codebook::kNf4, 64)),
      Wide(Of(Codebook::kNf4, kRow)),
      Of(Codebook::kFp8E4M3, 128),
      Wide(Of(Codebook::kFp8E4M3, kRow)),
      Of(Codebook::kLog4, 64),
      Of(Codebook::kLog3, 32),
      Wide(Of(Codebook::kE2M1, 32)),
      Wide(Of(Codebook::kE2M1, 16)),
      Wide(Of(Codebook::kFp8E5M2, kRow)),
  };
  return formats;
}

struct Shape2 {
  std::int64_t rows;
  std::int64_t cols;
};

constexpr Isa kLevels[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512};

class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : before_(CurrentIsa()), ok_(ForceIsa(isa)) {}
  ~ForcedIsa() { ForceIsa(before_); }
  bool ok() const { return ok_; }

 private:
  Isa before_;
  bool ok_;
};

WeightSpec At(WeightSpec spec, Shape2 shape) {
  spec.rows = shape.rows;
  spec.cols = shape.cols;
  if (spec.group_size > shape.cols) {
    spec.group_size = shape.cols;
  }
  return spec;
}

// The contract: every level gives the bits of ref, whatever the number of rows.
TEST(Linear, EveryLevelGivesTheBitsOfRef) {
  constexpr Shape2 kShapes[] = {{1, 32},   {15, 64},  {16, 96},   {17, 100},
                                {48, 576}, {65, 200}, {100, 320}, {130, 1536}};
  LinearRunner runner(2, 600, 1536);
  std::uint32_t seed = 20261124;
  for (const WeightSpec& format : Formats()) {
    for (const Shape2 shape : kShapes) {
      const WeightSpec spec = At(format, shape);
      const auto packed = PackAll(runner.device(), RandomWeight(spec, ++seed));
      ASSERT_TRUE(packed) << packed.error().message;
      // All row counts of the tile shapes on small matrices, a few on large ones.
      const bool small = shape.rows * shape.cols < 10'000;
      std::vector<std::int64_t> counts = {1, 2, 3, 4, 5, 7, 8, 15};
      if (small) {
        counts.insert(counts.end(), {16, 17, 31, 32, 33, 64});
      }
      const auto x = RandomActivations(counts.back(), shape.cols, ++seed);
      for (const auto mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
        if (spec.kind == CodecKind::kFloat && mode == ActivationMode::kInt8) {
          continue;
        }
        std::vector<float> truth;
        {
          const ForcedIsa forced(Isa::kRef);
          truth = runner.Run(packed->weight, x, counts.back(), mode);
        }
        for (const Isa isa : kLevels) {
          const ForcedIsa forced(isa);
          if (!forced.ok() || isa == Isa::kRef) {
            continue;
          }
          for (const std::int64_t m : counts) {
            const auto y = runner.Run(packed->weight, x, m, mode);
            const std::vector<float> want(truth.begin(), truth.begin() + m * shape.rows);
            ASSERT_TRUE(SameBits(y, want))
                << spec.ToString() << " [" << shape.rows << ", " << shape.cols << "] rows " << m
                << " int" << (mode == ActivationMode::kInt16 ? 16 : 8) << " " << Name(isa);
          }
        }
      }
    }
  }
}

// Against the definition in double precision: what remains is the rounding of x (half a step times
// the sum of |w|) and fp32 sums.
TEST(Linear, IsTheProductOfTheDequantizedWeights) {
  LinearRunner runner(2, 8, 1536);
  std::uint32_t seed = 7;
  for (const WeightSpec& format : Formats()) {
    for (const Shape2 shape : {Shape2{40, 100}, Shape2{33, 608}}) {
      const WeightSpec spec = At(format, shape);
      const QuantizedTensor tensor = RandomWeight(spec, ++seed);
      const auto packed = PackAll(runner.device(), tensor);
      ASSERT_TRUE(packed) << packed.error().message;
      const std::vector<float> weights = Dequantize(tensor);
      constexpr std::int64_t kTokens = 5;
      const auto x = RandomActivations(kTokens, shape.cols, ++seed);
      for (const auto mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
        const auto y = runner.Run(packed->weight, x, kTokens, mode);
        const bool floats = spec.kind == CodecKind::kFloat;
        for (std::int64_t m = 0; m < kTokens; ++m) {
          const auto x_at = [&](std::int64_t k) {
            return static_cast<double>(x[static_cast<std::size_t>(m * shape.cols + k)]);
          };
          double row_max = 0.0;
          std::vector<double> block_max(static_cast<std::size_t>((shape.cols + 63) / 64));
          for (std::int64_t k = 0; k < shape.cols; ++k) {
            auto& block = block_max[static_cast<std::size_t>(k / 64)];
            block = std::max(block, std::fabs(x_at(k)));
            row_max = std::max(row_max, std::fabs(x_at(k)));
          }
          for (std::int64_t n = 0; n < shape.rows; ++n) {
            double want = 0.0;
            double terms = 0.0;
            double rounding = 0.0;
            for (std::int64_t k = 0; k < shape.cols; ++k) {
              const double w = weights[static_cast<std::size_t>(n * shape.cols + k)];
              want += w * x_at(k);
              terms += std::fabs(w * x_at(k));
              const double step = mode == ActivationMode::kInt16
                                      ? row_max / 32639.0
                                      : block_max[static_cast<std::size_t>(k / 64)] / 127.0;
              rounding += floats ? 0.0 : 0.5001 * step * std::fabs(w);
            }
            // Zero points and minima cancel large sums, so the terms of both count.
            const double slack = 1e-5 * terms + 2e-6 * row_max * static_cast<double>(shape.cols);
            ASSERT_NEAR(y[static_cast<std::size_t>(m * shape.rows + n)], want,
                        rounding + (floats ? 2e-6 * terms : slack))
                << spec.ToString() << " token " << m << " output " << n;
          }
        }
      }
    }
  }
}

TEST(Linear, ProductsOfOneLaunchMayDifferInFormat) {
  LinearRunner runner(2, 8, 320);
  const auto int4 = PackAll(runner.device(), RandomWeight(At(Uniform(4, 64, false), {48, 320}), 1));
  const auto bf16 = PackAll(runner.device(), RandomWeight(At(Float(DType::kBF16), {17, 320}), 2));
  const auto int8 = PackAll(runner.device(), RandomWeight(At(Uniform(8, 32, true), {100, 320}), 3));
  ASSERT_TRUE(int4 && bf16 && int8);
  const auto x = RandomActivations(3, 320, 4);
  std::vector<float> y(3 * 200, -1.0F);
  const LinearOutput outputs[] = {{&int4->weight, y.data(), 200},
                                  {&bf16->weight, y.data() + 48, 200},
                                  {&int8->weight, y.data() + 65, 200}};
  Linear(runner.context(), x.data(), 320, 3, outputs);
  std::int64_t first = 0;
  for (const auto* packed : {&*int4, &*bf16, &*int8}) {
    const auto alone = runner.Run(packed->weight, x, 3, ActivationMode::kInt16);
    for (std::int64_t m = 0; m < 3; ++m) {
      for (std::int64_t n = 0; n < packed->weight.spec.rows; ++n) {
        ASSERT_EQ(y[static_cast<std::size_t>(m * 200 + first + n)],
                  alone[static_cast<std::size_t>(m * packed->weight.spec.rows + n)]);
      }
    }
    first += packed->weight.spec.rows;
  }
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t n = 165; n < 200; ++n) {
      ASSERT_EQ(y[static_cast<std::size_t>(m * 200 + n)], -1.0F) << "wrote beyond its outputs";
    }
  }
}

TEST(Linear, ThreadsDoNotChangeBits) {
  const WeightSpec spec = At(Uniform(4, 64, false), {1000, 576});
  const auto x = RandomActivations(33, 576, 5);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    LinearRunner runner(threads, 33, 576);
    const auto packed = PackAll(runner.device(), RandomWeight(spec, 6));
    ASSERT_TRUE(packed);
    for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{33}}) {
      const auto y = runner.Run(packed->weight, x, tokens, ActivationMode::kInt16);
      if (first.empty()) {
        first = runner.Run(packed->weight, x, 33, ActivationMode::kInt16);
      }
      ASSERT_TRUE(SameBits(y, {first.begin(), first.begin() + tokens * 1000})) << threads;
    }
  }
}

// Launches of many rows are cut into parts of rows.
TEST(Linear, ManyRowsGiveTheBitsOfEachRowAlone) {
  constexpr std::int64_t kTokens = 391;
  LinearRunner runner(2, kTokens, 192);
  const auto x = RandomActivations(kTokens, 192, 11);
  for (const WeightSpec& format :
       {Uniform(4, 64, false), Uniform(8, 32, true), Minimum(4, 32), Float(DType::kBF16)}) {
    const auto packed = PackAll(runner.device(), RandomWeight(At(format, {40, 192}), 10));
    ASSERT_TRUE(packed);
    for (const auto mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
      for (const Isa isa : kLevels) {
        const ForcedIsa forced(isa);
        if (!forced.ok()) {
          continue;
        }
        const auto all = runner.Run(packed->weight, x, kTokens, mode);
        for (const std::int64_t m : {0, 127, 128, 129, 255, 256, 383, 384, 390}) {
          const auto one =
              runner.Run(packed->weight, {x.begin() + m * 192, x.begin() + (m + 1) * 192}, 1, mode);
          ASSERT_TRUE(SameBits(one, {all.begin() + m * 40, all.begin() + (m + 1) * 40}))
              << format.ToString() << " row " << m << " " << Name(isa);
        }
      }
    }
  }
}

// Zero, tiny, huge, infinite and NaN rows: their neighbours are not touched, theirs are defined.
TEST(Linear, OddRowsAreDefinedOnEveryLevel) {
  constexpr std::int64_t kCols = 200;
  LinearRunner runner(2, 8, kCols);
  const float kInf = std::numeric_limits<float>::infinity();
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  auto x = RandomActivations(8, kCols, 8);
  const auto row = [&](std::int64_t m) { return x.begin() + m * kCols; };
  std::fill(row(1), row(2), 0.0F);
  std::fill(row(2), row(3), 1e-42F);
  std::fill(row(3), row(4), -1e30F);
  *(row(4) + 70) = kInf;
  *(row(5) + 199) = kNan;
  *(row(6) + 3) = -kInf;
  for (const WeightSpec& format : {Uniform(4, 64, false), Uniform(8, 32, true), Minimum(4, 32)}) {
    const auto packed = PackAll(runner.device(), RandomWeight(At(format, {20, kCols}), 9));
    ASSERT_TRUE(packed);
    for (const auto mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
      std::vector<float> truth;
      for (const Isa isa : kLevels) {
        const ForcedIsa forced(isa);
        if (!forced.ok()) {
          continue;
        }
        const auto y = runner.Run(packed->weight, x, 8, mode);
        if (isa == Isa::kRef) {
          truth = y;
          for (std::size_t i = 0; i < y.size(); ++i) {
            const std::size_t m = i / 20;
            ASSERT_EQ(std::isnan(y[i]), m >= 4 && m <= 6) << m;
            if (m == 1 || m == 2) {
              ASSERT_EQ(y[i], 0.0F);
            }
          }
        }
        ASSERT_TRUE(SameBits(y, truth)) << packed->weight.spec.ToString() << " " << Name(isa);
      }
    }
  }
}

TEST(Embedding, GivesTheDequantizedRows) {
  LinearRunner runner(2, 1, 320);
  std::uint32_t seed = 77;
  for (const WeightSpec& format : Formats()) {
    const WeightSpec spec = At(format, {37, 320});
    const QuantizedTensor tensor = RandomWeight(spec, ++seed);
    const auto packed = PackAll(runner.device(), tensor);
    ASSERT_TRUE(packed);
    const std::vector<float> weights = Dequantize(tensor);
    const TokenId ids[] = {TokenId{0}, TokenId{36}, TokenId{15}, TokenId{16}, TokenId{16}};
    std::vector<float> out(5 * 320);
    Embedding(runner.context(), packed->weight, ids, out.data());
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t k = 0; k < 320; ++k) {
        ASSERT_EQ(out[i * 320 + k], weights[static_cast<std::size_t>(Raw(ids[i])) * 320 + k])
            << spec.ToString();
      }
    }
  }
}

}  // namespace
}  // namespace nibble
