// nibble convert: a quantized model in another format, without a second rounding.
#include "compress/convert.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/text.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/session.h"

namespace nibble::cli {
namespace {

class ConvertCommand final : public Command {
 public:
  std::string name() const override { return "convert"; }
  std::string summary() const override {
    return "write a model in another format, without loss, and say who loads it";
  }
  std::string description() const override {
    return "Moves codes, scales and zero points to the place that another format has for them: "
           "every weight keeps its\n"
           "value, bit for bit, or nothing is written and the first value that does not fit is "
           "named. What the format\n"
           "cannot hold at all (an NF4 code in GPTQ, a scale beyond its type) is a matter for "
           "nibble quantize.\n\n"
           "  nibble convert Llama-GPTQ/ --to awq --out Llama-AWQ\n"
           "  nibble convert Llama-GPTQ/ --to gguf --out llama.gguf\n"
           "  nibble convert model.gguf --to safetensors --float-dtype bfloat16 --out plain";
  }
  void Declare(OptionSet& options) override {
    options.Positional("SRC", &source_, "a folder, a .gguf file, or a name in the hub cache");
    options.Choice("--to", &to_,
                   {"compressed-tensors", "gptq", "gptq_v2", "awq", "bitsandbytes",
                    "bitsandbytes-nested", "nibble", "gguf", "safetensors"},
                   "the format");
    options.Add("--out,-o", &out_, "folder to write (gguf: file); must not exist");
    options.Choice("--float-dtype", &float_dtype_, {"exact", "float16", "bfloat16", "float32"},
                   "of embedding, head, norms and biases: rounded to it, or kept exactly");
    options.Add("--dry-run", &dry_run_, "say what would become of it, and write nothing");
  }

  Result<int> Run(const Environment& environment) override {
    if (out_.empty() && !dry_run_) {
      return Fail(ErrorCode::kInvalidArgument, "--out PATH is missing: where should the model go?");
    }
    if (to_.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--to FORMAT is missing: compressed-tensors, gptq, gptq_v2, awq, bitsandbytes, "
                  "nibble, gguf or safetensors");
    }
    ConvertOptions options{.to = *ParseModelFormat(to_)};
    if (float_dtype_ != "exact") {
      options.float_dtype = float_dtype_ == "float16"    ? DType::kF16
                            : float_dtype_ == "bfloat16" ? DType::kBF16
                                                         : DType::kF32;
    }
    const bool is_file = std::filesystem::path(out_).extension() == ".gguf";
    if (!out_.empty() && is_file != (options.to == ModelFormat::kGguf)) {
      return Fail(ErrorCode::kInvalidArgument,
                  is_file ? "--out names a .gguf file, but --to another format"
                          : "--to gguf writes one file: give --out a name that ends in .gguf");
    }
    CatchInterrupts();
    NIBBLE_TRY(source, Checkpoint::Open(source_, environment.hub_cache));
    NIBBLE_TRY(tokenizer, LoadTokenizer(*source));
    std::unique_ptr<Progress> line;
    std::string phase;
    const auto progress = [&](std::string_view now, std::uint64_t done, std::uint64_t total,
                              const std::string& detail) {
      if (phase != now) {
        line.reset();
        phase = now;
        line = std::make_unique<Progress>(phase);
      }
      return line->Update(done, total, detail);
    };
    auto conversion =
        PlanConversion(*source, *tokenizer, options, environment.num_threads, progress);
    line.reset();
    if (!conversion) {
      return tl::unexpected<Error>(conversion.error());
    }
    Print(*conversion, options);
    if (dry_run_) {
      return kExitOk;
    }
    const auto written = WriteConversion(*source, *tokenizer, *conversion, out_, options, progress);
    line.reset();
    if (!written) {
      if (written.error().code == ErrorCode::kCancelled) {
        fmt::print(stderr, "stopped; run the same command again to go on\n");
      }
      return tl::unexpected<Error>(written.error());
    }
    fmt::print(stderr, "{}: written\n", out_);
    return kExitOk;
  }

 private:
  static void Print(const Conversion& conversion, const ConvertOptions& options) {
    for (const Conversion::Step& step : conversion.steps) {
      fmt::print(stderr, "  {:4} tensors  {} -> {}\n", step.count, step.from, step.to);
    }
    fmt::print(
        stderr, "{} in weights, every {}\n", HumanBytes(static_cast<double>(conversion.size_bytes)),
        options.float_dtype
            ? fmt::format("quantized value as it was, floats as {}", Name(*options.float_dtype))
            : "value as it was");
    for (const std::string& note : conversion.notes) {
      fmt::print(stderr, "note: {}\n", note);
    }
    for (const Consumer& consumer : ConsumersOf(options.to, conversion.weights)) {
      fmt::print(stderr, "  {:<13}{}{}{}\n", consumer.name,
                 consumer.loads ? "loads it" : "does not", consumer.how.empty() ? "" : ": ",
                 consumer.how);
    }
  }

  std::string source_, out_, to_;
  std::string float_dtype_ = "exact";
  bool dry_run_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeConvertCommand() { return std::make_unique<ConvertCommand>(); }

}  // namespace nibble::cli
