#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "codec/quantized_tensor.h"
#include "tensor/tensor.h"

namespace nibble {

// Solvers work on sixteen rows at once, one a lane, so that plain loops over lanes vectorize.
inline constexpr std::size_t kLanes = 16;
using Lane = std::array<float, kLanes>;

/// Sixteen grids: w ~ (code - zero) * scale, or codebook[code] * scale.
struct LaneGrid {
  Lane scale{};
  Lane inverse{};  // 1 / scale, or 0 where scale is 0
  Lane zero{};
};

/// Finds grids and rounds onto them.
class GridSearch {
 public:
  struct Options {
    DType scale_dtype = DType::kF16;  // unless the spec has f32 scales
    bool search = true;               // off: the grid that spans all values
    bool both_signs = true;           // a symmetric grid has one code more below zero than above:
                                      // let its scale be negative where that end fits better
    float scale_divisor = 0.0F;       // of ScaleGrid::kE4M3; not 0
    struct Fixed {
      float scale = 0.0F;
      float zero = 0.0F;  // code of 0 (uniform grids)
    };
    std::optional<Fixed> fixed;  // one grid for all groups, not searched
  };
  /// spec: kUniform or kCodebook.
  GridSearch(const WeightSpec& spec, const Options& options);

  /// Of values [weights.size()][16]: the grid with the least sum of weights[i] * error^2 among
  /// ranges of 0.46 to 1.10 times that of the values, refined by least squares on its scale.
  LaneGrid Best(const float* values, std::span<const float> weights) const;

  /// The nearest code and what it stands for.
  void Round(const LaneGrid& grid, const Lane& values, Lane& codes, Lane& rounded) const;

 private:
  struct Range {
    Lane minimum{}, maximum{};  // minimum <= 0 <= maximum
  };
  // A codebook of at most sixteen codes by its cells, looked up in all lanes at once.
  struct Cells {
    std::array<std::int32_t, kLanes - 1> last_keys;  // of all cells but the last
    std::array<float, kLanes - 1> ends;              // the same as floats
    Lane values{}, codes{};
  };
  static Cells FewCells(Codebook codebook);
  LaneGrid GridOf(const Range& range, float factor) const;
  void SetScale(LaneGrid& grid, std::size_t lane, float scale) const;
  Lane ErrorOf(const LaneGrid& grid, const float* values, std::span<const float> weights) const;

  WeightSpec spec_;
  Options options_;
  std::optional<Cells> cells_;
  float top_;     // the largest code
  float middle_;  // zero of a symmetric grid
};

}  // namespace nibble
