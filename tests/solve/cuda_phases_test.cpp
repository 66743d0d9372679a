// The kernels and products of solve/cuda_solver.cpp one by one, against the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "kernels/cuda/dense_algebra.h"
#include "kernels/cuda/gptq_kernel.h"
#include "solve/cuda_grid.h"
#include "solve/hessian.h"
#include "solve/rtn.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/solve/problem.h"

namespace nibble::cuda {
namespace {

class CudaDense : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    auto algebra = DenseAlgebra::Create(device(), 512);
    ASSERT_TRUE(algebra) << algebra.error().message;
    algebra_ = std::move(*algebra);
  }
  DenseAlgebra& algebra() { return *algebra_; }

 private:
  std::unique_ptr<DenseAlgebra> algebra_;
};

std::vector<double> NormalDoubles(std::int64_t count, std::uint32_t seed) {
  const auto floats = Normal(static_cast<std::size_t>(count), 1.0F, seed);
  return {floats.begin(), floats.end()};
}

// c [m, n] = sum over k of a(i, k) b(k, j), and the sum of magnitudes.
struct Products {
  std::vector<double> sum, size;
};
template <typename A, typename B>
Products Multiply(std::int64_t m, std::int64_t n, std::int64_t depth, const A& a, const B& b) {
  Products out;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0.0, size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double product = static_cast<double>(a(i, k)) * static_cast<double>(b(k, j));
        sum += product;
        size += std::fabs(product);
      }
      out.sum.push_back(sum);
      out.size.push_back(size);
    }
  }
  return out;
}

// Different shapes in each direction: a transposed operand does not get through.
TEST_F(CudaDense, ProductsAreThoseOfRowMajorMatrices) {
  constexpr std::int64_t m = 37, n = 70, depth = 130, pitch = 136;
  const auto a = Normal(m * pitch, 1.0F, 1);
  const auto b = Normal(depth * pitch, 1.0F, 2);
  const auto c = Normal(m * pitch, 1.0F, 3);
  const DeviceBuffer da = Upload(a), db = Upload(b);
  const Products truth = Multiply(
      m, n, depth,
      [&](std::int64_t i, std::int64_t k) { return a[static_cast<std::size_t>(i * pitch + k)]; },
      [&](std::int64_t k, std::int64_t j) { return b[static_cast<std::size_t>(k * pitch + j)]; });
  for (const Precision precision : {Precision::kF32, Precision::kTf32}) {
    for (const bool add : {false, true}) {
      const DeviceBuffer dc = Upload(c);
      algebra().Product({da.as<float>(), m, depth, pitch}, {db.as<float>(), depth, n, pitch},
                        {dc.as<float>(), m, n, pitch}, add, precision);
      const auto found = Download<float>(dc, c.size());
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < pitch; ++j) {
          const auto at = static_cast<std::size_t>(i * pitch + j);
          if (j >= n) {
            ASSERT_EQ(found[at], c[at]) << "beyond the columns";
            continue;
          }
          const auto of = static_cast<std::size_t>(i * n + j);
          const double expected = truth.sum[of] + (add ? static_cast<double>(c[at]) : 0.0);
          const double bound = precision == Precision::kF32 ? 1e-5 : 0x1p-9;
          ASSERT_NEAR(found[at], expected, bound * truth.size[of] + 1e-6) << i << ", " << j;
        }
      }
    }
  }

  const auto wide_a = NormalDoubles(m * depth, 4), wide_b = NormalDoubles(depth * n, 5);
  const DeviceBuffer dwa = Upload(wide_a), dwb = Upload(wide_b);
  const DeviceBuffer dwc = Poisoned<double>(m * n);
  algebra().Product(0.5, {dwa.as<double>(), m, depth, depth}, {dwb.as<double>(), depth, n, n},
                    {dwc.as<double>(), m, n, n});
  const Products wide = Multiply(
      m, n, depth,
      [&](std::int64_t i, std::int64_t k) {
        return wide_a[static_cast<std::size_t>(i * depth + k)];
      },
      [&](std::int64_t k, std::int64_t j) { return wide_b[static_cast<std::size_t>(k * n + j)]; });
  const auto wide_found = Download<double>(dwc, m * n);
  for (std::size_t i = 0; i < wide_found.size(); ++i) {
    ASSERT_NEAR(wide_found[i], 0.5 * wide.sum[i], 1e-12 * wide.size[i]) << i;
  }
}

