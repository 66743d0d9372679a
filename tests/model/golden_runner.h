#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "model/llama.h"

namespace nibble {

namespace fs = std::filesystem;

/// The tiny models of tests/golden/models.
inline fs::path Golden() { return fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/models"; }

struct Expected {
  std::vector<TokenId> ids;
  std::vector<float> logits;  // [ids.size(), vocab]
  std::int64_t vocab = 0;
};

/// `logits` names a tensor of tests/golden/models/<name>.expected.safetensors: "logits" (fp32 keys
/// and values) or "logits_kv_bf16".
inline Expected ReadExpected(const std::string& name, std::string_view logits = "logits") {
  Expected out;
  auto file = SafetensorsFile::Open(Golden() / (name + ".expected.safetensors"));
  EXPECT_TRUE(file) << file.error().message;
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const TensorView view = (*file)->View(entry);
    if (entry.name == logits) {
      out.vocab = entry.shape[entry.shape.rank() - 1];
      out.logits.resize(view.bytes.size() / sizeof(float));
      std::memcpy(out.logits.data(), view.bytes.data(), view.bytes.size());
    } else if (entry.name == "input_ids") {
      const auto count = static_cast<std::size_t>(entry.shape.num_elements());
      for (std::size_t i = 0; i < count; ++i) {
        std::int64_t wide = 0;
        std::int32_t narrow = 0;
        if (view.dtype == DType::kI64) {
          std::memcpy(&wide, view.bytes.data() + 8 * i, 8);
        } else {
          std::memcpy(&narrow, view.bytes.data() + 4 * i, 4);
          wide = narrow;
        }
        out.ids.push_back(TokenId{static_cast<std::int32_t>(wide)});
      }
    }
  }
  return out;
}

/// A loaded model with a pool of its own, run over one sequence.
class Runner {
 public:
  Runner(const std::string& name, int threads, ActivationMode mode,
         KvDType kv_dtype = KvDType::kBF16)
      : Runner(Golden() / name, threads, mode, kv_dtype) {}
  Runner(const fs::path& path, int threads, ActivationMode mode, KvDType kv_dtype)
      : device_(MakeCpuDevice(threads)) {
    auto checkpoint = Checkpoint::Open(path.string());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    const ModelLimits limits{
        .max_tokens = 64, .max_sequences = 4, .max_positions = 128, .max_logit_rows = 64};
    auto plan = PlanWeights(*checkpoint_, *device_, TableFormat::kAsStored);
    EXPECT_TRUE(plan) << plan.error().message;
    auto model = LlamaModel::Load(*checkpoint_, *plan, limits, mode, *device_);
    EXPECT_TRUE(model) << model.error().message;
    model_ = std::move(*model);
    UseCache(kv_dtype);
    for (int i = 0; i < 16; ++i) {
      table_.push_back(BlockId{15 - i});  // not in order, as in real life
    }
  }

  /// Another cache, empty.
  void UseCache(KvDType kv_dtype) {
    cache_.spec = model_->kv_spec(kv_dtype);
    cache_.num_blocks = 16;
    auto memory = device_->Allocate("kv_cache", cache_.spec.BlockBytes() * 16);
    EXPECT_TRUE(memory);
    memory_ = std::move(*memory);
    cache_.data = memory_.data();
  }

  /// Logits of all positions, the sequence cut in chunks of these sizes.
  std::vector<float> Logits(const std::vector<TokenId>& ids, std::int64_t chunk) {
    std::vector<float> out;
    const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
    for (std::size_t begin = 0; begin < ids.size(); begin += static_cast<std::size_t>(chunk)) {
      const std::size_t count = std::min(ids.size() - begin, static_cast<std::size_t>(chunk));
      const AttentionSequence sequence{.first_row = 0,
                                       .num_rows = static_cast<std::int32_t>(count),
                                       .first_position = static_cast<std::int32_t>(begin),
                                       .block_table = table_.data()};
      model_->Forward(
          {.token_ids = std::span(ids).subspan(begin, count), .sequences = {&sequence, 1}}, cache_);
      std::vector<std::int32_t> rows(count);
      for (std::size_t i = 0; i < count; ++i) {
        rows[i] = static_cast<std::int32_t>(i);
      }
      std::vector<float> logits(count * vocab);
      model_->Logits(rows, logits.data());
      out.insert(out.end(), logits.begin(), logits.end());
    }
    return out;
  }
  LlamaModel& model() { return *model_; }
  KvCache& cache() { return cache_; }
  const std::vector<BlockId>& table() const { return table_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<LlamaModel> model_;
  DeviceBuffer memory_;
  KvCache cache_;
  std::vector<BlockId> table_;
};

}  // namespace nibble
