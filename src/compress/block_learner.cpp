#include "compress/block_learner.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/random.h"
#include "compress/block_walk.h"
#include "compress/read_weights.h"

namespace nibble {
namespace {

// Whole epochs of windows, each in an order of its own.
class Batches {
 public:
  Batches(std::int64_t num_windows, std::uint64_t seed)
      : random_(seed), order_(static_cast<std::size_t>(num_windows)), next_(order_.size()) {
    std::iota(order_.begin(), order_.end(), std::int64_t{0});
  }
  void Next(std::span<std::int64_t> windows) {
    for (std::int64_t& window : windows) {
      if (next_ == order_.size()) {
        Shuffle();
        next_ = 0;
      }
      window = order_[next_++];
    }
  }

 private:
  void Shuffle() {
    for (std::size_t i = order_.size() - 1; i > 0; --i) {
      std::swap(order_[i], order_[random_() % (i + 1)]);
    }
  }

  PhiloxEngine random_;
  std::vector<std::int64_t> order_;
  std::size_t next_;
};

std::int64_t WindowsOf(const LearnOptions& options, std::int64_t length) {
  return std::max<std::int64_t>(1, options.batch_tokens / length);
}

}  // namespace

BlockLearner::BlockLearner(const ModelConfig& config, BlockVectors vectors, std::int64_t length,
                           const LearnOptions& options, ThreadPool& pool)
    : config_(config),
      length_(length),
      batch_windows_(WindowsOf(options, length)),
      options_(options),
      pool_(pool),
      block_(config, std::move(vectors), length, batch_windows_, pool),
      x_(static_cast<std::size_t>(batch_windows_ * window_floats())),
      out_(x_.size()) {}

std::uint64_t BlockLearner::SizeBytes(const ModelConfig& config, std::int64_t length,
                                      const LearnOptions& options, int num_workers) {
  const std::int64_t windows = WindowsOf(options, length);
  const std::int64_t elements =
      config.hidden_size * (config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads) +
                            3 * config.intermediate_size);
  // A matrix as floats before, now and as a derivative, its positions, and codes twice.
  constexpr std::int64_t kBytesOfElement = 4 * sizeof(float) + 2;
  return BlockGradient::SizeBytes(config, length, windows, num_workers) +
         static_cast<std::uint64_t>(2 * windows * length * config.hidden_size) * sizeof(float) +
         static_cast<std::uint64_t>(elements * kBytesOfElement);
}

double BlockLearner::TakeError(const float* target, float* out) const {
  double energy = 0.0, error = 0.0;
  for (std::int64_t i = 0; i < config_.hidden_size; ++i) {
    const auto wanted = static_cast<double>(target[i]);
    const double difference = static_cast<double>(out[i]) - wanted;
    energy += wanted * wanted;
    error += difference * difference;
  }
  const double weight = 1.0 / (energy + static_cast<double>(std::numeric_limits<float>::min()));
  for (std::int64_t i = 0; i < config_.hidden_size; ++i) {
    out[i] = (out[i] - target[i]) * static_cast<float>(weight);
  }
  return weight * error;
}

double BlockLearner::ErrorOf(std::span<const std::int64_t> windows) {
  const auto count = static_cast<std::int64_t>(windows.size());
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(inputs_.data() + windows[static_cast<std::size_t>(i)] * window_floats(),
                window_floats(), x_.data() + i * window_floats());
  }
  BlockGradient::Weights weights;
  std::ranges::transform(current_, weights.begin(), [](const auto& w) { return w.data(); });
  block_.Forward(weights, x_.data(), count, out_.data());
  std::vector<double> errors(static_cast<std::size_t>(count * length_));
  pool_.For(count * length_, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t window = windows[static_cast<std::size_t>(row / length_)];
      const float* target =
          targets_.data() + window * window_floats() + row % length_ * config_.hidden_size;
      errors[static_cast<std::size_t>(row)] =
          TakeError(target, out_.data() + row * config_.hidden_size);
    }
  });
  return std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(errors.size());
}

