#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "kernels/context.h"
#include "kernels/linear.h"
#include "kernels/paged_attention.h"
#include "model/weight_plan.h"

namespace nibble {

/// The most a step will ever hold: sizes of the workspace, fixed at load.
struct ModelLimits {
  std::int64_t max_tokens = 512;      // rows of a step
  std::int64_t max_sequences = 64;    // sequences of a step
  std::int64_t max_positions = 2048;  // context
  std::int64_t max_logit_rows = 64;   // rows of logits computed at a time
};

/// Sees the input of every linear before it is multiplied: x [num_tokens, in_features] fp32, row
/// stride in floats. `module` is the canonical name, e.g. "model.layers.3.mlp.down_proj". Solvers
/// and calibration rest on it.
using LinearObserver =
    std::function<void(std::string_view module, const float* x, std::int64_t x_stride,
                       std::int64_t num_tokens, std::int64_t in_features)>;

/// One step as the model sees it: flat rows, sequence after sequence.
struct ForwardBatch {
  std::span<const TokenId> token_ids;            // [num_tokens]
  std::span<const AttentionSequence> sequences;  // cover the rows in order
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(token_ids.size()); }
};

/// The llama family (Llama 2/3.x, SmolLM2, Mistral, Qwen2, Qwen3, Gemma 3) as one plain forward
/// pass. Weights and workspace have fixed addresses; Forward allocates nothing.
class LlamaModel {
 public:
  /// Adds the lines of weights, "rope", "workspace" and "scratch" to the device's ledger without
  /// allocating. Errors: kUnsupported for what this device's kernels lack.
  static Result<void> Plan(const Checkpoint& checkpoint, const WeightPlan& weights,
                           const ModelLimits& limits, ActivationMode activations, Device& device);

  /// Allocates what Plan announced. The weights, or a part of them, are still to be loaded to
  /// weight_places() by LoadWeights. A plan with streamed weights needs PrepareSteps before.
  static Result<std::unique_ptr<LlamaModel>> Allocate(const Checkpoint& checkpoint,
                                                      const WeightPlan& weights,
                                                      const ModelLimits& limits,
                                                      ActivationMode activations, Device& device);
  /// Allocates and loads all weights.
  static Result<std::unique_ptr<LlamaModel>> Load(const Checkpoint& checkpoint,
                                                  const WeightPlan& weights,
                                                  const ModelLimits& limits,
                                                  ActivationMode activations, Device& device,
                                                  const ExpectedHashes& hashes = {},
                                                  const LoadProgress& progress = {});

  const ModelConfig& config() const { return config_; }
  const ModelLimits& limits() const { return limits_; }
  Device& device() { return *device_; }
  KernelContext& context() { return context_; }
  WeightPlaces weight_places() const { return {weights_.data(), host_weights_.data()}; }
  /// The arithmetic of integer weights; may be changed between steps.
  void SetActivations(ActivationMode mode) { context_.activations = mode; }
  ActivationMode activations() const { return context_.activations; }

  KvCacheSpec kv_spec(KvDType dtype) const;

  /// Runs all blocks over the batch, writing k and v of every token to the cache. The final hidden
  /// states stay in the workspace until the next Forward; Logits reads them.
  void Forward(const ForwardBatch& batch, KvCache& cache, const LinearObserver* observer = nullptr);

  /// logits[i, :] of row rows[i] of the last Forward, fp32 [rows.size(), vocab_size]; at most
  /// max_logit_rows.
  void Logits(std::span<const std::int32_t> rows, float* logits,
              const LinearObserver* observer = nullptr) {
    LogitsOf(At(at_.residual), rows, logits, observer);
  }
  /// The same of hidden states [num_tokens, hidden_size] that a walk block by block ended with.
  void LogitsOf(const float* hidden, std::span<const std::int32_t> rows, float* logits,
                const LinearObserver* observer = nullptr);

  /// hidden[i, :] = the embedding of ids[i]: where a walk block by block starts.
  void Embed(std::span<const TokenId> ids, float* hidden);

  /// One decoder block alone, in place on hidden [num_tokens, hidden_size]: what a solver works on.
  /// A cache of one layer serves whichever block runs; it must have run all earlier rows too.
  void ForwardBlock(std::int64_t layer, float* hidden, const ForwardBatch& batch, KvCache& cache,
                    const LinearObserver* observer = nullptr);

