#include "cli/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string_view>

#include "base/clock.h"
#include "base/text.h"
#include "cli/progress.h"
#include "kernels/isa.h"

namespace nibble::cli {

void ModelFlags::DeclareModel(OptionSet& options) {
  options.Positional("MODEL", &model, "a folder, a .gguf file, or a name in the hub cache",
                     /*required=*/false);
  options.Add("--model", &model_flag, "the same, as a flag");
  options.Choice(
      "--activations", &activations, {"auto", "int16", "int8", "fp8"},
      "arithmetic of activations that meet integer weights; auto follows the certificate; a card "
      "computes with fp16, or on Hopper with fp8 where weights have 4 bits in groups of 128");
  options.Choice("--device", &device, {"cpu", "cuda"}, "where to run");
  options.Choice("--quantization,-q", &quantization,
                 {"auto", "awq", "awq_marlin", "bitsandbytes", "compressed-tensors", "fp8", "gguf",
                  "gptq", "gptq_marlin"},
                 "what the model is taken for, as in vLLM; its content decides, and a warning says "
                 "so where they differ");
  options.Choice("--dtype", &dtype, {"auto", "half", "float16", "bfloat16", "float", "float32"},
                 "as in vLLM: the type of keys and values where --kv-cache-dtype is auto; "
                 "activations are set by --activations");
}

void ModelFlags::DeclareEngine(OptionSet& options) {
  options.Group("Engine");
  options.Add("--max-model-len", &max_model_len, "longest context, prompt and output together");
  options.Add("--max-num-seqs", &max_num_seqs, "sequences that run at once");
  options.Add("--max-num-batched-tokens", &max_num_batched_tokens,
              "tokens of one step; longer prompts are cut in chunks");
  options.Add("--num-gpu-blocks-override", &num_gpu_blocks_override,
              "blocks of the KV cache, exactly (of 16 tokens; 64 on a card)");
  options.Add("--kv-cache-memory-bytes", &kv_cache_memory_bytes,
              "size of the KV cache, as 4G or 4GiB (1024) or 4g or 4GB (1000); on a card it goes "
              "beside --gpu-memory-utilization (default on a CPU: 512 MiB at most)");
  options.Add("--gpu-memory-utilization", &gpu_memory_utilization,
              "share of the card's memory for weights, KV cache and all else (default: 0.9)");
  options.Add(
      "--kv-offloading-size", &kv_offloading_size,
      "GiB of host memory for KV blocks that the cache evicts (0: they are computed again)");
  DeclareOffload(options);
  options.Choice("--kv-cache-dtype", &kv_cache_dtype,
                 {"auto", "bfloat16", "float16", "float32", "int8", "fp8", "fp8_e4m3"},
                 "storage of keys and values; fp8 (e4m3) on a card only");
  options.Add("--enable-prefix-caching", &enable_prefix_caching,
              "reuse the KV blocks of equal prompt beginnings");
}

void ModelFlags::DeclareOffload(OptionSet& options) {
  options.Add("--cpu-offload-gb", &cpu_offload_gb,
              "GiB of weights, of the last decoder blocks, that stay in host memory and are copied "
              "to the card each step: for models larger than the card (0: none)");
}

Result<std::string> ModelFlags::Path() const {
  if (!model.empty() && !model_flag.empty() && model != model_flag) {
    return Fail(ErrorCode::kInvalidArgument, "give the model once: as MODEL or as --model PATH");
  }
  const std::string& path = model.empty() ? model_flag : model;
  if (path.empty()) {
    return Fail(ErrorCode::kInvalidArgument,
                "which model? Give a folder, a .gguf file, or a hub name like org/name");
  }
  return path;
}

Result<ActivationChoice> ChooseActivations(const std::string& flag,
                                           const std::optional<Certificate>& certificate) {
  if (flag == "int16") {
    return ActivationChoice{ActivationMode::kInt16, "asked for"};
  }
  if (flag == "int8") {
    return ActivationChoice{ActivationMode::kInt8, "asked for"};
  }
  if (flag == "fp8") {
    return ActivationChoice{ActivationMode::kFp8, "asked for"};
  }
  if (!certificate) {
    return ActivationChoice{ActivationMode::kInt16, "no certificate"};
  }
  const double added = certificate->int8.kl_mean - certificate->int16.kl_mean;
  return ActivationChoice{certificate->auto_activations(),
                          fmt::format("the certificate: int8 adds KL {:.4f} to the weights' {:.4f}",
                                      added, certificate->int16.kl_mean)};
}

const char* ActivationsName(ModelRunner& runner) {
  if (runner.model().activations() == ActivationMode::kFp8) {
    return "fp8";
  }
  if (runner.device_kind() == DeviceKind::kCuda) {
    return "fp16";
  }
  return runner.model().activations() == ActivationMode::kInt8 ? "int8" : "int16";
}

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint) {
  if (checkpoint.gguf_vocabulary()) {
    return Tokenizer::FromGguf(*checkpoint.gguf_vocabulary(), checkpoint.path().string());
  }
  if (checkpoint.tokenizer_json()) {
    return Tokenizer::FromFolder(checkpoint.path().string());
  }
  return Fail(ErrorCode::kNotFound,
              fmt::format("{}: there is no tokenizer.json; copy it from the model's repository",
                          checkpoint.path().string()));
}

