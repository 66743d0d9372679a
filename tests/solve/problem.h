#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "codec/quantized_tensor.h"

namespace nibble {

/// A matrix and what flows into it in two models: x in the source, y in the one that is solved for.
struct SolverProblem {
  std::int64_t rows = 0, width = 0, tokens = 0;
  std::vector<float> weights;  // [rows, width]
  std::vector<float> x, y;     // [tokens, width]
};

/// Inputs as layers have them: correlated, a few loud channels, num_dead that are always 0; in y
/// everything has moved a little. Weights with heavy tails.
inline SolverProblem MakeSolverProblem(std::int64_t rows, std::int64_t width, std::int64_t tokens,
                                       std::uint32_t seed, std::int64_t num_dead = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(5.0F);
  SolverProblem p{.rows = rows, .width = width, .tokens = tokens};
  std::vector<float> loudness(static_cast<std::size_t>(width));
  for (float& value : loudness) {
    value = std::exp(normal(random));
  }
  for (std::int64_t i = 0; i < num_dead; ++i) {
    loudness[static_cast<std::size_t>((7 + 31 * i) % width)] = 0.0F;
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float common = normal(random);
    for (const float loud : loudness) {
      p.x.push_back(loud * (normal(random) + common));
      p.y.push_back(0.9F * p.x.back() + 0.2F * loud * normal(random));
    }
  }
  for (std::int64_t i = 0; i < rows * width; ++i) {
    p.weights.push_back(0.05F * heavy(random));
  }
  return p;
}

inline WeightSpec UniformSpec(std::int64_t cols, int bits, std::int64_t group, bool symmetric) {
  return {.cols = cols,
          .kind = CodecKind::kUniform,
          .bits = bits,
          .group_size = group,
          .has_zero_points = !symmetric};
}

inline WeightSpec CodebookSpec(std::int64_t cols, Codebook codebook, std::int64_t group,
                               ScaleGrid grid = ScaleGrid::kAny) {
  return {.cols = cols,
          .kind = CodecKind::kCodebook,
          .bits = BitsOf(codebook),
          .group_size = group,
          .has_f32_scales = true,
          .codebook = codebook,
          .scale_grid = grid};
}

/// Every kind of grid that nibble writes, with groups of 16, 32 and 64 columns, of whole rows, and
/// of the matrix. cols: a multiple of 64.
inline std::vector<WeightSpec> EveryGrid(std::int64_t cols) {
  std::vector<WeightSpec> specs;
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const bool symmetric : {true, false}) {
      specs.push_back(UniformSpec(cols, bits, bits == 3 ? 32 : 64, symmetric));
    }
  }
  specs.push_back(UniformSpec(cols, 4, 16, true));
  specs.push_back(UniformSpec(cols, 8, cols, true));
  specs.push_back(UniformSpec(cols, 4, cols, false));
  specs.push_back(CodebookSpec(cols, Codebook::kNf4, 64));
  specs.push_back(CodebookSpec(cols, Codebook::kFp4, 64));
  specs.push_back(CodebookSpec(cols, Codebook::kLog4, 64));
  specs.push_back(CodebookSpec(cols, Codebook::kLog3, 32));
  specs.push_back(CodebookSpec(cols, Codebook::kE2M1, 32, ScaleGrid::kPowersOfTwo));
  specs.push_back(CodebookSpec(cols, Codebook::kE2M1, 16, ScaleGrid::kE4M3));
  specs.push_back(CodebookSpec(cols, Codebook::kFp8E4M3, cols));
  specs.push_back(CodebookSpec(cols, Codebook::kFp8E5M2, cols));
  specs.push_back(CodebookSpec(cols, Codebook::kFp8E4M3, cols));
  specs.back().has_one_scale = true;
  specs.push_back(UniformSpec(cols, 4, cols, true));
  specs.back().has_one_scale = true;
  return specs;
}

}  // namespace nibble
