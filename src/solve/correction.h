#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "solve/hessian.h"

namespace nibble {

/// How the input of a linear has moved: it no longer sees x but y, what the model as quantized so
/// far makes of x. With H = sum y y^T and G = sum x y^T, this is G - H = sum (x - y) y^T, in the
/// factor's order.
struct InputShift {
  std::vector<float> panels;  // panel p: [padded][16], (G - H)_ji at position j and column i
  static std::uint64_t SizeBytes(std::int64_t width);
};
/// factor: of sums.shift_hessian(). strength: the shift counts so much of what was measured.
InputShift ShiftOf(ThreadPool& pool, const HessianFactor& factor, const InputSums& sums,
                   double strength);

/// Part of a shift measured on num_tokens that is worth following: tokens / (tokens + 10 width). A
/// correction has width parameters a row, and what it fits to chance costs quality elsewhere; the
/// tokens of a text are no independent samples, hence the factor (docs/quantization.md: measured).
double CorrectionStrength(std::int64_t num_tokens, std::int64_t width);

/// The weights to quantize in place of W, [rows, factor.width], row-major:
///   W* = W (G + lambda I) (H + lambda I)^-1  minimizes  sum |W* y - W x|^2 + lambda |W* - W|^2
/// and for every Q this sum is that minimum plus tr((Q - W*) (H + lambda I) (Q - W*)^T): so
/// whatever solves Q for W* also makes up for what the input has lost (the aim of GPTAQ, Li et al.
/// 2025, and of Qronos, Zhang et al. 2025, in closed form).
std::vector<float> CorrectWeights(ThreadPool& pool, std::span<const float> weights,
                                  const HessianFactor& factor, const InputShift& shift);

}  // namespace nibble
