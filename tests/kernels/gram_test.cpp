#include "kernels/gram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/isa.h"

namespace nibble {
namespace {

std::vector<float> Normal(std::int64_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : ok_(ForceIsa(isa)) {}
  ~ForcedIsa() { ForceIsa(DetectIsa()); }
  bool ok() const { return ok_; }

 private:
  bool ok_;
};

struct Shape {
  std::int64_t rows, a_width, b_width;
};
constexpr Shape kShapes[] = {{1, 16, 16}, {3, 5, 40}, {256, 48, 48}, {513, 70, 211}};

TEST(Gram, IsTheProductWithinTheStatedBound) {
  ThreadPool pool(2);
  for (const auto& [rows, a_width, b_width] : kShapes) {
    const auto a = Normal(rows * a_width, 1);
    const auto b = Normal(rows * b_width, 2);
    std::vector<float> weights(static_cast<std::size_t>(rows));
    for (std::size_t t = 0; t < weights.size(); ++t) {
      weights[t] = t % 3 == 0 ? 0.0F : 1.5F;
    }
    const std::int64_t wide = PadToPanel(b_width);
    std::vector<float> pa(static_cast<std::size_t>(PadToPanel(a_width) * rows), NAN);
    std::vector<float> pb(static_cast<std::size_t>(wide * rows), NAN);
    PackPanels(pool, a.data(), a_width, rows, a_width, weights, pa.data());
    PackPanels(pool, b.data(), b_width, rows, b_width, {}, pb.data());
    std::vector<double> c(static_cast<std::size_t>(PadToPanel(a_width) * wide), 1.0);
    AddGram(pool, pa.data(), PadToPanel(a_width), pb.data(), wide, rows, /*upper_only=*/false,
            c.data());
    for (std::int64_t i = 0; i < a_width; ++i) {
      for (std::int64_t j = 0; j < b_width; ++j) {
        double sum = 0.0, magnitude = 0.0;
        for (std::int64_t t = 0; t < rows; ++t) {
          const double product = static_cast<double>(weights[static_cast<std::size_t>(t)]) *
                                 static_cast<double>(a[static_cast<std::size_t>(t * a_width + i)]) *
                                 static_cast<double>(b[static_cast<std::size_t>(t * b_width + j)]);
          sum += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(c[static_cast<std::size_t>(i * wide + j)], 1.0 + sum,
                    1e-15 + magnitude * (kGramChain + 1) * 0x1p-24);
      }
    }
  }
}

TEST(Gram, TheUpperHalfAloneIsTheSame) {
  ThreadPool pool(2);
  const auto x = Normal(300 * 100, 3);
  const std::int64_t width = PadToPanel(100);
  std::vector<float> panels(static_cast<std::size_t>(width * 300));
  PackPanels(pool, x.data(), 100, 300, 100, {}, panels.data());
  std::vector<double> whole(static_cast<std::size_t>(width * width)), half(whole);
  AddGram(pool, panels.data(), width, panels.data(), width, 300, false, whole.data());
  AddGram(pool, panels.data(), width, panels.data(), width, 300, true, half.data());
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = i; j < width; ++j) {
      ASSERT_EQ(whole[static_cast<std::size_t>(i * width + j)],
                half[static_cast<std::size_t>(i * width + j)]);
      ASSERT_EQ(whole[static_cast<std::size_t>(i * width + j)],
                whole[static_cast<std::size_t>(j * width + i)])
          << "not symmetric";
    }
  }
}

TEST(Gram, EveryIsaAndThreadCountGivesTheSameBits) {
  const auto x = Normal(700 * 130, 4);
  const auto l = Normal(64 * 144, 5);
  const std::vector<double> depth(l.begin(), l.end());
  std::vector<double> expected;
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    const ForcedIsa forced(isa);
    if (!forced.ok()) {
      GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
      continue;
    }
    for (const int workers : {1, 2, 5}) {
      ThreadPool pool(workers);
      const std::int64_t width = PadToPanel(130);
      std::vector<float> panels(static_cast<std::size_t>(width * 700));
      PackPanels(pool, x.data(), 130, 700, 130, {}, panels.data());
      std::vector<double> c(static_cast<std::size_t>(width * width));
      AddGram(pool, panels.data(), width, panels.data(), width, 700, true, c.data());
      Downdate(pool, depth.data(), width, 64, c.data(), width);
      if (expected.empty()) {
        expected = c;
      }
      EXPECT_EQ(std::memcmp(c.data(), expected.data(), c.size() * sizeof(double)), 0)
          << Name(isa) << " " << workers << " workers";
    }
  }
}

TEST(Gram, DowndateSubtractsTheProduct) {
  ThreadPool pool(2);
  constexpr std::int64_t kWidth = 32, kDepth = 5;
  const auto values = Normal(kWidth * kDepth, 6);
  const std::vector<double> p(values.begin(), values.end());
  std::vector<double> c(kWidth * (kWidth + 3), 2.0);
  Downdate(pool, p.data(), kWidth, kDepth, c.data(), kWidth + 3);
  const auto at = [&](std::int64_t i, std::int64_t t) {
    return p[static_cast<std::size_t>((i / 16 * kDepth + t) * 16 + i % 16)];
  };
  for (std::int64_t i = 0; i < kWidth; ++i) {
    for (std::int64_t j = i; j < kWidth; ++j) {
      double sum = 2.0;
      for (std::int64_t t = 0; t < kDepth; ++t) {
        sum -= at(i, t) * at(j, t);
      }
      ASSERT_NEAR(c[static_cast<std::size_t>(i * (kWidth + 3) + j)], sum, 1e-13);
    }
  }
  EXPECT_EQ(c[16 * (kWidth + 3)], 2.0) << "below the diagonal";
}

}  // namespace
}  // namespace nibble
