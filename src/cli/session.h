#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "compress/certificate.h"
#include "device/device.h"
#include "engine/engine.h"
#include "engine/model_runner.h"
#include "tokenizer/tokenizer.h"

namespace nibble::cli {

/// The flags that every command with a model shares, in vLLM's spelling.
struct ModelFlags {
  std::string model;
  std::string model_flag;  // --model PATH beside the positional form
  std::string activations = "auto";
  std::string kv_cache_dtype = "auto";
  std::string quantization = "auto";  // what the user takes the model for; its content decides
  std::string dtype = "auto";
  std::string device = "cpu";
  std::optional<std::int64_t> max_model_len;
  std::int64_t max_num_seqs = 64;
  std::int64_t max_num_batched_tokens = 512;
  std::optional<std::int64_t> num_gpu_blocks_override;
  std::string kv_cache_memory_bytes;  // ParseBytes; empty: not given
  std::optional<double> gpu_memory_utilization;
  double kv_offloading_size = 0.0;  // GiB
  double cpu_offload_gb = 0.0;      // GiB, as vLLM's
  bool enable_prefix_caching = true;

  void DeclareModel(OptionSet& options);
  void DeclareEngine(OptionSet& options);
  void DeclareOffload(OptionSet& options);  // a part of DeclareEngine
  /// The model's path, whichever form was used. kInvalidArgument if none or both.
  Result<std::string> Path() const;
};

/// A model opened, checked, planned and loaded. Members are destroyed in reverse order.
struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<Certificate> certificate;
  std::unique_ptr<Device> device;
  std::unique_ptr<Tokenizer> tokenizer;  // null if the checkpoint has none
  std::unique_ptr<ModelRunner> runner;
};

struct LoadOptions {
  std::int64_t default_model_len =
      8192;  // used where the flags say nothing; cut by the model's own limit
  bool need_tokenizer = true;
  bool show_progress = true;
  TableFormat tables = TableFormat::kAuto;
  bool replay_golden_logits = true;
  bool touch_behind = false;  // the KV pool gets its pages while the first requests run
  /// Stands between the checkpoint that was opened and the model that is loaded.
  std::function<std::unique_ptr<Checkpoint>(std::unique_ptr<Checkpoint>)> wrap;
};

/// Opens the checkpoint, verifies its certificate while packing, replays the golden logits, and
/// says on standard error what it did. Errors as the steps give them; the message is fit for the
/// user.
Result<LoadedModel> LoadModel(const ModelFlags& flags, const LoadOptions& options,
                              const Environment& environment);

/// Only the tokenizer of a folder or a .gguf, the vocabulary alone suffices.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint);

/// The engine over a loaded model.
Result<std::unique_ptr<Engine>> MakeEngine(LoadedModel& model, const ModelFlags& flags,
                                           std::int32_t max_queued = 1024, bool plan_late = false);

/// What was asked for, or what the certificate says for auto, with the reason.
struct ActivationChoice {
  ActivationMode mode = ActivationMode::kInt16;
  std::string reason;
};
Result<ActivationChoice> ChooseActivations(const std::string& flag,
                                           const std::optional<Certificate>& certificate);

/// What activations are on the runner's device: "int16", "int8"; on a card "fp8" if that was
/// chosen, else "fp16".
const char* ActivationsName(ModelRunner& runner);

/// "5.42 GB of 71.3 GB (weights 4.12 GB, kv_cache 1.07 GB, ...)": one line for standard error.
std::string DescribePlan(const Device& device, const MemoryBudget& budget);

}  // namespace nibble::cli
