#include "compress/block_walk.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/check.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxChunkTokens = 512;

std::int64_t WidestInner(const ModelConfig& config) {
  return std::max(config.num_heads * config.head_dim, config.intermediate_size);
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

ModelLimits BlockWalk::LimitsOf(std::int64_t length) {
  return {.max_tokens = std::min(length, kMaxChunkTokens),
          .max_sequences = 1,
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
  const ModelLimits limits = LimitsOf(length);
  NIBBLE_TRY_VOID(
      LlamaModel::Plan(checkpoint, OverlapParts(plan, config), limits, activations, device));
  NIBBLE_TRY(spec, CacheSpec(checkpoint, device));
  const auto blocks =
      static_cast<std::uint64_t>((length + spec.block_size_tokens - 1) / spec.block_size_tokens);
  device.ledger().Plan("kv_cache", blocks * spec.BlockBytes());
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
  NIBBLE_CHECK(device.kind() == DeviceKind::kCpu, "the walk reads hidden states in place");
  NIBBLE_CHECK(length > 0 && static_cast<std::int64_t>(tokens.size()) % length == 0,
               "whole windows");
  const ModelConfig& config = checkpoint.config();
  std::unique_ptr<BlockWalk> walk(new BlockWalk(checkpoint, tokens, length, device));
  NIBBLE_TRY(plan, PlanWeights(checkpoint, device, TableFormat::kAuto));
  walk->plan_ = OverlapParts(plan, config);
  const ModelLimits limits = LimitsOf(length);
  walk->chunk_tokens_ = limits.max_tokens;
  walk->chunks_of_window_ = (length + limits.max_tokens - 1) / limits.max_tokens;
  NIBBLE_TRY(model, LlamaModel::Allocate(checkpoint, walk->plan_, limits, activations, device));
  walk->model_ = std::move(model);
  NIBBLE_TRY(spec, CacheSpec(checkpoint, device));
  const std::int64_t blocks = (length + spec.block_size_tokens - 1) / spec.block_size_tokens;
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
  return {.first_row = index / chunks_of_window_ * length_ + position,
          .first_position = position,
          .num_rows = std::min(chunk_tokens_, length_ - position)};
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
    model_->Embed(tokens_.subspan(static_cast<std::size_t>(chunk.first_row),
                                  static_cast<std::size_t>(chunk.num_rows)),
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
  float* x = input_.as<float>();
  switch (group) {
    case LinearGroup::kQkv:
      model_->AttentionInput(block_, hidden, rows, x);
      return {x, rows};
    case LinearGroup::kOutput: {
      const AttentionSequence sequence{
          .first_row = 0,
          .num_rows = static_cast<std::int32_t>(rows),
          .first_position = static_cast<std::int32_t>(chunk.first_position),
          .block_table = block_table_.data()};
      const auto ids = tokens_.subspan(static_cast<std::size_t>(chunk.first_row),
                                       static_cast<std::size_t>(rows));
      model_->AttentionInput(block_, hidden, rows, x);
      model_->AttentionOutput(block_, x, {.token_ids = ids, .sequences = {&sequence, 1}}, cache_,
                              attention);
      return {attention, rows};
    }
    case LinearGroup::kGateUp:
      model_->AddAttention(block_, attention, rows, hidden);
      model_->FeedForwardInput(block_, hidden, rows, x);
      return {x, rows};
    case LinearGroup::kDown:
      model_->FeedForwardInput(block_, hidden, rows, x);
      model_->FeedForwardProduct(block_, x, rows, product);
      return {product, rows};
  }
  return {};
}

void BlockWalk::End(std::int64_t chunk_index) {
  const ModelConfig& config = checkpoint_.config();
  const Chunk chunk = ChunkAt(chunk_index);
  Leave();
  current_ = chunk;
  model_->AddFeedForward(block_, inner_ + chunk.first_row * config.intermediate_size,
                         chunk.num_rows, hidden_ + chunk.first_row * config.hidden_size);
}

}  // namespace nibble
