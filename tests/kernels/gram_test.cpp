#include "kernels/gram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
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

// What the bound of 2^31 hangs on: columns whose squares lie anywhere, in one row or in all.
TEST(Gram, SquaresOfAnInt16BlockStayBelow31Bits) {
  ThreadPool pool(1);
  constexpr std::int64_t kLines = 1 + kGramBlock / 2;
  std::vector<std::uint32_t> panel(static_cast<std::size_t>(kLines * kGramPanel));
  for (int exponent = -44; exponent <= 58; ++exponent) {
    for (const float fraction : {1.0F, 1.4142134F, 1.4142137F, 1.9999999F}) {
      std::vector<float> x(static_cast<std::size_t>(kGramBlock * 3));
      const float value = std::ldexp(fraction, exponent);
      for (std::size_t row = 0; row < x.size() / 3; ++row) {
        x[row * 3] = row == 5 ? value : 0.0F;
        x[row * 3 + 1] = row % 2 == 0 ? value : -value;
        x[row * 3 + 2] = row == 5 ? value : 0x1p-9F * value;
      }
      PackInt16Block(pool, x.data(), nullptr, kGramBlock, 3, 0, panel.data());
      for (std::size_t c = 0; c < 3; ++c) {
        double energy = 0.0, rounded = 0.0;
        const auto step = static_cast<double>(std::bit_cast<float>(panel[c]));
        ASSERT_GT(step, 0.0);
        for (std::int64_t t = 0; t < kGramBlock; ++t) {
          const std::uint32_t word = panel[static_cast<std::size_t>((1 + t / 2) * kGramPanel) + c];
          const auto q = static_cast<std::int16_t>(t % 2 == 0 ? word & 0xffffU : word >> 16);
          const auto exact = static_cast<double>(x[static_cast<std::size_t>(t) * 3 + c]);
          energy += exact * exact;
          rounded += static_cast<double>(q) * static_cast<double>(q);
          ASSERT_LE(std::fabs(q * step - exact), step / 2);
        }
        EXPECT_LT(rounded, 0x1p30);
        EXPECT_LE(step / 2, 0x1.01p-15 * std::sqrt(energy));
      }
    }
  }
}

// And sums of products that are as large as they can be are exact.
TEST(Gram, OfInt16BlocksIsExactForWholeNumbers) {
  ThreadPool pool(2);
  constexpr std::int64_t kWidth = 80, kRows[] = {kGramBlock, 7};
  constexpr std::int64_t kStride = (2 + kGramBlock / 2 + 4) * kGramPanel;
  std::vector<std::uint32_t> a(kWidth / kGramPanel * kStride), b(a.size());
  std::vector<double> c(kWidth * kWidth, 1.0), expected(c);
  std::vector<std::int64_t> block_pairs;
  std::mt19937 random(8);
  std::uniform_int_distribution<int> number(1400, 1447);  // x 512 squares: below 2^30
  std::int64_t word = 0;
  for (const std::int64_t rows : kRows) {
    std::vector<float> x(static_cast<std::size_t>(rows * kWidth)), y(x.size(), 0.0F);
    for (float& value : x) {
      value = static_cast<float>(number(random));
    }
    for (std::size_t i = 0; i < y.size(); i += 3) {
      y[i] = x[i] - 1447.0F;
    }
    PackInt16Block(pool, x.data(), nullptr, rows, kWidth, kStride, a.data() + word);
    PackInt16Block(pool, x.data(), y.data(), rows, kWidth, kStride, b.data() + word);
    block_pairs.push_back((rows + 1) / 2);
    word += (1 + block_pairs.back()) * kGramPanel;
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t i = 0; i < kWidth; ++i) {
        for (std::int64_t j = 0; j < kWidth; ++j) {
          const auto at = [&](const std::vector<float>& values, std::int64_t column) {
            return static_cast<double>(values[static_cast<std::size_t>(t * kWidth + column)]);
          };
          expected[static_cast<std::size_t>(i * kWidth + j)] += at(x, i) * (at(x, j) - at(y, j));
        }
      }
    }
  }
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    const ForcedIsa forced(isa);
    if (!forced.ok()) {
      GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
      continue;
    }
    auto got = c;
    AddInt16Gram(pool, a.data(), b.data(), kWidth, kStride, block_pairs, /*upper_only=*/false,
                 got.data());
    EXPECT_EQ(got, expected) << Name(isa);
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
