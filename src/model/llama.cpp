#include "model/llama.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/ops.h"
#include "kernels/sampling.h"
#include "kernels/step.h"
#include "kernels/weight_stream.h"

namespace nibble {
namespace {

std::int64_t QSize(const ModelConfig& config) { return config.num_heads * config.head_dim; }
std::int64_t KvSize(const ModelConfig& config) { return config.num_kv_heads * config.head_dim; }
std::int64_t QkvSize(const ModelConfig& config) { return QSize(config) + 2 * KvSize(config); }

float AttentionScale(const ModelConfig& config) {
  return 1.0F /
         std::sqrt(static_cast<float>(config.query_pre_attn_scalar.value_or(config.head_dim)));
}

// layer -1: a module outside the blocks.
void Observe(KernelContext& context, const LinearObserver* observer, std::int64_t layer,
             std::string_view module, const float* x, std::int64_t stride, std::int64_t rows,
             std::int64_t width) {
  if (observer != nullptr) {
    const std::string name =
        layer < 0 ? std::string(module) : fmt::format("model.layers.{}.{}", layer, module);
    std::vector<float> host;
    (*observer)(name, HostActivations(context, x, stride, rows, width, host), stride, rows, width);
  }
}

// Layers with a window may have frequencies of their own.
std::int64_t NumRopeTables(const ModelConfig& config) { return config.sliding_rope ? 2 : 1; }

std::size_t RopeBytes(const ModelConfig& config, const ModelLimits& limits) {
  return static_cast<std::size_t>(NumRopeTables(config) * limits.max_positions * config.head_dim) *
         sizeof(float);
}

}  // namespace

LlamaModel::Workspace LlamaModel::LayOut(const ModelConfig& config, const ModelLimits& limits) {
  Workspace at;
  const auto take = [&](std::int64_t floats) {
    const std::int64_t begin = at.total;
    at.total += (floats + 15) / 16 * 16;
    return begin;
  };
  at.residual = take(limits.max_tokens * config.hidden_size);
  at.normed = take(limits.max_tokens * config.hidden_size);
  at.delta = take(limits.max_tokens * config.hidden_size);
  at.qkv = take(limits.max_tokens * QkvSize(config));
  at.attention = take(limits.max_tokens * QSize(config));
  at.gate_up = take(limits.max_tokens * 2 * config.intermediate_size);
  at.product = take(limits.max_tokens * config.intermediate_size);
  return at;
}

std::size_t LlamaModel::ScratchBytes(const Device& device, const ModelConfig& config,
                                     const ModelLimits& limits, ActivationMode activations) {
  const std::int64_t widest =
      std::max({config.hidden_size, config.intermediate_size, QSize(config)});
  const KvCacheSpec kv{.num_layers = config.num_layers,
                       .num_kv_heads = config.num_kv_heads,
                       .head_dim = config.head_dim,
                       .block_size_tokens = BlockSizeTokens(device)};
  return std::max(
      {LinearScratchBytes(device, limits.max_tokens, widest, activations),
       AttentionScratchBytes(device, kv, config.num_heads, limits.max_tokens, limits.max_sequences),
       SamplingScratchBytes(device, config.vocab_size)});
}

Result<void> LlamaModel::Plan(const Checkpoint& checkpoint, const WeightPlan& weights,
                              const ModelLimits& limits, ActivationMode activations,
                              Device& device) {
  const ModelConfig& config = checkpoint.config();
  if (config.architecture == Architecture::kGemma3 && device.kind() == DeviceKind::kCuda) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: gemma3 runs on the CPU only: a card's kernels have no GELU, no "
                            "norms behind a block and no window in some layers; use --device cpu",
                            checkpoint.path().string()));
  }
  MemoryLedger& ledger = device.ledger();
  ledger.Plan("weights", weights.arena_bytes);
  if (!weights.parts.empty()) {
    ledger.Plan("weight slots", kWeightSlots * weights.slot_bytes);
    ledger.Plan("weights (host)", weights.host_bytes, MemoryPlace::kHost);
  }
  ledger.Plan("rope", RopeBytes(config, limits));
  ledger.Plan("workspace",
              static_cast<std::uint64_t>(LayOut(config, limits).total) * sizeof(float));
  ledger.Plan("scratch", ScratchBytes(device, config, limits, activations));
  return {};
}

