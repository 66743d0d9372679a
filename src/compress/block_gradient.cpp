#include "compress/block_gradient.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "kernels/ops.h"
#include "model/llama.h"

namespace nibble {
namespace {

// Queries whose scores are held at once; keys behind the last of them are never multiplied.
constexpr std::int64_t kQueryRows = 128;

MatrixRef Rows(const float* data, std::int64_t stride) { return {data, stride, 1}; }

std::vector<float> Floats(std::int64_t count) {
  return std::vector<float>(static_cast<std::size_t>(count));
}

}  // namespace

// Queries of one head of one window, and the keys and values that they meet. Pointers are to the
// first row.
struct BlockGradient::Head {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t q_offset = 0;   // of the head in q, attention and their gradients
  std::int64_t kv_offset = 0;  // in k, v and their gradients
};

BlockGradient::BlockGradient(const ModelConfig& config, BlockVectors vectors, std::int64_t length,
                             std::int64_t max_windows, ThreadPool& pool)
    : config_(config),
      vectors_(std::move(vectors)),
      length_(length),
      pool_(pool),
      cos_sin_(Floats(length * config.head_dim)),
      scratch_(static_cast<std::size_t>(pool.num_workers())) {
  FillRopeTable(config_.rope, config_.head_dim, length_, cos_sin_.data());
  const std::int64_t rows = max_windows * length;
  for (auto* x : {&normed_, &middle_, &middle_normed_, &d_middle_, &d_middle_normed_}) {
    *x = Floats(rows * config.hidden_size);
  }
  for (auto* x : {&q_, &d_q_, &attention_, &d_attention_}) {
    *x = Floats(rows * QSize());
  }
  for (auto* x : {&k_, &d_k_, &v_, &d_v_}) {
    *x = Floats(rows * KvSize());
  }
  if (config.qk_norm) {
    raw_q_ = Floats(rows * QSize());
    raw_k_ = Floats(rows * KvSize());
  }
  for (auto* x : {&gate_, &up_, &product_, &d_gate_, &d_up_}) {
    *x = Floats(rows * config.intermediate_size);
  }
  for (Scratch& scratch : scratch_) {
    scratch.scores = Floats(kQueryRows * length);
    scratch.d_scores = Floats(kQueryRows * length);
  }
}

std::uint64_t BlockGradient::SizeBytes(const ModelConfig& config, std::int64_t length,
                                       std::int64_t max_windows, int num_workers) {
  const std::int64_t rows = max_windows * length;
  const std::int64_t q = config.num_heads * config.head_dim;
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  const std::int64_t a_row = 5 * config.hidden_size + 4 * q + 4 * kv +
                             (config.qk_norm ? q + kv : 0) + 5 * config.intermediate_size;
  // Panels of the widest product: activations with a matrix or with other activations.
  const std::int64_t widest = std::max({config.hidden_size, config.intermediate_size, q});
  const std::int64_t panels =
      rows * widest +
      std::max(rows * widest, config.hidden_size * std::max(config.intermediate_size, q));
  const std::int64_t of_worker = (3 * kQueryRows + config.head_dim) * length;
  return static_cast<std::uint64_t>(rows * a_row + panels + num_workers * of_worker) *
         sizeof(float);
}

std::int64_t BlockGradient::OutFeatures(BlockLinear linear) const {
  switch (linear) {
    case BlockLinear::kQ:
      return QSize();
    case BlockLinear::kK:
    case BlockLinear::kV:
      return KvSize();
    case BlockLinear::kGate:
    case BlockLinear::kUp:
      return config_.intermediate_size;
    case BlockLinear::kO:
    case BlockLinear::kDown:
      break;
  }
  return config_.hidden_size;
}

std::int64_t BlockGradient::InFeatures(BlockLinear linear) const {
  return linear == BlockLinear::kO      ? QSize()
         : linear == BlockLinear::kDown ? config_.intermediate_size
                                        : config_.hidden_size;
}

template <typename Body>
void BlockGradient::ForRows(std::int64_t count, Body&& body) {
  pool_.For(count, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      body(row);
    }
  });
}