double BlockLearner::ErrorOfAll() {
  double sum = 0.0;
  for (std::int64_t first = 0; first < num_windows(); first += batch_windows_) {
    std::vector<std::int64_t> batch(
        static_cast<std::size_t>(std::min(batch_windows_, num_windows() - first)));
    std::iota(batch.begin(), batch.end(), first);
    sum += ErrorOf(batch) * static_cast<double>(batch.size());
  }
  return sum / static_cast<double>(num_windows());
}

void BlockLearner::Dequantize() {
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    if (rounding_[i]) {
      rounding_[i]->Dequantize(pool_, current_[i].data());
    }
  }
}

void BlockLearner::Step(double share) {
  BlockGradient::Weights weights;
  BlockGradient::Gradients gradients;
  std::ranges::transform(current_, weights.begin(), [](const auto& w) { return w.data(); });
  std::ranges::transform(gradients_, gradients.begin(), [](auto& g) { return g.data(); });
  block_.Backward(weights, out_.data(), gradients);
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    if (rounding_[i]) {
      rounding_[i]->Step(pool_, gradients[i], static_cast<float>(share * options_.position_rate),
                         static_cast<float>(share * options_.factor_rate));
    }
  }
  Dequantize();
}

Result<LearnReport> BlockLearner::Learn(std::span<const float> inputs,
                                        std::span<const float> targets, LearnedLinears& linears,
                                        const std::function<bool()>& progress) {
  inputs_ = inputs;
  targets_ = targets;
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    rounding_[i].reset();
    current_[i] = linears[i].weights;
    gradients_[i].resize(current_[i].size());
    if (linears[i].quantized) {
      rounding_[i].emplace(pool_, *linears[i].quantized, linears[i].weights, options_.scale_dtype);
    }
  }
  Dequantize();
  LearnReport report;
  report.error_before = report.error_after = ErrorOfAll();
  Batches batches(num_windows(), options_.seed);
  std::vector<std::int64_t> batch(
      static_cast<std::size_t>(std::min(batch_windows_, num_windows())));
  for (std::int64_t step = 0; step < options_.iterations; ++step) {
    if (!progress()) {
      return Fail(ErrorCode::kCancelled, "interrupted");
    }
    batches.Next(batch);
    ErrorOf(batch);
    const double done = static_cast<double>(step) / static_cast<double>(options_.iterations);
    Step(1.0 - done);
  }
  const double error = ErrorOfAll();
  if (error < report.error_before) {
    report.error_after = error;
    for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
      if (rounding_[i]) {
        report.num_moved += rounding_[i]->NumMoved();
        linears[i].quantized = rounding_[i]->Result();
      }
    }
  }
  return report;
}

Result<BlockVectors> ReadBlockVectors(const Checkpoint& checkpoint, std::int64_t block,
                                      ThreadPool& pool) {
  BlockVectors vectors;
  const auto read = [&](std::string_view name, std::vector<float>& to) -> Result<void> {
    if (const auto* stored = checkpoint.Find(fmt::format("model.layers.{}.{}", block, name))) {
      NIBBLE_TRY(values, ReadWeights(checkpoint, *stored, pool));
      to = std::move(values);
    }
    return {};
  };
  NIBBLE_TRY_VOID(read("input_layernorm.weight", vectors.input_norm));
  NIBBLE_TRY_VOID(read("post_attention_layernorm.weight", vectors.post_attention_norm));
  NIBBLE_TRY_VOID(read("self_attn.q_norm.weight", vectors.q_norm));
  NIBBLE_TRY_VOID(read("self_attn.k_norm.weight", vectors.k_norm));
  std::size_t index = 0;
  for (const LinearGroup group : kLinearGroups) {
    for (const std::string_view linear : LinearsOf(group)) {
      NIBBLE_TRY_VOID(read(fmt::format("{}.bias", linear), vectors.bias[index++]));
    }
  }
  return vectors;
}

}  // namespace nibble