  // ForwardBlock step by step, with the same bits: for a walk that replaces the linears of one step
  // before any row takes the next. Rows are contiguous.

  /// x [num_tokens, hidden_size]: what q, k and v multiply.
  void AttentionInput(std::int64_t layer, float* hidden, std::int64_t num_tokens, float* x);
  /// attention [num_tokens, num_heads * head_dim] of that x: what o multiplies.
  void AttentionOutput(std::int64_t layer, const float* x, const ForwardBatch& batch,
                       KvCache& cache, float* attention);
  /// hidden += o(attention).
  void AddAttention(std::int64_t layer, const float* attention, std::int64_t num_tokens,
                    float* hidden);
  /// x [num_tokens, hidden_size]: what gate and up multiply.
  void FeedForwardInput(std::int64_t layer, float* hidden, std::int64_t num_tokens, float* x);
  /// product [num_tokens, intermediate_size] of that x: what down multiplies.
  void FeedForwardProduct(std::int64_t layer, const float* x, std::int64_t num_tokens,
                          float* product);
  /// hidden += down(product).
  void AddFeedForward(std::int64_t layer, const float* product, std::int64_t num_tokens,
                      float* hidden);

 private:
  struct Layer {
    const float* input_norm = nullptr;
    const float* feed_forward_norm = nullptr;
    const float* attention_out_norm = nullptr;     // Gemma 3, or null
    const float* feed_forward_out_norm = nullptr;  // Gemma 3, or null
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    PackedWeight q, k, v, o, gate, up, down;
    const float* q_bias = nullptr;
    const float* k_bias = nullptr;
    const float* v_bias = nullptr;
    const float* o_bias = nullptr;
    const float* gate_bias = nullptr;
    const float* up_bias = nullptr;
    const float* down_bias = nullptr;
  };
  // Offsets into the workspace, in floats.
  struct Workspace {
    std::int64_t residual = 0, normed = 0, delta = 0, qkv = 0, attention = 0, gate_up = 0,
                 product = 0;
    std::int64_t total = 0;
  };

  LlamaModel() = default;
  static Workspace LayOut(const ModelConfig& config, const ModelLimits& limits);
  static std::size_t ScratchBytes(const Device& device, const ModelConfig& config,
                                  const ModelLimits& limits, ActivationMode activations);
  void Bind(const WeightPlan& plan);
  Result<void> FillRope();
  const float* RopeOf(std::int64_t layer) const;
  void Attend(std::int64_t layer, std::int64_t cache_layer, std::int64_t rows,
              const ForwardBatch& batch, KvCache& cache, const LinearObserver* observer);
  void FeedForward(std::int64_t layer, std::int64_t rows, const LinearObserver* observer);
  // The linears of a block and what stands between them, from memory to memory.
  void QkvAttention(std::int64_t layer, std::int64_t cache_layer, const float* x, std::int64_t rows,
                    const ForwardBatch& batch, KvCache& cache, float* attention);
  void OutputProjection(std::int64_t layer, const float* attention, std::int64_t rows,
                        float* delta);
  void GateUp(std::int64_t layer, const float* x, std::int64_t rows, float* product);
  void DownProjection(std::int64_t layer, const float* product, std::int64_t rows, float* delta);
  void NormOutput(const float* norm, std::int64_t rows, float* delta);
  float* At(std::int64_t offset) const { return workspace_.as<float>() + offset; }

  ModelConfig config_;
  ModelLimits limits_;
  Device* device_ = nullptr;
  KernelContext context_;
  Workspace at_;
  DeviceBuffer weights_, rope_, workspace_, scratch_;
  DeviceBuffer host_weights_, weight_slots_;  // of streamed weights
  std::vector<Layer> layers_;
  PackedWeight embedding_, head_;
  const float* final_norm_ = nullptr;
};

/// cos and sin of every position for a RopeConfig, computed in fp32 the way the reference
/// implementations do, so that rotated values agree. Layout: RopeTable.
void FillRopeTable(const RopeConfig& rope, std::int64_t head_dim, std::int64_t max_positions,
                   float* cos_sin);

}  // namespace nibble
