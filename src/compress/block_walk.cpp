#include "compress/block_walk.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "kernels/step.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxChunkTokens = 512;
// A card's products are fast from some thousand rows on.
constexpr std::int64_t kMaxChunkTokensOfCard = 4096;

std::int64_t WidestInner(const ModelConfig& config) {
  return std::max(config.num_heads * config.head_dim, config.intermediate_size);
}

StepLimits StepsOf(const ModelConfig& config, const ModelLimits& limits) {
  return {.max_tokens = limits.max_tokens,
          .max_sequences = limits.max_sequences,
          .max_positions = limits.max_positions,
          .num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .sliding_window = static_cast<std::int32_t>(config.sliding_window.value_or(0)),
          .vocab_size = config.vocab_size};
}

// Blocks of the cache that the windows of one chunk take.
std::int64_t CacheBlocks(const KvCacheSpec& spec, const ModelLimits& limits) {
  return limits.max_sequences *
         ((limits.max_positions + spec.block_size_tokens - 1) / spec.block_size_tokens);
}

}  // namespace

std::span<const std::string_view> LinearsOf(LinearGroup group) {
  static constexpr std::array<std::string_view, 3> kQkv = {"self_attn.q_proj", "self_attn.k_proj",
                                                           "self_attn.v_proj"};
  static constexpr std::array<std::string_view, 1> kOutput = {"self_attn.o_proj"};
  static constexpr std::array<std::string_view, 2> kGateUp = {"mlp.gate_proj", "mlp.up_proj"};
  static constexpr std::array<std::string_view, 1> kDown = {"mlp.down_proj"};
  switch (group) {
    case LinearGroup::kQkv:
      return kQkv;
    case LinearGroup::kOutput:
      return kOutput;
    case LinearGroup::kGateUp:
      return kGateUp;
    case LinearGroup::kDown:
      return kDown;
  }
  return {};
}

std::string WeightName(std::int64_t block, std::string_view linear) {
  return fmt::format("model.layers.{}.{}.weight", block, linear);
}

std::int64_t InputWidth(const ModelConfig& config, LinearGroup group) {
  switch (group) {
    case LinearGroup::kOutput:
      return config.num_heads * config.head_dim;
    case LinearGroup::kDown:
      return config.intermediate_size;
    case LinearGroup::kQkv:
    case LinearGroup::kGateUp:
      break;
  }
  return config.hidden_size;
}

ModelLimits BlockWalk::LimitsOf(const Device& device, std::int64_t length) {
  const bool is_card = device.kind() == DeviceKind::kCuda;
  const std::int64_t most = is_card ? kMaxChunkTokensOfCard : kMaxChunkTokens;
  const std::int64_t windows = is_card ? std::max<std::int64_t>(1, most / length) : 1;
  return {.max_tokens = windows * std::min(length, most),
          .max_sequences = windows,
          .max_positions = length,
          .max_logit_rows = 1};
}

Result<KvCacheSpec> BlockWalk::CacheSpec(const Checkpoint& checkpoint, const Device& device) {
  const ModelConfig& config = checkpoint.config();
  const KvCacheSpec spec{.num_layers = 1,
                         .num_kv_heads = config.num_kv_heads,
                         .head_dim = config.head_dim,
                         .dtype = KvDType::kBF16,  // as it will be served
                         .block_size_tokens = BlockSizeTokens(device)};
  NIBBLE_TRY_VOID(Validate(spec));
  return spec;
}

std::uint64_t BlockWalk::RowBytes(const ModelConfig& config, std::int64_t num_tokens) {
  return static_cast<std::uint64_t>(num_tokens * (config.hidden_size + WidestInner(config))) *
         sizeof(float);
}

Result<void> BlockWalk::Plan(const Checkpoint& checkpoint, std::int64_t num_tokens,
                             std::int64_t length, Device& device,
                             const std::filesystem::path& rows_folder, ActivationMode activations) {
  const ModelConfig& config = checkpoint.config();
  NIBBLE_TRY(plan, PlanWeights(checkpoint, device, TableFormat::kAuto));
  const ModelLimits limits = LimitsOf(device, length);
  NIBBLE_TRY_VOID(
      LlamaModel::Plan(checkpoint, OverlapParts(plan, config), limits, activations, device));
  NIBBLE_TRY(spec, CacheSpec(checkpoint, device));
  NIBBLE_TRY_VOID(PlanSteps(device, StepsOf(config, limits)));
  device.ledger().Plan("kv_cache",
                       static_cast<std::uint64_t>(CacheBlocks(spec, limits)) * spec.BlockBytes());
  device.ledger().Plan("calibration",
                       static_cast<std::uint64_t>(limits.max_tokens * config.hidden_size) * 4 +
                           (rows_folder.empty() ? RowBytes(config, num_tokens) : 0));
  return {};
}

