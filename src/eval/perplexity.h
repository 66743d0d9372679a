#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "engine/model_runner.h"

namespace nibble {

/// How a text is cut: tokenized once without special tokens, disjoint windows of `context` tokens,
/// tokens 2..context of each scored, the tail dropped (the standard WikiText-2 setup).
struct WindowOptions {
  std::int64_t context = 2048;
  std::int64_t max_windows = 0;  // 0: all
};

/// Sums over scored positions of one pass; comparisons with a reference only where one was given.
struct QualityReport {
  std::int64_t num_windows = 0;
  std::int64_t num_tokens = 0;  // scored
  double perplexity = 0.0;      // exp(mean negative log-likelihood), natural
  double nll = 0.0;             // mean
  double nll_stderr = 0.0;      // over windows
  double reference_perplexity = 0.0;
  double kl_mean = 0.0;  // mean KL(reference || model) a position, nats
  double kl_stderr = 0.0;
  double kl_p99 = 0.0;  // 99th percentile over positions
  double kl_max = 0.0;
  double top1 = 0.0;  // share of positions with the same most likely token
};

/// Adds up a report while rows of logits come by, window after window.
class QualityMeter {
 public:
  /// The next rows of the current window: logits [targets.size(), vocab] of the model and, unless
  /// null throughout, of the reference; targets[i] is the token that follows row i.
  void Add(ThreadPool& pool, const float* logits, const float* reference, std::int64_t vocab,
           std::span<const TokenId> targets);
  void EndWindow();
  /// Of the windows that have ended.
  double perplexity() const;
  QualityReport Report() const;

 private:
  struct Position {
    double nll = 0.0;
    double reference_nll = 0.0;
    double kl = 0.0;
    bool same_top = false;
  };
  // Mean and its standard error over windows.
  struct Mean {
    double sum = 0.0, squares = 0.0;
    std::int64_t count = 0;
    void Add(double value) {
      sum += value;
      squares += value * value;
      ++count;
    }
    double value() const;
    double standard_error() const;
  };
  std::vector<Position> window_;
  std::vector<double> all_kl_;
  Mean nll_, kl_;
  double reference_nll_ = 0.0;
  std::int64_t same_top_ = 0, num_tokens_ = 0;
  bool has_reference_ = false;
};

/// How many windows of the text will be scored. Errors: kInvalidArgument for a text shorter than
/// one window, or a token beyond the vocabulary.
Result<std::int64_t> CountWindows(std::span<const TokenId> tokens, const WindowOptions& options,
                                  std::int64_t vocab_size);

/// Told after each window; return false to stop (kCancelled).
using EvalProgress =
    std::function<bool(std::int64_t done_windows, std::int64_t num_windows, double perplexity)>;

/// Scores a text with `model` and, where given, against `reference` on the same tokens (equal
/// vocabularies). Both run window by window; logits are held for a few rows at a time. Errors:
/// kInvalidArgument for a text shorter than one window or different vocabularies.
Result<QualityReport> EvaluateText(ModelRunner& model, ModelRunner* reference,
                                   std::span<const TokenId> tokens, const WindowOptions& options,
                                   const EvalProgress& progress = {});

/// log-softmax of one row in double precision at `target`, and the row's argmax (lowest index on
/// ties).
struct RowScore {
  double logprob = 0.0;
  std::int64_t argmax = 0;
};
RowScore ScoreRow(std::span<const float> logits, TokenId target);

/// KL(p || q) of two rows of logits, nats, in double precision.
double KlDivergence(std::span<const float> p_logits, std::span<const float> q_logits);

}  // namespace nibble
