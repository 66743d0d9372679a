#include "eval/blockwise.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/text.h"
#include "model/llama.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxChunkTokens = 512;
constexpr std::int64_t kMaxLogitRows = 64;

// A checkpoint of which one part at a time is in memory.
struct PartialModel {
  const Checkpoint* checkpoint = nullptr;
  WeightPlan plan;  // overlapping
  std::unique_ptr<LlamaModel> model;
  DeviceBuffer logits;
};

// The hidden states of all rows of a group as one model in one activation mode has them.
struct Stream {
  PartialModel* partial = nullptr;
  ActivationMode mode = ActivationMode::kInt16;
  float* hidden = nullptr;
};

class BlockwiseEvaluation {
 public:
  // reference: or none, and the model is measured alone.
  BlockwiseEvaluation(const Checkpoint& model, const Checkpoint* reference, Device& device,
                      std::span<const TokenId> tokens, std::span<const TokenId> prompt,
                      const WindowOptions& options, const BlockwiseProgress& progress)
      : config_(model.config()),
        device_(device),
        tokens_(tokens),
        prompt_(prompt),
        options_(options),
        progress_(progress) {
    model_.checkpoint = &model;
    models_ = {&model_};
    if (reference != nullptr) {
      reference_.checkpoint = reference;
      models_ = {&reference_, &model_};
    }
    num_streams_ = reference == nullptr ? 1 : 3;
  }

  Result<BlockwiseQuality> Go() {
    NIBBLE_TRY_VOID(Plan());
    NIBBLE_TRY_VOID(AllocateAll());
    for (std::int64_t first = 0; first < num_windows_; first += group_windows_) {
      NIBBLE_TRY_VOID(RunGroup(first, std::min(num_windows_, first + group_windows_)));
    }
    quality_.int16 = meters_[0].Report();
    quality_.int8 = meters_[1].Report();
    return std::move(quality_);
  }

