#include "engine/model_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "base/text.h"
#include "device/populate.h"
#include "kernels/weight_stream.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxLogitRows = 64;
// What a recorded step takes of the card for each kernel in it.
constexpr std::uint64_t kCapturedKernelBytes = 4096;
// ... and for each place where it is cut, as streamed weights need it.
constexpr std::uint64_t kCapturedPieceBytes = 32768;
constexpr const char* kKvScalesLine = "kv_scales";
constexpr std::size_t kTouchPiece = std::size_t{8} << 20;

// Plans the host memory for evicted blocks; how many it holds. On a CPU it comes out of the same
// memory as all else.
Result<std::int64_t> PlanSpill(const RunnerConfig& config, const KvCacheSpec& spec, Device& device,
                               std::uint64_t available) {
  const std::uint64_t block_bytes = spec.BlockBytes();
  const std::uint64_t num_blocks = config.kv_spill_bytes / block_bytes;
  if (config.kv_spill_bytes > 0 && num_blocks == 0) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--kv-offloading-size gives {}, less than one KV block of {}",
                            HumanBytes(static_cast<double>(config.kv_spill_bytes)),
                            HumanBytes(static_cast<double>(block_bytes))));
  }
  MemoryLedger& ledger = device.ledger();
  const std::uint64_t planned = device.kind() == DeviceKind::kCpu
                                    ? ledger.planned_bytes()
                                    : ledger.planned_bytes(MemoryPlace::kHost);
  const std::uint64_t all = device.kind() == DeviceKind::kCpu ? available : AvailableMemoryBytes();
  const std::uint64_t room = all - std::min(all, planned);
  if (num_blocks * block_bytes > room || num_blocks > std::numeric_limits<std::int32_t>::max()) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("--kv-offloading-size asks for {} of host memory and {} are available",
                            HumanBytes(static_cast<double>(config.kv_spill_bytes)),
                            HumanBytes(static_cast<double>(room))));
  }
  if (num_blocks > 0) {
    ledger.Plan("kv_spill", num_blocks * block_bytes, MemoryPlace::kHost);
  }
  return static_cast<std::int64_t>(num_blocks);
}

// Rows that a recorded step is padded to: finer where a step is short.
std::size_t BatchClass(std::size_t sequences) {
  if (sequences <= 4) {
    return sequences == 3 ? 4 : sequences;
  }
  const std::size_t grain = sequences <= 64    ? 8
                            : sequences <= 128 ? 16
                            : sequences <= 256 ? 32
                                               : 64;
  return (sequences + grain - 1) / grain * grain;
}

// Classes of batch size, and so recorded steps.
std::uint64_t NumClasses(const RunnerConfig& config) {
  std::uint64_t classes = 0;
  for (std::size_t rows = 1; rows <= static_cast<std::size_t>(config.max_num_sequences);
       rows = BatchClass(rows) + 1) {
    ++classes;
  }
  return classes;
}

// All recorded steps.
std::uint64_t CapturedBytes(const RunnerConfig& config, std::int64_t num_layers,
                            std::int64_t num_streamed) {
  // fp8 activations are rounded by kernels of their own.
  const std::int64_t kernels_per_layer = config.activations == ActivationMode::kFp8 ? 12 : 8;
  constexpr std::int64_t kOtherKernels = 16;
  return NumClasses(config) *
         (static_cast<std::uint64_t>(num_layers * kernels_per_layer + kOtherKernels) *
              kCapturedKernelBytes +
          static_cast<std::uint64_t>(num_streamed) * kCapturedPieceBytes);
}

// The weights of the last blocks in host memory, if that is asked for.
Result<WeightPlan> PlanOffload(const WeightPlan& all, const RunnerConfig& config,
                               const ModelConfig& model, const Device& device) {
  if (config.cpu_offload_bytes == 0) {
    return all;
  }
  if (!CanStreamWeights(device)) {
    return Fail(ErrorCode::kInvalidArgument,
                "--cpu-offload-gb keeps weights out of a card's memory; with --device cpu all of "
                "them are in the host's: leave it out, or run with --device cuda");
  }
  NIBBLE_TRY(plan, StreamLastBlocks(all, model, config.cpu_offload_bytes));
  if (const std::uint64_t room = AvailableMemoryBytes(); plan.host_bytes > room) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("--cpu-offload-gb keeps {} of weights in host memory, and {} of it are "
                            "available; give less, or quantize the model (nibble quantize)",
                            HumanBytes(static_cast<double>(plan.host_bytes)),
                            HumanBytes(static_cast<double>(room))));
  }
  return plan;
}

