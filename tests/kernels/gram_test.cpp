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
  std::int64_t rows, width;
};
constexpr Shape kShapes[] = {{1, 16}, {3, 5}, {3, 40}, {256, 48}, {513, 211}};

TEST(Gram, IsTheUpperHalfOfTheProductWithinTheStatedBound) {
  ThreadPool pool(2);
  for (const auto& [rows, width] : kShapes) {
    const auto x = Normal(rows * width, 1);
    const std::int64_t padded = PadToPanel(width);
    std::vector<float> panels(static_cast<std::size_t>(padded * rows), NAN);
    PackPanels(pool, x.data(), rows, width, panels.data());
    std::vector<double> c(static_cast<std::size_t>(padded * padded), 1.0);
    AddGram(pool, panels.data(), padded, rows, c.data());
    for (std::int64_t i = 0; i < padded; ++i) {
      for (std::int64_t j = i; j < padded; ++j) {
        double sum = 0.0, magnitude = 0.0;
        for (std::int64_t t = 0; t < rows && j < width; ++t) {
          const double product = static_cast<double>(x[static_cast<std::size_t>(t * width + i)]) *
                                 static_cast<double>(x[static_cast<std::size_t>(t * width + j)]);
          sum += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(c[static_cast<std::size_t>(i * padded + j)], 1.0 + sum,
                    1e-15 + magnitude * (kGramChain + 1) * 0x1p-24);
      }
    }
    for (std::int64_t i = 16; i < padded; ++i) {
      for (std::int64_t j = 0; j < i / 16 * 16; ++j) {
        ASSERT_EQ(c[static_cast<std::size_t>(i * padded + j)], 1.0) << "below the tiles of 16 x 16";
      }
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
      PackPanels(pool, x.data(), 700, 130, panels.data());
      std::vector<double> c(static_cast<std::size_t>(width * width));
      AddGram(pool, panels.data(), width, 700, c.data());
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
