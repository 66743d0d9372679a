#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "engine/memory_plan.h"
#include "engine/step.h"
#include "engine/step_times.h"
#include "kernels/step.h"
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
  std::optional<std::uint64_t> kv_cache_bytes = {};      // exactly so many bytes
  std::uint64_t kv_spill_bytes = 0;         // host memory for blocks that the pool evicts, at most
  std::uint64_t cpu_offload_bytes = 0;      // host memory for weights of a card, at most
  double gpu_memory_utilization = 0.9;      // of a card, where it is one
  std::optional<MemoryBudget> budget = {};  // instead of what the device has
  /// Called once when the plan holds, before memory is taken and weights are read.
  std::function<void(const MemoryBudget&)> on_planned = {};
  bool touch_pages = true;    // give the pool its pages now, so that nothing fails later
  bool touch_behind = false;  // ... in the background, while the first steps run already
};

/// Runs steps on one device: flat batch in, tokens out. On a CPU a step is done when Launch returns
/// (depth 0), so Retire only hands over the result. A device that captures steps runs one step
/// ahead (depth 1); its steps of decodes alone are recorded once per class of batch size, padded
/// with sequences of one token that write to a block nobody owns, and replayed.
class ModelRunner final : public StepExecutor {
 public:
  /// Plans all memory (weights, rope, workspace, scratch, step inputs, attention, sampler, logits,
  /// graphs, kv_scales, kv_cache, kv_spill), refuses what does not fit before a weight is read,
  /// then loads. Errors: kOutOfMemory with the bytes and the flag that would help;
  /// kInvalidArgument for a cpu_offload_bytes that cannot be had, or fp8 activations that no weight
  /// meets; kUnsupported for activations that the device does not have; what loading gives.
  static Result<std::unique_ptr<ModelRunner>> Create(const Checkpoint& checkpoint,
                                                     const RunnerConfig& config, Device& device,
                                                     const ExpectedHashes& hashes = {},
                                                     const LoadProgress& progress = {});

  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Retire(Ticket ticket) override;
  int depth() const override { return depth_; }
  Result<void> Health() override { return device_->Health(); }
  std::optional<Clock::TimePoint> PlanNextAt() const override;

  LlamaModel& model() { return *model_; }
  const RunnerConfig& config() const { return config_; }
  DeviceKind device_kind() const { return device_->kind(); }
  std::int64_t num_blocks() const { return num_blocks_; }
  std::int64_t num_host_blocks() const { return num_host_blocks_; }
  std::int64_t block_bytes() const { return static_cast<std::int64_t>(cache_.spec.BlockBytes()); }
  std::int32_t block_size_tokens() const {
    return static_cast<std::int32_t>(cache_.spec.block_size_tokens);
  }
  /// Weights that each step copies from host memory to the card.
  std::uint64_t streamed_bytes_per_step() const { return streamed_bytes_per_step_; }
  /// Where activations are fp8: the matrices whose products meet fp16 ones instead.
  struct Fp16Matrix {
    std::string name;
    WeightSpec spec;
  };
  const std::vector<Fp16Matrix>& fp16_matrices() const { return fp16_matrices_; }
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
  /// Logits of the last of `tokens`, run from an empty context through a small cache that holds
  /// kv_dtype, whatever the pool holds and however small it is. On a CPU that is memory of its own,
  /// and "ready" has not come; on a card it is the beginning of the pool (nothing else may be
  /// running), since all memory is given out there.
  /// Errors: kLimitExceeded unless there are 1 to kMinPositions tokens; kOutOfMemory; what Validate
  /// says of the cache.
  Result<std::vector<float>> LastLogits(std::span<const TokenId> tokens, KvDType kv_dtype);
  /// Logits of rows [row, row + count) of the current chunk, fp32 [count, vocab_size], valid until
  /// the next call.
  Result<const float*> ChunkLogits(std::int64_t row, std::int64_t count);
  /// Positions that every model can run, however low max_model_len is: room for LastLogits.
  static constexpr std::int32_t kMinPositions = 16;
  std::int64_t max_logit_rows() const { return model_->limits().max_logit_rows; }

 private:
  ModelRunner() = default;
  struct ScoreRow {  // one row of logits that a step needs: its place in the result
    std::size_t sequence = 0;
    bool is_prompt = false;
  };
  // A step between Launch and Retire.
  struct InFlight {
    Ticket ticket{0};
    StepResult result;
    std::vector<ScoreRow> score_rows;
    std::vector<SampleResult> samples;  // beside score_rows
    StepSlot slot{0};
    Event done{0};
    std::size_t kind = 0;  // for times_
    Clock::TimePoint launched;
  };
  void CopyBlocks(const StepPlan& plan);
  void Gather(const StepPlan& plan, InFlight& step);
  Result<void> RunStep(const StepPlan& plan, InFlight& step);
  Result<void> RecordSteps();
  void RunKernels(InFlight& step);
  void PadTo(std::size_t rows);
  Result<void> RunChunkOver(KvCache& cache, std::span<const TokenId> window,
                            std::int64_t first_position, std::int64_t num_rows,
                            const LinearObserver* observer);
  StepInputs Inputs() const;

  RunnerConfig config_;
  Device* device_ = nullptr;
  std::unique_ptr<LlamaModel> model_;
  DeviceBuffer kv_buffer_, kv_scales_, kv_spill_, logits_;
  KvCache cache_;
  std::int64_t num_blocks_ = 0, num_host_blocks_ = 0;
  BlockId spare_block_{-1};  // behind the pool: where padding writes
  std::uint64_t streamed_bytes_per_step_ = 0;
  std::vector<Fp16Matrix> fp16_matrices_;
  int depth_ = 0;
  std::uint64_t next_ticket_ = 1;
  std::deque<InFlight> in_flight_;
  StepTimes times_;
  Clock::TimePoint last_retired_;
  std::map<std::size_t, CapturedStep> captured_;  // by rows of the padded batch
  // Step inputs, reused.
  std::vector<TokenId> token_ids_;
  std::vector<std::int32_t> token_slots_;
  std::vector<AttentionSequence> sequences_;
  std::vector<std::int32_t> logit_rows_;
  std::vector<SampleRow> sample_rows_;
  std::vector<std::int32_t> sample_slots_;
  std::vector<float> host_logits_;  // of ChunkLogits, where logits lie elsewhere
  std::jthread touching_;           // last: ends before the memory it touches
};

}  // namespace nibble