// What --cpu-offload-gb could make of a plan with `planned` bytes on the device: every number of
// blocks that gains something and that the host has room for.
std::vector<OffloadChoice> OffloadChoices(const WeightPlan& plan, const RunnerConfig& config,
                                          const ModelConfig& model, std::uint64_t planned) {
  const std::vector<std::size_t> block_bytes = StreamableBytes(plan, model);
  const auto device_bytes = [&](std::int64_t num_streamed) {
    return MemoryOfBlocks(block_bytes, num_streamed).device_bytes +
           CapturedBytes(config, model.num_layers, num_streamed);
  };
  const std::uint64_t rest = planned - device_bytes(std::ssize(plan.parts));
  const std::uint64_t room = AvailableMemoryBytes();
  std::vector<OffloadChoice> choices;
  for (std::int64_t count = kWeightSlots + 1; count <= model.num_layers; ++count) {
    const std::uint64_t host_bytes = MemoryOfBlocks(block_bytes, count).host_bytes;
    if (host_bytes <= room) {
      choices.push_back({.host_bytes = host_bytes, .device_bytes = rest + device_bytes(count)});
    }
  }
  return choices;
}

// Errors: kInvalidArgument if all matrices are such.
Result<std::vector<ModelRunner::Fp16Matrix>> Fp16Matrices(const WeightPlan& plan,
                                                          const ModelConfig& model) {
  std::vector<ModelRunner::Fp16Matrix> matrices;
  bool any_fp8 = false;
  for (const PlannedWeight& weight : plan.weights) {
    const bool multiplies =
        model.tie_word_embeddings || weight.stored->name != "model.embed_tokens.weight";
    if (weight.is_vector || !multiplies) {
      continue;
    }
    if (TakesFp8Activations(weight.packed)) {
      any_fp8 = true;
    } else {
      matrices.push_back({.name = weight.stored->name, .spec = weight.packed});
    }
  }
  if (!any_fp8) {
    return Fail(ErrorCode::kInvalidArgument,
                "fp8 activations are for weights of 4 bits in symmetric groups of 128, and this "
                "model has none: leave --activations out, or quantize it so (nibble quantize)");
  }
  return matrices;
}

// Parts that are alone in their slot are copied once and stay.
std::uint64_t StreamedBytesPerStep(const WeightPlan& plan) {
  const SlotSchedule schedule(static_cast<int>(plan.parts.size()));
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < plan.parts.size(); ++i) {
    bytes += schedule.IsCopiedEachStep(static_cast<int>(i)) ? plan.parts[i].bytes : 0;
  }
  return bytes;
}

// What the checkpoint says of an fp8 cache, on the device; nothing where all of it is 1.
Result<DeviceBuffer> UploadKvScales(Device& device, std::span<const float> scales) {
  if (scales.empty()) {
    return DeviceBuffer();
  }
  NIBBLE_TRY(buffer, device.Allocate(kKvScalesLine, scales.size_bytes()));
  WriteBytes(device, buffer.data(), std::as_bytes(scales));
  return buffer;
}

// Gives the range its pages, all workers at it.
void TouchPages(Device& device, std::byte* data, std::size_t bytes) {
  device.pool().For(static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(kTouchPiece),
                    [&](std::int64_t begin, std::int64_t end, int) {
                      for (std::int64_t at = begin; at < end; at += 4096) {
                        data[at] = std::byte{0};
                      }
                    });
}

}  // namespace

