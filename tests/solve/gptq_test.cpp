#include "solve/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "io/safetensors.h"
#include "kernels/isa.h"
#include "solve/correction.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

// One file of tests/golden/gptq.
class Golden {
 public:
  explicit Golden(const std::string& name) {
    auto file = SafetensorsFile::Open(std::filesystem::path(NIBBLE_SOURCE_DIR) /
                                      "tests/golden/gptq" / (name + ".safetensors"));
    EXPECT_TRUE(file) << file.error().message;
    file_ = std::move(*file);
  }
  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    for (const SafetensorsEntry& entry : file_->entries()) {
      if (entry.name == name) {
        const auto* data = reinterpret_cast<const T*>(file_->View(entry).bytes.data());
        return {data, data + entry.shape.num_elements()};
      }
    }
    ADD_FAILURE() << name << " is missing";
    return {};
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
};

constexpr std::int64_t kCols = 96;

Hessian HessianOf(ThreadPool& pool, const std::vector<float>& inputs, std::int64_t width) {
  const auto tokens = static_cast<std::int64_t>(inputs.size()) / width;
  Hessian hessian(width, tokens);
  hessian.Add(pool, inputs.data(), tokens);
  return hessian;
}

struct Case {
  const char* name;
  int bits;
  bool symmetric;
  std::int64_t group;
  ColumnOrder order;
  double damping;
  bool nf4 = false;
};
void PrintTo(const Case& value, std::ostream* os) { *os << value.name; }

class GptqGolden : public testing::TestWithParam<Case> {};

// The worst mistake here, an update with a wrong sign or the wrong row of the factor, would still
// give a file that loads and talks; this test is what catches it.
TEST_P(GptqGolden, GivesTheCodesOfTheTextbookInDoublePrecision) {
  const Case& c = GetParam();
  const Golden golden(c.name);
  const auto weights = golden.Read<float>("weights");
  const auto inputs = golden.Read<float>("inputs");
  ThreadPool pool(2);
  const Hessian hessian = HessianOf(pool, inputs, kCols);
  const auto factor =
      Factorize(pool, hessian, {.order = c.order, .group_size = c.group, .damping = c.damping});
  ASSERT_TRUE(factor) << factor.error().message;
  EXPECT_EQ(factor->num_dead, 1);
  WeightSpec spec{.cols = kCols,
                  .kind = CodecKind::kUniform,
                  .bits = c.bits,
                  .group_size = c.group,
                  .has_zero_points = !c.symmetric};
  if (c.nf4) {
    spec.kind = CodecKind::kCodebook;
    spec.codebook = Codebook::kNf4;
    spec.has_f32_scales = true;
    spec.has_zero_points = false;
  }
  GptqOptions options{.spec = spec, .search_scale = false, .both_signs = false};
  options.sweep_scales = c.order != ColumnOrder::kDescending;
  SolveReport report;
  const auto solved = QuantizeGptq(pool, weights, *factor, options, &report);
  ASSERT_TRUE(solved) << solved.error().message;
  ASSERT_TRUE(Validate(*solved));
  EXPECT_EQ(solved->codes, golden.Read<std::uint8_t>("codes"));
  const auto scales = golden.Read<float>("scales");
  for (std::size_t i = 0; i < scales.size(); ++i) {
    // fp16 rounds the last bits of the sum away; NF4 keeps them.
    EXPECT_NEAR(solved->scales[i], scales[i], c.nf4 ? 1e-5F * scales[i] : 0.0F);
  }
  if (!c.symmetric && !c.nf4) {
    EXPECT_EQ(solved->zero_points, golden.Read<std::uint8_t>("zero_points"));
  }
  const double error = golden.Read<double>("error")[0];
  EXPECT_NEAR(report.error, error, 1e-4 * error);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GptqGolden,
    testing::Values(Case{"sym4_g32", 4, true, 32, ColumnOrder::kNatural, 0.01},
                    Case{"asym4_g32", 4, false, 32, ColumnOrder::kNatural, 0.01},
                    Case{"sym3_row", 3, true, 96, ColumnOrder::kNatural, 0.05},
                    Case{"sym8_g32", 8, true, 32, ColumnOrder::kNatural, 0.01},
                    Case{"sym4_g32_act_order", 4, true, 32, ColumnOrder::kDescending, 0.01},
                    Case{"asym2_g32", 2, false, 32, ColumnOrder::kNatural, 0.01},
                    Case{"nf4_g32", 4, true, 32, ColumnOrder::kNatural, 0.01, true}),
    [](const auto& at) { return std::string(at.param.name); });