std::string DescribePlan(const Device& device, const MemoryBudget& budget) {
  const MemoryLedger& ledger = device.ledger();
  const auto human = [](std::uint64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
  if (!budget.is_card) {
    return fmt::format("{} of {} free ({})", human(ledger.planned_bytes()),
                       human(budget.free_bytes), DescribeLines(ledger));
  }
  return fmt::format("{} of the card's {} ({} free), {} of pinned host memory ({})",
                     human(ledger.planned_bytes(MemoryPlace::kDevice)), human(budget.total_bytes),
                     human(budget.free_bytes), human(ledger.planned_bytes(MemoryPlace::kHost)),
                     DescribeLines(ledger));
}

// --kv-cache-dtype auto. A CPU's cache has no fp16, a card's no F32, and neither rounds more than
// the type that takes its place. Without --dtype: bfloat16 on a CPU, float16 on CUDA, whose
// products take fp16 (docs/adr/0007).
static KvDType AutoKvDType(const ModelFlags& flags) {
  const bool is_card = flags.device == "cuda";
  if (flags.dtype == "float" || flags.dtype == "float32") {
    return is_card ? KvDType::kF16 : KvDType::kF32;
  }
  return is_card && flags.dtype != "bfloat16" ? KvDType::kF16 : KvDType::kBF16;
}

static KvDType KvDTypeOf(const ModelFlags& flags) {
  if (flags.kv_cache_dtype == "auto") {
    return AutoKvDType(flags);
  }
  if (flags.kv_cache_dtype == "int8") {
    return KvDType::kInt8;
  }
  if (flags.kv_cache_dtype == "fp8" || flags.kv_cache_dtype == "fp8_e4m3") {
    return KvDType::kFp8;
  }
  if (flags.kv_cache_dtype == "float32") {
    return KvDType::kF32;
  }
  return flags.kv_cache_dtype == "float16" ? KvDType::kF16 : KvDType::kBF16;
}

// "gptq" as people write it.
static std::string SpelledOut(const std::string& method) {
  return method == "gptq" ? "GPTQ" : method == "awq" ? "AWQ" : method == "fp8" ? "FP8" : method;
}

// What --quantization and the folder say of each other; empty where they agree.
static std::string NoteOnQuantization(const ModelFlags& flags, const Checkpoint& checkpoint) {
  if (flags.quantization == "auto") {
    return "";
  }
  constexpr std::string_view kKernels = "_marlin";  // vLLM's, of the same files
  std::string asked = flags.quantization;
  if (asked.ends_with(kKernels)) {
    asked.resize(asked.size() - kKernels.size());
  }
  const std::string path = checkpoint.path().string();
  if (checkpoint.format() == CheckpointFormat::kGguf) {
    return asked == "gguf" ? ""
                           : fmt::format("--quantization {}: {} is GGUF, and is loaded as that",
                                         flags.quantization, path);
  }
  const json::Value* method = checkpoint.quantization_config()
                                  ? checkpoint.quantization_config()->Find("quant_method")
                                  : nullptr;
  if (method == nullptr || method->AsString() == nullptr) {
    return fmt::format(
        "--quantization {}: {} is not quantized, and is served as it is; nibble "
        "quantize makes a smaller one",
        flags.quantization, path);
  }
  return *method->AsString() == asked
             ? ""
             : fmt::format("--quantization {}: {} is {}, and is loaded as that", flags.quantization,
                           path, SpelledOut(*method->AsString()));
}

// What becomes of the checkpoint's k_scale and v_scale; empty where there is nothing to say.
static std::string NoteOnKvScales(const Checkpoint& checkpoint, KvDType dtype) {
  const bool has_scales = !checkpoint.kv_scales().empty();
  if (dtype == KvDType::kFp8) {
    return has_scales ? "the fp8 KV cache takes the checkpoint's k_scale and v_scale"
                      : "the checkpoint has no k_scale and v_scale: the fp8 KV cache takes scales "
                        "of 1";
  }
  return has_scales ? fmt::format(
                          "the checkpoint's k_scale and v_scale are for an fp8 KV cache; "
                          "this one is {} and does not use them",
                          Name(dtype))
                    : "";
}

// Where activations are fp8: which matrices meet fp16 ones, those of all blocks in one.
static std::string NoteOnFp16Matrices(const ModelRunner& runner) {
  std::map<std::string, int> counts;
  for (const ModelRunner::Fp16Matrix& matrix : runner.fp16_matrices()) {
    std::string name = matrix.name;
    constexpr std::string_view kLayers = "model.layers.";
    if (name.starts_with(kLayers)) {
      name.replace(kLayers.size(), name.find('.', kLayers.size()) - kLayers.size(), "*");
    }
    ++counts[fmt::format("{} ({})", name, matrix.spec.ToString())];
  }
  std::string note;
  for (const auto& [name, count] : counts) {
    note += note.empty() ? "fp8 activations are for weights of 4 bits in symmetric groups of 128; "
                           "these meet fp16: "
                         : ", ";
    note += count > 1 ? fmt::format("{} x {}", count, name) : name;
  }
  return note;
}

// --kv-cache-memory-bytes and --gpu-memory-utilization.
static Result<void> SetMemory(const ModelFlags& flags, RunnerConfig& runner) {
  if (!flags.kv_cache_memory_bytes.empty()) {
    runner.kv_cache_bytes = ParseBytes(flags.kv_cache_memory_bytes);
    if (!runner.kv_cache_bytes) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--kv-cache-memory-bytes {}: expected a number of bytes such as "
                              "2147483648, 2G, 2GiB or 2.1GB",
                              Quote(flags.kv_cache_memory_bytes)));
    }
  }
  if (!flags.gpu_memory_utilization) {
    return {};
  }
  if (!(*flags.gpu_memory_utilization > 0.0 && *flags.gpu_memory_utilization <= 1.0)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--gpu-memory-utilization {}: expected a share above 0 and up to 1",
                            *flags.gpu_memory_utilization));
  }
  runner.gpu_memory_utilization = *flags.gpu_memory_utilization;
  if (flags.device != "cuda") {
    fmt::print(stderr,
               "warning: --gpu-memory-utilization is for GPUs (--device cuda) and changes nothing "
               "here; on a CPU --kv-cache-memory-bytes sets the size of the KV cache\n");
  }
  return {};
}