Result<std::unique_ptr<ModelRunner>> ModelRunner::Create(const Checkpoint& checkpoint,
                                                         const RunnerConfig& config, Device& device,
                                                         const ExpectedHashes& hashes,
                                                         const LoadProgress& progress) {
  NIBBLE_TRY_VOID(ValidateActivations(device, config.activations));
  std::unique_ptr<ModelRunner> runner(new ModelRunner);
  runner->config_ = config;
  runner->device_ = &device;
  runner->depth_ = device.CanCaptureSteps() ? 1 : 0;
  const ModelConfig& model = checkpoint.config();
  const std::int64_t logit_rows =
      device.CanCaptureSteps() ? std::max<std::int64_t>(kMaxLogitRows, config.max_num_sequences)
                               : kMaxLogitRows;
  const ModelLimits limits{
      .max_tokens = config.max_batched_tokens,
      .max_sequences = config.max_num_sequences,
      .max_positions = std::max(config.max_model_len, kMinPositions),
      .max_logit_rows = std::min<std::int64_t>(logit_rows, config.max_batched_tokens)};
  const StepLimits steps{
      .max_tokens = limits.max_tokens,
      .max_sequences = limits.max_sequences,
      .max_positions = limits.max_positions,
      .num_heads = model.num_heads,
      .num_kv_heads = model.num_kv_heads,
      .head_dim = model.head_dim,
      .sliding_window = static_cast<std::int32_t>(model.sliding_window.value_or(0)),
      .vocab_size = model.vocab_size,
      .max_in_flight = runner->depth_ + 1};
  NIBBLE_TRY(all_weights, PlanWeights(checkpoint, device, config.tables));
  NIBBLE_TRY(weights, PlanOffload(all_weights, config, model, device));
  runner->streamed_bytes_per_step_ = StreamedBytesPerStep(weights);
  if (config.activations == ActivationMode::kFp8) {
    NIBBLE_TRY(fp16_matrices, Fp16Matrices(weights, model));
    runner->fp16_matrices_ = std::move(fp16_matrices);
  }
  NIBBLE_TRY_VOID(LlamaModel::Plan(checkpoint, weights, limits, config.activations, device));
  NIBBLE_TRY_VOID(PlanSteps(device, steps));
  MemoryLedger& ledger = device.ledger();
  const auto logits_bytes =
      static_cast<std::uint64_t>(limits.max_logit_rows * model.vocab_size) * sizeof(float);
  ledger.Plan("logits", logits_bytes);
  const KvCacheSpec spec{.num_layers = model.num_layers,
                         .num_kv_heads = model.num_kv_heads,
                         .head_dim = model.head_dim,
                         .dtype = config.kv_dtype,
                         .block_size_tokens = BlockSizeTokens(device)};
  NIBBLE_TRY_VOID(Validate(spec));
  std::span<const float> kv_scales;
  if (config.kv_dtype == KvDType::kFp8 &&
      std::ranges::any_of(checkpoint.kv_scales(), [](float scale) { return scale != 1.0F; })) {
    kv_scales = checkpoint.kv_scales();
    NIBBLE_CHECK(std::ssize(kv_scales) == model.num_layers * 2 * model.num_kv_heads,
                 "KV scales of another model");
    ledger.Plan(kKvScalesLine, kv_scales.size_bytes());
  }
  const std::int64_t spare = device.CanCaptureSteps() ? 1 : 0;
  if (device.CanCaptureSteps()) {
    ledger.Plan("graphs", CapturedBytes(config, model.num_layers, std::ssize(weights.parts)));
  }
  const MemoryBudget budget =
      config.budget ? *config.budget : BudgetOf(device, config.gpu_memory_utilization);
  auto num_blocks = PlanKvPool(
      budget,
      {.block_bytes = static_cast<std::uint64_t>(spec.BlockBytes()),
       .block_size_tokens = spec.block_size_tokens,
       .extra_blocks = spare,
       .max_model_len = config.max_model_len,
       .max_num_sequences = config.max_num_sequences,
       .num_blocks = config.num_blocks_override,
       .kv_cache_bytes = config.kv_cache_bytes,
       .offloads =
           CanStreamWeights(device)
               ? OffloadChoices(weights, config, model, ledger.planned_bytes(MemoryPlace::kDevice))
               : std::vector<OffloadChoice>{}},
      budget.is_card ? ledger.planned_bytes(MemoryPlace::kDevice) : ledger.planned_bytes(),
      DescribeLines(ledger));
  if (!num_blocks) {
    return Fail(num_blocks.error(), fmt::format("{}: ", checkpoint.path().string()));
  }
  const std::size_t kv_bytes = static_cast<std::size_t>(*num_blocks + spare) * spec.BlockBytes();
  ledger.Plan("kv_cache", kv_bytes);
  NIBBLE_TRY(num_host_blocks, PlanSpill(config, spec, device, budget.free_bytes));
  if (config.on_planned) {
    config.on_planned(budget);
  }
  NIBBLE_TRY(kv_buffer, device.Allocate("kv_cache", kv_bytes));
  NIBBLE_TRY(kv_spill, device.AllocateHost("kv_spill", static_cast<std::size_t>(num_host_blocks) *
                                                           spec.BlockBytes()));
  NIBBLE_TRY(logits, device.Allocate("logits", logits_bytes));
  NIBBLE_TRY(scales, UploadKvScales(device, kv_scales));
  NIBBLE_TRY_VOID(PrepareSteps(device, steps));
  runner->kv_scales_ = std::move(scales);
  runner->kv_buffer_ = std::move(kv_buffer);
  runner->kv_spill_ = std::move(kv_spill);
  runner->logits_ = std::move(logits);
  runner->num_blocks_ = *num_blocks;
  runner->num_host_blocks_ = num_host_blocks;
  runner->spare_block_ = BlockId{static_cast<std::int32_t>(*num_blocks)};
  runner->cache_ = {.spec = spec,
                    .num_blocks = *num_blocks + spare,
                    .data = runner->kv_buffer_.data(),
                    .scales = runner->kv_scales_.as<float>()};
  NIBBLE_TRY(loaded, LlamaModel::Load(checkpoint, weights, limits, config.activations, device,
                                      hashes, progress));
  runner->model_ = std::move(loaded);
  if (device.CanCaptureSteps()) {
    NIBBLE_TRY_VOID(runner->RecordSteps());
  }
  if (config.touch_pages && device.kind() == DeviceKind::kCpu) {
    TouchPages(device, runner->logits_.data(), runner->logits_.size_bytes());
    const std::array ranges = {
        std::span(runner->kv_buffer_.data(), runner->kv_buffer_.size_bytes()),
        std::span(runner->kv_spill_.data(), runner->kv_spill_.size_bytes())};
    const std::size_t first = std::min(kTouchPiece, ranges[0].size());
    if (config.touch_behind && PopulatePages(ranges[0].data(), first)) {
      runner->touching_ = std::jthread([ranges](const std::stop_token& stop) {
        for (const std::span<std::byte> range : ranges) {
          for (std::size_t at = 0; at < range.size() && !stop.stop_requested(); at += kTouchPiece) {
            PopulatePages(range.data() + at, std::min(kTouchPiece, range.size() - at));
          }
        }
      });
    } else {
      for (const std::span<std::byte> range : ranges) {
        TouchPages(device, range.data(), range.size());
      }
    }
  }
  return runner;
}