// Inputs as layers have them: correlated, a few loud channels. Weights with heavy tails.
struct Problem {
  std::int64_t rows, width, tokens;
  std::vector<float> weights, inputs;
};
Problem MakeProblem(std::int64_t rows, std::int64_t width, std::int64_t tokens,
                    std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(5.0F);
  Problem p{.rows = rows, .width = width, .tokens = tokens};
  std::vector<float> loudness(static_cast<std::size_t>(width));
  for (float& value : loudness) {
    value = std::exp(normal(random));
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float common = normal(random);
    for (std::int64_t i = 0; i < width; ++i) {
      p.inputs.push_back(loudness[static_cast<std::size_t>(i)] * (normal(random) + common));
    }
  }
  for (std::int64_t i = 0; i < rows * width; ++i) {
    p.weights.push_back(0.05F * heavy(random));
  }
  return p;
}

WeightSpec Uniform(std::int64_t cols, int bits, std::int64_t group, bool symmetric) {
  return {.cols = cols,
          .kind = CodecKind::kUniform,
          .bits = bits,
          .group_size = group,
          .has_zero_points = !symmetric};
}

double ErrorOf(ThreadPool& pool, const QuantizedTensor& tensor, const std::vector<float>& weights,
               const HessianFactor& factor) {
  std::vector<float> e = Dequantize(tensor);
  for (std::size_t i = 0; i < e.size(); ++i) {
    e[i] -= weights[i];
  }
  return OutputError(pool, e, factor);
}

using Scheme = std::tuple<int, std::int64_t, bool>;
class GptqProperty : public testing::TestWithParam<Scheme> {};

TEST_P(GptqProperty, ItsErrorIsBelowThatOfRounding) {
  const auto [bits, group, symmetric] = GetParam();
  const Problem p = MakeProblem(40, 128, 400, 7);
  ThreadPool pool(2);
  const Hessian hessian = HessianOf(pool, p.inputs, p.width);
  const std::int64_t size = group == 0 ? p.width : group;
  const auto factor = Factorize(pool, hessian, {.group_size = size});
  ASSERT_TRUE(factor);
  for (const bool search : {false, true}) {
    SolveReport report;
    const auto solved = QuantizeGptq(pool, p.weights, *factor,
                                     {.spec = Uniform(p.width, bits, size, symmetric),
                                      .search_scale = search,
                                      .both_signs = search},
                                     &report);
    const auto rounded = QuantizeRtn(
        p.weights, p.rows, p.width,
        {.bits = bits, .group_size = group, .symmetric = symmetric, .search_scale = search});
    ASSERT_TRUE(solved && rounded);
    ASSERT_TRUE(Validate(*solved));
    const double error = ErrorOf(pool, *solved, p.weights, *factor);
    EXPECT_NEAR(report.error, error, 1e-3 * error) << "the report says something else";
    EXPECT_LT(error, 0.8 * ErrorOf(pool, *rounded, p.weights, *factor)) << "search " << search;
  }
}

TEST_P(GptqProperty, RowsMayBeSolvedApartOnAnyNumberOfThreadsAndAnyIsa) {
  const auto [bits, group, symmetric] = GetParam();
  const Problem p = MakeProblem(70, 128, 300, 8);
  const std::int64_t size = group == 0 ? p.width : group;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!ForceIsa(isa)) {
      continue;
    }
    for (const int workers : {1, 2, 5}) {
      ThreadPool pool(workers);
      const Hessian hessian = HessianOf(pool, p.inputs, p.width);
      const auto factor = Factorize(pool, hessian, {.group_size = size});
      ASSERT_TRUE(factor);
      const GptqOptions options{.spec = Uniform(p.width, bits, size, symmetric)};
      const auto whole = QuantizeGptq(pool, p.weights, *factor, options);
      const auto part =
          QuantizeGptq(pool, std::span(p.weights).subspan(static_cast<std::size_t>(3 * p.width)),
                       *factor, options);
      ASSERT_TRUE(whole && part);
      EXPECT_TRUE(
          std::equal(part->codes.begin(), part->codes.end(), whole->codes.begin() + 3 * p.width));
      if (codes.empty()) {
        codes = whole->codes;
        scales = whole->scales;
      }
      EXPECT_EQ(whole->codes, codes) << Name(isa) << ", " << workers << " workers";
      EXPECT_EQ(whole->scales, scales) << Name(isa) << ", " << workers << " workers";
    }
  }
  ForceIsa(DetectIsa());
}

