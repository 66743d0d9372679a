#include "kernels/ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numbers>
#include <random>
#include <vector>

#include "kernels/isa.h"
#include "kernels/ops_kernel.h"

namespace nibble {
namespace {

constexpr std::int64_t kWidths[] = {1, 7, 8, 15, 16, 17, 31, 33, 64, 576, 1536, 2049};

std::vector<float> Normal(std::int64_t count, std::uint32_t seed, float stddev = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(static_cast<std::size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : ok_(ForceIsa(isa)) {}
  ~ForcedIsa() { ForceIsa(DetectIsa()); }
  bool ok() const { return ok_; }

 private:
  bool ok_;
};

/// Runs `body(context)` on every ISA of this machine and 1, 2 and 5 workers; all must return the
/// same bits as the first.
template <typename Body>
void ExpectSameEverywhere(Body body) {
  std::vector<float> expected;
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    const ForcedIsa forced(isa);
    if (!forced.ok()) {
      GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
      continue;
    }
    for (const int workers : {1, 2, 5}) {
      const std::unique_ptr<Device> device = MakeCpuDevice(workers);
      KernelContext context{.device = device.get()};
      const std::vector<float> got = body(context);
      if (expected.empty()) {
        expected = got;
      }
      EXPECT_TRUE(SameBits(got, expected)) << Name(isa) << " " << workers << " workers";
    }
  }
}

TEST(Exp, RelativeErrorIsAtMost2e7OverTheWholeRange) {
  double worst = 0.0;
  // Every 997th float of both signs: 2.2 million points from the tiniest to the ends.
  for (std::uint32_t bits = 0; bits < std::bit_cast<std::uint32_t>(104.0F); bits += 997) {
    for (const float x : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)}) {
      if (x > 88.72283F || x < -87.3F) {
        continue;  // infinity and subnormal results: below
      }
      const double truth = std::exp(static_cast<double>(x));
      worst = std::max(worst, std::abs(static_cast<double>(ExpRef(x)) - truth) / truth);
    }
  }
  EXPECT_LT(worst, 2e-7);
  EXPECT_GT(worst, 1e-9);  // or nothing was compared
}

TEST(Exp, SubnormalResultsRoundToTheNearest) {
  for (float x = -87.3F; x > -104.0F; x -= 0.0037F) {
    const double truth = std::exp(static_cast<double>(x));
    EXPECT_NEAR(static_cast<double>(ExpRef(x)), truth, 0.51 * 0x1p-149 + truth * 2e-7) << x;
  }
}

TEST(Exp, EndsAreExact) {
  EXPECT_EQ(ExpRef(0.0F), 1.0F);
  EXPECT_EQ(ExpRef(-0.0F), 1.0F);
  EXPECT_EQ(ExpRef(-104.5F), 0.0F);
  EXPECT_EQ(ExpRef(-INFINITY), 0.0F);
  EXPECT_EQ(ExpRef(88.73F), INFINITY);
  EXPECT_EQ(ExpRef(INFINITY), INFINITY);
  EXPECT_LT(ExpRef(0x1.62e42ep6F), INFINITY);
  EXPECT_TRUE(std::isnan(ExpRef(NAN)));
}

TEST(Exp, EveryIsaGivesTheSameBits) {
  std::vector<float> x;
  for (std::uint32_t bits = 0; bits < std::bit_cast<std::uint32_t>(200.0F); bits += 9973) {
    x.push_back(std::bit_cast<float>(bits));
    x.push_back(-std::bit_cast<float>(bits));
  }
  for (float value = -110.0F; value < 92.0F; value += 0.00317F) {
    x.push_back(value);
  }
  x.insert(x.end(), {INFINITY, -INFINITY, 0x1.62e42ep6F, 0x1.62e43p6F, -104.0F, -104.00001F});
  std::vector<float> expected(x.size());
  const auto count = static_cast<std::int64_t>(x.size());
  kRefOps.exp(x.data(), expected.data(), count);
  for (const auto& [isa, ops] : {std::pair(Isa::kAvx2, &kAvx2Ops), {Isa::kAvx512, &kAvx512Ops}}) {
    if (DetectIsa() < isa) {
      GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
      continue;
    }
    std::vector<float> got(x.size());
    ops->exp(x.data(), got.data(), count);
    EXPECT_TRUE(SameBits(got, expected)) << Name(isa);
  }
}

