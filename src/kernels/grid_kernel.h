#pragma once

namespace nibble {

// Which scales a search tries, on a CPU (solve/grid.cpp) and on a card (cuda/gptq_sweep.cu): the
// range of the values times kGridWidest, kGridWidest - kGridStep, ..., then so many rounds of least
// squares.
constexpr int kGridSteps = 33;
constexpr float kGridWidest = 1.10F;
constexpr float kGridStep = 0.02F;
constexpr int kGridRefinements = 2;

}  // namespace nibble
