#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/gram_kernel.h"
#include "solve/hessian.h"

namespace nibble {

// Rows of a weight matrix that a solver works on together: as many panels as the widest tile of
// the Gram kernel takes, sixteen rows a panel, one a lane.
inline constexpr std::int64_t kPanelsAtOnce = kGramMaxPanels;
inline constexpr std::int64_t kRowsAtOnce = kPanelsAtOnce * kGramPanel;

/// kRowsAtOnce rows, columns in the order of a factor: [panel][position][16].
class RowPanels {
 public:
  explicit RowPanels(std::int64_t padded)
      : padded_(padded), values_(static_cast<std::size_t>(padded * kRowsAtOnce)) {}

  float* At(std::int64_t panel, std::int64_t position) {
    return values_.data() + (panel * padded_ + position) * kGramPanel;
  }
  const float* At(std::int64_t panel, std::int64_t position) const {
    return values_.data() + (panel * padded_ + position) * kGramPanel;
  }
  void Clear() { std::ranges::fill(values_, 0.0F); }

  /// Rows [begin, end) of a matrix [rows, factor.width]; zeros elsewhere.
  void Read(std::span<const float> matrix, std::int64_t begin, std::int64_t end,
            const HessianFactor& factor) {
    Clear();
    for (std::int64_t r = 0; r < end - begin; ++r) {
      const float* row = matrix.data() + (begin + r) * factor.width;
      float* to = At(r / kGramPanel, 0) + r % kGramPanel;
      for (std::int64_t i = 0; i < factor.width; ++i) {
        to[i * kGramPanel] = row[factor.order[static_cast<std::size_t>(i)]];
      }
    }
  }

 private:
  std::int64_t padded_;
  std::vector<float> values_;
};

}  // namespace nibble