void ModelRunner::CopyBlocks(const StepPlan& plan) {
  const auto host = [&](const BlockCopy& copy) {
    NIBBLE_CHECK(Raw(copy.slot) >= 0 && Raw(copy.slot) < num_host_blocks_,
                 "a slot beyond the tier");
    return kv_spill_.data() + static_cast<std::int64_t>(Raw(copy.slot)) * block_bytes();
  };
  for (const BlockCopy& copy : plan.spills) {
    CopyBlock(*device_, cache_, copy.block, host(copy), BlockCopyDirection::kToHost);
  }
  for (const BlockCopy& copy : plan.restores) {
    CopyBlock(*device_, cache_, copy.block, host(copy), BlockCopyDirection::kFromHost);
  }
}

void ModelRunner::Gather(const StepPlan& plan, InFlight& step) {
  token_ids_.clear();
  token_slots_.clear();
  sequences_.clear();
  logit_rows_.clear();
  sample_rows_.clear();
  sample_slots_.clear();
  step.score_rows.clear();
  step.result = {.step = plan.step, .outputs = {}};
  step.result.outputs.resize(plan.sequences.size());
  const auto score = [&](ScoreRow place, std::int32_t row, const SampleRow& sample,
                         std::int32_t slot) {
    step.score_rows.push_back(place);
    logit_rows_.push_back(row);
    sample_rows_.push_back(sample);
    sample_slots_.push_back(slot);
  };
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const StepSequence& sequence = plan.sequences[i];
    const auto first_row = static_cast<std::int32_t>(token_ids_.size());
    token_ids_.insert(token_ids_.end(), sequence.tokens.begin(), sequence.tokens.end());
    token_slots_.resize(token_ids_.size(), -1);
    if (sequence.token_from_device) {
      token_slots_.back() = sequence.slot;
    }
    sequences_.push_back({.first_row = first_row,
                          .num_rows = sequence.num_tokens,
                          .first_position = sequence.first_position,
                          .block_table = sequence.block_table.data()});
    step.result.outputs[i].id = sequence.id;
    for (std::size_t row = 0; row < sequence.prompt_targets.size(); ++row) {
      if (Raw(sequence.prompt_targets[row]) >= 0) {
        SampleRow target;
        target.target = sequence.prompt_targets[row];
        target.num_top_logprobs = sequence.num_prompt_logprobs;
        score({.sequence = i, .is_prompt = true}, first_row + static_cast<std::int32_t>(row),
              target, -1);
      }
    }
    if (sequence.sample) {
      score({.sequence = i}, first_row + sequence.num_tokens - 1, sequence.sampling, sequence.slot);
    }
  }
}

