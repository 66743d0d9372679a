#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "codec/quantized_tensor.h"
#include "compress/block_gradient.h"
#include "solve/learned_rounding.h"

namespace nibble {

struct LearnOptions {
  std::int64_t iterations = 200;
  std::int64_t batch_tokens = 512;  // of one iteration, in whole windows: at least one
  // How far the first step moves a position among the levels of its grid, and a factor of a scale;
  // the last tends to 0.
  double position_rate = 0.1 / 200;
  double factor_rate = 0.3 / 200;
  std::uint64_t seed = 0;  // which windows meet in a batch
  DType scale_dtype = DType::kF16;
};

struct LearnReport {
  double error_before = 0.0;   // mean over tokens of |out - target|^2 / |target|^2
  double error_after = 0.0;    // as written
  std::int64_t num_moved = 0;  // codes
};

/// A matrix of a block: what it was, and what it is to be stored as.
struct LearnedLinear {
  std::vector<float> weights;
  std::optional<QuantizedTensor> quantized;  // absent: stays as it is
};
using LearnedLinears = std::array<LearnedLinear, kNumBlockLinears>;

/// Learned rounding (AutoRound, Cheng et al. 2023) of all quantized matrices of one decoder block
/// together: the block's output, relative to the norm of each token's target as the next block's
/// norm sees it, over batches of windows, by SignSGD.
class BlockLearner {
 public:
  /// Windows start at position 0.
  BlockLearner(const ModelConfig& config, BlockVectors vectors, std::int64_t length,
               const LearnOptions& options, ThreadPool& pool);
  /// Bytes, matrices included.
  static std::uint64_t SizeBytes(const ModelConfig& config, std::int64_t length,
                                 const LearnOptions& options, int num_workers);

  /// inputs, targets: [num_windows * length, hidden_size]. The quantized matrices are starts and
  /// results; they stay as they are if what was learned is no better on all windows. `progress` is
  /// called once an iteration and returns false to stop (kCancelled).
  Result<LearnReport> Learn(std::span<const float> inputs, std::span<const float> targets,
                            LearnedLinears& linears, const std::function<bool()>& progress);

 private:
  // Runs the block over a batch; returns its mean error and leaves d error / d out, but for a
  // factor.
  double ErrorOf(std::span<const std::int64_t> windows);
  double ErrorOfAll();
  // The error of a token, whose output becomes the derivative.
  double TakeError(const float* target, float* out) const;
  void Dequantize();
  // share: of the rates.
  void Step(double share);
  std::int64_t num_windows() const {
    return static_cast<std::int64_t>(inputs_.size()) / window_floats();
  }
  std::int64_t window_floats() const { return length_ * config_.hidden_size; }

  ModelConfig config_;
  std::int64_t length_, batch_windows_;
  LearnOptions options_;
  ThreadPool& pool_;
  BlockGradient block_;
  std::span<const float> inputs_, targets_;
  std::array<std::optional<LearnedRounding>, kNumBlockLinears> rounding_;
  std::array<std::vector<float>, kNumBlockLinears> current_, gradients_;
  std::vector<float> x_, out_;  // of a batch; out becomes its derivative
};

/// Norms and biases of a block.
Result<BlockVectors> ReadBlockVectors(const Checkpoint& checkpoint, std::int64_t block,
                                      ThreadPool& pool);

}  // namespace nibble