INSTANTIATE_TEST_SUITE_P(Schemes, GptqProperty,
                         testing::Combine(testing::Values(2, 3, 4, 5, 6, 8),
                                          testing::Values<std::int64_t>(32, 64, 0),
                                          testing::Bool()));

TEST(Gptq, Nf4ErrorIsBelowThatOfRounding) {
  const Problem p = MakeProblem(48, 128, 400, 9);
  ThreadPool pool(2);
  const Hessian hessian = HessianOf(pool, p.inputs, p.width);
  const auto factor = Factorize(pool, hessian, {.group_size = 64});
  ASSERT_TRUE(factor);
  const WeightSpec spec{.cols = p.width,
                        .kind = CodecKind::kCodebook,
                        .bits = 4,
                        .group_size = 64,
                        .has_f32_scales = true,
                        .codebook = Codebook::kNf4};
  const auto solved = QuantizeGptq(pool, p.weights, *factor, {.spec = spec});
  const auto rounded = QuantizeToCodebook(p.weights, p.rows, p.width, Codebook::kNf4, 64);
  ASSERT_TRUE(solved && rounded);
  ASSERT_TRUE(Validate(*solved));
  EXPECT_LT(ErrorOf(pool, *solved, p.weights, *factor),
            0.8 * ErrorOf(pool, *rounded, p.weights, *factor));
}

// Tables of powers of two, FP4 whose scales are on a grid, FP8, and one scale for the matrix.
TEST(Gptq, EveryGridGetsLessErrorThanRoundingOntoIt) {
  const Problem p = MakeProblem(48, 128, 400, 9);
  ThreadPool pool(2);
  const Hessian hessian = HessianOf(pool, p.inputs, p.width);
  const auto table = [&](Codebook codebook, std::int64_t group, ScaleGrid grid) {
    return WeightSpec{.cols = p.width,
                      .kind = CodecKind::kCodebook,
                      .bits = BitsOf(codebook),
                      .group_size = group,
                      .has_f32_scales = true,
                      .codebook = codebook,
                      .scale_grid = grid};
  };
  std::vector<WeightSpec> specs = {table(Codebook::kLog4, 64, ScaleGrid::kAny),
                                   table(Codebook::kLog3, 32, ScaleGrid::kAny),
                                   table(Codebook::kLog3, p.width, ScaleGrid::kAny),
                                   table(Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo),
                                   table(Codebook::kE2M1, 16, ScaleGrid::kE4M3),
                                   table(Codebook::kFp8E5M2, p.width, ScaleGrid::kAny),
                                   table(Codebook::kFp8E4M3, p.width, ScaleGrid::kAny),
                                   Uniform(p.width, 4, p.width, true),
                                   Uniform(p.width, 4, p.width, false),
                                   Uniform(p.width, 4, 16, true)};
  for (std::size_t i = 6; i < 9; ++i) {
    specs[i].has_one_scale = true;
  }
  const std::vector<float> alike(static_cast<std::size_t>(p.width), 1.0F);
  for (const WeightSpec& spec : specs) {
    const auto factor = Factorize(pool, hessian, {.group_size = spec.group_size});
    ASSERT_TRUE(factor);
    const auto solved = QuantizeGptq(pool, p.weights, *factor, {.spec = spec});
    const auto rounded = QuantizeWeighted(pool, p.weights, spec, alike, DType::kF16);
    ASSERT_TRUE(solved && rounded) << spec.ToString();
    ASSERT_TRUE(Validate(*solved)) << spec.ToString() << Validate(*solved).error().message;
    EXPECT_LT(ErrorOf(pool, *solved, p.weights, *factor),
              0.9 * ErrorOf(pool, *rounded, p.weights, *factor))
        << spec.ToString();
  }
}