TEST(AddRmsNorm, SameBitsOnEveryIsaAndThreadCount) {
  for (const std::int64_t width : kWidths) {
    for (const std::int64_t tokens : {1, 3, 67}) {
      const auto residual = Normal(tokens * width, 1);
      const auto delta = Normal(tokens * width, 2);
      const auto weight = Normal(width, 3);
      for (const bool with_delta : {false, true}) {
        ExpectSameEverywhere([&](KernelContext& context) {
          std::vector<float> sum = residual;
          std::vector<float> out(sum.size());
          AddRmsNorm(context, sum.data(), with_delta ? delta.data() : nullptr, weight.data(), 1e-5F,
                     out.data(), tokens, width);
          out.insert(out.end(), sum.begin(), sum.end());
          return out;
        });
      }
    }
  }
}

TEST(AddRmsNorm, EqualsDoublePrecision) {
  const std::unique_ptr<Device> device = MakeCpuDevice(2);
  KernelContext context{.device = device.get()};
  for (const std::int64_t width : kWidths) {
    const std::int64_t tokens = 5;
    auto residual = Normal(tokens * width, 1, 3.0F);
    const auto delta = Normal(tokens * width, 2);
    const auto weight = Normal(width, 3);
    std::vector<float> sum(residual.size());
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] = residual[i] + delta[i];
    }
    std::vector<float> out(sum.size());
    AddRmsNorm(context, residual.data(), delta.data(), weight.data(), 1e-5F, out.data(), tokens,
               width);
    EXPECT_TRUE(SameBits(residual, sum));
    for (std::int64_t m = 0; m < tokens; ++m) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < width; ++i) {
        const auto x = static_cast<double>(sum[static_cast<std::size_t>(m * width + i)]);
        squares += x * x;
      }
      const double rms = std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (std::int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<std::size_t>(m * width + i);
        const double truth = static_cast<double>(sum[at]) / rms *
                             static_cast<double>(weight[static_cast<std::size_t>(i)]);
        EXPECT_NEAR(static_cast<double>(out[at]), truth, 1e-6 * std::abs(truth) + 1e-30);
      }
    }
  }
}

TEST(AddRmsNorm, OnlyAddsWithoutOutput) {
  const std::unique_ptr<Device> device = MakeCpuDevice(1);
  KernelContext context{.device = device.get()};
  std::vector<float> residual = {1.0F, 2.0F, 3.0F};
  const std::vector<float> delta = {0.5F, -2.0F, 1.0F};
  AddRmsNorm(context, residual.data(), delta.data(), nullptr, 1e-5F, nullptr, 1, 3);
  EXPECT_EQ(residual, (std::vector<float>{1.5F, 0.0F, 4.0F}));
}

TEST(AddBias, AddsToEveryRowAndNothingBetween) {
  for (const std::int64_t width : kWidths) {
    const std::int64_t tokens = 40;
    const std::int64_t stride = width + 3;
    const auto x = Normal(tokens * stride, 1);
    const auto bias = Normal(width, 2);
    ExpectSameEverywhere([&](KernelContext& context) {
      std::vector<float> y = x;
      AddBias(context, y.data(), stride, bias.data(), tokens, width);
      for (std::int64_t i = 0; i < tokens * stride; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const std::int64_t column = i % stride;
        EXPECT_EQ(y[at], column < width ? x[at] + bias[static_cast<std::size_t>(column)] : x[at]);
      }
      return y;
    });
  }
}