TEST_F(CudaDense, TransposedProductsSumOverTokens) {
  constexpr std::int64_t tokens = 333, m = 61, n = 90, pitch = 128;
  std::vector<std::uint16_t> a, b;
  for (const float value : Normal(tokens * pitch, 1.0F, 1)) {
    a.push_back(FloatToBF16(value));
  }
  for (const float value : Normal(tokens * pitch, 1.0F, 2)) {
    b.push_back(FloatToBF16(value));
  }
  const DeviceBuffer da = Upload(a), db = Upload(b), dc = Poisoned<float>(m * n);
  algebra().TransposedProduct({da.as<std::uint16_t>(), tokens, m, pitch},
                              {db.as<std::uint16_t>(), tokens, n, pitch},
                              {dc.as<float>(), m, n, n});
  const Products truth = Multiply(
      m, n, tokens,
      [&](std::int64_t i, std::int64_t t) {
        return BF16ToFloat(a[static_cast<std::size_t>(t * pitch + i)]);
      },
      [&](std::int64_t t, std::int64_t j) {
        return BF16ToFloat(b[static_cast<std::size_t>(t * pitch + j)]);
      });
  const auto found = Download<float>(dc, m * n);
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], truth.sum[i], 2e-5 * truth.size[i]) << i;
  }
}

TEST_F(CudaDense, FactorsAndSolvesAreThoseOfTheUpperTriangle) {
  constexpr std::int64_t n = 83, rows = 19;
  const auto at = [&](std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>(i * n + j);
  };
  // A = G G^T + I; what lies below the diagonal is not to be read.
  const auto g = NormalDoubles(n * n, 1);
  std::vector<double> a(n * n), upper(n * n);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t k = 0; k < n; ++k) {
        a[at(i, j)] += g[at(i, k)] * g[at(j, k)];
      }
      a[at(i, j)] += i == j ? 1.0 : 0.0;
      upper[at(i, j)] = j >= i ? a[at(i, j)] : NAN;
    }
  }
  const DeviceBuffer du = Upload(upper);
  const auto is_positive = algebra().Factorize({du.as<double>(), n, n, n});
  ASSERT_TRUE(is_positive) << is_positive.error().message;
  ASSERT_TRUE(*is_positive);
  const auto u = Download<double>(du, n * n);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i; j < n; ++j) {
      double sum = 0.0;  // (U^T U)_ij
      for (std::int64_t k = 0; k <= i; ++k) {
        sum += u[at(k, i)] * u[at(k, j)];
      }
      ASSERT_NEAR(sum, a[at(i, j)], 1e-10 * n) << i << ", " << j;
    }
  }
  // x A = c for x = c A^-1.
  const auto c = NormalDoubles(rows * n, 2);
  const DeviceBuffer dx = Upload(c);
  algebra().Solve({du.as<double>(), n, n, n}, {dx.as<double>(), rows, n, n});
  const auto x = Download<double>(dx, rows * n);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < n; ++k) {
        sum += x[at(r, k)] * a[at(k, j)];
      }
      ASSERT_NEAR(sum, c[at(r, j)], 1e-8) << r << ", " << j;
    }
  }
  // z (I + N) = c, N above the diagonal of what is otherwise full.
  std::vector<float> ratios;
  for (const double value : g) {
    ratios.push_back(0.05F * static_cast<float>(value));
  }
  const std::vector<float> narrow(c.begin(), c.end());
  const DeviceBuffer dn = Upload(ratios), dz = Upload(narrow);
  algebra().SolveUnit({dn.as<float>(), n, n, n}, {dz.as<float>(), rows, n, n});
  const auto z = Download<float>(dz, rows * n);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = static_cast<double>(z[at(r, j)]);
      for (std::int64_t k = 0; k < j; ++k) {
        sum += static_cast<double>(z[at(r, k)]) * static_cast<double>(ratios[at(k, j)]);
      }
      ASSERT_NEAR(sum, c[at(r, j)], 1e-4) << r << ", " << j;
    }
  }
  // A negative pivot is no failure of the card.
  std::vector<double> indefinite(n * n, 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    indefinite[at(i, i)] = i == 70 ? -1.0 : 1.0;
  }
  const DeviceBuffer di = Upload(indefinite);
  const auto not_positive = algebra().Factorize({di.as<double>(), n, n, n});
  ASSERT_TRUE(not_positive) << not_positive.error().message;
  EXPECT_FALSE(*not_positive);
}

class CudaGptqKernels : public CudaDense {};

