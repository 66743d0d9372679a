#include "compress/output_probe.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "eval/perplexity.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxLogitRows = 64;

std::int64_t CacheBlocks(std::int64_t length, std::int64_t block_tokens) {
  return (length + block_tokens - 1) / block_tokens;
}

std::size_t FloatBytes(std::int64_t count) {
  return static_cast<std::size_t>(count) * sizeof(float);
}

// What a probe allocates beside the model, in bytes.
struct Sizes {
  std::size_t kv = 0, hidden = 0, inner = 0, logits = 0, reference = 0;
};

Result<KvCacheSpec> CacheSpec(const ModelConfig& config, const Device& device) {
  const KvCacheSpec spec{.num_layers = 1,
                         .num_kv_heads = config.num_kv_heads,
                         .head_dim = config.head_dim,
                         .dtype = KvDType::kBF16,
                         .block_size_tokens = BlockSizeTokens(device)};
  NIBBLE_TRY_VOID(Validate(spec));
  return spec;
}

std::int64_t NumCompared(const OutputProbe::Text& text) {
  return static_cast<std::int64_t>(text.tokens.size()) / text.length *
         ((text.length + text.position_stride - 1) / text.position_stride);
}

Sizes SizesOf(const ModelConfig& config, const KvCacheSpec& spec, const OutputProbe::Text& text) {
  const auto rows = static_cast<std::int64_t>(text.tokens.size());
  const std::int64_t compared = NumCompared(text);
  const std::int64_t inner = std::max(config.num_heads * config.head_dim, config.intermediate_size);
  return {.kv = static_cast<std::size_t>(rows / text.length *
                                         CacheBlocks(text.length, spec.block_size_tokens)) *
                spec.BlockBytes(),
          .hidden = FloatBytes(rows * config.hidden_size),
          .inner = FloatBytes(rows * inner),
          .logits = FloatBytes(std::min(compared, kMaxLogitRows) * config.vocab_size),
          .reference = FloatBytes(compared * config.vocab_size)};
}

}  // namespace

ModelLimits OutputProbe::LimitsOf(const Text& text) {
  const auto rows = static_cast<std::int64_t>(text.tokens.size());
  return {.max_tokens = rows,
          .max_sequences = rows / text.length,
          .max_positions = text.length,
          .max_logit_rows = std::min(NumCompared(text), kMaxLogitRows)};
}

Result<void> OutputProbe::Plan(const Checkpoint& source, const Text& text, Device& device) {
  NIBBLE_TRY(plan, PlanWeights(source, device, TableFormat::kAuto));
  NIBBLE_TRY_VOID(LlamaModel::Plan(source, plan, LimitsOf(text), ActivationMode::kInt16, device));
  NIBBLE_TRY(spec, CacheSpec(source.config(), device));
  const Sizes sizes = SizesOf(source.config(), spec, text);
  device.ledger().Plan("kv_cache", sizes.kv);
  device.ledger().Plan("probe", 3 * sizes.hidden + sizes.inner + sizes.logits + sizes.reference);
  return {};
}