TEST(Gptq, RefusesWhatItCannotDoByName) {
  const Problem p = MakeProblem(2, 96, 100, 10);
  ThreadPool pool(1);
  const auto factor = Factorize(pool, HessianOf(pool, p.inputs, p.width), {.group_size = 32});
  ASSERT_TRUE(factor);
  const auto group = QuantizeGptq(pool, p.weights, *factor, {.spec = Uniform(96, 4, 64, true)});
  ASSERT_FALSE(group);
  EXPECT_NE(group.error().message.find("64 does not divide the width 96"), std::string::npos);
  auto broken = p.weights;
  broken[100] = INFINITY;
  const auto infinite = QuantizeGptq(pool, broken, *factor, {.spec = Uniform(96, 4, 32, true)});
  ASSERT_FALSE(infinite);
  EXPECT_NE(infinite.error().message.find("row 1, column 4"), std::string::npos);
}

TEST(HessianFactor, IsTheFactorInTheOrderItNames) {
  const Problem p = MakeProblem(1, 80, 200, 11);
  ThreadPool pool(2);
  const Hessian hessian = HessianOf(pool, p.inputs, p.width);
  for (const ColumnOrder order :
       {ColumnOrder::kNatural, ColumnOrder::kDescending, ColumnOrder::kGroups}) {
    const auto factor = Factorize(pool, hessian, {.order = order, .group_size = 16});
    ASSERT_TRUE(factor);
    double mean = 0.0;
    for (std::int64_t i = 0; i < p.width; ++i) {
      mean += hessian.At(i, i) / static_cast<double>(p.width);
    }
    const auto column = [&](std::int64_t i) { return factor->order[static_cast<std::size_t>(i)]; };
    // R_ki / R_ii, by columns and by rows.
    const auto by_column = [&](std::int64_t k, std::int64_t i) {
      return k == i ? 1.0 : static_cast<double>(factor->Ratios(i / 16)[k * 16 + i % 16]);
    };
    const auto root = [&](std::int64_t i) {
      return std::sqrt(factor->diagonal[static_cast<std::size_t>(i)]);
    };
    for (std::int64_t i = 0; i < p.width; ++i) {
      for (std::int64_t j = i; j < p.width; ++j) {
        double sum = 0.0;  // (R R^T)_ij
        for (std::int64_t k = j; k < p.width; ++k) {
          sum += by_column(i, k) * root(k) * by_column(j, k) * root(k);
        }
        const double expected =
            hessian.At(column(i), column(j)) + (i == j ? factor->damping * mean : 0.0);
        ASSERT_NEAR(
            sum, expected,
            1e-5 * std::sqrt(hessian.At(column(i), column(i)) * hessian.At(column(j), column(j))) +
                1e-6 * mean);
        if (j > i) {
          const std::int64_t panel = i / 16;
          ASSERT_NEAR(
              static_cast<double>(factor->RowRatios(panel)[(j - panel * 16) * 16 + i % 16]) *
                  root(i),
              by_column(i, j) * root(j), 1e-5 * root(i));
        }
      }
    }
    for (std::int64_t i = 1; i < p.width; ++i) {
      const double before = hessian.At(column(i - 1), column(i - 1));
      const double here = hessian.At(column(i), column(i));
      if (order == ColumnOrder::kDescending || (order == ColumnOrder::kGroups && i % 16 != 0)) {
        EXPECT_GE(before, here);
      }
      if (order == ColumnOrder::kGroups && i % 16 != 0) {
        EXPECT_EQ(column(i) / 16, column(i - 1) / 16) << "a group is torn";
      }
    }
  }
}