Result<std::unique_ptr<LlamaModel>> LlamaModel::Load(const Checkpoint& checkpoint,
                                                     const WeightPlan& weights,
                                                     const ModelLimits& limits,
                                                     ActivationMode activations, Device& device,
                                                     const ExpectedHashes& hashes,
                                                     const LoadProgress& progress) {
  NIBBLE_TRY(model, Allocate(checkpoint, weights, limits, activations, device));
  NIBBLE_TRY_VOID(
      LoadWeights(checkpoint, weights, device, model->weight_places(), hashes, progress));
  return model;
}

Result<std::unique_ptr<LlamaModel>> LlamaModel::Allocate(const Checkpoint& checkpoint,
                                                         const WeightPlan& weights,
                                                         const ModelLimits& limits,
                                                         ActivationMode activations,
                                                         Device& device) {
  std::unique_ptr<LlamaModel> model(new LlamaModel);
  model->config_ = checkpoint.config();
  model->limits_ = limits;
  model->device_ = &device;
  model->at_ = LayOut(model->config_, limits);
  NIBBLE_TRY(arena, device.Allocate("weights", weights.arena_bytes));
  NIBBLE_TRY(slots, device.Allocate("weight slots", kWeightSlots * weights.slot_bytes));
  NIBBLE_TRY(host_weights, device.AllocateHost("weights (host)", weights.host_bytes));
  NIBBLE_TRY(rope, device.Allocate("rope", RopeBytes(model->config_, limits)));
  NIBBLE_TRY(workspace, device.Allocate("workspace", static_cast<std::size_t>(model->at_.total) *
                                                         sizeof(float)));
  NIBBLE_TRY(scratch,
             device.Allocate("scratch", ScratchBytes(device, model->config_, limits, activations)));
  model->weights_ = std::move(arena);
  model->weight_slots_ = std::move(slots);
  model->host_weights_ = std::move(host_weights);
  model->rope_ = std::move(rope);
  model->workspace_ = std::move(workspace);
  model->scratch_ = std::move(scratch);
  model->context_ = {.device = &device,
                     .scratch = model->scratch_.data(),
                     .scratch_bytes = model->scratch_.size_bytes(),
                     .activations = activations};
  model->Bind(weights);
  NIBBLE_TRY_VOID(model->FillRope());
  if (!weights.parts.empty()) {
    StreamedWeights streamed{.slots = model->weight_slots_.data(),
                             .slot_bytes = weights.slot_bytes};
    for (const WeightPlan::Part& part : weights.parts) {
      streamed.parts.emplace_back(model->host_weights_.data() + part.host_offset, part.bytes);
    }
    NIBBLE_TRY_VOID(StreamWeights(device, streamed));
  }
  return model;
}

Result<void> LlamaModel::FillRope() {
  const std::int64_t size = limits_.max_positions * config_.head_dim;
  std::vector<float> tables(static_cast<std::size_t>(NumRopeTables(config_) * size));
  FillRopeTable(config_.rope, config_.head_dim, limits_.max_positions, tables.data());
  if (config_.sliding_rope) {
    FillRopeTable(*config_.sliding_rope, config_.head_dim, limits_.max_positions,
                  tables.data() + size);
  }
  WriteBytes(*device_, rope_.data(), std::as_bytes(std::span(tables)));
  return device_->FinishWrites();
}

const float* LlamaModel::RopeOf(std::int64_t layer) const {
  const bool second = config_.sliding_rope && config_.SlidesIn(layer);
  return rope_.as<float>() + (second ? limits_.max_positions * config_.head_dim : 0);
}