Result<LoadedModel> LoadModel(const ModelFlags& flags, const LoadOptions& options,
                              const Environment& environment) {
  const Clock::TimePoint begin = SystemClock().Now();
  NIBBLE_TRY(path, flags.Path());
  LoadedModel model;
  // First: whoever asks for a card that is not there learns it at once.
  if (flags.device == "cuda") {
    NIBBLE_TRY(device, MakeCudaDevice(0, environment.num_threads));
    model.device = std::move(device);
  } else {
    model.device = MakeCpuDevice(environment.num_threads);
  }
  NIBBLE_TRY(checkpoint, Checkpoint::Open(path, environment.hub_cache));
  model.checkpoint = options.wrap ? options.wrap(std::move(checkpoint)) : std::move(checkpoint);
  if (!options.wrap) {  // what stands between is not what was certified
    NIBBLE_TRY(certificate, LoadCertificate(*model.checkpoint));
    model.certificate = std::move(certificate);
  }
  auto tokenizer = LoadTokenizer(*model.checkpoint);
  if (tokenizer) {
    model.tokenizer = std::move(*tokenizer);
  } else if (options.need_tokenizer) {
    return tl::unexpected<Error>(tokenizer.error());
  }
  NIBBLE_TRY(activations, ChooseActivations(flags.activations, model.certificate));
  if (flags.device == "cuda" && activations.mode != ActivationMode::kFp8) {
    activations.reason = "of a card, unless --activations says fp8";
  }
  const ModelConfig& config = model.checkpoint->config();
  const std::int64_t limit = config.max_position_embeddings;
  const std::int64_t length =
      flags.max_model_len.value_or(std::min(options.default_model_len, limit));
  if (length < 1 || length > limit) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--max-model-len {}: this model takes 1 to {}", length, limit));
  }
  if (flags.max_num_seqs < 1 || flags.max_num_seqs > 4096 || flags.max_num_batched_tokens < 1 ||
      flags.max_num_batched_tokens > 65536) {
    return Fail(ErrorCode::kInvalidArgument,
                "--max-num-seqs takes 1 to 4096, --max-num-batched-tokens 1 to 65536");
  }
  if (flags.num_gpu_blocks_override && *flags.num_gpu_blocks_override < 1) {
    return Fail(ErrorCode::kInvalidArgument, "--num-gpu-blocks-override takes 1 or more");
  }
  if (!(flags.kv_offloading_size >= 0.0 && flags.kv_offloading_size <= 1 << 20)) {
    return Fail(ErrorCode::kInvalidArgument, "--kv-offloading-size takes 0 GiB or more");
  }
  if (!(flags.cpu_offload_gb >= 0.0 && flags.cpu_offload_gb <= 1 << 20)) {
    return Fail(ErrorCode::kInvalidArgument, "--cpu-offload-gb takes 0 GiB or more");
  }
  if (flags.kv_offloading_size > 0.0 && !flags.enable_prefix_caching) {
    return Fail(ErrorCode::kInvalidArgument,
                "--kv-offloading-size keeps what the prefix cache evicts, and that is off");
  }
  RunnerConfig runner{.max_num_sequences = static_cast<std::int32_t>(flags.max_num_seqs),
                      .max_batched_tokens = static_cast<std::int32_t>(
                          std::max(flags.max_num_batched_tokens, flags.max_num_seqs)),
                      .max_model_len = static_cast<std::int32_t>(length),
                      .kv_dtype = KvDTypeOf(flags),
                      .activations = activations.mode,
                      .tables = options.tables,
                      .num_blocks_override = flags.num_gpu_blocks_override,
                      .touch_behind = options.touch_behind};
  NIBBLE_TRY_VOID(SetMemory(flags, runner));
  if (options.show_progress) {
    runner.on_planned = [&](const MemoryBudget& budget) {
      fmt::print(stderr, "memory plan: {}\n", DescribePlan(*model.device, budget));
    };
  }
  runner.cpu_offload_bytes = static_cast<std::uint64_t>(std::ldexp(flags.cpu_offload_gb, 30));
  runner.kv_spill_bytes = static_cast<std::uint64_t>(std::ldexp(flags.kv_offloading_size, 30));
  Progress progress("loading", options.show_progress);
  ExpectedHashes hashes;
  if (model.certificate) {
    hashes = TensorHashes(*model.certificate);
  }
  NIBBLE_TRY(loaded, ModelRunner::Create(*model.checkpoint, runner, *model.device, hashes,
                                         [&](std::uint64_t done, std::uint64_t total) {
                                           return progress.Update(done, total);
                                         }));
  model.runner = std::move(loaded);
  progress.Finish();
  std::string verified = model.certificate ? "; certificate verified" : "";
  if (model.certificate && options.replay_golden_logits) {
    NIBBLE_TRY(replay, ReplayGoldenLogits(*model.certificate, *model.runner));
    if (model.device->kind() == DeviceKind::kCuda) {
      verified +=
          fmt::format(", golden logits within {:.2f} % ({} KV cache, {:.0f} % allowed)",
                      100.0F * replay.difference, Name(replay.kv_dtype), 100.0F * kGoldenTolerance);
    }
  }
  if (options.show_progress) {
    for (const std::string& warning : model.checkpoint->warnings()) {
      fmt::print(stderr, "warning: {}\n", warning);
    }
    if (const std::string note = NoteOnQuantization(flags, *model.checkpoint); !note.empty()) {
      fmt::print(stderr, "warning: {}\n", note);
    }
    if (const std::string note = NoteOnKvScales(*model.checkpoint, runner.kv_dtype);
        !note.empty()) {
      fmt::print(stderr, "note: {}\n", note);
    }
    if (const std::string note = NoteOnFp16Matrices(*model.runner); !note.empty()) {
      fmt::print(stderr, "note: {}\n", note);
    }
    fmt::print(stderr, "{}: {} on {}, {} threads; activations {} ({}){}\n", path,
               Name(config.architecture), DescribeCpu(), model.device->pool().num_workers(),
               ActivationsName(*model.runner), activations.reason, verified);
    if (const std::uint64_t streamed = model.runner->streamed_bytes_per_step(); streamed > 0) {
      fmt::print(stderr,
                 "--cpu-offload-gb: each step copies {} of weights from host memory to the card\n",
                 HumanBytes(static_cast<double>(streamed)));
    }
    const std::chrono::duration<double> seconds = SystemClock().Now() - begin;
    fmt::print(stderr, "ready in {:.2f} s\n", seconds.count());
  }
  return model;
}