TEST(HessianFactor, DampingGrowsUntilItSufficesAndEveryPivotWithIt) {
  // Fewer tokens than channels: without damping the Hessian is singular.
  const Problem p = MakeProblem(1, 64, 20, 12);
  ThreadPool pool(1);
  const Hessian hessian = HessianOf(pool, p.inputs, p.width);
  const auto recovered = Factorize(pool, hessian, {.order = ColumnOrder::kNatural, .damping = 0.0});
  ASSERT_TRUE(recovered) << recovered.error().message;
  EXPECT_GT(recovered->damping, 0.0);
  EXPECT_LE(recovered->damping, 1e-2);
  EXPECT_GT(recovered->num_retries, 0);
  std::vector<double> pivots(static_cast<std::size_t>(p.width), 0.0);
  for (const double damping : {1e-3, 1e-2, 1e-1, 1.0}) {
    const auto factor =
        Factorize(pool, hessian, {.order = ColumnOrder::kNatural, .damping = damping});
    ASSERT_TRUE(factor);
    EXPECT_EQ(factor->damping, damping);
    EXPECT_EQ(factor->num_retries, 0);
    for (std::size_t i = 0; i < pivots.size(); ++i) {
      EXPECT_GT(factor->diagonal[i], pivots[i]);
      pivots[i] = factor->diagonal[i];
    }
  }
}

TEST(HessianFactor, NothingSeenAndOverflowAreErrors) {
  ThreadPool pool(1);
  const Hessian empty(32, 8);
  const auto nothing = Factorize(pool, empty, {.group_size = 32});
  ASSERT_FALSE(nothing);
  EXPECT_NE(nothing.error().message.find("no calibration token"), std::string::npos);
  Hessian broken(32, 8);
  std::vector<float> x(32, 1.0F);
  x[3] = INFINITY;
  broken.Add(pool, x.data(), 1);
  const auto overflow = Factorize(pool, broken, {.group_size = 32});
  ASSERT_FALSE(overflow);
  EXPECT_NE(overflow.error().message.find("overflow"), std::string::npos);
}

// y = x with noise and a lost channel, as quantized layers before would leave it.
std::vector<float> Disturbed(const Problem& p, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> y = p.inputs;
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = i % static_cast<std::size_t>(p.width) == 5 ? 0.5F * y[i] : y[i] + 0.2F * normal(random);
  }
  return y;
}

constexpr std::int64_t kSumsRows = 100;  // of a call of SumsOf, and so of a block

// Of x and y, [tokens, width].
InputSums SumsOf(ThreadPool& pool, const std::vector<float>& x, const std::vector<float>& y,
                 std::int64_t width) {
  const auto tokens = static_cast<std::int64_t>(y.size()) / width;
  InputSums sums(width, kSumsRows, InputSums::Shift::kAll);
  for (std::int64_t row = 0; row < tokens; row += kSumsRows) {
    sums.Add(pool, y.data() + row * width, x.data() + row * width,
             std::min(kSumsRows, tokens - row));
  }
  sums.Finish(pool);
  return sums;
}

// The bound that follows from gram.h, against double; more rows than are multiplied at once, an odd
// number of them, and a first one that is 3,000 times as large in one column.
TEST(InputSums, AreTheProductsWithinTheStatedBound) {
  const Problem p = MakeProblem(1, 24, 2577, 21);
  std::vector<float> y = p.inputs;
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] *= i % 3 == 0 ? 1.0F : 1.01F;
  }
  y[7] = 3000.0F;
  std::vector<double> before;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const InputSums sums = SumsOf(pool, p.inputs, y, p.width);
    EXPECT_EQ(sums.hessian().num_tokens(), p.tokens);
    std::vector<double> all;
    for (std::int64_t i = 0; i < p.width; ++i) {
      for (std::int64_t j = 0; j < p.width; ++j) {
        double h = 0.0, s = 0.0, h_error = 0.0, s_error = 0.0;
        for (std::int64_t begin = 0; begin < p.tokens; begin += kSumsRows) {
          // Of a block: energies and sums of magnitudes, of y_i, y_j and x_i - y_i.
          double energy[3] = {}, size[3] = {};
          const std::int64_t end = std::min(begin + kSumsRows, p.tokens);
          for (std::int64_t t = begin; t < end; ++t) {
            const auto at = [&](const std::vector<float>& values, std::int64_t column) {
              return static_cast<double>(values[static_cast<std::size_t>(t * p.width + column)]);
            };
            const double value[3] = {at(y, i), at(y, j), at(p.inputs, i) - at(y, i)};
            h += value[0] * value[1];
            s += value[2] * value[1];
            for (int k = 0; k < 3; ++k) {
              energy[k] += value[k] * value[k];
              size[k] += std::fabs(value[k]);
            }
          }
          // Each factor off by 2^-15 of its column's energy's root.
          const auto error = [&](int a, int b) {
            const double da = 0x1.01p-15 * std::sqrt(energy[a]);
            const double db = 0x1.01p-15 * std::sqrt(energy[b]);
            return da * size[b] + db * size[a] + static_cast<double>(end - begin) * da * db;
          };
          h_error += error(0, 1);
          s_error += error(2, 1);
        }
        ASSERT_NEAR(sums.hessian().At(i, j), h, h_error);
        // x - y is taken in fp32.
        ASSERT_NEAR(sums.ShiftAt(i, j), s, s_error + 1e-6 * std::fabs(s));
        all.push_back(sums.hessian().At(i, j));
        all.push_back(sums.ShiftAt(i, j));
      }
    }
    EXPECT_TRUE(before.empty() || all == before) << "the number of threads shows";
    before = all;
  }
}