void LlamaModel::Bind(const WeightPlan& plan) {
  const auto matrix = [&](const std::string& name) {
    const PlannedWeight* weight = plan.Find(name);
    NIBBLE_CHECK(weight != nullptr, "a matrix that the plan must hold");
    const std::size_t slot = static_cast<std::size_t>(WeightSlotOf(std::max(weight->part, 0)));
    std::byte* const memory =
        weight->part < 0 ? weights_.data() : weight_slots_.data() + slot * plan.slot_bytes;
    return PackedWeight{.spec = weight->packed,
                        .data = memory + weight->offset,
                        .size_bytes = weight->size_bytes,
                        .part = weight->part};
  };
  const auto vector = [&](const std::string& name) -> const float* {
    const PlannedWeight* weight = plan.Find(name);
    return weight == nullptr ? nullptr
                             : reinterpret_cast<const float*>(weights_.data() + weight->offset);
  };
  const auto out_norm = [&](const std::string& name) {
    return config_.sandwich_norms ? vector(name) : nullptr;
  };
  embedding_ = matrix("model.embed_tokens.weight");
  head_ = config_.tie_word_embeddings ? embedding_ : matrix("lm_head.weight");
  final_norm_ = vector("model.norm.weight");
  for (std::int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string at = fmt::format("model.layers.{}.", i);
    layers_.push_back({.input_norm = vector(at + "input_layernorm.weight"),
                       .feed_forward_norm = vector(at + config_.FeedForwardNorm() + ".weight"),
                       .attention_out_norm = out_norm(at + "post_attention_layernorm.weight"),
                       .feed_forward_out_norm = out_norm(at + "post_feedforward_layernorm.weight"),
                       .q_norm = vector(at + "self_attn.q_norm.weight"),
                       .k_norm = vector(at + "self_attn.k_norm.weight"),
                       .q = matrix(at + "self_attn.q_proj.weight"),
                       .k = matrix(at + "self_attn.k_proj.weight"),
                       .v = matrix(at + "self_attn.v_proj.weight"),
                       .o = matrix(at + "self_attn.o_proj.weight"),
                       .gate = matrix(at + "mlp.gate_proj.weight"),
                       .up = matrix(at + "mlp.up_proj.weight"),
                       .down = matrix(at + "mlp.down_proj.weight"),
                       .q_bias = vector(at + "self_attn.q_proj.bias"),
                       .k_bias = vector(at + "self_attn.k_proj.bias"),
                       .v_bias = vector(at + "self_attn.v_proj.bias"),
                       .o_bias = vector(at + "self_attn.o_proj.bias"),
                       .gate_bias = vector(at + "mlp.gate_proj.bias"),
                       .up_bias = vector(at + "mlp.up_proj.bias"),
                       .down_bias = vector(at + "mlp.down_proj.bias")});
  }
}

KvCacheSpec LlamaModel::kv_spec(KvDType dtype) const {
  return {.num_layers = config_.num_layers,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .dtype = dtype,
          .block_size_tokens = BlockSizeTokens(*device_)};
}

void LlamaModel::Forward(const ForwardBatch& batch, KvCache& cache,
                         const LinearObserver* observer) {
  const std::int64_t rows = batch.num_tokens();
  NIBBLE_CHECK(rows <= limits_.max_tokens, "a step larger than the workspace");
  Embed(batch.token_ids, At(at_.residual));
  const float* delta = nullptr;
  for (std::int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[static_cast<std::size_t>(i)];
    AddRmsNorm(context_, At(at_.residual), delta, layer.input_norm, config_.rms_norm_eps,
               At(at_.normed), rows, config_.hidden_size);
    Attend(i, i, rows, batch, cache, observer);
    AddRmsNorm(context_, At(at_.residual), At(at_.delta), layer.feed_forward_norm,
               config_.rms_norm_eps, At(at_.normed), rows, config_.hidden_size);
    FeedForward(i, rows, observer);
    delta = At(at_.delta);
  }
  AddRmsNorm(context_, At(at_.residual), delta, nullptr, config_.rms_norm_eps, nullptr, rows,
             config_.hidden_size);
}

void LlamaModel::Embed(std::span<const TokenId> ids, float* hidden) {
  Embedding(context_, embedding_, ids, hidden);
  if (config_.embedding_scale != 1.0F) {
    Scale(context_, hidden, config_.embedding_scale, std::ssize(ids), config_.hidden_size);
  }
}

void LlamaModel::Attend(std::int64_t index, std::int64_t cache_layer, std::int64_t rows,
                        const ForwardBatch& batch, KvCache& cache, const LinearObserver* observer) {
  const std::int64_t hidden = config_.hidden_size;
  Observe(context_, observer, index, "self_attn.q_proj", At(at_.normed), hidden, rows, hidden);
  Observe(context_, observer, index, "self_attn.k_proj", At(at_.normed), hidden, rows, hidden);
  Observe(context_, observer, index, "self_attn.v_proj", At(at_.normed), hidden, rows, hidden);
  QkvAttention(index, cache_layer, At(at_.normed), rows, batch, cache, At(at_.attention));
  Observe(context_, observer, index, "self_attn.o_proj", At(at_.attention), QSize(config_), rows,
          QSize(config_));
  OutputProjection(index, At(at_.attention), rows, At(at_.delta));
}