void BlockGradient::Multiply(const Weights& weights, BlockLinear linear, const float* x, float* y) {
  const auto index = static_cast<std::size_t>(linear);
  const std::int64_t in = InFeatures(linear), out = OutFeatures(linear);
  const std::vector<float>& bias = vectors_.bias[index];
  if (!bias.empty()) {
    ForRows(rows(), [&](std::int64_t row) { std::ranges::copy(bias, y + row * out); });
  }
  Gemm(pool_, {.rows = rows(), .cols = out, .depth = in}, Rows(x, in),
       Rows(weights[index], in).Transposed(), bias.empty() ? GemmOutput::kWrite : GemmOutput::kAdd,
       y, out, gemm_);
}

void BlockGradient::AddInputGradient(const Weights& weights, BlockLinear linear, const float* d_y,
                                     GemmOutput output, float* d_x) {
  const std::int64_t in = InFeatures(linear), out = OutFeatures(linear);
  Gemm(pool_, {.rows = rows(), .cols = in, .depth = out}, Rows(d_y, out),
       Rows(weights[static_cast<std::size_t>(linear)], in), output, d_x, in, gemm_);
}

void BlockGradient::WeightGradient(BlockLinear linear, const float* d_y, const float* x,
                                   const Gradients& gradients) {
  const std::int64_t in = InFeatures(linear), out = OutFeatures(linear);
  Gemm(pool_, {.rows = out, .cols = in, .depth = rows()}, Rows(d_y, out).Transposed(), Rows(x, in),
       GemmOutput::kWrite, gradients[static_cast<std::size_t>(linear)], in, gemm_);
}

// y = x / rms(x) * weight for `count` vectors.
void BlockGradient::Norm(const float* x, const std::vector<float>& weight, std::int64_t count,
                         float* y) {
  const auto width = static_cast<std::int64_t>(weight.size());
  ForRows(count, [&](std::int64_t row) {
    const float* from = x + row * width;
    double squares = 0.0;
    for (std::int64_t i = 0; i < width; ++i) {
      squares += static_cast<double>(from[i]) * static_cast<double>(from[i]);
    }
    const auto inverse =
        static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(width) +
                                           static_cast<double>(config_.rms_norm_eps)));
    for (std::int64_t i = 0; i < width; ++i) {
      y[row * width + i] = from[i] * inverse * weight[static_cast<std::size_t>(i)];
    }
  });
}

// With r = 1 / rms(x) and g = weight * d_y:  d_x = r g - x r^3 (g . x) / width.
void BlockGradient::AddNormGradient(const float* x, const std::vector<float>& weight,
                                    std::int64_t count, const float* d_y, GemmOutput output,
                                    float* d_x) {
  const auto width = static_cast<std::int64_t>(weight.size());
  ForRows(count, [&](std::int64_t row) {
    const float* from = x + row * width;
    const float* g = d_y + row * width;
    float* to = d_x + row * width;
    double squares = 0.0, product = 0.0;
    for (std::int64_t i = 0; i < width; ++i) {
      const auto value = static_cast<double>(from[i]);
      squares += value * value;
      product += value * static_cast<double>(g[i] * weight[static_cast<std::size_t>(i)]);
    }
    const double n = static_cast<double>(width);
    const double r = 1.0 / std::sqrt(squares / n + static_cast<double>(config_.rms_norm_eps));
    const auto inverse = static_cast<float>(r);
    const auto slope = static_cast<float>(r * r * r * product / n);
    for (std::int64_t i = 0; i < width; ++i) {
      const float d = inverse * g[i] * weight[static_cast<std::size_t>(i)] - slope * from[i];
      to[i] = output == GemmOutput::kAdd ? to[i] + d : d;
    }
  });
}

