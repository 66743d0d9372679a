// nibble quantize: a checkpoint in, a smaller certified one out.
#include "compress/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "base/text.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "compress/block_walk.h"
#include "compress/calibration.h"
#include "io/file.h"
#include "kernels/isa.h"
#include "solve/linear_solver.h"

namespace nibble::cli {
namespace {

class QuantizeCommand final : public Command {
 public:
  std::string name() const override { return "quantize"; }
  std::string summary() const override {
    return "make a model smaller, and certify what that cost";
  }
  std::string description() const override {
    return "Writes a folder that vLLM, transformers or llama.cpp read as well (--format), with a "
           "quality\n"
           "certificate: perplexity, KL divergence and top-1 agreement against the source, hashes "
           "of every tensor, golden\n"
           "logits. An interrupted run goes on where it stopped when started again.\n\n"
           "  nibble quantize SmolLM2.gguf --out smol-int4 --scheme int4\n"
           "  nibble quantize Llama-3.2-1B/ --out llama-int4 --scheme int4 --method gptq "
           "--calibration my_chats.jsonl\n"
           "  nibble quantize Llama-3.2-1B/ --out llama-mixed --recipe recipe.yaml\n\n"
           "--calibration takes a text, or a .jsonl with one object a line: {\"text\": ...}, "
           "{\"messages\": [...]},\n"
           "{\"conversations\": [...]} or {\"prompt\": ..., \"completion\": ...}; all but the "
           "first go through the model's chat template.";
  }
  void Declare(OptionSet& options) override {
    options.Positional("SRC", &source_, "a folder, a .gguf file, or a name in the hub cache");
    options.Add("--out,-o", &out_, "folder to write; must not exist");
    options.Choice("--scheme", &scheme_, SchemeWords(),
                   "bits of a uniform grid; a table: of bitsandbytes (nf4, fp4), of powers of two "
                   "(log4, log3), MXFP4, NVFP4, FP8; or blocks of GGUF");
    options.Add("--recipe", &recipe_file_,
                "a YAML file that gives method, scheme and group size by modules, instead of the "
                "flags");
    options.Add("--budget", &budget_,
                "search such a recipe for a size: 4.25bpw (bits a weight of the linears) or 2.1GiB "
                "(weight files); needs --calibration");
    options.Add("--max-kl", &max_kl_,
                "the same for a quality: the smallest model whose groups' own KL add up to this");
    options.Add("--candidates", &candidates_,
                "schemes to choose from, as int3 or int4-g32 (default: 3, 4, 5, 6 and 8 bits)");
    options.Choice(
        "--format", &format_,
        {"auto", "compressed-tensors", "gptq", "gptq_v2", "awq", "bitsandbytes",
         "bitsandbytes-nested", "nibble", "gguf"},
        "what to write; auto: compressed-tensors for int, FP8, MXFP4 and NVFP4, "
        "bitsandbytes for nf4 and fp4, gguf for its blocks, nibble (read by nibble alone) "
        "for log4, log3 and fp8-e5m2");
    options.Choice(
        "--method", &method_, MethodWords(),
        "how codes are chosen: rounding (with calibration data: for what flows in), GPTQ, "
        "AWQ's scales and rounding, AWQ's scales and GPTQ, GPTQ whose codes and scales then "
        "learn from each block's output (slow, for 2 and 3 bits), or SmoothQuant's scales and "
        "rounding (int8, for --activations int8); auto takes GPTQ below 8 "
        "bits if there is calibration data");
    options.Choice("--device", &device_, {"cpu", "cuda", "auto"},
                   "where calibration data passes the model and weights are solved; auto: on a "
                   "card, if there is one with cuBLAS and cuSOLVER, and the method runs there (rtn "
                   "and gptq)");
    options.Add("--group-size", &group_size_,
                "columns that share a scale: a multiple of 16; 0: a whole row; tensor: the whole "
                "matrix (default: the largest of 128, 64, 32 that divides every width)");
    options.Add("--symmetric", &symmetric_, "no zero points; --no-symmetric stores one a group");
    options.Add("--search-scale", &search_,
                "search the scale with the least weighted error; --no-search-scale: absmax");
    options.Group("Calibration");
    options.Add(
        "--calibration", &calibration_file_,
        "text, or .jsonl (.json, .ndjson) with an object a line, like what the model will read");
    options.Add("--calibration-samples", &calibration_.num_samples, "windows taken from it");
    options.Add("--calibration-length", &calibration_.length, "tokens of a window");
    options.Choice("--calibration-rows", &rows_, {"auto", "memory", "disk"},
                   "where the activations of all tokens lie; disk: in a file beside --out; auto: "
                   "there if they would take more than half of the free memory");
    options.Add("--seed", &seed_, "which windows");
    options.Add("--damping", &damping_,
                "added to a Hessian's diagonal, as a share of its mean; grows where that is too "
                "little");
    options.Add(
        "--smooth-alpha", &smooth_alpha_,
        "smoothquant: how much of the activations' outliers moves into the weights, 0 to 1");
    options.Add("--correct-inputs", &correct_inputs_,
                "let each linear make up for what the linears before it have lost");
    options.Add("--learn-iterations", &learn_iterations_,
                "steps of --method learned on each block");
    options.Add("--learn-batch", &learn_batch_tokens_,
                "tokens of such a step, in whole calibration windows");
    options.Group("Certificate");
    options.Add("--certificate-text", &text_file_,
                "text that the certificate is measured on (default: a built-in one)");
    options.Add("--context", &context_, "tokens of a window of that text");
    options.Add("--evaluation", &evaluations_,
                "NAME=FILE, any number of times: texts or .jsonl of your tasks, on each of which "
                "the certificate says perplexity, KL and top-1");
    options.Add("--allow-requantize", &allow_requantize_,
                "take a folder that is quantized already, and round it a second time");
    options.Add("--json", &json_, "print the certificate on standard output");
  }