TEST(InputSums, OverflowShows) {
  ThreadPool pool(1);
  for (const float value : {INFINITY, 1e25F, NAN}) {
    std::vector<float> y(32, 1.0F);
    y[3] = value;
    InputSums sums(32, 8, InputSums::Shift::kNone);
    sums.Add(pool, y.data(), nullptr, 1);
    sums.Finish(pool);
    const auto factor = Factorize(pool, sums.hessian(), {.group_size = 32});
    ASSERT_FALSE(factor);
    EXPECT_NE(factor.error().message.find("overflow"), std::string::npos);
  }
}

// Rows whose x is not known count for the Hessian alone.
TEST(InputSums, AShiftHasTheHessianOfItsOwnTokens) {
  const Problem p = MakeProblem(10, 32, 400, 22);
  const std::vector<float> y = Disturbed(p, 23);
  const auto half = static_cast<std::ptrdiff_t>(y.size() / 2);
  ThreadPool pool(2);
  const InputSums all = SumsOf(pool, p.inputs, y, p.width);
  const InputSums first = SumsOf(pool, {p.inputs.begin(), p.inputs.begin() + half},
                                 {y.begin(), y.begin() + half}, p.width);
  InputSums some(p.width, p.tokens / 2, InputSums::Shift::kSome);
  for (std::int64_t row = 0; row < p.tokens; row += kSumsRows) {
    some.Add(pool, y.data() + row * p.width,
             row < p.tokens / 2 ? p.inputs.data() + row * p.width : nullptr, kSumsRows);
  }
  some.Finish(pool);
  EXPECT_EQ(some.num_shift_tokens(), p.tokens / 2);
  EXPECT_EQ(some.hessian().num_tokens(), p.tokens);
  EXPECT_EQ(some.shift_hessian().num_tokens(), p.tokens / 2);
  EXPECT_EQ(&all.shift_hessian(), &all.hessian());
  for (std::int64_t i = 0; i < p.width; ++i) {
    for (std::int64_t j = 0; j < p.width; ++j) {
      EXPECT_EQ(some.ShiftAt(i, j), first.ShiftAt(i, j));
      EXPECT_EQ(some.shift_hessian().At(i, j), first.hessian().At(i, j));
      EXPECT_EQ(some.hessian().At(i, j), all.hessian().At(i, j));
    }
  }
}

TEST(Correction, IsTheClosedForm) {
  const Problem p = MakeProblem(50, 48, 300, 13);
  const std::vector<float> y = Disturbed(p, 14);
  ThreadPool pool(2);
  const InputSums sums = SumsOf(pool, p.inputs, y, p.width);
  const Hessian& hessian = sums.hessian();
  const auto factor = Factorize(pool, hessian, {.group_size = 16});
  ASSERT_TRUE(factor);
  const auto corrected =
      CorrectWeights(pool, p.weights, *factor, ShiftOf(pool, *factor, sums, 1.0));
  double mean = 0.0;
  for (std::int64_t i = 0; i < p.width; ++i) {
    mean += hessian.At(i, i) / static_cast<double>(p.width);
  }
  const double lambda = factor->damping * mean;
  // W* (H + lambda I) = W (G + lambda I), element by element.
  for (std::int64_t r = 0; r < p.rows; ++r) {
    for (std::int64_t i = 0; i < p.width; ++i) {
      double left = 0.0, right = 0.0, size = 0.0;
      for (std::int64_t j = 0; j < p.width; ++j) {
        const auto at = static_cast<std::size_t>(r * p.width + j);
        const double diagonal = i == j ? lambda : 0.0;
        left += static_cast<double>(corrected[at]) * (hessian.At(j, i) + diagonal);
        right +=
            static_cast<double>(p.weights[at]) * (hessian.At(j, i) + sums.ShiftAt(j, i) + diagonal);
        size += std::fabs(static_cast<double>(p.weights[at]) * hessian.At(j, i));
      }
      ASSERT_NEAR(left, right, 1e-4 * size) << r << ", " << i;
    }
  }
}