void ModelRunner::PadTo(std::size_t rows) {
  while (sequences_.size() < rows) {
    logit_rows_.push_back(static_cast<std::int32_t>(token_ids_.size()));
    sample_rows_.push_back({.temperature = 0.0F});
    sample_slots_.push_back(-1);
    sequences_.push_back({.first_row = static_cast<std::int32_t>(token_ids_.size()),
                          .num_rows = 1,
                          .first_position = 0,
                          .block_table = &spare_block_});
    token_ids_.push_back(TokenId{0});
    token_slots_.push_back(-1);
  }
}

StepInputs ModelRunner::Inputs() const {
  return {.token_ids = token_ids_,
          .token_slots = token_slots_,
          .sequences = sequences_,
          .logit_rows = logit_rows_,
          .samples = sample_rows_,
          .sample_slots = sample_slots_};
}

void ModelRunner::RunKernels(InFlight& step) {
  model_->Forward({.token_ids = token_ids_, .sequences = sequences_}, cache_);
  const auto limit = static_cast<std::size_t>(max_logit_rows());
  const std::span<const std::int32_t> rows(logit_rows_);
  for (std::size_t i = 0; i < rows.size(); i += limit) {
    const std::size_t count = std::min(limit, rows.size() - i);
    model_->Logits(rows.subspan(i, count), logits_.as<float>());
    for (std::size_t row = i; row < i + count; ++row) {
      sample_rows_[row].logits_row = static_cast<std::int32_t>(row - i);
    }
    Sample(model_->context(), logits_.as<float>(), vocab_size(), vocab_size(),
           std::span(sample_rows_).subspan(i, count), std::span(step.samples).subspan(i, count));
  }
}

Result<void> ModelRunner::RunStep(const StepPlan& plan, InFlight& step) {
  constexpr std::size_t kNotRecorded = std::size_t{1} << 32;  // kinds of steps
  Gather(plan, step);
  // Steps of decodes that all sample are worth recording: the same kernels on the same addresses.
  const bool can_replay = device_->CanCaptureSteps() && sample_rows_.size() == sequences_.size() &&
                          token_ids_.size() == sequences_.size();
  if (!can_replay) {
    constexpr std::size_t kAbout = 16;  // rows
    step.kind = kNotRecorded + (token_ids_.size() + kAbout - 1) / kAbout;
    step.samples.resize(sample_rows_.size());
    NIBBLE_TRY_VOID(BeginStep(model_->context(), cache_, Inputs()));
    CopyBlocks(plan);
    RunKernels(step);
    return {};
  }
  const std::size_t rows =
      std::min(BatchClass(sequences_.size()), static_cast<std::size_t>(config_.max_num_sequences));
  PadTo(rows);
  step.kind = rows;
  step.samples.resize(rows);
  NIBBLE_TRY_VOID(BeginStep(model_->context(), cache_, Inputs()));
  CopyBlocks(plan);
  device_->Replay(captured_.at(rows));
  return {};
}