void LlamaModel::QkvAttention(std::int64_t index, std::int64_t cache_layer, const float* x,
                              std::int64_t rows, const ForwardBatch& batch, KvCache& cache,
                              float* attention) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t stride = QkvSize(config_);
  float* q = At(at_.qkv);
  float* k = q + QSize(config_);
  float* v = k + KvSize(config_);
  const LinearOutput qkv[] = {{&layer.q, q, stride}, {&layer.k, k, stride}, {&layer.v, v, stride}};
  Linear(context_, x, config_.hidden_size, rows, qkv);
  if (layer.q_bias != nullptr) {
    AddBias(context_, q, stride, layer.q_bias, rows, QSize(config_));
    AddBias(context_, k, stride, layer.k_bias, rows, KvSize(config_));
    AddBias(context_, v, stride, layer.v_bias, rows, KvSize(config_));
  }
  RopeAndCache(context_, cache, cache_layer,
               {.q = q,
                .k = k,
                .v = v,
                .q_stride = stride,
                .k_stride = stride,
                .v_stride = stride,
                .num_heads = config_.num_heads,
                .q_norm = layer.q_norm,
                .k_norm = layer.k_norm,
                .norm_eps = config_.rms_norm_eps,
                .rope = {.cos_sin = RopeOf(index),
                         .max_positions = limits_.max_positions,
                         .head_dim = config_.head_dim}},
               batch.sequences);
  PagedAttention(context_, cache, cache_layer,
                 {.q = q,
                  .q_stride = stride,
                  .out = attention,
                  .out_stride = QSize(config_),
                  .num_heads = config_.num_heads,
                  .scale = AttentionScale(config_),
                  .sliding_window = static_cast<std::int32_t>(
                      config_.SlidesIn(index) ? *config_.sliding_window : 0)},
                 batch.sequences);
}

void LlamaModel::OutputProjection(std::int64_t index, const float* attention, std::int64_t rows,
                                  float* delta) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const LinearOutput o[] = {{&layer.o, delta, config_.hidden_size}};
  Linear(context_, attention, QSize(config_), rows, o);
  if (layer.o_bias != nullptr) {
    AddBias(context_, delta, config_.hidden_size, layer.o_bias, rows, config_.hidden_size);
  }
  NormOutput(layer.attention_out_norm, rows, delta);
}

void LlamaModel::NormOutput(const float* norm, std::int64_t rows, float* delta) {
  if (norm != nullptr) {
    AddRmsNorm(context_, delta, nullptr, norm, config_.rms_norm_eps, delta, rows,
               config_.hidden_size);
  }
}

void LlamaModel::FeedForward(std::int64_t index, std::int64_t rows,
                             const LinearObserver* observer) {
  const std::int64_t hidden = config_.hidden_size;
  const std::int64_t inner = config_.intermediate_size;
  Observe(context_, observer, index, "mlp.gate_proj", At(at_.normed), hidden, rows, hidden);
  Observe(context_, observer, index, "mlp.up_proj", At(at_.normed), hidden, rows, hidden);
  GateUp(index, At(at_.normed), rows, At(at_.product));
  Observe(context_, observer, index, "mlp.down_proj", At(at_.product), inner, rows, inner);
  DownProjection(index, At(at_.product), rows, At(at_.delta));
}

void LlamaModel::GateUp(std::int64_t index, const float* x, std::int64_t rows, float* product) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t inner = config_.intermediate_size;
  float* gate = At(at_.gate_up);
  float* up = gate + inner;
  const LinearOutput gate_up[] = {{&layer.gate, gate, 2 * inner}, {&layer.up, up, 2 * inner}};
  Linear(context_, x, config_.hidden_size, rows, gate_up);
  if (layer.gate_bias != nullptr) {
    AddBias(context_, gate, 2 * inner, layer.gate_bias, rows, inner);
    AddBias(context_, up, 2 * inner, layer.up_bias, rows, inner);
  }
  const auto gated = config_.activation == GateActivation::kSilu ? SwiGlu : GeGlu;
  gated(context_, gate, 2 * inner, up, 2 * inner, product, inner, rows, inner);
}

void LlamaModel::DownProjection(std::int64_t index, const float* product, std::int64_t rows,
                                float* delta) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const LinearOutput down[] = {{&layer.down, delta, config_.hidden_size}};
  Linear(context_, product, config_.intermediate_size, rows, down);
  if (layer.down_bias != nullptr) {
    AddBias(context_, delta, config_.hidden_size, layer.down_bias, rows, config_.hidden_size);
  }
  NormOutput(layer.feed_forward_out_norm, rows, delta);
}

