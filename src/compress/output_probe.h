#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/block_walk.h"
#include "device/device.h"
#include "model/llama.h"

namespace nibble {

/// A whole model whose output is compared while the linears of one input are those of another
/// model. Token windows have reached the start of one block; each comparison runs them from there
/// to the logits. On a CPU device, with int16 activations.
class OutputProbe {
 public:
  /// tokens: windows of `length`. Logits are compared at every position_stride-th position.
  struct Text {
    std::span<const TokenId> tokens;
    std::int64_t length = 0;
    std::int64_t position_stride = 1;
  };
  /// Adds its memory to the ledger of the device.
  static Result<void> Plan(const Checkpoint& source, const Text& text, Device& device);
  /// Loads the model and takes its logits. source and text must outlive the probe.
  static Result<std::unique_ptr<OutputProbe>> Create(const Checkpoint& source, const Text& text,
                                                     Device& device);

  /// The mean KL(source || changed) if `group` of the current block is that of `other`, a model of
  /// limits() which has it loaded with the block's vectors.
  double Compare(LinearGroup group, LlamaModel& other);
  /// On to the next block.
  void Advance();

  const ModelLimits& limits() const { return limits_; }
  std::int64_t block() const { return block_; }

 private:
  OutputProbe(const Text& text, const ModelLimits& limits, Device& device)
      : text_(text), limits_(limits), device_(device) {}
  static ModelLimits LimitsOf(const Text& text);
  std::int64_t num_rows() const { return static_cast<std::int64_t>(text_.tokens.size()); }
  void RunBlock(std::int64_t block, float* hidden, LinearGroup group, LlamaModel* other);
  template <typename Take>
  void ForLogits(float* hidden, Take&& take);

  Text text_;
  ModelLimits limits_;
  Device& device_;
  std::unique_ptr<LlamaModel> model_;
  std::vector<std::int32_t> rows_;  // that are compared
  DeviceBuffer kv_buffer_, hidden_, changed_, inner_, input_, logits_, reference_;
  KvCache cache_;
  std::vector<std::vector<BlockId>> block_tables_;
  std::vector<AttentionSequence> sequences_;
  std::int64_t block_ = 0;
};

}  // namespace nibble