Result<std::unique_ptr<OutputProbe>> OutputProbe::Create(const Checkpoint& source, const Text& text,
                                                         Device& device) {
  NIBBLE_CHECK(device.kind() == DeviceKind::kCpu, "the probe reads hidden states in place");
  NIBBLE_CHECK(
      !text.tokens.empty() && static_cast<std::int64_t>(text.tokens.size()) % text.length == 0,
      "whole windows");
  const ModelConfig& config = source.config();
  std::unique_ptr<OutputProbe> probe(new OutputProbe(text, LimitsOf(text), device));
  NIBBLE_TRY(plan, PlanWeights(source, device, TableFormat::kAuto));
  NIBBLE_TRY(model, LlamaModel::Load(source, plan, probe->limits_, ActivationMode::kInt16, device));
  probe->model_ = std::move(model);
  for (const PlannedWeight& weight : plan.weights) {  // the file's pages are not needed any more
    source.Release(*weight.stored);
  }
  NIBBLE_TRY(spec, CacheSpec(config, device));
  const Sizes sizes = SizesOf(config, spec, text);
  NIBBLE_TRY(kv, device.Allocate("kv_cache", sizes.kv));
  NIBBLE_TRY(hidden, device.Allocate("probe", sizes.hidden));
  NIBBLE_TRY(changed, device.Allocate("probe", sizes.hidden));
  NIBBLE_TRY(input, device.Allocate("probe", sizes.hidden));
  NIBBLE_TRY(inner, device.Allocate("probe", sizes.inner));
  NIBBLE_TRY(logits, device.Allocate("probe", sizes.logits));
  NIBBLE_TRY(reference, device.Allocate("probe", sizes.reference));
  probe->kv_buffer_ = std::move(kv);
  probe->hidden_ = std::move(hidden);
  probe->changed_ = std::move(changed);
  probe->input_ = std::move(input);
  probe->inner_ = std::move(inner);
  probe->logits_ = std::move(logits);
  probe->reference_ = std::move(reference);
  const std::int64_t blocks = CacheBlocks(text.length, spec.block_size_tokens);
  const std::int64_t windows = probe->num_rows() / text.length;
  probe->cache_ = {.spec = spec, .num_blocks = windows * blocks, .data = probe->kv_buffer_.data()};
  for (std::int64_t window = 0; window < windows; ++window) {
    std::vector<BlockId>& table = probe->block_tables_.emplace_back();
    for (std::int64_t i = 0; i < blocks; ++i) {
      table.push_back(BlockId{static_cast<std::int32_t>(window * blocks + i)});
    }
    probe->sequences_.push_back({.first_row = static_cast<std::int32_t>(window * text.length),
                                 .num_rows = static_cast<std::int32_t>(text.length),
                                 .block_table = table.data()});
    for (std::int64_t i = 0; i < text.length; i += text.position_stride) {
      probe->rows_.push_back(static_cast<std::int32_t>(window * text.length + i));
    }
  }
  // The source's logits; then back to the first block.
  float* at = probe->changed_.as<float>();
  probe->model_->Embed(text.tokens, probe->hidden_.as<float>());
  std::copy_n(probe->hidden_.as<float>(), probe->num_rows() * config.hidden_size, at);
  for (std::int64_t block = 0; block < config.num_layers; ++block) {
    probe->RunBlock(block, at, LinearGroup::kQkv, nullptr);
  }
  float* to = probe->reference_.as<float>();
  probe->ForLogits(at, [&](const float* rows, std::int64_t count) {
    to = std::copy_n(rows, count * config.vocab_size, to);
  });
  return probe;
}

void OutputProbe::RunBlock(std::int64_t block, float* hidden, LinearGroup group,
                           LlamaModel* other) {
  const auto of = [&](LinearGroup which) -> LlamaModel& {
    return other != nullptr && which == group ? *other : *model_;
  };
  const ForwardBatch batch{.token_ids = text_.tokens, .sequences = sequences_};
  const std::int64_t rows = num_rows();
  auto* x = input_.as<float>();
  auto* inner = inner_.as<float>();
  model_->AttentionInput(block, hidden, rows, x);
  of(LinearGroup::kQkv).AttentionOutput(block, x, batch, cache_, inner);
  of(LinearGroup::kOutput).AddAttention(block, inner, rows, hidden);
  model_->FeedForwardInput(block, hidden, rows, x);
  of(LinearGroup::kGateUp).FeedForwardProduct(block, x, rows, inner);
  of(LinearGroup::kDown).AddFeedForward(block, inner, rows, hidden);
}

// Calls take(logits, count) for the compared rows, some at a time, in order.
template <typename Take>
void OutputProbe::ForLogits(float* hidden, Take&& take) {
  for (std::size_t first = 0; first < rows_.size(); first += kMaxLogitRows) {
    const auto rows = std::span<const std::int32_t>(rows_).subspan(
        first, std::min(static_cast<std::size_t>(kMaxLogitRows), rows_.size() - first));
    model_->LogitsOf(hidden, rows, logits_.as<float>());
    take(logits_.as<float>(), std::ssize(rows));
  }
}

double OutputProbe::Compare(LinearGroup group, LlamaModel& other) {
  const ModelConfig& config = model_->config();
  auto* hidden = changed_.as<float>();
  std::copy_n(hidden_.as<float>(), num_rows() * config.hidden_size, hidden);
  RunBlock(block_, hidden, group, &other);
  for (std::int64_t block = block_ + 1; block < config.num_layers; ++block) {
    RunBlock(block, hidden, group, nullptr);
  }
  std::vector<double> kl(rows_.size());
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  std::size_t done = 0;
  ForLogits(hidden, [&](const float* logits, std::int64_t count) {
    device_.pool().For(count, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
        kl[done + i] = KlDivergence({reference_.as<float>() + (done + i) * vocab, vocab},
                                    {logits + i * vocab, vocab});
      }
    });
    done += static_cast<std::size_t>(count);
  });
  return std::accumulate(kl.begin(), kl.end(), 0.0) / static_cast<double>(kl.size());
}

void OutputProbe::Advance() { RunBlock(block_++, hidden_.as<float>(), LinearGroup::kQkv, nullptr); }

}  // namespace nibble
