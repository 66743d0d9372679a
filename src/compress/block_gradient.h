#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/model_config.h"
#include "kernels/gemm.h"

namespace nibble {

/// The linears of a decoder block, in the order of the forward pass.
enum class BlockLinear : std::uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr std::size_t kNumBlockLinears = 7;

/// What a decoder block holds besides its matrices; absent parts are empty.
struct BlockVectors {
  std::vector<float> input_norm, post_attention_norm;     // [hidden_size]
  std::vector<float> q_norm, k_norm;                      // [head_dim]
  std::array<std::vector<float>, kNumBlockLinears> bias;  // [out_features]
};

/// One decoder block in fp32 and its derivatives with respect to its matrices, for windows of equal
/// length that start at position 0. All sums have a fixed order: results do not depend on the
/// number of threads or on the ISA.
class BlockGradient {
 public:
  /// Matrices [out_features, in_features], row-major, by BlockLinear.
  using Weights = std::array<const float*, kNumBlockLinears>;
  using Gradients = std::array<float*, kNumBlockLinears>;

  BlockGradient(const ModelConfig& config, BlockVectors vectors, std::int64_t length,
                std::int64_t max_windows, ThreadPool& pool);
  /// Bytes that one takes.
  static std::uint64_t SizeBytes(const ModelConfig& config, std::int64_t length,
                                 std::int64_t max_windows, int num_workers);

  /// out = block(x); x, out [num_windows * length, hidden_size].
  void Forward(const Weights& weights, const float* x, std::int64_t num_windows, float* out);

  /// Given d loss / d out of the last Forward, with the same weights and x: gradients =
  /// d loss / d weight.
  void Backward(const Weights& weights, const float* d_out, const Gradients& gradients);

  std::int64_t OutFeatures(BlockLinear linear) const;
  std::int64_t InFeatures(BlockLinear linear) const;

 private:
  struct Head;  // one head of one window
  // What one worker needs for attention.
  struct Scratch {
    std::vector<float> scores, d_scores;  // [kQueryRows, length]
    GemmScratch gemm;
  };

  std::int64_t rows() const { return num_windows_ * length_; }
  std::int64_t QSize() const { return config_.num_heads * config_.head_dim; }
  std::int64_t KvSize() const { return config_.num_kv_heads * config_.head_dim; }

  void Multiply(const Weights& weights, BlockLinear linear, const float* x, float* y);
  void AddInputGradient(const Weights& weights, BlockLinear linear, const float* d_y,
                        GemmOutput output, float* d_x);
  void WeightGradient(BlockLinear linear, const float* d_y, const float* x,
                      const Gradients& gradients);
  void Norm(const float* x, const std::vector<float>& weight, std::int64_t count, float* y);
  void AddNormGradient(const float* x, const std::vector<float>& weight, std::int64_t count,
                       const float* d_y, GemmOutput output, float* d_x);
  // Positions to angles, in place; direction -1 takes it back, which is also its derivative.
  void Rotate(float* x, std::int64_t num_heads, float direction);
  void Attend();
  void AttendGradient();
  template <typename Body>
  void ForKeyHeads(Body&& body);
  void Probabilities(const Head& head, std::int64_t begin, std::int64_t end, Scratch& scratch);
  void HeadOutput(const Head& head, Scratch& scratch);
  void HeadGradient(const Head& head, Scratch& scratch);
  template <typename Body>
  void ForRows(std::int64_t count, Body&& body);

  ModelConfig config_;
  BlockVectors vectors_;
  std::int64_t length_;
  std::int64_t num_windows_ = 0;
  ThreadPool& pool_;
  std::vector<float> cos_sin_;                 // [length, head_dim]
  std::vector<float> normed_;                  // input of q, k, v
  std::vector<float> q_, k_, v_;               // rotated
  std::vector<float> raw_q_, raw_k_;           // before their norms; only if they have them
  std::vector<float> attention_;               // input of o
  std::vector<float> middle_, middle_normed_;  // residual after attention; input of gate, up
  std::vector<float> gate_, up_, product_;     // product: input of down
  std::vector<float> d_q_, d_k_, d_v_, d_attention_;
  std::vector<float> d_middle_, d_middle_normed_, d_gate_, d_up_;  // d_gate_ begins as d product
  std::vector<Scratch> scratch_;                                   // by worker
  GemmScratch gemm_;
};

}  // namespace nibble