// Records a step of every class, and runs a chunk of prefill: after it, nothing is loaded or
// allocated on the device any more.
Result<void> ModelRunner::RecordSteps() {
  InFlight step;
  const auto most = static_cast<std::size_t>(config_.max_num_sequences);
  for (std::size_t rows = 1; rows <= most; rows = BatchClass(rows) + 1) {
    Gather({}, step);
    const std::size_t padded = std::min(BatchClass(rows), most);
    PadTo(padded);
    step.samples.resize(padded);
    NIBBLE_TRY_VOID(BeginStep(model_->context(), cache_, Inputs()));
    device_->BeginCapture();
    RunKernels(step);
    NIBBLE_TRY(captured, device_->EndCapture());
    captured_.emplace(padded, captured);
    device_->Replay(captured);
  }
  constexpr std::int64_t kChunk = 128;  // enough tokens for the kernels of long prompts
  const std::vector<TokenId> tokens(static_cast<std::size_t>(std::min(
      {kChunk, std::int64_t{config_.max_batched_tokens}, std::int64_t{config_.max_model_len},
       num_blocks_ * cache_.spec.block_size_tokens})));
  NIBBLE_TRY_VOID(RunChunk(tokens, 0, static_cast<std::int64_t>(tokens.size())));
  NIBBLE_TRY(logits, ChunkLogits(0, 1));
  static_cast<void>(logits);
  return {};
}

Result<Ticket> ModelRunner::Launch(const StepPlan& plan) {
  NIBBLE_CHECK(std::ssize(in_flight_) <= depth_, "more steps in flight than the device takes");
  InFlight& step = in_flight_.emplace_back();
  step.ticket = Ticket{next_ticket_++};
  step.launched = SystemClock().Now();
  if (const auto run = RunStep(plan, step); !run) {
    in_flight_.pop_back();
    return tl::unexpected<Error>(run.error());
  }
  step.slot = EndStep(model_->context());
  step.done = device_->Record();
  return step.ticket;
}

std::optional<Clock::TimePoint> ModelRunner::PlanNextAt() const {
  // What planning a step takes, and launching its first kernels.
  constexpr auto kAhead = std::chrono::microseconds(800);
  if (std::ssize(in_flight_) != 1) {
    return std::nullopt;
  }
  const InFlight& step = in_flight_.front();
  const auto time = times_.Shortest(step.kind);
  return time ? std::optional(std::max(step.launched, last_retired_) + *time - kAhead)
              : std::nullopt;
}

Result<StepResult> ModelRunner::Retire(Ticket ticket) {
  NIBBLE_CHECK(!in_flight_.empty() && in_flight_.front().ticket == ticket,
               "steps retire in the order of their launch");
  InFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  device_->Wait(step.done);
  const auto now = SystemClock().Now();
  times_.Note(step.kind, now - std::max(step.launched, last_retired_));
  last_retired_ = now;
  NIBBLE_TRY_VOID(device_->Health());
  step.samples.resize(step.score_rows.size());  // without padding
  CollectSamples(model_->context(), step.slot, step.samples);
  for (std::size_t i = 0; i < step.score_rows.size(); ++i) {
    StepOutput& output = step.result.outputs[step.score_rows[i].sequence];
    if (step.score_rows[i].is_prompt) {
      output.prompt_scores.push_back(std::move(step.samples[i]));
    } else {
      output.sampled = true;
      output.sample = std::move(step.samples[i]);
    }
  }
  return std::move(step.result);
}

Result<void> ModelRunner::RunChunk(std::span<const TokenId> window, std::int64_t first_position,
                                   std::int64_t num_rows, const LinearObserver* observer) {
  const auto length = static_cast<std::int64_t>(window.size());
  const std::int64_t block = cache_.spec.block_size_tokens;
  if (length > config_.max_model_len || length > cache_.num_blocks * block) {
    return Fail(
        ErrorCode::kLimitExceeded,
        fmt::format(
            "a window of {} tokens exceeds the context of {} tokens or the pool of {} blocks",
            length, config_.max_model_len, cache_.num_blocks));
  }
  return RunChunkOver(cache_, window, first_position, num_rows, observer);
}

