#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "codec/quantized_tensor.h"
#include "tensor/tensor.h"

namespace nibble {

/// A quantized matrix whose codes and scales move by the signs of a loss's gradient (SignSGD as in
/// AutoRound, Cheng et al. 2023). Every weight has a position among the levels of its grid, a real
/// number whose nearest whole one is its code, and every group a factor of its scale:
///   w = level(round(position)) * scale * factor
/// Rounding counts as the identity in derivatives.
class LearnedRounding {
 public:
  /// Starts at `start` (kUniform, or kCodebook of numbers only; a scale a group). weights: what it
  /// stands for; the closer one lies to the edge between two codes, the sooner its code moves.
  LearnedRounding(ThreadPool& pool, const QuantizedTensor& start, std::span<const float> weights,
                  DType scale_dtype);

  /// What the matrix stands for now, [rows, cols].
  void Dequantize(ThreadPool& pool, float* weights) const;
  /// Moves every position and factor against its derivative. gradients: d loss / d weight, [rows,
  /// cols].
  void Step(ThreadPool& pool, const float* gradients, float position_rate, float factor_rate);
  /// Codes and scales as they are now; zero points are those of the start.
  QuantizedTensor Result() const;
  /// Of the weights, how many have another code than at the start.
  std::int64_t NumMoved() const;

 private:
  void OrderLevels();
  float StartOf(float rank, float weight, float scale, float zero) const;
  template <typename Body>
  void ForGroups(ThreadPool& pool, Body&& body) const;
  std::int64_t NumGroups() const { return start_.spec.num_groups(); }
  float ScaleOf(std::int64_t group) const;
  // The code that stands for 0, on uniform grids.
  float ZeroOf(std::int64_t group) const;
  float LevelOf(float rank, float zero) const;

  QuantizedTensor start_;
  DType scale_dtype_;
  std::vector<float> levels_;          // of a codebook, rising; empty for uniform grids
  std::vector<std::uint8_t> code_of_;  // of a level of a codebook
  std::vector<float> positions_;       // [rows * cols], from 0 to the highest level
  std::vector<float> factors_;         // [rows * groups]
  float top_;
};

}  // namespace nibble
