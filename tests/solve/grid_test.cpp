#include "solve/grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "codec/code_cells.h"
#include "codec/codebook.h"

namespace nibble {
namespace {

class GridOfCodebook : public testing::TestWithParam<Codebook> {};
INSTANTIATE_TEST_SUITE_P(GridSearch, GridOfCodebook,
                         testing::Values(Codebook::kNf4, Codebook::kFp4, Codebook::kFp8E4M3,
                                         Codebook::kE2M1, Codebook::kLog4, Codebook::kLog3),
                         [](const auto& of) { return std::string(Name(of.param)); });

// Sixteen at a time as one by one, on both sides of where codes change, and with both signs of
// scale.
TEST_P(GridOfCodebook, RoundsEveryLaneToTheNearestCode) {
  const Codebook codebook = GetParam();
  const GridSearch search({.rows = 16,
                           .cols = 64,
                           .kind = CodecKind::kCodebook,
                           .bits = BitsOf(codebook),
                           .group_size = 64,
                           .has_f32_scales = true,
                           .codebook = codebook},
                          {});
  std::vector<float> values = {0.0F, -0.0F, 1e-45F, -1e-45F, 1e38F, -1e38F};
  for (const CodeCell& cell : CellsOf(codebook)) {
    const float last = FloatOf(cell.last_key);
    values.insert(values.end(), {cell.value, last, std::nextafter(last, INFINITY)});
  }
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0F, 0.7F * LargestOf(codebook));
  while (values.size() < 4000) {
    values.push_back(normal(random));
  }
  for (const float scale : {1.0F, -0.5F}) {
    LaneGrid grid;
    grid.scale.fill(scale);
    grid.inverse.fill(1.0F / scale);
    for (std::size_t i = 0; i + kLanes <= values.size(); i += kLanes) {
      Lane lane, codes, rounded;
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i), kLanes, lane.begin());
      search.Round(grid, lane, codes, rounded);
      for (std::size_t l = 0; l < kLanes; ++l) {
        const std::uint8_t code = NearestCode(codebook, lane[l] / scale);
        ASSERT_EQ(codes[l], static_cast<float>(code)) << lane[l] << " / " << scale;
        ASSERT_EQ(rounded[l], ValuesOf(codebook)[code] * scale) << lane[l] << " / " << scale;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