// Over the first blocks of a cache, which has room for the whole window.
Result<void> ModelRunner::RunChunkOver(KvCache& cache, std::span<const TokenId> window,
                                       std::int64_t first_position, std::int64_t num_rows,
                                       const LinearObserver* observer) {
  const std::int64_t block = cache.spec.block_size_tokens;
  const std::int64_t blocks = (static_cast<std::int64_t>(window.size()) + block - 1) / block;
  std::vector<BlockId> table(static_cast<std::size_t>(blocks));
  for (std::int64_t i = 0; i < blocks; ++i) {
    table[static_cast<std::size_t>(i)] = BlockId{static_cast<std::int32_t>(i)};
  }
  const AttentionSequence sequence{.first_row = 0,
                                   .num_rows = static_cast<std::int32_t>(num_rows),
                                   .first_position = static_cast<std::int32_t>(first_position),
                                   .block_table = table.data()};
  const auto tokens =
      window.subspan(static_cast<std::size_t>(first_position), static_cast<std::size_t>(num_rows));
  NIBBLE_TRY_VOID(
      BeginStep(model_->context(), cache, {.token_ids = tokens, .sequences = {&sequence, 1}}));
  model_->Forward({.token_ids = tokens, .sequences = {&sequence, 1}}, cache, observer);
  return {};
}

Result<void> ModelRunner::RunWindow(
    std::span<const TokenId> tokens,
    const std::function<Result<void>(std::int64_t first_position, std::int64_t num_rows)>& visit,
    const LinearObserver* observer) {
  const auto length = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t begin = 0; begin < length; begin += config_.max_batched_tokens) {
    const std::int64_t count = std::min<std::int64_t>(length - begin, config_.max_batched_tokens);
    NIBBLE_TRY_VOID(RunChunk(tokens, begin, count, observer));
    NIBBLE_TRY_VOID(visit(begin, count));
  }
  return {};
}

Result<std::vector<float>> ModelRunner::LastLogits(std::span<const TokenId> tokens,
                                                   KvDType kv_dtype) {
  const auto length = static_cast<std::int64_t>(tokens.size());
  if (length < 1 || length > kMinPositions) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("{} tokens: 1 to {} are taken here", length, kMinPositions));
  }
  KvCacheSpec spec = cache_.spec;
  spec.dtype = kv_dtype;
  NIBBLE_TRY_VOID(Validate(spec));
  const std::int64_t blocks = (length + spec.block_size_tokens - 1) / spec.block_size_tokens;
  const std::size_t bytes = static_cast<std::size_t>(blocks) * spec.BlockBytes();
  KvCache cache{.spec = spec,
                .num_blocks = blocks,
                .data = kv_buffer_.data(),
                .scales = kv_dtype == cache_.spec.dtype ? cache_.scales : nullptr};
  DeviceBuffer memory;
  // A card's kernels take any bytes where nothing was written (docs/formats/kv_block.md), so that
  // the pool may hold numbers of another dtype for a while.
  if (device_->kind() != DeviceKind::kCuda || bytes > kv_buffer_.size_bytes()) {
    device_->ledger().Plan("small_kv_cache", bytes);
    NIBBLE_TRY(own, device_->Allocate("small_kv_cache", bytes));
    memory = std::move(own);
    cache.data = memory.data();
  }
  const std::int64_t limit = config_.max_batched_tokens;
  std::int64_t rows = 0;
  for (std::int64_t first = 0; first < length; first += rows) {
    rows = std::min(length - first, limit);
    NIBBLE_TRY_VOID(RunChunkOver(cache, tokens, first, rows, nullptr));
  }
  NIBBLE_TRY(logits, ChunkLogits(rows - 1, 1));
  return std::vector<float>(logits, logits + vocab_size());
}

Result<const float*> ModelRunner::ChunkLogits(std::int64_t row, std::int64_t count) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    rows[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(row + i);
  }
  model_->Logits(rows, logits_.as<float>());
  if (device_->kind() == DeviceKind::kCpu) {
    return logits_.as<float>();
  }
  EndStep(model_->context());  // no operator waits for another
  host_logits_.resize(static_cast<std::size_t>(count * vocab_size()));
  NIBBLE_TRY_VOID(device_->Read(reinterpret_cast<std::byte*>(host_logits_.data()), logits_.data(),
                                host_logits_.size() * sizeof(float)));
  return host_logits_.data();
}

}  // namespace nibble
