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
/// tokens 2..context of each scored, the tail dropped (the standard WikiText-2 setup). With a
/// stride the windows slide: each begins `stride` tokens after the one before, only what that one
/// did not score is scored, and the text is scored to its end.
struct WindowOptions {
  std::int64_t context = 2048;
  std::int64_t max_windows = 0;  // 0: all
  std::int64_t stride = 0;       // 1..context; 0: disjoint windows
};

/// Tokens [begin, begin + length) of a text, of which those from first_scored on are scored.
struct TextWindow {
  std::int64_t begin = 0;
  std::int64_t length = 0;
  std::int64_t first_scored = 1;  // counted from begin
};

/// Puts the token that a text begins with in the place of the first token of every window, for
/// models that are lost without it (Gemma 3): the same for measuring and for calibration.
void BeginWindows(const ModelConfig& config, std::int64_t length, std::span<TokenId> tokens);

/// Sums over scored positions of one pass; comparisons with a reference only where one was given.
struct QualityReport {
  std::int64_t num_windows = 0;
  std::int64_t num_tokens = 0;     // scored
  double perplexity = 0.0;         // exp(mean negative log-likelihood), natural
  double nll = 0.0;                // mean
  double nll_stderr = 0.0;         // over windows, as all of them here; 0 for a single one
  std::vector<double> window_nll;  // of each window, in order
  double reference_perplexity = 0.0;
  double kl_mean = 0.0;  // mean KL(reference || model) a position, nats
  double kl_stderr = 0.0;
  double kl_p99 = 0.0;  // 99th percentile over positions
  double kl_max = 0.0;
  double top1 = 0.0;  // share of positions with the same most likely token
  double top1_stderr = 0.0;
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
  // Mean over positions, and its standard error over windows, whose positions depend on one
  // another.
  struct Mean {
    struct Window {
      double mean = 0.0;
      double positions = 0.0;
    };
    std::vector<Window> windows;
    double value() const;
    double standard_error() const;
  };
  std::vector<Position> window_;
  std::vector<double> all_kl_;
  Mean nll_, reference_nll_, kl_, top1_;
  std::int64_t num_tokens_ = 0;
  bool has_reference_ = false;
};

/// How many windows of the text will be scored. Errors: kInvalidArgument for a text shorter than
/// one window, a stride beyond the context, or a token beyond the vocabulary.
Result<std::int64_t> CountWindows(std::span<const TokenId> tokens, const WindowOptions& options,
                                  std::int64_t vocab_size);

/// The window `index` of a text of num_tokens, below CountWindows.
TextWindow WindowAt(std::int64_t index, std::int64_t num_tokens, const WindowOptions& options);

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