Result<std::unique_ptr<BlockWalk>> BlockWalk::Create(const Checkpoint& checkpoint,
                                                     std::span<const TokenId> tokens,
                                                     std::int64_t length, Device& device,
                                                     const std::filesystem::path& rows_folder,
                                                     ActivationMode activations) {
  NIBBLE_CHECK(rows_folder.empty() || device.kind() == DeviceKind::kCpu,
               "rows of a card lie in its memory");
  NIBBLE_CHECK(length > 0 && static_cast<std::int64_t>(tokens.size()) % length == 0,
               "whole windows");
  const ModelConfig& config = checkpoint.config();
  std::unique_ptr<BlockWalk> walk(new BlockWalk(checkpoint, tokens, length, device));
  NIBBLE_TRY(plan, PlanWeights(checkpoint, device, TableFormat::kAuto));
  walk->plan_ = OverlapParts(plan, config);
  const ModelLimits limits = LimitsOf(device, length);
  walk->chunk_tokens_ = limits.max_tokens;
  walk->chunks_of_window_ = (length + limits.max_tokens - 1) / limits.max_tokens;
  walk->windows_of_chunk_ = limits.max_sequences;
  NIBBLE_TRY_VOID(PrepareSteps(device, StepsOf(config, limits)));
  NIBBLE_TRY(model, LlamaModel::Allocate(checkpoint, walk->plan_, limits, activations, device));
  walk->model_ = std::move(model);
  NIBBLE_TRY(spec, CacheSpec(checkpoint, device));
  const std::int64_t blocks = CacheBlocks(spec, limits);
  NIBBLE_TRY(kv, device.Allocate("kv_cache", static_cast<std::size_t>(blocks) * spec.BlockBytes()));
  const std::size_t row_bytes = RowBytes(config, walk->num_rows());
  if (rows_folder.empty()) {
    NIBBLE_TRY(memory, device.Allocate("calibration", row_bytes));
    walk->memory_ = std::move(memory);
    walk->hidden_ = walk->memory_.as<float>();
  } else {
    NIBBLE_TRY(file, ScratchMemory::Create(rows_folder, row_bytes));
    walk->file_ = std::move(file);
    walk->hidden_ = reinterpret_cast<float*>(walk->file_.bytes().data());
  }
  walk->inner_ = walk->hidden_ + walk->num_rows() * config.hidden_size;
  NIBBLE_TRY(input, device.Allocate("calibration", static_cast<std::size_t>(limits.max_tokens *
                                                                            config.hidden_size) *
                                                       sizeof(float)));
  walk->kv_buffer_ = std::move(kv);
  walk->input_ = std::move(input);
  walk->cache_ = {.spec = spec, .num_blocks = blocks, .data = walk->kv_buffer_.data()};
  for (std::int64_t i = 0; i < blocks; ++i) {
    walk->block_table_.push_back(BlockId{static_cast<std::int32_t>(i)});
  }
  return walk;
}

Result<void> BlockWalk::LoadPart(const std::function<bool(const PlannedWeight&)>& wanted) {
  // Weights lie where those lay that the steps submitted so far read.
  device_.Wait(device_.Record());
  NIBBLE_TRY_VOID(device_.Health());
  WeightPlan part;
  for (const PlannedWeight& weight : plan_.weights) {
    if (wanted(weight)) {
      part.weights.push_back(weight);
      part.arena_bytes += weight.size_bytes;
    }
  }
  NIBBLE_TRY_VOID(LoadWeights(checkpoint_, part, device_, model_->weight_places(), {}, {}));
  for (const PlannedWeight& weight : part.weights) {
    checkpoint_.Release(*weight.stored);
  }
  return {};
}

BlockWalk::Chunk BlockWalk::ChunkAt(std::int64_t index) const {
  const std::int64_t position = index % chunks_of_window_ * chunk_tokens_;
  const std::int64_t first_row = index / chunks_of_window_ * windows_of_chunk_ * length_ + position;
  const std::int64_t end = windows_of_chunk_ > 1 ? num_rows() : first_row - position + length_;
  return {.first_row = first_row,
          .first_position = position,
          .num_rows = std::min(chunk_tokens_, end - first_row)};
}

