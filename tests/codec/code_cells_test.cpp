#include "codec/code_cells.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace nibble {
namespace {

TEST(Key, IsInTheOrderOfNumbers) {
  const std::vector<float> ascending = {-1e38F, -1.0F, -1e-45F, -0.0F, 0.0F, 1e-45F, 0.5F, 1e38F};
  for (std::size_t i = 0; i < ascending.size(); ++i) {
    EXPECT_EQ(FloatOf(KeyOf(ascending[i])), ascending[i]);
    EXPECT_EQ(std::signbit(FloatOf(KeyOf(ascending[i]))), std::signbit(ascending[i]));
    if (i > 0) {
      EXPECT_LT(KeyOf(ascending[i - 1]), KeyOf(ascending[i])) << i;
    }
  }
}

class EveryCodebooksCells : public testing::TestWithParam<Codebook> {};
INSTANTIATE_TEST_SUITE_P(CodeCells, EveryCodebooksCells,
                         testing::Values(Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3,
                                         Codebook::kFp8E5M2, Codebook::kE2M1, Codebook::kLog4,
                                         Codebook::kLog3),
                         [](const auto& of) {
                           std::string name = Name(of.param);
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(EveryCodebooksCells, AscendAndChangeWhereTheNearestCodeDoes) {
  const Codebook codebook = GetParam();
  const std::vector<CodeCell> cells = CellsOf(codebook);
  ASSERT_LE(cells.size(), std::size_t{1} << BitsOf(codebook));
  EXPECT_EQ(cells.back().last_key, KeyOf(std::numeric_limits<float>::max()));
  for (std::size_t i = 0; i < cells.size(); ++i) {
    EXPECT_EQ(cells[i].value, ValuesOf(codebook)[cells[i].code]);
    EXPECT_EQ(NearestCode(codebook, FloatOf(cells[i].last_key)), cells[i].code) << i;
    if (i > 0) {
      EXPECT_GE(cells[i].value, cells[i - 1].value) << i;
      EXPECT_GT(cells[i].last_key, cells[i - 1].last_key) << i;
      EXPECT_EQ(NearestCode(codebook, FloatOf(cells[i - 1].last_key + 1)), cells[i].code) << i;
    }
  }
}

}  // namespace
}  // namespace nibble
