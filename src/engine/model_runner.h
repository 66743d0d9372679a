#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "engine/step.h"
#include "model/llama.h"

namespace nibble {

struct RunnerConfig {
  std::int32_t max_num_sequences = 64;
  std::int32_t max_batched_tokens = 512;  // rows of a step
  std::int32_t max_model_len = 2048;
  KvDType kv_dtype = KvDType::kBF16;
  ActivationMode activations = ActivationMode::kInt16;
  TableFormat tables = TableFormat::kAuto;
  std::optional<std::int64_t> num_blocks_override = {};  // exactly so many blocks
  std::optional<std::uint64_t> kv_cache_bytes = {};      // at most so many bytes
  std::uint64_t available_bytes = 0;  // what the plan may use in all; 0: what the machine has free
  bool touch_pages = true;            // give the pool its pages now, so that nothing fails later
};

/// Runs steps on one device: flat batch in, tokens out. On a CPU a step is done when Launch returns
/// (depth 0), so Retire only hands over the result.
class ModelRunner final : public StepExecutor {
 public:
  /// Plans all memory (weights, rope, workspace, scratch, logits, kv_cache), refuses what does not
  /// fit before a weight is read, then loads. Errors: kOutOfMemory with the bytes and the flag that
  /// would help; what loading gives.
  static Result<std::unique_ptr<ModelRunner>> Create(const Checkpoint& checkpoint,
                                                     const RunnerConfig& config, Device& device,
                                                     const ExpectedHashes& hashes = {},
                                                     const LoadProgress& progress = {});

  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Retire(Ticket ticket) override;
  int depth() const override { return 0; }

  LlamaModel& model() { return *model_; }
  const RunnerConfig& config() const { return config_; }
  std::int64_t num_blocks() const { return cache_.num_blocks; }
  std::int32_t block_size_tokens() const {
    return static_cast<std::int32_t>(cache_.spec.block_size_tokens);
  }
  std::int64_t vocab_size() const { return model_->config().vocab_size; }

  /// Evaluation: runs tokens from an empty context over the first blocks of the pool (nothing else
  /// may be running), in chunks of max_batched_tokens. For each chunk, `visit(first_position,
  /// num_rows)` is called while its hidden states are at hand; it reads logits by ChunkLogits.
  /// Errors: kLimitExceeded if the pool or max_model_len is too small.
  Result<void> RunWindow(
      std::span<const TokenId> tokens,
      const std::function<Result<void>(std::int64_t first_position, std::int64_t num_rows)>& visit,
      const LinearObserver* observer = nullptr);
  /// Only the chunk [first_position, first_position + num_rows) of such a window, whose earlier
  /// chunks have been run.
  Result<void> RunChunk(std::span<const TokenId> window, std::int64_t first_position,
                        std::int64_t num_rows, const LinearObserver* observer = nullptr);
  /// Logits of rows [row, row + count) of the current chunk, fp32 [count, vocab_size], valid until
  /// the next call.
  const float* ChunkLogits(std::int64_t row, std::int64_t count);
  std::int64_t max_logit_rows() const { return model_->limits().max_logit_rows; }

 private:
  ModelRunner() = default;
  struct ScoreRow {  // one row of logits that this step needs
    std::size_t sequence = 0;
    bool is_prompt = false;
    std::int32_t batch_row = 0;
    SampleRow sample;
  };
  void RunSampling(const std::vector<ScoreRow>& rows, StepResult& result);

  RunnerConfig config_;
  Device* device_ = nullptr;
  std::unique_ptr<LlamaModel> model_;
  DeviceBuffer kv_buffer_, logits_;
  KvCache cache_;
  std::uint64_t next_ticket_ = 1;
  std::optional<std::pair<Ticket, StepResult>> finished_;
  // Step inputs, reused.
  std::vector<TokenId> token_ids_;
  std::vector<AttentionSequence> sequences_;
  std::vector<ScoreRow> score_rows_;
};

/// Bytes of memory that the machine, and the cgroup around this process, still have to give.
std::uint64_t AvailableMemoryBytes();

}  // namespace nibble
