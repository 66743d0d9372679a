#include "engine/model_runner.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <string>

#include "base/text.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxLogitRows = 64;
// What the KV pool takes when nobody says: enough for a busy laptop, little enough to start at
// once.
constexpr std::uint64_t kDefaultKvBytes = std::uint64_t{512} << 20;

std::optional<std::uint64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  std::string word;
  std::uint64_t value = 0;
  if (!(file >> word)) {
    return std::nullopt;
  }
  const auto parsed = std::from_chars(word.data(), word.data() + word.size(), value);
  return parsed.ec == std::errc{} ? std::optional(value) : std::nullopt;
}

std::string Lines(const MemoryLedger& ledger) {
  std::string text;
  for (const MemoryLedger::Line& line : ledger.lines()) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", line.name,
                        HumanBytes(static_cast<double>(line.planned_bytes)));
  }
  return text;
}

// Blocks of the pool: what was asked for, else the default size but never less than one sequence's
// worst case.
Result<std::int64_t> ChooseBlocks(const RunnerConfig& config, const KvCacheSpec& spec,
                                  const MemoryLedger& ledger, std::uint64_t available) {
  const auto block_bytes = static_cast<std::uint64_t>(spec.BlockBytes());
  const std::int64_t one_sequence =
      (config.max_model_len + spec.block_size_tokens - 1) / spec.block_size_tokens;
  const std::int64_t all = one_sequence * config.max_num_sequences;
  if (config.num_blocks_override) {
    return *config.num_blocks_override;
  }
  const std::uint64_t others = ledger.planned_bytes();
  const std::uint64_t room = available > others ? available - others : 0;
  std::int64_t blocks = 0;
  if (config.kv_cache_bytes) {
    blocks = static_cast<std::int64_t>(*config.kv_cache_bytes / block_bytes);
  } else {
    const auto wanted = static_cast<std::int64_t>(kDefaultKvBytes / block_bytes);
    blocks = std::min(all, std::max(wanted, one_sequence));
  }
  if (static_cast<std::uint64_t>(blocks) * block_bytes > room) {
    blocks = static_cast<std::int64_t>(room / block_bytes);
  }
  if (blocks < one_sequence) {
    return Fail(
        ErrorCode::kOutOfMemory,
        fmt::format(
            "the KV cache of one sequence of {} tokens takes {} but {} are left beside {}; "
            "lower --max-model-len or use --kv-cache-dtype int8",
            config.max_model_len,
            HumanBytes(static_cast<double>(one_sequence) * static_cast<double>(block_bytes)),
            HumanBytes(static_cast<double>(room)), Lines(ledger)));
  }
  return blocks;
}

// Gives the range its pages, all workers at it.
void TouchPages(Device& device, std::byte* data, std::size_t bytes) {
  constexpr std::int64_t kPiece = std::int64_t{8} << 20;
  device.pool().For(static_cast<std::int64_t>(bytes), kPiece,
                    [&](std::int64_t begin, std::int64_t end, int) {
                      for (std::int64_t at = begin; at < end; at += 4096) {
                        data[at] = std::byte{0};
                      }
                    });
}

}  // namespace

std::uint64_t AvailableMemoryBytes() {
  std::uint64_t available = std::numeric_limits<std::uint64_t>::max();
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::string unit;
  std::uint64_t kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") {
      available = kib * 1024;
      break;
    }
  }
  const auto limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const auto used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit && used && *limit > *used) {
    available = std::min(available, *limit - *used);
  }
  return available;
}

Result<std::unique_ptr<ModelRunner>> ModelRunner::Create(const Checkpoint& checkpoint,
                                                         const RunnerConfig& config, Device& device,
                                                         const ExpectedHashes& hashes,
                                                         const LoadProgress& progress) {
  std::unique_ptr<ModelRunner> runner(new ModelRunner);
  runner->config_ = config;
  runner->device_ = &device;
  const ModelConfig& model = checkpoint.config();
  const ModelLimits limits{
      .max_tokens = config.max_batched_tokens,
      .max_sequences = config.max_num_sequences,
      .max_positions = config.max_model_len,
      .max_logit_rows = std::min<std::int64_t>(kMaxLogitRows, config.max_batched_tokens)};
  NIBBLE_TRY(weights, PlanWeights(checkpoint, device, config.tables));
  NIBBLE_TRY_VOID(LlamaModel::Plan(checkpoint, weights, limits, device));
  MemoryLedger& ledger = device.ledger();
  const auto logits_bytes =
      static_cast<std::uint64_t>(limits.max_logit_rows * model.vocab_size) * sizeof(float);
  ledger.Plan("logits", logits_bytes);
  const KvCacheSpec spec{.num_layers = model.num_layers,
                         .num_kv_heads = model.num_kv_heads,
                         .head_dim = model.head_dim,
                         .dtype = config.kv_dtype,
                         .block_size_tokens = BlockSizeTokens(device)};
  const std::uint64_t available =
      config.available_bytes > 0 ? config.available_bytes : AvailableMemoryBytes();
  if (ledger.planned_bytes() > available) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("{} needs {} ({}) and {} are available; use a smaller or more "
                            "quantized model, or lower "
                            "--max-num-batched-tokens",
                            checkpoint.path().string(),
                            HumanBytes(static_cast<double>(ledger.planned_bytes())), Lines(ledger),
                            HumanBytes(static_cast<double>(available))));
  }
  NIBBLE_TRY(num_blocks, ChooseBlocks(config, spec, ledger, available));
  const std::size_t kv_bytes = static_cast<std::size_t>(num_blocks) * spec.BlockBytes();
  ledger.Plan("kv_cache", kv_bytes);
  NIBBLE_TRY(kv_buffer, device.Allocate("kv_cache", kv_bytes));
  NIBBLE_TRY(logits, device.Allocate("logits", logits_bytes));
  runner->kv_buffer_ = std::move(kv_buffer);
  runner->logits_ = std::move(logits);
  runner->cache_ = {.spec = spec, .num_blocks = num_blocks, .data = runner->kv_buffer_.data()};
  NIBBLE_TRY(loaded, LlamaModel::Load(checkpoint, weights, limits, config.activations, device,
                                      hashes, progress));
  runner->model_ = std::move(loaded);
  if (config.touch_pages) {
    TouchPages(device, runner->kv_buffer_.data(), runner->kv_buffer_.size_bytes());
    TouchPages(device, runner->logits_.data(), runner->logits_.size_bytes());
  }
  return runner;
}

