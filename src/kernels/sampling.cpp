#include "kernels/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "base/check.h"
#include "base/random.h"
#include "kernels/cuda/backend.h"
#include "kernels/isa.h"
#include "kernels/sampling_kernel.h"

namespace nibble {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
// Below this a temperature means greedy, as in vLLM: its inverse would only produce infinities.
constexpr float kMinTemperature = 1e-5F;

const SamplingKernels& Kernels() {
  return ForCurrentIsa(kRefSampling, kAvx2Sampling, kAvx512Sampling);
}

// Natural logarithm of a positive normal number to about 1e-16: libm's differs between CPUs.
double Log(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716: s^22 / 23 < 1e-18.
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double square = s * s;
  double sum = 0.0;
  for (int k = 21; k >= 1; k -= 2) {
    sum = sum * square + 1.0 / k;
  }
  return exponent * 0.6931471805599453 + 2.0 * s * sum;
}

// The order of all choices: larger logits first, lower ids among equals.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

std::int64_t NumChunks(std::int64_t vocab_size) {
  return (vocab_size + kSampleChunk - 1) / kSampleChunk;
}

std::size_t RoundUp(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// One worker's scratch.
struct Scratch {
  Candidate* candidates;  // [vocab_size]
  float* logits;          // [vocab_size], of a row that bias or penalties change
  float* weights;         // [vocab_size]
  float* chunk_max;       // [chunks]
  float* chunk_sum;       // [chunks]

  static std::size_t Bytes(std::int64_t vocab_size) {
    const auto n = static_cast<std::size_t>(vocab_size);
    const auto chunks = static_cast<std::size_t>(NumChunks(vocab_size));
    return RoundUp(n * sizeof(Candidate)) + 2 * RoundUp(n * sizeof(float)) +
           2 * RoundUp(chunks * sizeof(float));
  }
  Scratch(std::byte* base, std::int64_t vocab_size) {
    const auto n = static_cast<std::size_t>(vocab_size);
    const auto chunks = static_cast<std::size_t>(NumChunks(vocab_size));
    const auto take = [&](std::size_t bytes) {
      std::byte* p = base;
      base += RoundUp(bytes);
      return p;
    };
    candidates = reinterpret_cast<Candidate*>(take(n * sizeof(Candidate)));
    logits = reinterpret_cast<float*>(take(n * sizeof(float)));
    weights = reinterpret_cast<float*>(take(n * sizeof(float)));
    chunk_max = reinterpret_cast<float*>(take(chunks * sizeof(float)));
    chunk_sum = reinterpret_cast<float*>(take(chunks * sizeof(float)));
  }
};

class RowSampler {
 public:
  RowSampler(const SamplingKernels& kernels, const Scratch& scratch, const float* logits,
             std::int64_t vocab_size, const SampleRow& row)
      : kernels_(kernels), scratch_(scratch), x_(logits), vocab_size_(vocab_size), row_(row) {}

  void Run(SampleResult& result) {
    result.token = TokenId{0};
    result.logprob = 0.0F;
    result.rank = 0;
    result.top.clear();
    ApplyBiasAndPenalties();
    const bool scoring = row_.target >= TokenId{0} && Raw(row_.target) < vocab_size_;
    const bool wants_logprobs = scoring || row_.num_top_logprobs >= 0;
    const bool greedy = !(row_.temperature >= kMinTemperature);
    if (greedy && !wants_logprobs) {
      result.token = Id(kernels_.arg_max(x_, vocab_size_));
      return;
    }
    max_ = kernels_.chunk_max(x_, vocab_size_, scratch_.chunk_max);
    if (scoring) {
      result.token = row_.target;
    } else if (greedy || max_ == kLowest) {
      result.token = Id(kernels_.arg_max(x_, vocab_size_));
    } else {
      result.token = Id(Draw());
    }
    if (wants_logprobs) {
      Score(result);
    }
  }

 private:
  static TokenId Id(std::int64_t index) { return TokenId{static_cast<std::int32_t>(index)}; }
  bool InVocabulary(TokenId token) const { return Raw(token) >= 0 && Raw(token) < vocab_size_; }

  void ApplyBiasAndPenalties() {
    const bool repetition = row_.repetition_penalty != 1.0F;
    const bool counted = row_.presence_penalty != 0.0F || row_.frequency_penalty != 0.0F;
    const bool penalties =
        (repetition && !row_.prompt.empty()) || ((repetition || counted) && !row_.output.empty());
    if (!penalties && row_.logit_bias.empty() && row_.forbidden.empty()) {
      return;
    }
    // A copy, as several choices may sample from one row of logits at once.
    float* x = scratch_.logits;
    std::memcpy(x, x_, static_cast<std::size_t>(vocab_size_) * sizeof(float));
    x_ = x;
    for (const auto& [token, bias] : row_.logit_bias) {
      if (InVocabulary(token)) {
        x[Raw(token)] += bias;
      }
    }
    if (penalties) {
      ApplyPenalties(x, repetition);
    }
    for (const TokenId token : row_.forbidden) {
      if (InVocabulary(token)) {
        x[Raw(token)] = kLowest;
      }
    }
  }

  void ApplyPenalties(float* x, bool repetition) {
    constexpr std::uint32_t kSeen = 1U << 31;
    const std::span<const TokenId> prompt = repetition ? row_.prompt : std::span<const TokenId>();
    auto* counts = reinterpret_cast<std::uint32_t*>(scratch_.candidates);
    const auto each = [&](std::span<const TokenId> tokens, auto body) {
      for (const TokenId token : tokens) {
        if (InVocabulary(token)) {
          body(Raw(token));
        }
      }
    };
    // Only the entries that are used are cleared: a row costs its tokens, not the vocabulary.
    each(prompt, [&](std::int32_t t) { counts[t] = kSeen; });
    each(row_.output, [&](std::int32_t t) { counts[t] = kSeen; });
    each(row_.output, [&](std::int32_t t) { ++counts[t]; });
    const auto apply = [&](std::int32_t t) {
      if (counts[t] == 0) {
        return;  // done already
      }
      const std::uint32_t count = counts[t] & ~kSeen;
      counts[t] = 0;
      float value = x[t];
      if (repetition) {
        value = value > 0.0F ? value / row_.repetition_penalty : value * row_.repetition_penalty;
      }
      if (count > 0) {
        value -= row_.frequency_penalty * static_cast<float>(count);
        value -= row_.presence_penalty;
      }
      x[t] = value;
    };
    each(prompt, apply);
    each(row_.output, apply);
  }

  float Clean(std::int64_t token) const {
    const float x = x_[token];
    return x != x ? kLowest : std::min(x, std::numeric_limits<float>::max());
  }

  // Also fills scratch_.chunk_sum, and `weights` if not null.
  double TotalWeight(float inverse_temperature, float min_weight, float* weights) {
    kernels_.chunk_weight(x_, vocab_size_, max_, inverse_temperature, min_weight,
                          scratch_.chunk_sum, weights);
    double total = 0.0;
    for (std::int64_t c = 0; c < NumChunks(vocab_size_); ++c) {
      total += static_cast<double>(scratch_.chunk_sum[c]);
    }
    return total;
  }

  // The k best tokens in order, in scratch_.candidates; returns how many there are (k, or the
  // vocabulary). The k-th largest maximum of a chunk is a lower bound of the k-th largest logit,
  // and usually leaves little more than k to sort.
  std::int64_t SelectBest(std::int64_t k) {
    const std::int64_t chunks = NumChunks(vocab_size_);
    float threshold = kLowest;
    if (k < chunks) {
      float* maxima = scratch_.chunk_sum;
      std::copy_n(scratch_.chunk_max, chunks, maxima);
      std::nth_element(maxima, maxima + (k - 1), maxima + chunks, std::greater<>());
      threshold = maxima[k - 1];
    }
    Candidate* best = scratch_.candidates;
    const std::int64_t found = kernels_.collect(x_, vocab_size_, threshold, best);
    if (found > k) {
      std::nth_element(best, best + k, best + found, Before);
    }
    const std::int64_t n = std::min(found, k);
    std::sort(best, best + n, Before);
    return n;
  }

  // Fills scratch_.weights for candidates [0, n) alone.
  void WeighCandidates(std::int64_t n, float inverse_temperature, float min_weight) {
    float values[kSampleChunk];
    for (std::int64_t begin = 0; begin < n; begin += kSampleChunk) {
      const std::int64_t count = std::min(kSampleChunk, n - begin);
      const Candidate* part = scratch_.candidates + begin;
      for (std::int64_t i = 0; i < count; ++i) {
        values[i] = part[i].logit;
      }
      float sum = 0.0F;
      kernels_.chunk_weight(values, count, max_, inverse_temperature, min_weight, &sum, values);
      for (std::int64_t i = 0; i < count; ++i) {
        scratch_.weights[part[i].token] = values[i];
      }
    }
  }

  // All tokens whose weight may be among the largest that sum to `enough`, in order, in
  // scratch_.candidates: a threshold is halved until what it leaves is enough. A quarter below it,
  // so that neither the rounding of sums nor that of exp can hide a token.
  std::int64_t SelectMass(double enough, float& threshold) {
    const float* weights = scratch_.weights;
    do {
      threshold *= 0.5F;
    } while (threshold > 0.0F &&
             static_cast<double>(kernels_.sum_at_least(weights, vocab_size_, threshold)) < enough);
    Candidate* best = scratch_.candidates;
    const std::int64_t found = kernels_.collect(weights, vocab_size_, 0.75F * threshold, best);
    for (std::int64_t i = 0; i < found; ++i) {
      best[i].logit = Clean(best[i].token);
    }
    std::sort(best, best + found, Before);
    return found;
  }

  std::int64_t Draw() {
    const float inverse_temperature = 1.0F / row_.temperature;
    const float min_weight = row_.min_p > 0.0F ? std::min(row_.min_p, 1.0F) : 0.0F;
    const auto uniform = static_cast<double>(UniformAt(row_.seed, row_.choice, row_.position));
    const bool top_k = row_.top_k > 0 && row_.top_k < vocab_size_;
    const bool top_p = row_.top_p < 1.0F;
    if (!top_k && !top_p) {
      return DrawByIndex(uniform, inverse_temperature, min_weight);
    }
    // Weights of the best tokens in order.
    const Candidate* best = scratch_.candidates;
    const auto weight = [&](std::int64_t i) {
      return static_cast<double>(scratch_.weights[best[i].token]);
    };
    std::int64_t n = 0;
    double kept = 0.0;  // sum of the first n weights
    const auto keep = [&](std::int64_t found, double enough) {
      n = 1;
      kept = weight(0);
      while (n < found && kept < enough) {
        kept += weight(n++);
      }
      return kept >= enough;
    };
    if (top_k) {
      const std::int64_t found = SelectBest(row_.top_k);
      WeighCandidates(found, inverse_temperature, min_weight);
      double all = 0.0;
      for (std::int64_t i = 0; i < found; ++i) {
        all += weight(i);
      }
      keep(found, top_p ? static_cast<double>(row_.top_p) * all : all);
    } else {
      const double enough = static_cast<double>(row_.top_p) *
                            TotalWeight(inverse_temperature, min_weight, scratch_.weights);
      // Most of the time few tokens are enough. Which ones are kept does not depend on how many are
      // looked at.
      if (!keep(SelectBest(std::min<std::int64_t>(kSampleChunk, vocab_size_)), enough)) {
        float threshold = 2.0F;
        while (!keep(SelectMass(enough, threshold), enough) && threshold > 0.0F) {
        }
      }
    }
    const double goal = uniform * kept;
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
      sum += weight(i);
      if (sum > goal) {
        return best[i].token;
      }
    }
    return best[0].token;  // not reached: the last sum is `kept`, and uniform < 1
  }

  // Nothing but temperature and min_p: in the order of ids, first the chunk, then the token.
  std::int64_t DrawByIndex(double uniform, float inverse_temperature, float min_weight) {
    const double goal = uniform * TotalWeight(inverse_temperature, min_weight, scratch_.weights);
    double sum = 0.0;
    std::int64_t chunk = 0;
    for (;; ++chunk) {
      const double next = sum + static_cast<double>(scratch_.chunk_sum[chunk]);
      if (next > goal || chunk + 1 == NumChunks(vocab_size_)) {
        break;
      }
      sum = next;
    }
    // The chunk's sum was rounded in another order: if it is not quite reached, the last token that
    // has any weight takes the rest.
    const std::int64_t begin = chunk * kSampleChunk;
    const std::int64_t end = std::min(begin + kSampleChunk, vocab_size_);
    std::int64_t last = begin;
    for (std::int64_t i = begin; i < end; ++i) {
      if (const float weight = scratch_.weights[i]; weight > 0.0F) {
        last = i;
        sum += static_cast<double>(weight);
        if (sum > goal) {
          break;
        }
      }
    }
    return last;
  }

  void Score(SampleResult& result) {
    const double log_total = max_ == kLowest ? 0.0 : Log(TotalWeight(1.0F, 0.0F, nullptr));
    const auto logprob = [&](float logit) {
      if (logit == kLowest) {
        return kLowest;
      }
      return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max_) - log_total);
    };
    const float logit = Clean(Raw(result.token));
    result.logprob = logprob(logit);
    result.rank = static_cast<std::int32_t>(1 + kernels_.count_greater(x_, vocab_size_, logit));
    const auto wanted = std::min<std::int64_t>(row_.num_top_logprobs, vocab_size_);
    if (wanted <= 0) {
      return;
    }
    const std::int64_t found = SelectBest(wanted);
    result.top.reserve(static_cast<std::size_t>(found));
    for (std::int64_t i = 0; i < found; ++i) {
      const Candidate& best = scratch_.candidates[i];
      result.top.push_back({.token = TokenId{best.token}, .logprob = logprob(best.logit)});
    }
  }

  const SamplingKernels& kernels_;
  const Scratch& scratch_;
  const float* x_;  // the row, or its changed copy
  std::int64_t vocab_size_;
  const SampleRow& row_;
  float max_ = kLowest;
};

}  // namespace

