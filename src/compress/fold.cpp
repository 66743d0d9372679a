#include "compress/fold.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "base/check.h"

namespace nibble {
namespace {

constexpr std::size_t kNumGroups = std::size(kLinearGroups);

std::size_t Index(LinearGroup group) { return static_cast<std::size_t>(group); }

}  // namespace

json::Value FoldedScales::ToJson() const {
  json::Array out;
  for (const auto& block : blocks) {
    json::Array groups;
    for (const std::vector<float>& scales : block) {
      json::Array values;
      for (const float scale : scales) {
        values.emplace_back(static_cast<double>(scale));
      }
      groups.emplace_back(std::move(values));
    }
    out.emplace_back(std::move(groups));
  }
  return out;
}

Result<FoldedScales> FoldedScales::FromJson(const json::Value& value, const ModelConfig& config) {
  const auto wrong = [] {
    return Fail(ErrorCode::kCorruptFile, "the scales of an earlier run are not of this model");
  };
  const json::Array* blocks = value.AsArray();
  if (blocks == nullptr || static_cast<std::int64_t>(blocks->size()) != config.num_layers) {
    return wrong();
  }
  FoldedScales out;
  for (const json::Value& block : *blocks) {
    const json::Array* groups = block.AsArray();
    if (groups == nullptr || groups->size() != kNumGroups) {
      return wrong();
    }
    auto& to = out.blocks.emplace_back();
    for (const LinearGroup group : kLinearGroups) {
      const json::Array* values = (*groups)[Index(group)].AsArray();
      if (values == nullptr || (!values->empty() && static_cast<std::int64_t>(values->size()) !=
                                                        InputWidth(config, group))) {
        return wrong();
      }
      for (const json::Value& scale : *values) {
        if (!scale.AsDouble() || !(*scale.AsDouble() > 0.0)) {
          return wrong();
        }
        to[Index(group)].push_back(static_cast<float>(*scale.AsDouble()));
      }
    }
  }
  return out;
}

void ShareAcrossHeads(const ModelConfig& config, std::vector<float>& output_scales) {
  const std::int64_t repeat = config.num_heads / config.num_kv_heads;
  const auto at = [&](std::int64_t kv, std::int64_t r, std::int64_t d) -> float& {
    return output_scales[static_cast<std::size_t>((kv * repeat + r) * config.head_dim + d)];
  };
  for (std::int64_t kv = 0; kv < config.num_kv_heads; ++kv) {
    for (std::int64_t d = 0; d < config.head_dim; ++d) {
      double sum = 0.0;
      for (std::int64_t r = 0; r < repeat; ++r) {
        sum += std::log(static_cast<double>(at(kv, r, d)));
      }
      const auto shared = static_cast<float>(std::exp(sum / static_cast<double>(repeat)));
      for (std::int64_t r = 0; r < repeat; ++r) {
        at(kv, r, d) = shared;
      }
    }
  }
}

FoldedCheckpoint::Change& FoldedCheckpoint::ChangeOf(const std::string& name) {
  return changes_[name];
}

void FoldedCheckpoint::DivideNorm(const std::string& name, const std::vector<float>& scales) {
  Change& change = ChangeOf(name);
  change.plus_one = config_.norm_plus_one;
  // A vector is one row: what divides a norm's elements multiplies its columns.
  for (const float scale : scales) {
    change.columns.push_back(1.0F / scale);
  }
}

FoldedCheckpoint::FoldedCheckpoint(const Checkpoint& source, const FoldedScales& scales)
    : source_(source) {
  path_ = source.path();
  config_ = source.config();
  weights_.assign(source.weights().begin(), source.weights().end());
  for (std::size_t block = 0; block < scales.blocks.size(); ++block) {
    const auto index = static_cast<std::int64_t>(block);
    for (const LinearGroup group : kLinearGroups) {
      const std::vector<float>& s = scales.blocks[block][Index(group)];
      if (s.empty()) {
        continue;
      }
      for (const std::string_view linear : LinearsOf(group)) {
        ChangeOf(WeightName(index, linear)).columns = s;
      }
      switch (group) {
        case LinearGroup::kQkv:
          DivideNorm(WeightName(index, "input_layernorm"), s);
          break;
        case LinearGroup::kGateUp:
          DivideNorm(WeightName(index, config_.FeedForwardNorm()), s);
          break;
        case LinearGroup::kOutput: {
          const std::int64_t repeat = config_.num_heads / config_.num_kv_heads;
          for (std::int64_t row = 0; row < config_.num_kv_heads * config_.head_dim; ++row) {
            const std::int64_t column =
                row / config_.head_dim * repeat * config_.head_dim + row % config_.head_dim;
            const float scale = s[static_cast<std::size_t>(column)];
            ChangeOf(WeightName(index, "self_attn.v_proj")).rows.push_back(scale);
            ChangeOf(fmt::format("model.layers.{}.self_attn.v_proj.bias", block))
                .columns.push_back(1.0F / scale);
          }
          break;
        }
        case LinearGroup::kDown:
          for (const float scale : s) {
            ChangeOf(WeightName(index, "mlp.up_proj")).rows.push_back(scale);
            ChangeOf(fmt::format("model.layers.{}.mlp.up_proj.bias", block))
                .columns.push_back(1.0F / scale);
          }
          break;
      }
    }
  }
  for (WeightInfo& weight : weights_) {
    if (changes_.contains(weight.name)) {
      weight.spec = {.rows = weight.spec.rows, .cols = weight.spec.cols};
      weight.stored_as = "F32";
    }
  }
}

Result<QuantizedTensor> FoldedCheckpoint::ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                                   std::int64_t row_end) const {
  const WeightInfo* stored = source_.Find(weight.name);
  NIBBLE_CHECK(stored != nullptr, "a weight of the source");
  NIBBLE_TRY(rows, source_.ReadRows(*stored, row_begin, row_end));
  const auto change = changes_.find(weight.name);
  if (change == changes_.end()) {
    return rows;
  }
  QuantizedTensor out{.spec = weight.spec, .values = Dequantize(rows)};
  out.spec.rows = row_end - row_begin;
  const auto cols = static_cast<std::size_t>(weight.spec.cols);
  const auto& [columns, divisors, plus_one] = change->second;
  const float one = plus_one ? 1.0F : 0.0F;
  for (std::size_t i = 0; i < out.values.size(); ++i) {
    if (!columns.empty()) {
      out.values[i] = (out.values[i] + one) * columns[i % cols] - one;
    }
    if (!divisors.empty()) {
      out.values[i] /= divisors[static_cast<std::size_t>(row_begin) + i / cols];
    }
  }
  return out;
}

Result<std::vector<std::span<const std::byte>>> FoldedCheckpoint::RawParts(
    const WeightInfo& weight) const {
  if (changes_.contains(weight.name)) {
    return Fail(ErrorCode::kUnsupported, fmt::format("{} was scaled", weight.name));
  }
  return source_.RawParts(*source_.Find(weight.name));
}

void FoldedCheckpoint::Release(const WeightInfo& weight) const {
  if (const WeightInfo* stored = source_.Find(weight.name)) {
    source_.Release(*stored);
  }
}

}  // namespace nibble