TEST(SwiGlu, SameBitsEverywhereAndEqualToDoublePrecision) {
  for (const std::int64_t width : kWidths) {
    const std::int64_t tokens = 19;
    const std::int64_t stride = width + 5;
    auto gate = Normal(tokens * stride, 1, 6.0F);
    const auto up = Normal(tokens * stride, 2);
    gate[0] = -200.0F;  // exp overflows: the result is -0 * up
    gate[static_cast<std::size_t>(stride)] = 200.0F;
    ExpectSameEverywhere([&](KernelContext& context) {
      std::vector<float> out(static_cast<std::size_t>(tokens * width), NAN);
      SwiGlu(context, gate.data(), stride, up.data(), stride, out.data(), width, tokens, width);
      for (std::int64_t m = 0; m < tokens; ++m) {
        for (std::int64_t i = 0; i < width; ++i) {
          const auto g = static_cast<double>(gate[static_cast<std::size_t>(m * stride + i)]);
          const auto u = static_cast<double>(up[static_cast<std::size_t>(m * stride + i)]);
          const double truth = g / (1.0 + std::exp(-g)) * u;
          EXPECT_NEAR(static_cast<double>(out[static_cast<std::size_t>(m * width + i)]), truth,
                      1e-6 * std::abs(truth) + 1e-30);
        }
      }
      return out;
    });
  }
}

TEST(GeGlu, SameBitsEverywhereAndEqualToDoublePrecision) {
  for (const std::int64_t width : kWidths) {
    const std::int64_t tokens = 19;
    const std::int64_t stride = width + 5;
    auto gate = Normal(tokens * stride, 1, 3.0F);
    const auto up = Normal(tokens * stride, 2);
    gate[0] = -200.0F;  // exp overflows: the result is -0 * up
    gate[static_cast<std::size_t>(stride)] = 200.0F;
    ExpectSameEverywhere([&](KernelContext& context) {
      std::vector<float> out(static_cast<std::size_t>(tokens * width), NAN);
      GeGlu(context, gate.data(), stride, up.data(), stride, out.data(), width, tokens, width);
      for (std::int64_t m = 0; m < tokens; ++m) {
        for (std::int64_t i = 0; i < width; ++i) {
          const auto g = static_cast<double>(gate[static_cast<std::size_t>(m * stride + i)]);
          const auto u = static_cast<double>(up[static_cast<std::size_t>(m * stride + i)]);
          const double inner = std::sqrt(2.0 / std::numbers::pi) * (g + 0.044715 * g * g * g);
          const double truth = 0.5 * g * (1.0 + std::tanh(inner)) * u;
          // Where tanh is almost -1, the exponential carries the rounding of its argument.
          const double bound = 1e-6 * (1.0 + 2.0 * std::abs(inner)) * std::abs(truth);
          EXPECT_NEAR(static_cast<double>(out[static_cast<std::size_t>(m * width + i)]), truth,
                      bound + 1e-14 * std::abs(g * u) + 1e-30);
        }
      }
      return out;
    });
  }
}

TEST(Scale, MultipliesEveryElement) {
  const auto x = Normal(19 * 1000, 3);
  ExpectSameEverywhere([&](KernelContext& context) {
    std::vector<float> y = x;
    Scale(context, y.data(), 25.25F, 19, 1000);
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(y[i], x[i] * 25.25F);
    }
    return y;
  });
}

TEST(AddRmsNorm, MayWriteOverItsInput) {
  const std::unique_ptr<Device> device = MakeCpuDevice(2);
  KernelContext context{.device = device.get()};
  const auto x = Normal(3 * 100, 1);
  const auto weight = Normal(100, 2);
  std::vector<float> input = x;
  std::vector<float> separate(x.size());
  AddRmsNorm(context, input.data(), nullptr, weight.data(), 1e-6F, separate.data(), 3, 100);
  AddRmsNorm(context, input.data(), nullptr, weight.data(), 1e-6F, input.data(), 3, 100);
  EXPECT_EQ(input, separate);
}

TEST(SwiGlu, MayWriteOverItsInput) {
  const std::unique_ptr<Device> device = MakeCpuDevice(2);
  KernelContext context{.device = device.get()};
  const auto both = Normal(4 * 200, 1);
  std::vector<float> separate(400);
  SwiGlu(context, both.data(), 200, both.data() + 100, 200, separate.data(), 100, 4, 100);
  std::vector<float> in_place = both;
  SwiGlu(context, in_place.data(), 200, in_place.data() + 100, 200, in_place.data(), 200, 4, 100);
  for (std::size_t m = 0; m < 4; ++m) {
    for (std::size_t i = 0; i < 100; ++i) {
      EXPECT_EQ(in_place[m * 200 + i], separate[m * 100 + i]);
    }
  }
}

}  // namespace
}  // namespace nibble