void LlamaModel::ForwardBlock(std::int64_t index, float* hidden, const ForwardBatch& batch,
                              KvCache& cache, const LinearObserver* observer) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t rows = batch.num_tokens();
  NIBBLE_CHECK(rows <= limits_.max_tokens, "a step larger than the workspace");
  AddRmsNorm(context_, hidden, nullptr, layer.input_norm, config_.rms_norm_eps, At(at_.normed),
             rows, config_.hidden_size);
  Attend(index, cache.spec.num_layers == 1 ? 0 : index, rows, batch, cache, observer);
  AddRmsNorm(context_, hidden, At(at_.delta), layer.feed_forward_norm, config_.rms_norm_eps,
             At(at_.normed), rows, config_.hidden_size);
  FeedForward(index, rows, observer);
  AddRmsNorm(context_, hidden, At(at_.delta), nullptr, config_.rms_norm_eps, nullptr, rows,
             config_.hidden_size);
}

void LlamaModel::AttentionInput(std::int64_t index, float* hidden, std::int64_t num_tokens,
                                float* x) {
  AddRmsNorm(context_, hidden, nullptr, layers_[static_cast<std::size_t>(index)].input_norm,
             config_.rms_norm_eps, x, num_tokens, config_.hidden_size);
}

void LlamaModel::AttentionOutput(std::int64_t index, const float* x, const ForwardBatch& batch,
                                 KvCache& cache, float* attention) {
  const std::int64_t rows = batch.num_tokens();
  NIBBLE_CHECK(rows <= limits_.max_tokens, "a step larger than the workspace");
  QkvAttention(index, cache.spec.num_layers == 1 ? 0 : index, x, rows, batch, cache, attention);
}

void LlamaModel::AddAttention(std::int64_t index, const float* attention, std::int64_t num_tokens,
                              float* hidden) {
  NIBBLE_CHECK(num_tokens <= limits_.max_tokens, "a step larger than the workspace");
  OutputProjection(index, attention, num_tokens, At(at_.delta));
  AddRmsNorm(context_, hidden, At(at_.delta), nullptr, config_.rms_norm_eps, nullptr, num_tokens,
             config_.hidden_size);
}

void LlamaModel::FeedForwardInput(std::int64_t index, float* hidden, std::int64_t num_tokens,
                                  float* x) {
  AddRmsNorm(context_, hidden, nullptr, layers_[static_cast<std::size_t>(index)].feed_forward_norm,
             config_.rms_norm_eps, x, num_tokens, config_.hidden_size);
}

void LlamaModel::FeedForwardProduct(std::int64_t index, const float* x, std::int64_t num_tokens,
                                    float* product) {
  NIBBLE_CHECK(num_tokens <= limits_.max_tokens, "a step larger than the workspace");
  GateUp(index, x, num_tokens, product);
}

void LlamaModel::AddFeedForward(std::int64_t index, const float* product, std::int64_t num_tokens,
                                float* hidden) {
  NIBBLE_CHECK(num_tokens <= limits_.max_tokens, "a step larger than the workspace");
  DownProjection(index, product, num_tokens, At(at_.delta));
  AddRmsNorm(context_, hidden, At(at_.delta), nullptr, config_.rms_norm_eps, nullptr, num_tokens,
             config_.hidden_size);
}

void LlamaModel::LogitsOf(const float* hidden_states, std::span<const std::int32_t> rows,
                          float* logits, const LinearObserver* observer) {
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t hidden = config_.hidden_size;
  NIBBLE_CHECK(count <= limits_.max_logit_rows && count <= limits_.max_tokens,
               "too many rows of logits");
  // Gathered to `delta`, which the last block no longer needs: only these rows are normed and
  // multiplied.
  GatherRows(context_, hidden_states, hidden, rows, At(at_.delta), hidden);
  AddRmsNorm(context_, At(at_.delta), nullptr, final_norm_, config_.rms_norm_eps, At(at_.normed),
             count, hidden);
  Observe(context_, observer, -1, "lm_head", At(at_.normed), hidden, count, hidden);
  const LinearOutput output[] = {{&head_, logits, config_.vocab_size}};
  Linear(context_, At(at_.normed), hidden, count, output);
}

}  // namespace nibble