Result<std::unique_ptr<Engine>> MakeEngine(LoadedModel& model, const ModelFlags& flags,
                                           std::int32_t max_queued, bool plan_late) {
  const ModelConfig& config = model.checkpoint->config();
  EngineConfig engine{.max_num_sequences = model.runner->config().max_num_sequences,
                      .max_batched_tokens = model.runner->config().max_batched_tokens,
                      .max_model_len = model.runner->config().max_model_len,
                      .block_size_tokens = model.runner->block_size_tokens(),
                      .num_blocks = static_cast<std::int32_t>(model.runner->num_blocks()),
                      .num_host_blocks = static_cast<std::int32_t>(model.runner->num_host_blocks()),
                      .block_bytes = model.runner->block_bytes(),
                      .max_queued_requests = max_queued,
                      .enable_prefix_caching = flags.enable_prefix_caching,
                      .plan_late = plan_late,
                      .vocab_size = config.vocab_size,
                      .eos_token_ids = config.eos_token_ids};
  for (const TokenId token : model.checkpoint->generation().eos_token_ids) {
    if (std::ranges::find(engine.eos_token_ids, token) == engine.eos_token_ids.end()) {
      engine.eos_token_ids.push_back(token);
    }
  }
  NIBBLE_TRY(made, Engine::Create(engine, *model.runner, model.tokenizer.get(), SystemClock()));
  model.device->ledger().Seal();
  return made;
}

}  // namespace nibble::cli