void Sample(KernelContext& context, float* logits, std::int64_t logits_stride,
            std::int64_t vocab_size, std::span<const SampleRow> rows,
            std::span<SampleResult> results) {
  NIBBLE_CHECK(rows.size() == results.size(), "one result a row");
  NIBBLE_CHECK(vocab_size > 0, "empty vocabulary");
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::Sample(context, logits, logits_stride, vocab_size, rows);
    return;
  }
  ThreadPool& pool = context.device->pool();
  const std::size_t bytes = Scratch::Bytes(vocab_size);
  NIBBLE_CHECK(context.scratch_bytes >= bytes * static_cast<std::size_t>(pool.num_workers()),
               "sampling scratch is too small");
  const SamplingKernels& kernels = Kernels();
  pool.For(static_cast<std::int64_t>(rows.size()), 1,
           [&](std::int64_t begin, std::int64_t end, int worker) {
             const Scratch scratch(context.scratch + bytes * static_cast<std::size_t>(worker),
                                   vocab_size);
             for (std::int64_t i = begin; i < end; ++i) {
               const SampleRow& row = rows[static_cast<std::size_t>(i)];
               RowSampler(kernels, scratch, logits + row.logits_row * logits_stride, vocab_size,
                          row)
                   .Run(results[static_cast<std::size_t>(i)]);
             }
           });
}

std::size_t SamplingScratchBytes(const Device& device, std::int64_t vocab_size) {
  if (device.kind() == DeviceKind::kCuda) {
    return 0;
  }
  // pool() is not const, as running work on it changes it; its size never changes.
  const int num_workers = const_cast<Device&>(device).pool().num_workers();
  return Scratch::Bytes(vocab_size) * static_cast<std::size_t>(num_workers);
}

}  // namespace nibble