Result<Ticket> ModelRunner::Launch(const StepPlan& plan) {
  NIBBLE_CHECK(!finished_, "a CPU step was launched before the last one was retired");
  token_ids_.clear();
  sequences_.clear();
  score_rows_.clear();
  StepResult result{.step = plan.step, .outputs = {}};
  result.outputs.resize(plan.sequences.size());
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const StepSequence& sequence = plan.sequences[i];
    const auto first_row = static_cast<std::int32_t>(token_ids_.size());
    token_ids_.insert(token_ids_.end(), sequence.tokens.begin(), sequence.tokens.end());
    sequences_.push_back({.first_row = first_row,
                          .num_rows = sequence.num_tokens,
                          .first_position = sequence.first_position,
                          .block_table = sequence.block_table.data()});
    result.outputs[i].id = sequence.id;
    for (std::size_t row = 0; row < sequence.prompt_targets.size(); ++row) {
      if (Raw(sequence.prompt_targets[row]) >= 0) {
        SampleRow score;
        score.target = sequence.prompt_targets[row];
        score.num_top_logprobs = sequence.num_prompt_logprobs;
        score_rows_.push_back({.sequence = i,
                               .is_prompt = true,
                               .batch_row = first_row + static_cast<std::int32_t>(row),
                               .sample = score});
      }
    }
    if (sequence.sample) {
      score_rows_.push_back({.sequence = i,
                             .batch_row = first_row + sequence.num_tokens - 1,
                             .sample = sequence.sampling});
    }
  }
  model_->Forward({.token_ids = token_ids_, .sequences = sequences_}, cache_);
  RunSampling(score_rows_, result);
  const Ticket ticket{next_ticket_++};
  finished_.emplace(ticket, std::move(result));
  return ticket;
}

void ModelRunner::RunSampling(const std::vector<ScoreRow>& rows, StepResult& result) {
  std::vector<std::int32_t> batch_rows;
  std::vector<SampleRow> samples;
  std::vector<SampleResult> results;
  const auto limit = static_cast<std::size_t>(max_logit_rows());
  for (std::size_t begin = 0; begin < rows.size(); begin += limit) {
    const std::size_t count = std::min(limit, rows.size() - begin);
    batch_rows.clear();
    samples.clear();
    for (std::size_t i = 0; i < count; ++i) {
      batch_rows.push_back(rows[begin + i].batch_row);
      samples.push_back(rows[begin + i].sample);
      samples.back().logits_row = static_cast<std::int32_t>(i);
    }
    results.assign(count, {});
    model_->Logits(batch_rows, logits_.as<float>());
    Sample(model_->context(), logits_.as<float>(), vocab_size(), vocab_size(), samples, results);
    for (std::size_t i = 0; i < count; ++i) {
      StepOutput& output = result.outputs[rows[begin + i].sequence];
      if (rows[begin + i].is_prompt) {
        output.prompt_scores.push_back(std::move(results[i]));
      } else {
        output.sampled = true;
        output.sample = std::move(results[i]);
      }
    }
  }
}

Result<StepResult> ModelRunner::Retire(Ticket ticket) {
  NIBBLE_CHECK(finished_ && finished_->first == ticket,
               "steps retire in the order of their launch");
  StepResult result = std::move(finished_->second);
  finished_.reset();
  return result;
}

Result<void> ModelRunner::RunChunk(std::span<const TokenId> window, std::int64_t first_position,
                                   std::int64_t num_rows, const LinearObserver* observer) {
  const auto length = static_cast<std::int64_t>(window.size());
  const std::int64_t block = cache_.spec.block_size_tokens;
  const std::int64_t blocks = (length + block - 1) / block;
  if (length > config_.max_model_len || blocks > cache_.num_blocks) {
    return Fail(
        ErrorCode::kLimitExceeded,
        fmt::format(
            "a window of {} tokens exceeds the context of {} tokens or the pool of {} blocks",
            length, config_.max_model_len, cache_.num_blocks));
  }
  std::vector<BlockId> table(static_cast<std::size_t>(blocks));
  for (std::int64_t i = 0; i < blocks; ++i) {
    table[static_cast<std::size_t>(i)] = BlockId{static_cast<std::int32_t>(i)};
  }
  const AttentionSequence sequence{.first_row = 0,
                                   .num_rows = static_cast<std::int32_t>(num_rows),
                                   .first_position = static_cast<std::int32_t>(first_position),
                                   .block_table = table.data()};
  model_->Forward({.token_ids = window.subspan(static_cast<std::size_t>(first_position),
                                               static_cast<std::size_t>(num_rows)),
                   .sequences = {&sequence, 1}},
                  cache_, observer);
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

const float* ModelRunner::ChunkLogits(std::int64_t row, std::int64_t count) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    rows[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(row + i);
  }
  model_->Logits(rows, logits_.as<float>());
  return logits_.as<float>();
}

}  // namespace nibble
