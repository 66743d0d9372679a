#include "solve/cuda_grid.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

namespace nibble {
namespace {

// As the card looks a value up.
int RankOf(const cuda::CodeTable& table, int bits, float value) {
  const auto word = std::bit_cast<std::int32_t>(value);
  const std::int32_t key = word ^ ((word >> 31) & 0x7fffffff);
  int rank = 0;
  for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
    rank += key > table.last_key[rank + step - 1] ? step : 0;
  }
  return rank;
}

TEST(CodeTable, GivesTheNearestCodeOfEveryFloat) {
  for (const Codebook codebook :
       {Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3, Codebook::kFp8E5M2, Codebook::kE2M1,
        Codebook::kLog4, Codebook::kLog3}) {
    const cuda::CodeTable table = MakeCodeTable(codebook);
    std::vector<float> values = {0.0F, -0.0F, 1e-45F, -1e-45F, 1e38F, -1e38F, INFINITY, -INFINITY};
    for (int rank = 0; rank < (1 << BitsOf(codebook)); ++rank) {
      // Both sides of each end, which is where codes change.
      const float value = table.values[rank];
      const std::int32_t key = table.last_key[rank];
      const auto end = std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
      for (const float near : {value, end}) {
        if (!std::isnan(near)) {
          values.insert(values.end(),
                        {near, std::nextafter(near, INFINITY), std::nextafter(near, -INFINITY)});
        }
      }
    }
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.0F, 0.7F * LargestOf(codebook));
    std::uniform_real_distribution<float> exponent(-20.0F, 17.0F);
    for (int i = 0; i < 20000; ++i) {
      values.push_back(normal(random));
      values.push_back(std::copysign(std::exp2(exponent(random)), normal(random)));
    }
    for (const float value : values) {
      const int rank = RankOf(table, BitsOf(codebook), value);
      ASSERT_EQ(static_cast<int>(table.codes[rank]), static_cast<int>(NearestCode(codebook, value)))
          << Name(codebook) << ", " << value;
      ASSERT_EQ(table.values[rank], ValuesOf(codebook)[table.codes[rank]]);
    }
  }
}

}  // namespace
}  // namespace nibble