void BlockGradient::Rotate(float* x, std::int64_t num_heads, float direction) {
  const std::int64_t dim = config_.head_dim, half = dim / 2;
  ForRows(rows(), [&](std::int64_t row) {
    const float* cos = cos_sin_.data() + row % length_ * dim;
    const float* sin = cos + half;
    for (std::int64_t head = 0; head < num_heads; ++head) {
      float* low = x + (row * num_heads + head) * dim;
      float* high = low + half;
      for (std::int64_t i = 0; i < half; ++i) {
        const float a = low[i], b = high[i], s = direction * sin[i];
        low[i] = a * cos[i] - b * s;
        high[i] = b * cos[i] + a * s;
      }
    }
  });
}

// body(head, scratch) for all query heads, those that share keys on one thread in order.
template <typename Body>
void BlockGradient::ForKeyHeads(Body&& body) {
  const std::int64_t kv_heads = config_.num_kv_heads;
  const std::int64_t queries = config_.num_heads / kv_heads;
  pool_.For(num_windows_ * kv_heads, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first_row = i / kv_heads * length_;
      const std::int64_t kv_offset = first_row * KvSize() + i % kv_heads * config_.head_dim;
      for (std::int64_t j = 0; j < queries; ++j) {
        const std::int64_t head = i % kv_heads * queries + j;
        const std::int64_t q_offset = first_row * QSize() + head * config_.head_dim;
        body(Head{.q = q_.data() + q_offset,
                  .k = k_.data() + kv_offset,
                  .v = v_.data() + kv_offset,
                  .q_offset = q_offset,
                  .kv_offset = kv_offset},
             scratch_[static_cast<std::size_t>(worker)]);
      }
    }
  });
}

// scores [end - begin, end] = softmax of q k^T / sqrt(head_dim) for queries [begin, end), zero for
// keys that a query may not see.
void BlockGradient::Probabilities(const Head& head, std::int64_t begin, std::int64_t end,
                                  Scratch& scratch) {
  const std::int64_t dim = config_.head_dim;
  float* scores = scratch.scores.data();
  GemmHere({.rows = end - begin, .cols = end, .depth = dim},
           Rows(head.q + begin * QSize(), QSize()), Rows(head.k, KvSize()).Transposed(),
           GemmOutput::kWrite, scores, end, scratch.gemm);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  const std::int64_t window = config_.sliding_window.value_or(end);
  for (std::int64_t i = begin; i < end; ++i) {
    float* row = scores + (i - begin) * end;
    const std::int64_t first = std::max<std::int64_t>(0, i + 1 - window);
    float largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = first; j <= i; ++j) {
      row[j] *= scale;
      largest = std::max(largest, row[j]);
    }
    for (std::int64_t j = first; j <= i; ++j) {
      row[j] -= largest;
    }
    Exp(row + first, row + first, i + 1 - first);
    double sum = 0.0;
    for (std::int64_t j = first; j <= i; ++j) {
      sum += static_cast<double>(row[j]);
    }
    const auto inverse = static_cast<float>(1.0 / sum);
    for (std::int64_t j = first; j <= i; ++j) {
      row[j] *= inverse;
    }
    std::fill(row, row + first, 0.0F);
    std::fill(row + i + 1, row + end, 0.0F);
  }
}

void BlockGradient::HeadOutput(const Head& head, Scratch& scratch) {
  for (std::int64_t begin = 0; begin < length_; begin += kQueryRows) {
    const std::int64_t end = std::min(length_, begin + kQueryRows);
    Probabilities(head, begin, end, scratch);
    GemmHere({.rows = end - begin, .cols = config_.head_dim, .depth = end},
             Rows(scratch.scores.data(), end), Rows(head.v, KvSize()), GemmOutput::kWrite,
             attention_.data() + head.q_offset + begin * QSize(), QSize(), scratch.gemm);
  }
}

