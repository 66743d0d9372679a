#include "kernels/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/isa.h"

namespace nibble {
namespace {

std::vector<float> Normal(std::int64_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

constexpr GemmShape kShapes[] = {{1, 1, 1},    {12, 32, 256}, {13, 33, 257},
                                 {100, 70, 5}, {7, 200, 600}, {130, 300, 300}};

struct Problem {
  explicit Problem(const GemmShape& s)
      : shape(s), a(Normal(s.rows * s.depth, 1)), b(Normal(s.depth * s.cols, 2)) {}
  // c with a row stride beyond its columns; what lies between stays.
  std::vector<float> Product(ThreadPool& pool, bool a_by_columns, bool b_by_columns,
                             GemmOutput output) const {
    const MatrixRef at =
        a_by_columns ? MatrixRef{a.data(), 1, shape.rows} : MatrixRef{a.data(), shape.depth, 1};
    const MatrixRef bt =
        b_by_columns ? MatrixRef{b.data(), 1, shape.depth} : MatrixRef{b.data(), shape.cols, 1};
    std::vector<float> c(static_cast<std::size_t>(shape.rows * stride()), 0.5F);
    GemmScratch scratch;
    Gemm(pool, shape, at, bt, output, c.data(), stride(), scratch);
    return c;
  }
  std::int64_t stride() const { return shape.cols + 3; }

  GemmShape shape;
  std::vector<float> a, b;
};

TEST(Gemm, IsTheProductWithinTheBoundOfItsChains) {
  ThreadPool pool(2);
  for (const GemmShape& shape : kShapes) {
    const Problem problem(shape);
    for (const bool a_by_columns : {false, true}) {
      for (const bool b_by_columns : {false, true}) {
        for (const GemmOutput output : {GemmOutput::kWrite, GemmOutput::kAdd}) {
          const auto c = problem.Product(pool, a_by_columns, b_by_columns, output);
          const auto a = [&](std::int64_t i, std::int64_t t) {
            return static_cast<double>(problem.a[static_cast<std::size_t>(
                a_by_columns ? t * shape.rows + i : i * shape.depth + t)]);
          };
          const auto b = [&](std::int64_t t, std::int64_t j) {
            return static_cast<double>(problem.b[static_cast<std::size_t>(
                b_by_columns ? j * shape.depth + t : t * shape.cols + j)]);
          };
          for (std::int64_t i = 0; i < shape.rows; ++i) {
            for (std::int64_t j = 0; j < problem.stride(); ++j) {
              double sum = output == GemmOutput::kAdd || j >= shape.cols ? 0.5 : 0.0;
              double magnitude = std::fabs(sum);
              for (std::int64_t t = 0; j < shape.cols && t < shape.depth; ++t) {
                sum += a(i, t) * b(t, j);
                magnitude += std::fabs(a(i, t) * b(t, j));
              }
              ASSERT_NEAR(c[static_cast<std::size_t>(i * problem.stride() + j)], sum,
                          magnitude * (kGemmChain + 4) * 0x1p-24);
            }
          }
        }
      }
    }
  }
}

TEST(Gemm, EveryIsaAndNumberOfThreadsGivesTheSameBits) {
  for (const GemmShape& shape : kShapes) {
    const Problem problem(shape);
    ThreadPool one(1), three(3);
    ASSERT_TRUE(ForceIsa(Isa::kRef));
    const auto expected = problem.Product(one, false, true, GemmOutput::kAdd);
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (ForceIsa(isa)) {
        EXPECT_EQ(problem.Product(three, false, true, GemmOutput::kAdd), expected);
      }
    }
    ForceIsa(DetectIsa());
    std::vector<float> here(expected.size(), 0.5F);
    GemmScratch scratch;
    GemmHere(shape, {problem.a.data(), shape.depth, 1}, {problem.b.data(), 1, shape.depth},
             GemmOutput::kAdd, here.data(), problem.stride(), scratch);
    EXPECT_EQ(here, expected);
  }
}

}  // namespace
}  // namespace nibble
