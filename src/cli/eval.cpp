// nibble eval: what a quantization costs, in perplexity and KL divergence.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/limits.h"
#include "base/sha256.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "eval/perplexity.h"
#include "io/file.h"
#include "json/value.h"
#include "kernels/isa.h"

namespace nibble::cli {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

class EvalCommand final : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string summary() const override {
    return "measure quality: perplexity, KL divergence, top-1 agreement";
  }
  std::string description() const override {
    return "The file is tokenized once without special tokens and cut into disjoint windows of "
           "--context tokens; tokens\n"
           "2..context of each are scored and the tail is dropped. With --reference the same "
           "tokens also run through that\n"
           "model, and KL(reference || model) and top-1 agreement are reported.\n\n"
           "  nibble eval model.gguf --perplexity wiki.test.raw --context 2048 --windows 10\n"
           "  nibble eval int4/ --reference model.gguf --perplexity wiki.test.raw --json";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Add("--perplexity", &text_file_, "text file to score");
    options.Add("--context", &context_, "tokens of a window");
    options.Add("--windows", &windows_, "only the first N windows (0: all)");
    options.Add("--reference", &reference_, "model to compare with");
    options.Add("--gate-kl", &gate_kl_, "exit 3 if the mean KL is above this");
    options.Choice("--kv-cache-dtype", &flags_.kv_cache_dtype,
                   {"auto", "bfloat16", "float16", "float32", "int8", "fp8", "fp8_e4m3"},
                   "storage of keys and values; fp8 (e4m3) on a card only");
    flags_.DeclareOffload(options);
    options.Add("--json", &json_, "print one JSON object on standard output");
  }

  Result<int> Run(const Environment& environment) override {
    if (text_file_.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "--perplexity FILE is missing: which text?");
    }
    if (context_ < 2) {
      return Fail(ErrorCode::kInvalidArgument, "--context takes 2 or more");
    }
    if (gate_kl_ && reference_.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "--gate-kl needs --reference MODEL");
    }
    CatchInterrupts();
    auto text = ReadFile(text_file_, kMaxTextBytes);
    if (!text) {
      return Fail(ErrorCode::kInvalidArgument, text.error().message);
    }
    flags_.max_model_len = std::max<std::int64_t>(context_, 64);  // room for the golden prompt
    flags_.max_num_seqs = 1;
    const std::int64_t block = flags_.device == "cuda" ? 64 : 16;
    flags_.num_gpu_blocks_override = (*flags_.max_model_len + block - 1) / block;
    NIBBLE_TRY(model, LoadModel(flags_, {}, environment));
    model.device->pool().PinCaller();
    std::optional<LoadedModel> reference;
    if (!reference_.empty()) {
      ModelFlags flags = flags_;
      flags.model = reference_;
      flags.model_flag.clear();
      flags.activations = "auto";
      NIBBLE_TRY(loaded, LoadModel(flags, {}, environment));
      reference = std::move(loaded);
    }
    const std::vector<TokenId> tokens = model.tokenizer->Encode(*text, {.parse_special = false});
    Progress progress("scoring");
    NIBBLE_TRY(report, EvaluateText(*model.runner, reference ? reference->runner.get() : nullptr,
                                    tokens, {.context = context_, .max_windows = windows_},
                                    [&](std::int64_t done, std::int64_t total, double perplexity) {
                                      return progress.Update(
                                          static_cast<std::uint64_t>(done),
                                          static_cast<std::uint64_t>(total),
                                          fmt::format("perplexity {:.3f}", perplexity));
                                    }));
    progress.Finish();
    if (json_) {
      fmt::print("{}\n", json::Dump(ToValue(report, *text, static_cast<std::int64_t>(tokens.size()),
                                            ActivationsName(*model.runner)),
                                    {.item_separator = ", ", .key_separator = ": "}));
    } else {
      Print(report);
    }
    return gate_kl_ && report.kl_mean > *gate_kl_ ? kExitGate : kExitOk;
  }

 private:
  json::Object ToValue(const QualityReport& report, const std::string& text,
                       std::int64_t text_tokens, const char* activations) const {
    json::Object out;
    out.Set("perplexity", report.perplexity);
    out.Set("nll", report.nll);
    out.Set("nll_stderr", report.nll_stderr);
    if (!reference_.empty()) {
      out.Set("reference_perplexity", report.reference_perplexity);
      out.Set("kl_mean", report.kl_mean);
      out.Set("kl_stderr", report.kl_stderr);
      out.Set("kl_p99", report.kl_p99);
      out.Set("kl_max", report.kl_max);
      out.Set("top1", report.top1);
    }
    out.Set("windows", report.num_windows);
    out.Set("context", context_);
    out.Set("tokens_scored", report.num_tokens);
    out.Set("text", std::filesystem::path(text_file_).filename().string());
    out.Set("text_sha256", Sha256Hex(std::as_bytes(std::span(text))));
    out.Set("text_tokens", text_tokens);
    out.Set("activations", activations);
    out.Set("cpu", DescribeCpu());
    return out;
  }
  void Print(const QualityReport& report) const {
    fmt::print(
        "perplexity      {:.4f}   (nll {:.5f} +- {:.5f}, {} windows of {}, {} tokens scored)\n",
        report.perplexity, report.nll, report.nll_stderr, report.num_windows, context_,
        report.num_tokens);
    if (!reference_.empty()) {
      fmt::print(
          "reference       {:.4f}\nKL mean         {:.5f} +- {:.5f} nats\nKL 99 %         {:.4f}\n"
          "top-1 the same  {:.2f} %\n",
          report.reference_perplexity, report.kl_mean, report.kl_stderr, report.kl_p99,
          report.top1 * 100.0);
    }
  }

  ModelFlags flags_;
  std::string text_file_, reference_;
  std::int64_t context_ = 2048;
  std::int64_t windows_ = 0;
  std::optional<double> gate_kl_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace nibble::cli