// With P = softmax(S) and O = P V:  dV += P^T dO,  dP = dO V^T,
// dS = P (dP - rowsum(P dP)) / sqrt(head_dim),  dQ = dS K,  dK += dS^T Q.
void BlockGradient::HeadGradient(const Head& head, Scratch& scratch) {
  const std::int64_t dim = config_.head_dim;
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  float* p = scratch.scores.data();
  float* d = scratch.d_scores.data();
  for (std::int64_t begin = 0; begin < length_; begin += kQueryRows) {
    const std::int64_t end = std::min(length_, begin + kQueryRows);
    const MatrixRef d_out = Rows(d_attention_.data() + head.q_offset + begin * QSize(), QSize());
    Probabilities(head, begin, end, scratch);
    GemmHere({.rows = end, .cols = dim, .depth = end - begin}, Rows(p, end).Transposed(), d_out,
             GemmOutput::kAdd, d_v_.data() + head.kv_offset, KvSize(), scratch.gemm);
    GemmHere({.rows = end - begin, .cols = end, .depth = dim}, d_out,
             Rows(head.v, KvSize()).Transposed(), GemmOutput::kWrite, d, end, scratch.gemm);
    for (std::int64_t i = 0; i < end - begin; ++i) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < end; ++j) {
        sum += static_cast<double>(p[i * end + j] * d[i * end + j]);
      }
      const auto mean = static_cast<float>(sum);
      for (std::int64_t j = 0; j < end; ++j) {
        d[i * end + j] = p[i * end + j] * (d[i * end + j] - mean) * scale;
      }
    }
    GemmHere({.rows = end - begin, .cols = dim, .depth = end}, Rows(d, end), Rows(head.k, KvSize()),
             GemmOutput::kWrite, d_q_.data() + head.q_offset + begin * QSize(), QSize(),
             scratch.gemm);
    GemmHere({.rows = end, .cols = dim, .depth = end - begin}, Rows(d, end).Transposed(),
             Rows(head.q + begin * QSize(), QSize()), GemmOutput::kAdd,
             d_k_.data() + head.kv_offset, KvSize(), scratch.gemm);
  }
}

void BlockGradient::Attend() {
  const std::int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  if (config_.qk_norm) {
    std::copy_n(q_.begin(), rows() * QSize(), raw_q_.begin());
    std::copy_n(k_.begin(), rows() * KvSize(), raw_k_.begin());
    Norm(raw_q_.data(), vectors_.q_norm, rows() * heads, q_.data());
    Norm(raw_k_.data(), vectors_.k_norm, rows() * kv_heads, k_.data());
  }
  Rotate(q_.data(), heads, 1.0F);
  Rotate(k_.data(), kv_heads, 1.0F);
  ForKeyHeads([&](const Head& head, Scratch& scratch) { HeadOutput(head, scratch); });
}

void BlockGradient::AttendGradient() {
  const std::int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  std::fill_n(d_k_.begin(), rows() * KvSize(), 0.0F);
  std::fill_n(d_v_.begin(), rows() * KvSize(), 0.0F);
  ForKeyHeads([&](const Head& head, Scratch& scratch) { HeadGradient(head, scratch); });
  Rotate(d_q_.data(), heads, -1.0F);
  Rotate(d_k_.data(), kv_heads, -1.0F);
  if (config_.qk_norm) {
    AddNormGradient(raw_q_.data(), vectors_.q_norm, rows() * heads, d_q_.data(), GemmOutput::kWrite,
                    d_q_.data());
    AddNormGradient(raw_k_.data(), vectors_.k_norm, rows() * kv_heads, d_k_.data(),
                    GemmOutput::kWrite, d_k_.data());
  }
}