TEST_F(CudaGptqKernels, InputsArePackedAsOnTheCpu) {
  constexpr int width = 75, rows = 9, pitch = 128, stride = 80;
  for (const bool is_f16 : {false, true}) {
    auto y = Normal(rows * stride, 1.0F, 1, 20.0F);
    auto x = Normal(rows * stride, 1.0F, 2, 20.0F);
    y[3] = 1e-20F;
    y[4] = -0.0F;
    y[5] = x[5];
    const float scale = is_f16 ? 32.0F : 1.0F;
    const std::vector<std::uint16_t> half_y = ToHalf(y), half_x = ToHalf(x);
    if (is_f16) {
      for (std::size_t i = 0; i < y.size(); ++i) {
        y[i] = scale * F16ToFloat(half_y[i]);
        x[i] = scale * F16ToFloat(half_x[i]);
      }
    }
    const DeviceBuffer dy = is_f16 ? Upload(half_y) : Upload(y);
    const DeviceBuffer dx = is_f16 ? Upload(half_x) : Upload(x);
    const DeviceBuffer out = Poisoned<std::uint16_t>(rows * pitch);
    const DeviceBuffer moved = Poisoned<std::uint16_t>(rows * pitch);
    ASSERT_EQ(LaunchPackInputs({.y = {dy.data(), is_f16, stride, scale},
                                .x = {dx.data(), is_f16, stride, scale},
                                .out = out.as<std::uint16_t>(),
                                .moved = moved.as<std::uint16_t>(),
                                .pitch = pitch,
                                .width = width,
                                .rows = rows},
                               stream()),
              0);
    const auto found = Download<std::uint16_t>(out, rows * pitch);
    const auto found_moved = Download<std::uint16_t>(moved, rows * pitch);
    const auto expected = [](float value) {
      return std::fabs(value) < 0x1p-50F ? std::uint16_t{0} : FloatToBF16(value);
    };
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < width; ++i) {
        const auto from = static_cast<std::size_t>(r * stride + i);
        const auto to = static_cast<std::size_t>(r * pitch + i);
        ASSERT_EQ(found[to], expected(y[from])) << r << ", " << i << (is_f16 ? " f16" : "");
        ASSERT_EQ(found_moved[to], expected(x[from] - y[from])) << r << ", " << i;
      }
      ASSERT_EQ(found[static_cast<std::size_t>(r * pitch + width)], 0xffff) << "beyond the width";
    }
  }
}

// The factor of the CPU, from the same Hessian: the card's is reversed twice on its way.
TEST_F(CudaGptqKernels, RatiosAreThoseOfTheCpusFactor) {
  for (const std::int64_t n : {64, 80, 320}) {
    const SolverProblem p = MakeSolverProblem(1, n, 700, 11);
    ThreadPool pool(2);
    Hessian hessian(n, p.tokens);
    hessian.Add(pool, p.y.data(), p.tokens);
    for (const ColumnOrder order :
         {ColumnOrder::kNatural, ColumnOrder::kDescending, ColumnOrder::kGroups}) {
      const auto factor = Factorize(pool, hessian, {.order = order, .group_size = 16});
      ASSERT_TRUE(factor) << factor.error().message;
      std::vector<double> h(static_cast<std::size_t>(n * n), NAN);
      double mean = 0.0;
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = i; j < n; ++j) {
          h[static_cast<std::size_t>(i * n + j)] = hessian.At(i, j);
        }
        mean += hessian.At(i, i) / static_cast<double>(n);
      }
      const auto count = static_cast<std::size_t>(n * n);
      const DeviceBuffer dh = Upload(h), dorder = Upload(factor->order);
      const DeviceBuffer u = Poisoned<double>(count);
      const DeviceBuffer ratios = Poisoned<float>(count);
      const DeviceBuffer curvature = Poisoned<double>(static_cast<std::size_t>(n));
      const DeviceBuffer narrow = Poisoned<float>(static_cast<std::size_t>(n));
      const DeviceBuffer by_column = Poisoned<float>(static_cast<std::size_t>(n));
      ASSERT_EQ(LaunchGatherSymmetric({.h = dh.as<double>(),
                                       .order = dorder.as<std::int32_t>(),
                                       .added = factor->damping * mean,
                                       .out = u.as<double>(),
                                       .n = n},
                                      stream()),
                0);
      const auto is_positive = algebra().Factorize({u.as<double>(), n, n, n});
      ASSERT_TRUE(is_positive && *is_positive);
      ASSERT_EQ(LaunchRatios({.u = u.as<double>(),
                              .order = dorder.as<std::int32_t>(),
                              .ratios = ratios.as<float>(),
                              .curvature = curvature.as<double>(),
                              .curvature_f32 = narrow.as<float>(),
                              .column_curvature = by_column.as<float>(),
                              .n = n},
                             stream()),
                0);
      const auto found = Download<float>(ratios, count);
      const auto squares = Download<double>(curvature, static_cast<std::size_t>(n));
      const auto squares_f32 = Download<float>(narrow, static_cast<std::size_t>(n));
      const auto of_columns = Download<float>(by_column, static_cast<std::size_t>(n));
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        ASSERT_NEAR(squares[at], factor->diagonal[at], 1e-6 * factor->diagonal[at])
            << n << ": " << i;
        ASSERT_EQ(squares_f32[at], static_cast<float>(squares[at]));
        ASSERT_EQ(of_columns[static_cast<std::size_t>(factor->order[at])], squares_f32[at]);
        for (std::int64_t j = 0; j < n; ++j) {
          const float expected = j < i ? factor->Ratios(i / 16)[j * 16 + i % 16] : 0.0F;
          ASSERT_NEAR(found[static_cast<std::size_t>(j * n + i)], expected,
                      1e-5F * (1.0F + std::fabs(expected)))
              << Name(order) << ", width " << n << ": " << j << ", " << i;
        }
      }
    }
  }
}

