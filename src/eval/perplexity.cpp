#include "eval/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

double LogSumExp(std::span<const float> logits) {
  const float maximum = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float value : logits) {
    sum += static_cast<double>(std::exp(value - maximum));
  }
  return static_cast<double>(maximum) + std::log(sum);
}

RowScore ScoreRow(std::span<const float> logits, double norm, TokenId target) {
  const auto best = std::ranges::max_element(logits);
  return {.logprob = static_cast<double>(logits[static_cast<std::size_t>(Raw(target))]) - norm,
          .argmax = best - logits.begin()};
}

double KlDivergence(std::span<const float> p_logits, double p_norm, std::span<const float> q_logits,
                    double q_norm) {
  double sum = 0.0;
  for (std::size_t i = 0; i < p_logits.size(); ++i) {
    const double p_log = static_cast<double>(p_logits[i]) - p_norm;
    if (p_log > -60.0) {  // p < 1e-26 adds nothing
      const double q_log = static_cast<double>(q_logits[i]) - q_norm;
      sum += static_cast<double>(std::exp(static_cast<float>(p_log))) * (p_log - q_log);
    }
  }
  return std::max(0.0, sum);
}

}  // namespace

RowScore ScoreRow(std::span<const float> logits, TokenId target) {
  return ScoreRow(logits, LogSumExp(logits), target);
}

double KlDivergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  return KlDivergence(p_logits, LogSumExp(p_logits), q_logits, LogSumExp(q_logits));
}

double QualityMeter::Mean::value() const {
  double sum = 0.0, positions = 0.0;
  for (const Window& window : windows) {
    sum += window.mean * window.positions;
    positions += window.positions;
  }
  return positions == 0.0 ? 0.0 : sum / positions;
}

double QualityMeter::Mean::standard_error() const {
  if (windows.size() < 2) {
    return 0.0;
  }
  const double mean = value();
  double squares = 0.0, positions = 0.0;
  for (const Window& window : windows) {
    const double deviation = window.positions * (window.mean - mean);
    squares += deviation * deviation;
    positions += window.positions;
  }
  const auto count = static_cast<double>(windows.size());
  return std::sqrt(squares * count / (count - 1.0)) / positions;
}

void QualityMeter::Add(ThreadPool& pool, const float* logits, const float* reference,
                       std::int64_t vocab, std::span<const TokenId> targets) {
  const std::size_t before = window_.size();
  window_.resize(before + targets.size());
  pool.For(static_cast<std::int64_t>(targets.size()), 1,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t i = begin; i < end; ++i) {
               const auto index = static_cast<std::size_t>(i);
               const auto width = static_cast<std::size_t>(vocab);
               Position& out = window_[before + index];
               const std::span<const float> row(logits + i * vocab, width);
               const double norm = LogSumExp(row);
               const RowScore score = ScoreRow(row, norm, targets[index]);
               out.nll = -score.logprob;
               if (reference != nullptr) {
                 const std::span<const float> reference_row(reference + i * vocab, width);
                 const double reference_norm = LogSumExp(reference_row);
                 const RowScore truth = ScoreRow(reference_row, reference_norm, targets[index]);
                 out.reference_nll = -truth.logprob;
                 out.same_top = truth.argmax == score.argmax;
                 out.kl = KlDivergence(reference_row, reference_norm, row, norm);
               }
             }
           });
  has_reference_ = has_reference_ || reference != nullptr;
}

void QualityMeter::EndWindow() {
  double nll = 0.0, reference_nll = 0.0, kl = 0.0, same_top = 0.0;
  for (const Position& position : window_) {
    nll += position.nll;
    reference_nll += position.reference_nll;
    kl += position.kl;
    same_top += position.same_top ? 1.0 : 0.0;
    if (has_reference_) {
      all_kl_.push_back(position.kl);
    }
  }
  const auto scored = static_cast<double>(window_.size());
  nll_.windows.push_back({nll / scored, scored});
  reference_nll_.windows.push_back({reference_nll / scored, scored});
  kl_.windows.push_back({kl / scored, scored});
  top1_.windows.push_back({same_top / scored, scored});
  num_tokens_ += static_cast<std::int64_t>(window_.size());
  window_.clear();
}

double QualityMeter::perplexity() const { return std::exp(nll_.value()); }

QualityReport QualityMeter::Report() const {
  QualityReport report;
  report.num_windows = std::ssize(nll_.windows);
  report.num_tokens = num_tokens_;
  report.nll = nll_.value();
  report.nll_stderr = nll_.standard_error();
  for (const auto& [nll, scored] : nll_.windows) {
    report.window_nll.push_back(nll);
  }
  report.perplexity = std::exp(report.nll);
  if (has_reference_) {
    report.reference_perplexity = std::exp(reference_nll_.value());
    report.kl_mean = kl_.value();
    report.kl_stderr = kl_.standard_error();
    report.top1 = top1_.value();
    report.top1_stderr = top1_.standard_error();
    std::vector<double> sorted = all_kl_;
    const auto p99 = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) * 99 / 100);
    std::nth_element(sorted.begin(), p99, sorted.end());
    report.kl_p99 = *p99;
    report.kl_max = *std::max_element(p99, sorted.end());
  }
  return report;
}