ForwardBatch BlockWalk::BeginStep(const Chunk& chunk) {
  const std::int64_t blocks_of_window = cache_.num_blocks / windows_of_chunk_;
  sequences_.clear();
  for (std::int64_t row = 0; row < chunk.num_rows; row += length_) {
    const BlockId* table = block_table_.data() + std::ssize(sequences_) * blocks_of_window;
    sequences_.push_back(
        {.first_row = static_cast<std::int32_t>(row),
         .num_rows = static_cast<std::int32_t>(std::min(length_, chunk.num_rows - row)),
         .first_position = static_cast<std::int32_t>(chunk.first_position),
         .block_table = table});
  }
  const ForwardBatch batch{.token_ids = tokens_.subspan(static_cast<std::size_t>(chunk.first_row),
                                                        static_cast<std::size_t>(chunk.num_rows)),
                           .sequences = sequences_};
  const auto begun = nibble::BeginStep(
      model_->context(), cache_, {.token_ids = batch.token_ids, .sequences = batch.sequences});
  NIBBLE_CHECK(begun, "a step without samples has no limit to exceed");
  return batch;
}

std::span<float> BlockWalk::hidden() {
  return {hidden_, static_cast<std::size_t>(num_rows() * checkpoint_.config().hidden_size)};
}

void BlockWalk::Leave() {
  if (!current_ || file_.bytes().empty()) {
    return;
  }
  const ModelConfig& config = checkpoint_.config();
  const auto release = [&](const float* rows, std::int64_t width) {
    const auto bytes = [](std::int64_t floats) {
      return static_cast<std::size_t>(floats) * sizeof(float);
    };
    file_.Release(bytes(rows - hidden_ + current_->first_row * width),
                  bytes(current_->num_rows * width));
  };
  release(hidden_, config.hidden_size);
  release(inner_, InputWidth(config, LinearGroup::kOutput));
  release(inner_, config.intermediate_size);
  current_.reset();
}

Result<void> BlockWalk::Embed() {
  const WeightPlan part = PartOf(plan_, checkpoint_.config(), ModelPart::kEmbedding);
  NIBBLE_TRY_VOID(LoadWeights(checkpoint_, part, device_, model_->weight_places(), {}, {}));
  for (const PlannedWeight& weight : part.weights) {
    checkpoint_.Release(*weight.stored);
  }
  for (std::int64_t i = 0; i < num_chunks(); ++i) {
    const Chunk chunk = ChunkAt(i);
    model_->Embed(BeginStep(chunk).token_ids,
                  hidden_ + chunk.first_row * checkpoint_.config().hidden_size);
    Leave();
    current_ = chunk;
  }
  return {};
}

Result<void> BlockWalk::Begin(std::int64_t block) {
  block_ = block;
  const std::string prefix = fmt::format("model.layers.{}.", block);
  return LoadPart([&](const PlannedWeight& weight) {
    return weight.is_vector && weight.stored->name.starts_with(prefix);
  });
}

Result<void> BlockWalk::Load(LinearGroup group) {
  return LoadPart([&](const PlannedWeight& weight) {
    return std::ranges::any_of(LinearsOf(group), [&](std::string_view linear) {
      return weight.stored->name == WeightName(block_, linear);
    });
  });
}

BlockWalk::Inputs BlockWalk::Advance(LinearGroup group, std::int64_t chunk_index) {
  const ModelConfig& config = checkpoint_.config();
  const Chunk chunk = ChunkAt(chunk_index);
  Leave();
  current_ = chunk;
  const std::int64_t rows = chunk.num_rows;
  const std::int64_t attention_width = InputWidth(config, LinearGroup::kOutput);
  float* hidden = hidden_ + chunk.first_row * config.hidden_size;
  float* attention = inner_ + chunk.first_row * attention_width;
  float* product = inner_ + chunk.first_row * config.intermediate_size;
  float* const x = input_.as<float>();
  const float* input = x;
  switch (group) {
    case LinearGroup::kQkv:
      model_->AttentionInput(block_, hidden, rows, x);
      break;
    case LinearGroup::kOutput:
      model_->AttentionInput(block_, hidden, rows, x);
      model_->AttentionOutput(block_, x, BeginStep(chunk), cache_, attention);
      input = attention;
      break;
    case LinearGroup::kGateUp:
      model_->AddAttention(block_, attention, rows, hidden);
      model_->FeedForwardInput(block_, hidden, rows, x);
      break;
    case LinearGroup::kDown:
      model_->FeedForwardInput(block_, hidden, rows, x);
      model_->FeedForwardProduct(block_, x, rows, product);
      input = product;
      break;
  }
  const std::int64_t width = InputWidth(config, group);
  return RowsOf(model_->context(), input, width, rows, width);
}

void BlockWalk::End(std::int64_t chunk_index) {
  const ModelConfig& config = checkpoint_.config();
  const Chunk chunk = ChunkAt(chunk_index);
  Leave();
  current_ = chunk;
  model_->AddFeedForward(block_, inner_ + chunk.first_row * config.intermediate_size,
                         chunk.num_rows, hidden_ + chunk.first_row * config.hidden_size);
  EndStep(model_->context());
}

}  // namespace nibble