void BlockGradient::Forward(const Weights& weights, const float* x, std::int64_t num_windows,
                            float* out) {
  NIBBLE_CHECK(
      num_windows * length_ * config_.hidden_size <= static_cast<std::int64_t>(normed_.size()),
      "more windows than announced");
  num_windows_ = num_windows;
  const std::int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  const auto add = [&](const float* from, float* to) {
    ForRows(rows(), [&](std::int64_t row) {
      for (std::int64_t i = row * hidden; i < (row + 1) * hidden; ++i) {
        to[i] += from[i];
      }
    });
  };
  Norm(x, vectors_.input_norm, rows(), normed_.data());
  Multiply(weights, BlockLinear::kQ, normed_.data(), q_.data());
  Multiply(weights, BlockLinear::kK, normed_.data(), k_.data());
  Multiply(weights, BlockLinear::kV, normed_.data(), v_.data());
  Attend();
  Multiply(weights, BlockLinear::kO, attention_.data(), middle_.data());
  add(x, middle_.data());
  Norm(middle_.data(), vectors_.post_attention_norm, rows(), middle_normed_.data());
  Multiply(weights, BlockLinear::kGate, middle_normed_.data(), gate_.data());
  Multiply(weights, BlockLinear::kUp, middle_normed_.data(), up_.data());
  ForRows(rows(), [&](std::int64_t row) {
    float* product = product_.data() + row * inner;
    const float* gate = gate_.data() + row * inner;
    const float* up = up_.data() + row * inner;
    for (std::int64_t i = 0; i < inner; ++i) {
      product[i] = -gate[i];
    }
    Exp(product, product, inner);
    for (std::int64_t i = 0; i < inner; ++i) {
      product[i] = gate[i] / (1.0F + product[i]) * up[i];
    }
  });
  Multiply(weights, BlockLinear::kDown, product_.data(), out);
  add(middle_.data(), out);
}

void BlockGradient::Backward(const Weights& weights, const float* d_out,
                             const Gradients& gradients) {
  const std::int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  WeightGradient(BlockLinear::kDown, d_out, product_.data(), gradients);
  AddInputGradient(weights, BlockLinear::kDown, d_out, GemmOutput::kWrite, d_gate_.data());
  // With s = 1 / (1 + exp(-g)):  d silu(g) = s (1 + g (1 - s)).
  ForRows(rows(), [&](std::int64_t row) {
    float* d_gate = d_gate_.data() + row * inner;
    float* d_up = d_up_.data() + row * inner;
    const float* gate = gate_.data() + row * inner;
    const float* up = up_.data() + row * inner;
    for (std::int64_t i = 0; i < inner; ++i) {
      d_up[i] = -gate[i];
    }
    Exp(d_up, d_up, inner);
    for (std::int64_t i = 0; i < inner; ++i) {
      const float d = d_gate[i];
      const float s = 1.0F / (1.0F + d_up[i]);
      d_up[i] = d * gate[i] * s;
      d_gate[i] = d * up[i] * s * (1.0F + gate[i] * (1.0F - s));
    }
  });
  WeightGradient(BlockLinear::kGate, d_gate_.data(), middle_normed_.data(), gradients);
  WeightGradient(BlockLinear::kUp, d_up_.data(), middle_normed_.data(), gradients);
  AddInputGradient(weights, BlockLinear::kGate, d_gate_.data(), GemmOutput::kWrite,
                   d_middle_normed_.data());
  AddInputGradient(weights, BlockLinear::kUp, d_up_.data(), GemmOutput::kAdd,
                   d_middle_normed_.data());
  std::copy_n(d_out, rows() * hidden, d_middle_.begin());
  AddNormGradient(middle_.data(), vectors_.post_attention_norm, rows(), d_middle_normed_.data(),
                  GemmOutput::kAdd, d_middle_.data());
  WeightGradient(BlockLinear::kO, d_middle_.data(), attention_.data(), gradients);
  AddInputGradient(weights, BlockLinear::kO, d_middle_.data(), GemmOutput::kWrite,
                   d_attention_.data());
  AttendGradient();
  WeightGradient(BlockLinear::kQ, d_q_.data(), normed_.data(), gradients);
  WeightGradient(BlockLinear::kK, d_k_.data(), normed_.data(), gradients);
  WeightGradient(BlockLinear::kV, d_v_.data(), normed_.data(), gradients);
}

}  // namespace nibble
