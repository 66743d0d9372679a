#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "engine/request.h"
#include "engine/step.h"

namespace nibble {

class TextDecoderFactory;
class Tokenizer;

struct EngineConfig {
  std::int32_t max_num_sequences = 256;    // running at once
  std::int32_t max_batched_tokens = 2048;  // prefill + decode tokens in one step
  std::int32_t max_model_len = 2048;       // prompt + output of one sequence
  std::int32_t block_size_tokens = 16;     // from the device
  std::int32_t num_blocks = 0;             // of the KV pool
  std::int32_t num_host_blocks = 0;        // room for blocks that it evicts (docs/kv_spill.md)
  std::int64_t block_bytes = 0;            // of one block, for statistics
  std::int32_t max_queued_requests = 1024;
  bool enable_prefix_caching = true;
  bool plan_late = false;  // requests come at any time: a step is planned when it is about to start
  std::int64_t vocab_size = 0;
  std::vector<TokenId> eos_token_ids;
  std::int32_t prefix_hash_bits = 64;  // tests lower it, so that collisions are common
};
Result<void> Validate(const EngineConfig& config);

/// Checks a request against the engine's limits and a model's vocabulary: prompt not empty and
/// within the context, token ids below vocab_size, parameters in range. The message names the field
/// as the API spells it.
Result<void> Validate(const GenerationRequest& request, const EngineConfig& config);

struct Histogram {
  std::vector<double> bounds;         // upper bounds, ascending
  std::vector<std::uint64_t> counts;  // per bucket, not cumulative; one more for +Inf
  double sum = 0.0;
  std::uint64_t count = 0;
};

/// A snapshot for /metrics and `bench`; names follow vLLM's metrics.
struct EngineStats {
  std::int32_t num_requests_running = 0;
  std::int32_t num_requests_waiting = 0;
  double kv_cache_usage = 0.0;  // 0..1: blocks held by sequences / total
  std::int32_t num_blocks_total = 0, num_blocks_free = 0, num_blocks_held = 0,
               num_blocks_cached = 0, num_blocks_fenced = 0;
  std::uint64_t num_preemptions = 0;
  std::uint64_t prefix_cache_queries = 0;  // tokens
  std::uint64_t prefix_cache_hits = 0;
  std::uint64_t host_cache_queries = 0;  // tokens that the pool did not have
  std::uint64_t host_cache_hits = 0;
  std::int32_t num_host_blocks_total = 0, num_host_blocks_used = 0;
  std::uint64_t bytes_spilled = 0, bytes_restored = 0;
  std::uint64_t prompt_tokens = 0, generation_tokens = 0, prompt_tokens_cached = 0;
  std::uint64_t finished[8] = {};  // by FinishReason
  std::uint64_t num_steps = 0;
  Histogram time_to_first_token_s, inter_token_latency_s, e2e_request_latency_s,
      request_queue_time_s, request_prefill_time_s, request_decode_time_s, request_inference_time_s,
      iteration_tokens, request_prompt_tokens, request_generation_tokens, request_params_n,
      request_params_max_tokens;
  Clock::TimePoint last_step;  // when a step last finished
  std::string device_failure;  // why no step will succeed again; empty: all is well
};

/// Continuous batching over one StepExecutor. One thread owns the engine and calls Step or RunLoop;
/// Submit, Cancel, Stats and the drain calls may come from any thread.
class Engine {
 public:
  /// tokenizer may be null: then no text is produced and stop strings are refused.
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config, StepExecutor& executor,
                                                const Tokenizer* tokenizer, const Clock& clock);
  /// The same with any source of text; null: none.
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config, StepExecutor& executor,
                                                std::unique_ptr<TextDecoderFactory> text,
                                                const Clock& clock);
  virtual ~Engine() = default;

  /// Validates and queues. Errors: kInvalidArgument, kLimitExceeded (the queue is full),
  /// kUnavailable (draining). After success exactly one terminal event per choice reaches the sink.
  virtual Result<RequestId> Submit(GenerationRequest request, std::shared_ptr<OutputSink> sink) = 0;
  /// The client left. Frees the request's blocks within two steps. Unknown ids are ignored.
  virtual void Cancel(RequestId request) = 0;

  /// One turn: take in submissions and cancels, schedule, launch, retire, send events. False when
  /// there was nothing to do.
  virtual bool Step() = 0;
  /// Steps until stop is requested; sleeps when idle. After the request the rest is ended with
  /// kShutdown.
  virtual void RunLoop(std::stop_token stop) = 0;

  /// Refuse new work from now on; running and queued work goes on.
  virtual void StartDraining() = 0;
  /// Nothing queued or running.
  virtual bool idle() const = 0;

  virtual EngineStats Stats() const = 0;
  virtual const EngineConfig& config() const = 0;

  /// Recounts blocks, references, queue and batch. For tests and for an idle server: engine thread
  /// only, O(blocks). kInternal names what is broken.
  virtual Result<void> Audit() const { return {}; }
};

}  // namespace nibble