// Grids of random groups; the values lie at columns in an order, as in the sweep.
TEST_F(CudaGptqKernels, GridsAreThoseOfTheCpuToTheBit) {
  constexpr int rows = 21;
  constexpr std::int64_t cols = 192;
  const SolverProblem p = MakeSolverProblem(rows, cols, 1, 5);
  std::vector<float> weights = p.weights;
  std::fill_n(weights.begin() + cols, cols, 0.0F);  // a row of zeros
  for (std::int64_t i = 0; i < cols; ++i) {
    float& w = weights[static_cast<std::size_t>(2 * cols + i)];
    w = std::fabs(w);  // no negative value
  }
  const auto moved = Normal(static_cast<std::size_t>(rows * cols), 0.01F, 6);
  std::vector<float> curvature;
  for (const float value : Normal(cols, 1.0F, 7)) {
    curvature.push_back(std::exp(value));
  }
  std::vector<std::int32_t> columns(cols);
  std::iota(columns.begin(), columns.end(), 0);
  std::shuffle(columns.begin(), columns.end(), std::mt19937(8));
  const DeviceBuffer dw = Upload(weights), dm = Upload(moved), dc = Upload(curvature);
  const DeviceBuffer dcolumns = Upload(columns);
  for (const WeightSpec& spec : EveryGrid(cols)) {
    for (const bool search : {true, false}) {
      for (const DType scale_dtype : {DType::kF16, DType::kBF16}) {
        const GridSearch::Options options =
            OptionsFor(spec, weights, {.scale_dtype = scale_dtype, .search = search});
        const auto tables = TablesOf(spec);
        const DeviceBuffer dtables = Upload(std::vector<CodeTable>(tables.begin(), tables.end()));
        const auto size = static_cast<int>(spec.group_size);
        const auto groups = static_cast<int>(cols / size);
        const auto count = static_cast<std::size_t>(rows * groups);
        const DeviceBuffer scales = Poisoned<float>(count), zeros = Poisoned<float>(count);
        ASSERT_EQ(LaunchSearchGrids({.rules = RulesOf(spec, options, dtables.as<CodeTable>()),
                                     .weights = dw.as<float>(),
                                     .columns = dcolumns.as<std::int32_t>(),
                                     .moved = dm.as<float>(),
                                     .curvature = dc.as<float>(),
                                     .n = cols,
                                     .rows = rows,
                                     .size = size,
                                     .num_groups = groups,
                                     .groups_per_row = groups,
                                     .scales = scales.as<float>(),
                                     .zeros = zeros.as<float>()},
                                    stream()),
                  0);
        const auto found = Download<float>(scales, count);
        const auto found_zeros = Download<float>(zeros, count);
        const GridSearch grids(spec, options);
        for (int r = 0; r < rows; ++r) {
          for (int g = 0; g < groups; ++g) {
            std::vector<float> values;
            for (int i = g * size; i < (g + 1) * size; ++i) {
              const auto at = static_cast<std::size_t>(r * cols + i);
              const float value = moved[at] + weights[static_cast<std::size_t>(
                                                  r * cols + columns[static_cast<std::size_t>(i)])];
              values.insert(values.end(), kLanes, value);
            }
            const LaneGrid best = grids.Best(
                values.data(), std::span(curvature).subspan(static_cast<std::size_t>(g * size),
                                                            static_cast<std::size_t>(size)));
            const auto at = static_cast<std::size_t>(r * groups + g);
            ASSERT_EQ(std::bit_cast<std::uint32_t>(found[at]),
                      std::bit_cast<std::uint32_t>(best.scale[0]))
                << found[at] << ", CPU " << best.scale[0] << ": " << spec.ToString() << ", search "
                << search << ", row " << r << ", group " << g;
            ASSERT_EQ(found_zeros[at], best.zero[0])
                << spec.ToString() << ", search " << search << ", row " << r << ", group " << g;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