  // Adds all memory to the ledger.
  Result<void> Plan() {
    NIBBLE_CHECK(device_.kind() == DeviceKind::kCpu, "the walk reads hidden states in place");
    const ModelConfig& other = models_.front()->checkpoint->config();
    if (other.vocab_size != config_.vocab_size || other.num_layers != config_.num_layers ||
        other.hidden_size != config_.hidden_size || other.num_kv_heads != config_.num_kv_heads ||
        other.head_dim != config_.head_dim) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} and {} differ in shape: one is not made from the other",
                              model_.checkpoint->path().string(),
                              models_.front()->checkpoint->path().string()));
    }
    NIBBLE_TRY(windows, CountWindows(tokens_, options_, config_.vocab_size));
    num_windows_ = windows;
    const std::int64_t longest =
        std::max(options_.context, static_cast<std::int64_t>(prompt_.size()));
    limits_ = {.max_tokens = std::min(longest, kMaxChunkTokens),
               .max_sequences = 1,
               .max_positions = longest,
               .max_logit_rows = std::min({longest, kMaxChunkTokens, kMaxLogitRows})};
    for (PartialModel* partial : models_) {
      NIBBLE_TRY(plan, PlanWeights(*partial->checkpoint, device_, TableFormat::kAuto));
      partial->plan = OverlapParts(plan, config_);
      NIBBLE_TRY_VOID(LlamaModel::Plan(*partial->checkpoint, partial->plan, limits_,
                                       ActivationMode::kInt16, device_));
    }
    device_.ledger().Plan("logits", models_.size() * LogitsBytes());
    cache_.spec = {.num_layers = 1,
                   .num_kv_heads = config_.num_kv_heads,
                   .head_dim = config_.head_dim,
                   .dtype = KvDType::kBF16,  // as golden logits are replayed
                   .block_size_tokens = BlockSizeTokens(device_)};
    NIBBLE_TRY_VOID(Validate(cache_.spec));
    cache_.num_blocks =
        (longest + cache_.spec.block_size_tokens - 1) / cache_.spec.block_size_tokens;
    device_.ledger().Plan("kv_cache", CacheBytes());
    ChooseGroup();
    device_.ledger().Plan("hidden", HiddenBytes());
    if (device_.ledger().planned_bytes() > device_.AvailableBytes()) {
      return Fail(ErrorCode::kOutOfMemory,
                  fmt::format("measuring {} block by block needs {} and {} are available; use a "
                              "shorter --context",
                              model_.checkpoint->path().string(),
                              HumanBytes(static_cast<double>(device_.ledger().planned_bytes())),
                              HumanBytes(static_cast<double>(device_.AvailableBytes()))));
    }
    return {};
  }

 private:
  std::size_t LogitsBytes() const {
    return static_cast<std::size_t>(limits_.max_logit_rows * config_.vocab_size) * sizeof(float);
  }
  std::size_t CacheBytes() const {
    return static_cast<std::size_t>(cache_.num_blocks) * cache_.spec.BlockBytes();
  }
  std::size_t HiddenBytes() const {
    return num_streams_ * static_cast<std::size_t>(GroupRows() * config_.hidden_size) *
           sizeof(float);
  }

  Result<void> AllocateAll() {
    for (PartialModel* partial : models_) {
      NIBBLE_TRY(model, LlamaModel::Allocate(*partial->checkpoint, partial->plan, limits_,
                                             ActivationMode::kInt16, device_));
      partial->model = std::move(model);
      NIBBLE_TRY(logits, device_.Allocate("logits", LogitsBytes()));
      partial->logits = std::move(logits);
    }
    NIBBLE_TRY(kv_buffer, device_.Allocate("kv_cache", CacheBytes()));
    NIBBLE_TRY(hidden, device_.Allocate("hidden", HiddenBytes()));
    kv_buffer_ = std::move(kv_buffer);
    hidden_ = std::move(hidden);
    cache_.data = kv_buffer_.data();
    block_table_.resize(static_cast<std::size_t>(cache_.num_blocks));
    for (std::size_t i = 0; i < block_table_.size(); ++i) {
      block_table_[i] = BlockId{static_cast<std::int32_t>(i)};
    }
    const std::int64_t rows = GroupRows();
    float* at = hidden_.as<float>();
    streams_ = {Stream{.partial = models_.front(), .hidden = at}};
    if (num_streams_ > 1) {
      streams_.push_back({.partial = &model_, .hidden = at + rows * config_.hidden_size});
      streams_.push_back({.partial = &model_,
                          .mode = ActivationMode::kInt8,
                          .hidden = at + 2 * rows * config_.hidden_size});
    }
    return {};
  }

  // Chooses how many windows walk together; each further group loads all weights once more.
  void ChooseGroup() {
    std::int64_t largest = 0;
    for (const PlannedWeight& weight : model_.plan.weights) {
      largest = std::max(largest, weight.stored->spec.rows * weight.stored->spec.cols);
    }
    const std::int64_t per_window =
        static_cast<std::int64_t>(num_streams_) * options_.context * config_.hidden_size;
    group_windows_ = std::clamp<std::int64_t>(largest / per_window, 1, num_windows_);
  }
  std::int64_t GroupRows() const {
    return group_windows_ * options_.context + static_cast<std::int64_t>(prompt_.size());
  }

  Result<void> Load(ModelPart part) {
    for (PartialModel* partial : models_) {
      const WeightPlan weights = PartOf(partial->plan, config_, part);
      NIBBLE_TRY_VOID(LoadWeights(*partial->checkpoint, weights, device_,
                                  partial->model->weight_places(), {}, {}));
      for (const PlannedWeight& weight : weights.weights) {
        partial->checkpoint->Release(*weight.stored);
      }
    }
    return {};
  }

  Result<void> Step(std::uint64_t work, const std::string& detail) {
    done_ += work;
    return !progress_ || progress_(done_, total_, detail)
               ? Result<void>{}
               : Fail(ErrorCode::kCancelled, "the evaluation was interrupted");
  }

  // Calls body(first_position, tokens) for the chunks of a sequence.
  template <typename Body>
  void ForChunks(std::span<const TokenId> sequence, Body&& body) const {
    for (std::size_t at = 0; at < sequence.size();
         at += static_cast<std::size_t>(limits_.max_tokens)) {
      body(static_cast<std::int64_t>(at),
           sequence.subspan(
               at, std::min(static_cast<std::size_t>(limits_.max_tokens), sequence.size() - at)));
    }
  }

  // Windows [first, last), and with the first of them the prompt, through both models.
  Result<void> RunGroup(std::int64_t first, std::int64_t last) {
    std::vector<std::span<const TokenId>> sequences;
    for (std::int64_t window = first; window < last; ++window) {
      sequences.push_back(tokens_.subspan(static_cast<std::size_t>(window * options_.context),
                                          static_cast<std::size_t>(options_.context)));
    }
    if (first == 0) {
      sequences.push_back(prompt_);
    }
    const std::uint64_t block_work = Elements(PartOf(model_.plan, config_, ModelPart{0}));
    const std::uint64_t head_work = Elements(PartOf(model_.plan, config_, ModelPart::kHead));
    // The prompt is not counted among the windows' heads: it asks for one row.
    total_ = static_cast<std::uint64_t>(num_windows_) * head_work +
             static_cast<std::uint64_t>((num_windows_ + 1) * config_.num_layers) * block_work;
    NIBBLE_TRY_VOID(Load(ModelPart::kEmbedding));
    for (const Stream& stream : streams_) {
      float* hidden = stream.hidden;
      for (const auto sequence : sequences) {
        ForChunks(sequence, [&](std::int64_t, std::span<const TokenId> chunk) {
          stream.partial->model->Embed(chunk, hidden);
          hidden += std::ssize(chunk) * config_.hidden_size;
        });
      }
    }
    for (std::int64_t block = 0; block < config_.num_layers; ++block) {
      NIBBLE_TRY_VOID(Load(ModelPart{block}));
      std::int64_t row = 0;
      for (const auto sequence : sequences) {
        for (const Stream& stream : streams_) {
          RunBlock(stream, block, sequence, row);
        }
        row += std::ssize(sequence);
        NIBBLE_TRY_VOID(
            Step(block_work, fmt::format("block {} of {}", block + 1, config_.num_layers)));
      }
    }
    NIBBLE_TRY_VOID(Load(ModelPart::kHead));
    for (std::int64_t window = first; window < last; ++window) {
      ScoreWindow(window, (window - first) * options_.context);
      NIBBLE_TRY_VOID(Step(head_work, fmt::format("perplexity {:.2f}", meters_[0].perplexity())));
    }
    if (first == 0 && !prompt_.empty()) {
      const std::int64_t row =
          (last - first) * options_.context + static_cast<std::int64_t>(prompt_.size()) - 1;
      quality_.prompt_logits_int16 = PromptLogits(streams_[1], row);
      quality_.prompt_logits_int8 = PromptLogits(streams_[2], row);
    }
    return {};
  }

  // One sequence, whose hidden states begin at `row`, through one block.
  void RunBlock(const Stream& stream, std::int64_t block, std::span<const TokenId> sequence,
                std::int64_t row) {
    LlamaModel& model = *stream.partial->model;
    model.SetActivations(stream.mode);
    ForChunks(sequence, [&](std::int64_t position, std::span<const TokenId> chunk) {
      const AttentionSequence rows{.first_row = 0,
                                   .num_rows = static_cast<std::int32_t>(chunk.size()),
                                   .first_position = static_cast<std::int32_t>(position),
                                   .block_table = block_table_.data()};
      const ForwardBatch batch{.token_ids = chunk, .sequences = {&rows, 1}};
      model.ForwardBlock(block, stream.hidden + (row + position) * config_.hidden_size, batch,
                         cache_);
    });
  }

  static std::uint64_t Elements(const WeightPlan& plan) {
    return std::accumulate(plan.weights.begin(), plan.weights.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const PlannedWeight& weight) {
                             return sum + static_cast<std::uint64_t>(weight.stored->spec.rows *
                                                                     weight.stored->spec.cols);
                           });
  }

  // Logits of hidden rows [row, row + count) of a stream; valid until its model's next.
  const float* LogitsOf(const Stream& stream, std::int64_t row, std::int64_t count) {
    std::array<std::int32_t, kMaxLogitRows> rows{};
    std::iota(rows.begin(), rows.end(), 0);
    stream.partial->model->SetActivations(stream.mode);
    float* logits = stream.partial->logits.as<float>();
    stream.partial->model->LogitsOf(
        stream.hidden + row * config_.hidden_size,
        std::span<const std::int32_t>(rows).first(static_cast<std::size_t>(count)), logits);
    return logits;
  }

  // The window whose hidden states begin at `row`.
  void ScoreWindow(std::int64_t window, std::int64_t row) {
    const auto text = tokens_.subspan(static_cast<std::size_t>(window * options_.context),
                                      static_cast<std::size_t>(options_.context));
    for (std::int64_t at = 0; at < options_.context - 1; at += limits_.max_logit_rows) {
      const std::int64_t count = std::min(limits_.max_logit_rows, options_.context - 1 - at);
      const auto targets =
          text.subspan(static_cast<std::size_t>(at + 1), static_cast<std::size_t>(count));
      const float* truth = LogitsOf(streams_[0], row + at, count);
      if (num_streams_ == 1) {
        meters_[0].Add(device_.pool(), truth, truth, config_.vocab_size, targets);
      }
      for (std::size_t i = 0; i + 1 < num_streams_; ++i) {
        meters_[i].Add(device_.pool(), LogitsOf(streams_[i + 1], row + at, count), truth,
                       config_.vocab_size, targets);
      }
    }
    for (QualityMeter& meter : meters_) {
      meter.EndWindow();
    }
  }

  std::vector<float> PromptLogits(const Stream& stream, std::int64_t row) {
    const float* logits = LogitsOf(stream, row, 1);
    return {logits, logits + config_.vocab_size};
  }

  const ModelConfig& config_;
  Device& device_;
  std::span<const TokenId> tokens_, prompt_;
  const WindowOptions& options_;
  const BlockwiseProgress& progress_;
  PartialModel reference_, model_;
  std::vector<PartialModel*> models_;   // reference, model; or the model alone
  std::vector<Stream> streams_;         // reference, int16, int8; or int16 alone
  std::array<QualityMeter, 2> meters_;  // int16, int8
  std::size_t num_streams_ = 0;
  DeviceBuffer kv_buffer_, hidden_;
  KvCache cache_;
  std::vector<BlockId> block_table_;
  ModelLimits limits_;
  std::int64_t num_windows_ = 0, group_windows_ = 0;
  std::uint64_t done_ = 0, total_ = 0;
  BlockwiseQuality quality_;
};

}  // namespace

Result<BlockwiseQuality> EvaluateBlockwise(const Checkpoint& model, const Checkpoint& reference,
                                           Device& device, std::span<const TokenId> tokens,
                                           std::span<const TokenId> prompt,
                                           const WindowOptions& options,
                                           const BlockwiseProgress& progress) {
  return BlockwiseEvaluation(model, &reference, device, tokens, prompt, options, progress).Go();
}

Result<std::uint64_t> BlockwiseBytes(const Checkpoint& model, const Checkpoint& reference,
                                     Device& device, std::span<const TokenId> tokens,
                                     std::span<const TokenId> prompt,
                                     const WindowOptions& options) {
  NIBBLE_TRY_VOID(
      BlockwiseEvaluation(model, &reference, device, tokens, prompt, options, {}).Plan());
  return device.ledger().planned_bytes();
}

Result<QualityReport> EvaluateAlone(const Checkpoint& model, Device& device,
                                    std::span<const TokenId> tokens, const WindowOptions& options,
                                    const BlockwiseProgress& progress) {
  NIBBLE_TRY(quality,
             BlockwiseEvaluation(model, nullptr, device, tokens, {}, options, progress).Go());
  return std::move(quality.int16);
}

}  // namespace nibble