  Result<int> Run(const Environment& environment) override {
    if (out_.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--out DIR is missing: where should the quantized model go?");
    }
    NIBBLE_TRY(group_size, GroupSize());
    if (learn_iterations_ < 1 || learn_batch_tokens_ < 1) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--learn-iterations and --learn-batch take 1 or more");
    }
    if (!(smooth_alpha_ >= 0.0 && smooth_alpha_ <= 1.0)) {
      return Fail(ErrorCode::kInvalidArgument, "--smooth-alpha takes 0 to 1");
    }
    constexpr double kMostDamping = 1e3;
    if (!(damping_ >= 0.0 && damping_ <= kMostDamping)) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--damping takes 0 to {}", kMostDamping));
    }
    NIBBLE_TRY_VOID(CheckUseOfCalibration());
    Scheme scheme = *ParseScheme(scheme_);
    if (scheme == *ParseScheme("fp8") && group_size == kWholeTensor) {
      scheme = *ParseScheme("fp8-tensor");
    }
    if (scheme.is_log() && !symmetric_) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--scheme {} has no zero points; leave out --no-symmetric, or use "
                              "--scheme int4",
                              scheme_));
    }
    if (scheme.has_own_groups() &&
        (!symmetric_ || group_size.value_or(scheme.group_size) != scheme.group_size)) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--scheme {} has groups of its own and no zero points; leave out "
                              "--group-size and --no-symmetric, or use --scheme int4",
                              scheme_));
    }
    scheme.group_size = group_size.value_or(scheme.group_size);
    scheme.symmetric = symmetric_;
    std::optional<Recipe> recipe;
    if (!recipe_file_.empty()) {
      NIBBLE_TRY(read, ReadRecipe());
      recipe = std::move(read);
    }
    NIBBLE_TRY(budget, ReadBudget());
    std::vector<Scheme> candidates;
    for (const std::string& word : candidates_) {
      NIBBLE_TRY(candidate, ParseCandidate(word));
      candidates.push_back(candidate);
    }
    CatchInterrupts();
    NIBBLE_TRY(source, Checkpoint::Open(source_, environment.hub_cache));
    NIBBLE_TRY(tokenizer, LoadTokenizer(*source));
    QuantizeOptions options{.method = *ParseMethod(method_),
                            .damping = damping_,
                            .smooth_alpha = smooth_alpha_,
                            .correct_inputs = correct_inputs_,
                            .learn_iterations = learn_iterations_,
                            .learn_batch_tokens = learn_batch_tokens_,
                            .scheme = scheme,
                            .recipe = std::move(recipe),
                            .budget = std::move(budget),
                            .candidates = std::move(candidates),
                            .format = ParseModelFormat(format_),
                            .search_scale = search_,
                            .allow_requantize = allow_requantize_,
                            .text = std::string(DefaultCertificateText()),
                            .text_name = "nibble-prose-1",
                            .text_context = context_};
    if (!text_file_.empty()) {
      auto text = ReadFile(text_file_, std::size_t{1} << 30);
      if (!text) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("--certificate-text: {}; give a text file, or leave the flag out "
                                "for the built-in text",
                                text.error().message));
      }
      NIBBLE_TRY(found, Utf8Text(*text, text_file_));
      options.text = found;
      options.text_name = std::filesystem::path(text_file_).filename().string();
    }
    NIBBLE_TRY(evaluations, ReadEvaluations(*source, *tokenizer));
    options.evaluations = std::move(evaluations);
    CalibrationSet calibration;
    if (!calibration_file_.empty()) {
      NIBBLE_TRY_VOID(Calibrate(*source, *tokenizer, calibration));
      options.calibration = &calibration;
    }
    NIBBLE_TRY(choice, ChooseMethod(options));
    fmt::print(stderr, "method {}: {}\n", Name(choice.method), choice.reason);
    NIBBLE_TRY(device, ChooseDevice(options, choice.method, source->config(), environment));
    options.device = device;
    if (options.device == DeviceKind::kCpu && options.calibration != nullptr) {
      ChooseRows(source->config(), calibration);
    }
    options.notice = [](const std::string& text) { fmt::print(stderr, "{}\n", text); };
    std::unique_ptr<Progress> line;
    std::string phase;
    auto summary = QuantizeCheckpoint(*source, *tokenizer, out_, options, environment.num_threads,
                                      [&](std::string_view now, std::uint64_t done,
                                          std::uint64_t total, const std::string& detail) {
                                        if (phase != now) {
                                          line.reset();
                                          phase = now;
                                          line = std::make_unique<Progress>(phase);
                                        }
                                        return line->Update(done, total, detail);
                                      });
    line.reset();
    if (!summary) {
      if (summary.error().code == ErrorCode::kCancelled) {
        fmt::print(stderr, "stopped; run the same command again to go on\n");
      }
      return tl::unexpected<Error>(summary.error());
    }
    if (json_) {
      fmt::print("{}", ToJson(summary->certificate));
    }
    Print(*summary);
    if (max_kl_ && summary->certificate.int16.kl_mean > *max_kl_) {
      fmt::print(stderr,
                 "the KL on {} is above --max-kl {}: errors of modules have added up to more than "
                 "their sum; take a smaller --max-kl, or --candidates with more bits\n",
                 summary->certificate.text_name, *max_kl_);
      return kExitGate;
    }
    return kExitOk;
  }

 private:
  Result<std::optional<std::int64_t>> GroupSize() const {
    if (group_size_.empty()) {
      return std::optional<std::int64_t>();
    }
    if (group_size_ == "tensor") {
      return std::optional(kWholeTensor);
    }
    std::int64_t value = -1;
    const char* end = group_size_.data() + group_size_.size();
    const auto [stopped, error] = std::from_chars(group_size_.data(), end, value);
    if (error != std::errc{} || stopped != end || value < 0) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--group-size takes 0 (a whole row) or more, or tensor, not {}",
                              Quote(group_size_)));
    }
    return std::optional(value);
  }

  Result<std::optional<Budget>> ReadBudget() const {
    if (budget_.empty() && !max_kl_) {
      return candidates_.empty()
                 ? Result<std::optional<Budget>>()
                 : Fail(ErrorCode::kInvalidArgument, "--candidates are for --budget or --max-kl");
    }
    if (!recipe_file_.empty() || scheme_ != kDefaultScheme || !group_size_.empty() || !symmetric_ ||
        (!budget_.empty() && max_kl_)) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--budget and --max-kl choose schemes themselves: give one of them, and neither "
                  "--recipe nor --scheme, --group-size or --no-symmetric beside it");
    }
    if (max_kl_) {
      if (!(*max_kl_ > 0.0 && std::isfinite(*max_kl_))) {
        return Fail(ErrorCode::kInvalidArgument, "--max-kl takes a number above 0");
      }
      return Budget{.max_kl = max_kl_, .text = fmt::format("a KL of {}", *max_kl_)};
    }
    NIBBLE_TRY(budget, ParseBudget(budget_));
    return std::optional(std::move(budget));
  }

  Result<Recipe> ReadRecipe() const {
    if (scheme_ != kDefaultScheme || method_ != "auto" || !group_size_.empty() || !symmetric_) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--recipe says scheme, method, group size and zero points itself: leave out "
                  "--scheme, --method, --group-size and --no-symmetric, or the recipe");
    }
    auto text = ReadFile(recipe_file_, std::size_t{1} << 20);
    if (!text) {
      return Fail(ErrorCode::kInvalidArgument, "--recipe: " + text.error().message);
    }
    return ParseRecipe(*text, std::filesystem::path(recipe_file_).filename().string());
  }

  Result<std::vector<TokenText>> ReadEvaluations(const Checkpoint& source,
                                                 const Tokenizer& tokenizer) const {
    std::vector<TokenText> texts;
    for (const std::string& argument : evaluations_) {
      const std::size_t equals = argument.find('=');
      const std::string name = argument.substr(0, equals);
      if (equals == std::string::npos || name.empty() || equals + 1 == argument.size()) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("--evaluation {}: expected NAME=FILE, as in qa=questions.jsonl",
                                Quote(argument)));
      }
      if (std::ranges::find(texts, name, &TokenText::name) != texts.end()) {
        return Fail(
            ErrorCode::kInvalidArgument,
            fmt::format("--evaluation: {} is there twice; give each its own name", Quote(name)));
      }
      auto text = LoadText(argument.substr(equals + 1), name, source, tokenizer);
      if (!text) {
        return Fail(ErrorCode::kInvalidArgument, "--evaluation: " + text.error().message);
      }
      texts.push_back(std::move(*text));
    }
    return texts;
  }

  // How calibration data is used says nothing where there is none.
  Result<void> CheckUseOfCalibration() const {
    if (!calibration_file_.empty()) {
      return {};
    }
    const QuantizeOptions usual;
    const CalibrationOptions windows;
    const std::pair<const char*, bool> flags[] = {
        {"--calibration-samples", calibration_.num_samples != windows.num_samples},
        {"--calibration-length", calibration_.length != windows.length},
        {"--calibration-rows", rows_ != "auto"},
        {"--seed", seed_ != 0},
        {"--damping", damping_ != usual.damping},
        {"--smooth-alpha", smooth_alpha_ != usual.smooth_alpha},
        {"--no-correct-inputs", !correct_inputs_},
        {"--learn-iterations", learn_iterations_ != usual.learn_iterations},
        {"--learn-batch", learn_batch_tokens_ != usual.learn_batch_tokens}};
    for (const auto& [flag, changed] : flags) {
      if (changed) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{} says how calibration data is used, and there is none: give "
                                "--calibration FILE, or leave it out",
                                flag));
      }
    }
    return {};
  }

  Result<void> Calibrate(const Checkpoint& source, const Tokenizer& tokenizer,
                         CalibrationSet& calibration) const {
    if (seed_ < 0) {
      return Fail(ErrorCode::kInvalidArgument, "--seed takes 0 or more");
    }
    CalibrationOptions options = calibration_;
    options.seed = static_cast<std::uint64_t>(seed_);
    auto loaded = LoadCalibration(calibration_file_, source, tokenizer, options);
    if (!loaded) {
      return Fail(ErrorCode::kInvalidArgument, "--calibration: " + loaded.error().message);
    }
    calibration = std::move(*loaded);
    if (rows_ == "disk") {
      calibration.rows_folder = RowsFolder();
    }
    if (calibration.num_windows() < options.num_samples) {
      fmt::print(stderr, "warning: {} gives {} samples of {} tokens, {} were asked for\n",
                 calibration_file_, calibration.num_windows(), options.length, options.num_samples);
    }
    return {};
  }

  std::filesystem::path RowsFolder() const {
    const std::filesystem::path folder = std::filesystem::path(out_).parent_path();
    return folder.empty() ? "." : folder;
  }

  // --calibration-rows auto, on a CPU.
  void ChooseRows(const ModelConfig& config, CalibrationSet& calibration) const {
    // Two walks at most keep them.
    const std::uint64_t bytes = 2 * BlockWalk::RowBytes(config, std::ssize(calibration.tokens));
    if (rows_ == "auto" && bytes > AvailableMemoryBytes() / 2) {
      calibration.rows_folder = RowsFolder();
    }
  }

  // Whether a card can do it, and is here with the libraries that this takes.
  static Result<void> CheckCard(const QuantizeOptions& options, QuantizeMethod method,
                                const ModelConfig& config, const Environment& environment) {
    NIBBLE_TRY_VOID(CheckDevice(options, method, config));
    NIBBLE_TRY(card, MakeCudaDevice(0, environment.num_threads));
    return CheckLinearSolver(card->kind());
  }

  // Says why --device auto stays on the CPU.
  Result<DeviceKind> ChooseDevice(QuantizeOptions options, QuantizeMethod method,
                                  const ModelConfig& config, const Environment& environment) const {
    if (device_ == "cpu") {
      return DeviceKind::kCpu;
    }
    options.device = DeviceKind::kCuda;
    const Result<void> can = CheckCard(options, method, config, environment);
    if (can || device_ == "cuda") {
      return can.map([] { return DeviceKind::kCuda; });
    }
    fmt::print(stderr, "device cpu: {}\n", can.error().message);
    return DeviceKind::kCpu;
  }

  void Print(const QuantizeSummary& summary) const {
    const Certificate& certificate = summary.certificate;
    const auto row = [](const char* mode, const Certificate::ModeQuality& quality) {
      fmt::print(
          stderr,
          "  {:<18}perplexity {:8.3f}   KL {:.4f} +- {:.4f}   99 % {:.3f}   top-1 {:.1f} %\n", mode,
          quality.perplexity, quality.kl_mean, quality.kl_stderr, quality.kl_p99,
          quality.top1 * 100.0);
    };
    fmt::print(stderr, "{}: {} -> {}, linears at {:.3f} bits a weight\n", out_,
               HumanBytes(static_cast<double>(summary.source_bytes)),
               HumanBytes(static_cast<double>(summary.output_bytes)), summary.bits_per_weight);
    fmt::print(stderr, "certificate on {} ({} tokens):\n  source            perplexity {:8.3f}\n",
               certificate.text_name, certificate.text_tokens, certificate.source_perplexity);
    row("int16 activations", certificate.int16);
    row("int8 activations", certificate.int8);
    for (const Certificate::TextQuality& text : certificate.evaluations) {
      fmt::print(stderr, "{} ({} tokens):\n  source            perplexity {:8.3f}\n", text.name,
                 text.tokens, text.source_perplexity);
      row("int16 activations", text.int16);
      row("int8 activations", text.int8);
    }
    PrintChannels(certificate.calibration_match);
    fmt::print(stderr, "  --activations auto takes {}\n",
               certificate.auto_activations() == ActivationMode::kInt8 ? "int8" : "int16");
  }

  static void PrintChannels(const json::Value& match) {
    const auto count = [&](const char* key) {
      const json::Value* found = match.Find(key);
      return found == nullptr ? 0 : found->AsInt().value_or(0);
    };
    if (const std::int64_t dead = count("dead_channels"), rare = count("rare_channels");
        dead + rare > 0) {
      fmt::print(stderr,
                 "{} input channels had no value in the calibration data and {} hardly any (below "
                 "1/10,000 of the median): what it says of their weights is chance; "
                 "quantization_log.json has them by tensor\n",
                 dead, rare);
    }
  }

  std::string budget_;
  std::optional<double> max_kl_;
  std::vector<std::string> candidates_, evaluations_;
  static constexpr const char* kDefaultScheme = "int4";
  std::string source_, out_, text_file_, calibration_file_, recipe_file_, rows_ = "auto";
  std::string scheme_ = kDefaultScheme, format_ = "auto", device_ = "cpu";
  std::string method_ = "auto", group_size_;
  CalibrationOptions calibration_;
  std::int64_t seed_ = 0;
  double damping_ = 0.01;
  double smooth_alpha_ = 0.5;
  bool correct_inputs_ = true;
  std::int64_t learn_iterations_ = 200;
  std::int64_t learn_batch_tokens_ = 512;
  std::int64_t context_ = 512;
  bool symmetric_ = true;
  bool search_ = true;
  bool allow_requantize_ = false;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeQuantizeCommand() { return std::make_unique<QuantizeCommand>(); }

}  // namespace nibble::cli
