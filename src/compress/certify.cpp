#include "compress/certify.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/sha256.h"
#include "compress/overlay_checkpoint.h"

namespace nibble {
namespace {

constexpr std::int64_t kGoldenPromptTokens = 16;

Certificate::ModeQuality Keep(const QualityReport& report) {
  return {.perplexity = report.perplexity,
          .kl_mean = report.kl_mean,
          .kl_stderr = report.kl_stderr,
          .kl_p99 = report.kl_p99,
          .top1 = report.top1};
}

}  // namespace

Result<Certifier> Certifier::Create(const Checkpoint& source, const Tokenizer& tokenizer,
                                    const QuantizeOptions& options, int num_threads,
                                    const QuantizeProgress& progress) {
  Certifier out(source, options, num_threads, progress);
  out.tokens_ = tokenizer.Encode(options.text);
  const auto count = static_cast<std::int64_t>(out.tokens_.size());
  if (count < 2 * kGoldenPromptTokens) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: {} tokens are too few to measure anything on; give a text of some pages",
                    options.text_name, count));
  }
  out.context_ = std::min({options.text_context, count, source.config().max_position_embeddings});
  if (out.context_ < 2) {
    return Fail(ErrorCode::kInvalidArgument, "--context takes 2 or more");
  }
  BeginWindows(source.config(), out.context_, out.tokens_);
  for (const TokenText& text : options.evaluations) {
    if (text.tokens.size() < 2) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--evaluation {}: there is no text in it to measure on", text.name));
    }
  }
  return out;
}

Result<std::uint64_t> Certifier::PeakBytes(const OutputPlan& plan) const {
  const OverlayCheckpoint result(source_, plan.weights);
  std::uint64_t most = 0;
  const auto measure = [&](std::span<const TokenId> tokens,
                           std::span<const TokenId> prompt) -> Result<void> {
    const auto device = MakeCpuDevice(num_threads_);
    NIBBLE_TRY(bytes, BlockwiseBytes(result, source_, *device, tokens, prompt,
                                     Windows(std::min(context_, std::ssize(tokens)))));
    most = std::max(most, bytes);
    return {};
  };
  NIBBLE_TRY_VOID(measure(tokens_, std::span(tokens_).first(kGoldenPromptTokens)));
  for (const TokenText& text : options_.evaluations) {
    NIBBLE_TRY_VOID(measure(text.tokens, {}));
  }
  return most;
}

Result<Certificate> Certifier::Measure(const Checkpoint& quantized) const {
  Certificate certificate;
  certificate.golden_prompt.assign(tokens_.begin(), tokens_.begin() + kGoldenPromptTokens);
  NIBBLE_TRY(quality, Compare(quantized, tokens_, context_, certificate.golden_prompt));
  certificate.int16 = Keep(quality.int16);
  certificate.int8 = Keep(quality.int8);
  certificate.source_perplexity = quality.int16.reference_perplexity;
  certificate.golden_int16 = DescribeGoldenLogits(quality.prompt_logits_int16);
  certificate.golden_int8 = DescribeGoldenLogits(quality.prompt_logits_int8);
  certificate.text_name = options_.text_name;
  certificate.text_sha256 = Sha256Hex(std::as_bytes(std::span(options_.text)));
  certificate.text_tokens = quality.int16.num_windows * context_;
  certificate.text_context = context_;
  NIBBLE_TRY_VOID(MeasureFurther(quantized, certificate));
  return certificate;
}

Result<void> Certifier::MeasureFurther(const Checkpoint& quantized,
                                       Certificate& certificate) const {
  for (const TokenText& text : options_.evaluations) {
    const std::int64_t context = std::min(context_, static_cast<std::int64_t>(text.tokens.size()));
    std::vector<TokenId> tokens = text.tokens;
    BeginWindows(source_.config(), context, tokens);
    NIBBLE_TRY(quality, Compare(quantized, tokens, context, {}));
    certificate.evaluations.push_back({.name = text.name,
                                       .sha256 = text.sha256,
                                       .tokens = quality.int16.num_windows * context,
                                       .context = context,
                                       .source_perplexity = quality.int16.reference_perplexity,
                                       .int16 = Keep(quality.int16),
                                       .int8 = Keep(quality.int8)});
  }
  return {};
}

Result<BlockwiseQuality> Certifier::Compare(const Checkpoint& quantized,
                                            std::span<const TokenId> tokens, std::int64_t context,
                                            std::span<const TokenId> prompt) const {
  ReturnFreedMemory();
  const auto device = MakeCpuDevice(num_threads_);
  return EvaluateBlockwise(quantized, source_, *device, tokens, prompt, Windows(context),
                           [&](std::uint64_t done, std::uint64_t total, const std::string& detail) {
                             return !progress_ || progress_("measuring", done, total, detail);
                           });
}

}  // namespace nibble