// One token as large as all others together, of those that are compared: what it has lost is made
// up for once, not once for every token that was not compared.
TEST(Correction, OfPartOfTheTokensMakesUpForARareDirectionOnce) {
  Problem p = MakeProblem(8, 32, 400, 24);
  std::vector<float> y = p.inputs;
  for (std::int64_t i = 0; i < p.width; ++i) {
    p.inputs[static_cast<std::size_t>(i)] = 400.0F;
    y[static_cast<std::size_t>(i)] = 300.0F;
  }
  ThreadPool pool(1);
  InputSums sums(p.width, p.tokens, InputSums::Shift::kSome);
  sums.Add(pool, y.data(), p.inputs.data(), p.tokens / 4);
  sums.Add(pool, y.data() + p.tokens / 4 * p.width, nullptr, p.tokens - p.tokens / 4);
  sums.Finish(pool);
  const auto factor = Factorize(pool, sums.shift_hessian(), {.group_size = 32});
  ASSERT_TRUE(factor);
  const auto corrected =
      CorrectWeights(pool, p.weights, *factor, ShiftOf(pool, *factor, sums, 1.0));
  for (std::int64_t r = 0; r < p.rows; ++r) {
    double got = 0.0, expected = 0.0, size = 0.0;
    for (std::int64_t i = 0; i < p.width; ++i) {
      const auto w = static_cast<std::size_t>(r * p.width + i);
      got += static_cast<double>(corrected[w]) * 300.0;
      expected += static_cast<double>(p.weights[w]) * 400.0;
      size += std::fabs(static_cast<double>(p.weights[w])) * 400.0;
    }
    EXPECT_NEAR(got, expected, 0.02 * size) << r;
  }
}

TEST(Correction, AnInputThatHasNotMovedChangesNothing) {
  const Problem p = MakeProblem(20, 64, 300, 15);
  ThreadPool pool(1);
  const InputSums sums = SumsOf(pool, p.inputs, p.inputs, p.width);
  const auto factor = Factorize(pool, sums.hessian(), {});
  ASSERT_TRUE(factor);
  EXPECT_EQ(CorrectWeights(pool, p.weights, *factor, ShiftOf(pool, *factor, sums, 1.0)), p.weights);
}

TEST(Correction, BringsTheOutputCloserToWhatItShouldBe) {
  const Problem p = MakeProblem(40, 64, 500, 16);
  const std::vector<float> y = Disturbed(p, 17);
  ThreadPool pool(2);
  const InputSums sums = SumsOf(pool, p.inputs, y, p.width);
  const auto factor = Factorize(pool, sums.hessian(), {});
  ASSERT_TRUE(factor);
  const GptqOptions options{.spec = Uniform(p.width, 4, 64, true)};
  const auto distance = [&](const std::vector<float>& weights) {
    const auto solved = QuantizeGptq(pool, weights, *factor, options);
    const std::vector<float> q = Dequantize(*solved);
    double sum = 0.0;
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      for (std::int64_t r = 0; r < p.rows; ++r) {
        double d = 0.0;
        for (std::int64_t i = 0; i < p.width; ++i) {
          const auto w = static_cast<std::size_t>(r * p.width + i);
          const auto x = static_cast<std::size_t>(t * p.width + i);
          d += static_cast<double>(q[w]) * static_cast<double>(y[x]) -
               static_cast<double>(p.weights[w]) * static_cast<double>(p.inputs[x]);
        }
        sum += d * d;
      }
    }
    return sum;
  };
  const auto corrected =
      CorrectWeights(pool, p.weights, *factor, ShiftOf(pool, *factor, sums, 1.0));
  EXPECT_LT(distance(corrected), 0.9 * distance(p.weights));
}

}  // namespace
}  // namespace nibble