void BeginWindows(const ModelConfig& config, std::int64_t length, std::span<TokenId> tokens) {
  if (config.architecture != Architecture::kGemma3 || !config.bos_token_id) {
    return;
  }
  for (std::size_t i = 0; i < tokens.size(); i += static_cast<std::size_t>(length)) {
    tokens[i] = *config.bos_token_id;
  }
}

Result<std::int64_t> CountWindows(std::span<const TokenId> tokens, const WindowOptions& options,
                                  std::int64_t vocab_size) {
  const auto length = static_cast<std::int64_t>(tokens.size());
  if (options.stride < 0 || options.stride > options.context) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("a stride of {}: windows of {} tokens take 1 to {}", options.stride,
                            options.context, options.context));
  }
  std::int64_t windows = options.context >= 2 ? length / options.context : 0;
  if (windows > 0 && options.stride > 0) {
    windows = 1 + (length - options.context + options.stride - 1) / options.stride;
  }
  if (options.max_windows > 0) {
    windows = std::min(windows, options.max_windows);
  }
  if (windows == 0) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("the text has {} tokens, less than one window of {}", length, options.context));
  }
  const auto beyond =
      std::ranges::find_if(tokens, [&](TokenId token) { return Raw(token) >= vocab_size; });
  if (beyond != tokens.end()) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format(
            "the tokenizer gives token {}, the model has {} only: they do not belong together",
            Raw(*beyond), vocab_size));
  }
  return windows;
}

TextWindow WindowAt(std::int64_t index, std::int64_t num_tokens, const WindowOptions& options) {
  if (options.stride == 0) {
    return {.begin = index * options.context, .length = options.context};
  }
  const std::int64_t begin = index * options.stride;
  return {
      .begin = begin,
      .length = std::min(options.context, num_tokens - begin),
      // Where the window before ended; the first token of all follows nothing.
      .first_scored = index == 0 ? 1 : std::max<std::int64_t>(1, options.context - options.stride)};
}

Result<QualityReport> EvaluateText(ModelRunner& model, ModelRunner* reference,
                                   std::span<const TokenId> tokens, const WindowOptions& options,
                                   const EvalProgress& progress) {
  NIBBLE_TRY(windows, CountWindows(tokens, options, model.vocab_size()));
  if (reference != nullptr && reference->vocab_size() != model.vocab_size()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("the reference has {} tokens in its vocabulary, the model {}",
                            reference->vocab_size(), model.vocab_size()));
  }
  if (reference != nullptr &&
      reference->config().max_batched_tokens != model.config().max_batched_tokens) {
    return Fail(ErrorCode::kInternal, "model and reference must run in equal chunks");
  }
  QualityMeter meter;
  const std::int64_t vocab = model.vocab_size();
  const std::int64_t rows_at_a_time = model.max_logit_rows();
  ThreadPool& pool = model.model().device().pool();
  for (std::int64_t window = 0; window < windows; ++window) {
    const TextWindow cut = WindowAt(window, std::ssize(tokens), options);
    const auto text =
        tokens.subspan(static_cast<std::size_t>(cut.begin), static_cast<std::size_t>(cut.length));
    // The reference runs chunk by chunk beside the model, so that the logits of both are at hand
    // for the same rows.
    const auto score = [&](std::int64_t first, std::int64_t rows) -> Result<void> {
      if (reference != nullptr) {
        NIBBLE_TRY_VOID(reference->RunChunk(text, first, rows));
      }
      // Row r scores token r + 1; the last token of a window predicts nothing that is scored.
      const std::int64_t end = std::min(rows, cut.length - 1 - first);
      for (std::int64_t row = std::max<std::int64_t>(0, cut.first_scored - 1 - first); row < end;
           row += rows_at_a_time) {
        const std::int64_t count = std::min(rows_at_a_time, end - row);
        NIBBLE_TRY(logits, model.ChunkLogits(row, count));
        const float* truth = nullptr;
        if (reference != nullptr) {
          NIBBLE_TRY(read, reference->ChunkLogits(row, count));
          truth = read;
        }
        const auto at = static_cast<std::size_t>(first + row);
        meter.Add(pool, logits, truth, vocab,
                  text.subspan(at + 1, static_cast<std::size_t>(count)));
      }
      return {};
    };
    NIBBLE_TRY_VOID(model.RunWindow(text, score));
    meter.EndWindow();
    if (progress && !progress(window + 1, windows, meter.perplexity())) {
      return Fail(ErrorCode::kCancelled, "the evaluation was interrupted");
    }
  }
  return meter.Report();
}

}  // namespace nibble
