#pragma once

#include <cstdint>

// What the kernels of grids share: plain data only.

namespace nibble {

// Which scales a search tries, on a CPU (solve/grid.cpp) and on a card (cuda/gptq_sweep.cu): the
// range of the values times kGridWidest, kGridWidest - kGridStep, ..., then so many rounds of least
// squares.
constexpr int kGridSteps = 33;
constexpr float kGridWidest = 1.10F;
constexpr float kGridStep = 0.02F;
constexpr int kGridRefinements = 2;

/// error[l] = sum over i, in order, of weights[i] * e^2, where e is what rounding values[i][l] onto
/// the grid of lane l changes. Uniform: codes 0 to top, w ~ (code - zero) * scale. Codebook: of the
/// first of its cells whose end is not below values[i][l] * inverse[l] the value, times scale.
struct GridErrorCall {
  const float* values = nullptr;   // [count][16]
  const float* weights = nullptr;  // [count]
  std::int64_t count = 0;
  const float* scale = nullptr;    // [16]
  const float* inverse = nullptr;  // [16], of the scales, or 0
  const float* zero = nullptr;     // [16], whole numbers from 0 to top
  float top = 0.0F;                // less than 2^22
  const float* ends = nullptr;     // [15], ascending; null: a uniform grid
  const float* cells = nullptr;    // [16]
  float* error = nullptr;          // [16]
};
struct GridKernels {
  const char* name;
  void (*error)(const GridErrorCall& call);
};

extern const GridKernels kRefGrid;
extern const GridKernels kAvx2Grid;
extern const GridKernels kAvx512Grid;

}  // namespace nibble
