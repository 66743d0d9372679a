#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/certificate.h"
#include "compress/output_plan.h"
#include "compress/quantize.h"
#include "eval/blockwise.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// Measures what a certificate says of a quantized model: beside its source, on the text of the
/// options and on each further one.
class Certifier {
 public:
  /// All arguments must outlive it. Errors: kInvalidArgument for a text that is too short.
  static Result<Certifier> Create(const Checkpoint& source, const Tokenizer& tokenizer,
                                  const QuantizeOptions& options, int num_threads,
                                  const QuantizeProgress& progress);

  /// Of the options' text, and how many of them a window has.
  const std::vector<TokenId>& tokens() const { return tokens_; }
  std::int64_t context() const { return context_; }
  /// Memory that Measure takes for a model of this plan.
  Result<std::uint64_t> PeakBytes(const OutputPlan& plan) const;
  /// A certificate with its texts, qualities and golden logits; nothing else is set.
  Result<Certificate> Measure(const Checkpoint& quantized) const;

 private:
  Certifier(const Checkpoint& source, const QuantizeOptions& options, int num_threads,
            const QuantizeProgress& progress)
      : source_(source), options_(options), num_threads_(num_threads), progress_(progress) {}
  WindowOptions Windows(std::int64_t context) const {
    return {.context = context, .max_windows = options_.max_windows};
  }
  Result<BlockwiseQuality> Compare(const Checkpoint& quantized, std::span<const TokenId> tokens,
                                   std::int64_t context, std::span<const TokenId> prompt) const;
  Result<void> MeasureFurther(const Checkpoint& quantized, Certificate& certificate) const;

  const Checkpoint& source_;
  const QuantizeOptions& options_;
  int num_threads_;
  const QuantizeProgress& progress_;
  std::vector<TokenId> tokens_;
  std::int64_t context_ = 0;
};

}  // namespace nibble
