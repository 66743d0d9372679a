// nibble inspect: what a model on disk is, and what of it nibble cannot do.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/text.h"
#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "cli/session.h"
#include "compress/certificate.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "json/value.h"
#include "kernels/pack.h"
#include "template/jinja.h"

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;

// Tensors that are stored alike.
struct Stored {
  std::int64_t count = 0;
  std::uint64_t bytes = 0;
  std::int64_t elements = 0;
};

struct Report {
  json::Object json;
  std::vector<std::string> unsupported;  // what nibble cannot do with it, and why
  std::map<std::string, Stored> tensors;

  void Add(const std::string& format, std::uint64_t bytes, std::int64_t elements) {
    Stored& stored = tensors[format];
    ++stored.count;
    stored.bytes += bytes;
    stored.elements += elements;
  }
};

std::string TokenizerKind(const Checkpoint& checkpoint) {
  if (checkpoint.gguf_vocabulary()) {
    const GgufVocabulary& vocabulary = *checkpoint.gguf_vocabulary();
    return fmt::format("GGUF {}{}{}", Quote(vocabulary.model), vocabulary.pre.empty() ? "" : ", ",
                       Quote(vocabulary.pre));
  }
  const auto parsed = json::Parse(
      *checkpoint.tokenizer_json(),
      {.max_bytes = limits::kTokenizerJsonBytes, .duplicates = json::DuplicateKeys::kKeepLast});
  const json::Value* model = parsed ? parsed->Find("model") : nullptr;
  const json::Value* type = model == nullptr ? nullptr : model->Find("type");
  if (type == nullptr || type->AsString() == nullptr) {
    return "tokenizer.json";
  }
  const json::Value* fallback = model->Find("byte_fallback");
  const bool bytes = fallback != nullptr && fallback->AsBool().value_or(false);
  return fmt::format("tokenizer.json {}{}", Quote(*type->AsString()),
                     bytes ? ", byte fallback" : "");
}

json::Object ConfigNumbers(const ModelConfig& config) {
  constexpr const char* kRope[] = {"default", "linear", "llama3", "yarn"};
  json::Object out;
  out.Set("hidden_size", config.hidden_size);
  out.Set("intermediate_size", config.intermediate_size);
  out.Set("num_layers", config.num_layers);
  out.Set("num_heads", config.num_heads);
  out.Set("num_kv_heads", config.num_kv_heads);
  out.Set("head_dim", config.head_dim);
  out.Set("vocab_size", config.vocab_size);
  out.Set("max_position_embeddings", config.max_position_embeddings);
  out.Set("rope", kRope[static_cast<int>(config.rope.type)]);
  out.Set("rope_theta", config.rope.theta);
  out.Set("tie_word_embeddings", config.tie_word_embeddings);
  if (config.sliding_window) {
    out.Set("sliding_window", *config.sliding_window);
  }
  return out;
}

json::Value QuantizationOf(const Checkpoint& checkpoint) {
  std::map<std::string, std::int64_t> specs;
  for (const WeightInfo& weight : checkpoint.weights()) {
    if (weight.spec.kind != CodecKind::kFloat) {
      ++specs[weight.spec.ToString()];
    }
  }
  if (specs.empty()) {
    return nullptr;
  }
  json::Object out;
  const auto& config = checkpoint.quantization_config();
  const json::Value* method = config ? config->Find("quant_method") : nullptr;
  out.Set("method", checkpoint.format() == CheckpointFormat::kGguf ? json::Value("gguf")
                    : method == nullptr                            ? json::Value()
                                                                   : *method);
  json::Object by_spec;
  for (const auto& [spec, count] : specs) {
    by_spec.Set(spec, count);
  }
  out.Set("weights", std::move(by_spec));
  return out;
}

json::Object CertificateSummary(const Certificate& certificate) {
  const auto mode = [](const Certificate::ModeQuality& quality) {
    json::Object out;
    out.Set("perplexity", quality.perplexity);
    out.Set("kl_mean", quality.kl_mean);
    out.Set("kl_p99", quality.kl_p99);
    out.Set("top1", quality.top1);
    return out;
  };
  json::Object out;
  out.Set("text", certificate.text_name);
  out.Set("tokens", certificate.text_tokens);
  out.Set("source_perplexity", certificate.source_perplexity);
  out.Set("int16", mode(certificate.int16));
  out.Set("int8", mode(certificate.int8));
  out.Set("activations",
          certificate.auto_activations() == ActivationMode::kInt8 ? "int8" : "int16");
  out.Set("recipe", certificate.recipe);
  return out;
}

// Grids that no kernel of the CPU has: right, but large.
std::vector<std::string> RunsAsValues(const Checkpoint& checkpoint) {
  std::map<std::string, std::int64_t> specs;
  for (const WeightInfo& weight : checkpoint.weights()) {
    const auto layout = LayoutOf(weight.spec);
    if (weight.spec.kind != CodecKind::kFloat && layout && layout->format == LinearFormat::kF32) {
      ++specs[weight.spec.ToString()];
    }
  }
  std::vector<std::string> out;
  for (const auto& [spec, count] : specs) {
    out.push_back(
        fmt::format("{}: no kernel has this grid, so {} weights run as their exact F32 "
                    "values, four bytes each",
                    spec, count));
  }
  return out;
}

// Everything about a checkpoint that opens. The certificate's files are verified on the way.
Result<void> Describe(const Checkpoint& checkpoint, Report& report) {
  report.json.Set("format",
                  checkpoint.format() == CheckpointFormat::kGguf ? "gguf" : "safetensors");
  if (checkpoint.weights().empty()) {
    report.unsupported.push_back("there are no weights: good for tokenize and render only");
  } else {
    report.json.Set("architecture", Name(checkpoint.config().architecture));
    report.json.Set("config", ConfigNumbers(checkpoint.config()));
  }
  for (const WeightInfo& weight : checkpoint.weights()) {
    report.Add(weight.stored_as, weight.size_bytes, weight.spec.rows * weight.spec.cols);
  }
  report.json.Set("quantization", QuantizationOf(checkpoint));
  report.json.Set("tokenizer", nullptr);
  if (checkpoint.tokenizer_json() || checkpoint.gguf_vocabulary()) {
    json::Object tokenizer;
    tokenizer.Set("kind", TokenizerKind(checkpoint));
    const auto loaded = LoadTokenizer(checkpoint);
    tokenizer.Set("supported", loaded.has_value());
    if (loaded) {
      tokenizer.Set("vocab_size", std::int64_t{(*loaded)->vocab_size()});
    } else {
      report.unsupported.push_back("tokenizer: " + loaded.error().message);
    }
    report.json.Set("tokenizer", std::move(tokenizer));
  } else {
    report.unsupported.push_back("tokenizer: there is none, so text cannot go in or out");
  }
  report.json.Set("chat_template", checkpoint.chat_template().has_value());
  if (checkpoint.chat_template()) {
    if (const auto parsed = jinja::Template::Parse(*checkpoint.chat_template()); !parsed) {
      report.unsupported.push_back("chat template: " + parsed.error().message);
    }
  }
  json::Array warnings;
  for (const std::string& warning : checkpoint.warnings()) {
    warnings.push_back(warning);
  }
  for (std::string& grid : RunsAsValues(checkpoint)) {
    warnings.push_back(std::move(grid));
  }
  report.json.Set("warnings", std::move(warnings));
  report.json.Set("certificate", nullptr);
  NIBBLE_TRY(certificate, LoadCertificate(checkpoint));
  if (certificate) {
    report.json.Set("certificate", CertificateSummary(*certificate));
  }
  return {};
}

void DescribeGguf(const fs::path& path, Report& report) {
  const auto file = GgufFile::Open(path);
  if (!file) {
    return;
  }
  report.json.Set("format", "gguf");
  if (const auto architecture = (*file)->String("general.architecture")) {
    report.json.Set("architecture", Quote(*architecture));
  }
  if (const auto model = (*file)->String("tokenizer.ggml.model")) {
    json::Object tokenizer;
    tokenizer.Set("kind", "GGUF " + Quote(*model));
    report.json.Set("tokenizer", std::move(tokenizer));
  }
  report.json.Set("chat_template", (*file)->String("tokenizer.chat_template").has_value());
  for (const GgufTensor& tensor : (*file)->header().tensors) {
    std::int64_t elements = 1;
    for (const std::int64_t dim : tensor.dims) {
      elements *= dim;
    }
    report.Add(GgufTypeName(tensor.type), tensor.size_bytes, elements);
  }
}

void DescribeFolder(const fs::path& path, Report& report) {
  report.json.Set("format", "safetensors");
  if (const auto config = json::ParseFile((path / "config.json").string())) {
    const json::Value* type = config->Find("model_type");
    if (type != nullptr && type->AsString() != nullptr) {
      report.json.Set("architecture", Quote(*type->AsString()));
    }
    if (const json::Value* quantization = config->Find("quantization_config")) {
      report.json.Set("quantization", *quantization);
    }
  }
  std::error_code ignored;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, ignored)) {
    if (entry.path().extension() == ".safetensors") {
      files.push_back(entry.path());
    }
  }
  std::ranges::sort(files);
  for (const fs::path& name : files) {
    if (const auto file = SafetensorsFile::Open(name)) {
      for (const SafetensorsEntry& entry : (*file)->entries()) {
        report.Add(std::string(Name(entry.dtype)), entry.end - entry.begin,
                   entry.shape.num_elements());
      }
    }
  }
}

// What can be said of a model that does not open.
void DescribeUnread(const std::string& name, const Environment& environment, Report& report) {
  fs::path path = name;
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    const auto snapshot = FindInHubCache(name, environment.hub_cache);
    if (!snapshot) {
      return;
    }
    path = *snapshot;
  }
  if (fs::is_directory(path, ignored)) {
    DescribeFolder(path, report);
  } else {
    DescribeGguf(path, report);
  }
}

void FinishJson(Report& report) {
  json::Object tensors;
  std::int64_t count = 0;
  std::int64_t elements = 0;
  std::uint64_t bytes = 0;
  json::Array by_format;
  for (const auto& [format, stored] : report.tensors) {
    json::Object row;
    row.Set("format", format);
    row.Set("count", stored.count);
    row.Set("bytes", stored.bytes);
    row.Set("parameters", stored.elements);
    by_format.push_back(std::move(row));
    count += stored.count;
    bytes += stored.bytes;
    elements += stored.elements;
  }
  tensors.Set("count", count);
  tensors.Set("bytes", bytes);
  tensors.Set("parameters", elements);
  tensors.Set("by_format", std::move(by_format));
  report.json.Set("tensors", std::move(tensors));
  json::Array unsupported;
  for (const std::string& reason : report.unsupported) {
    unsupported.push_back(reason);
  }
  report.json.Set("supported", report.unsupported.empty());
  report.json.Set("unsupported", std::move(unsupported));
}

std::string Plain(const json::Value& value) {
  return value.AsString() != nullptr ? *value.AsString() : json::Dump(value);
}

void PrintRow(const std::string& label, const std::string& text) {
  fmt::print("{:<15}{}\n", label, text);
}

// "llama · 30 layers, hidden 576 ..." and the rest of the report, for people.
void PrintTable(const Report& report) {
  const json::Object& all = report.json;
  PrintRow("path", Plain(*all.Find("path")));
  for (const char* key : {"format", "architecture"}) {
    if (const json::Value* value = all.Find(key)) {
      PrintRow(key, Plain(*value));
    }
  }
  if (const json::Value* config = all.Find("config")) {
    for (const auto& [key, value] : *config->AsObject()) {
      PrintRow("  " + key, "          " + Plain(value));
    }
  }
  const json::Value& tensors = *all.Find("tensors");
  PrintRow("tensors", fmt::format("{}, {} parameters, {}", Plain(*tensors.Find("count")),
                                  Plain(*tensors.Find("parameters")),
                                  HumanBytes(tensors.Find("bytes")->AsDouble().value_or(0.0))));
  for (const auto& [format, stored] : report.tensors) {
    fmt::print("  {:<28}{:>6} tensors  {:>9}  {:.2f} bits a parameter\n", format, stored.count,
               HumanBytes(static_cast<double>(stored.bytes)),
               8.0 * static_cast<double>(stored.bytes) /
                   static_cast<double>(std::max<std::int64_t>(1, stored.elements)));
  }
  const json::Value* tokenizer = all.Find("tokenizer");
  const json::Value* kind = tokenizer == nullptr ? nullptr : tokenizer->Find("kind");
  const json::Value* size = tokenizer == nullptr ? nullptr : tokenizer->Find("vocab_size");
  PrintRow("tokenizer", kind == nullptr
                            ? std::string("none")
                            : Plain(*kind) + (size == nullptr ? std::string()
                                                              : ", " + Plain(*size) + " tokens"));
  if (const json::Value* chat = all.Find("chat_template")) {
    PrintRow("chat template", chat->AsBool().value_or(false) ? "yes" : "none");
  }
  if (const json::Value* quantization = all.Find("quantization");
      quantization != nullptr && !quantization->IsNull()) {
    PrintRow("quantization", Plain(*quantization));
  }
  const json::Value* certificate = all.Find("certificate");
  if (certificate != nullptr && !certificate->IsNull()) {
    const auto number = [&](const char* mode, const char* key) {
      const json::Value* object = mode == nullptr ? certificate : certificate->Find(mode);
      return object->Find(key)->AsDouble().value_or(0.0);
    };
    PrintRow(
        "certificate",
        fmt::format("{} ({} tokens): source perplexity {:.3f}", Plain(*certificate->Find("text")),
                    Plain(*certificate->Find("tokens")), number(nullptr, "source_perplexity")));
    for (const char* mode : {"int16", "int8"}) {
      fmt::print("  {:<13}perplexity {:.3f}, KL {:.4f} (99 %: {:.3f}), same first token {:.1f} %\n",
                 mode, number(mode, "perplexity"), number(mode, "kl_mean"), number(mode, "kl_p99"),
                 100.0 * number(mode, "top1"));
    }
  } else {
    PrintRow("certificate", "none");
  }
  if (const json::Value* warnings = all.Find("warnings")) {
    for (const json::Value& warning : *warnings->AsArray()) {
      PrintRow("note", Plain(warning));
    }
  }
  PrintRow("supported", report.unsupported.empty() ? "yes" : "no");
  for (const std::string& reason : report.unsupported) {
    PrintRow("  because", reason);
  }
}

class InspectCommand final : public Command {
 public:
  std::string name() const override { return "inspect"; }
  std::string summary() const override { return "Say what a model on disk is"; }
  std::string description() const override {
    return "Prints the architecture and its numbers, the tensors by format, the tokenizer, the\n"
           "certificate, and what nibble cannot do with the model and why. Weights are not read.\n"
           "Exit code 4 if the model is missing or damaged.\n"
           "  nibble inspect SmolLM2.gguf\n"
           "  nibble inspect HuggingFaceTB/SmolLM2-135M-Instruct --json";
  }
  void Declare(OptionSet& options) override {
    options.Positional("MODEL", &model_, "a folder, a .gguf file, or a name in the hub cache");
    options.Add("--json", &json_, "one JSON object on standard output");
  }
  Result<int> Run(const Environment& environment) override {
    Report report;
    report.json.Set("path", model_);
    auto checkpoint = Checkpoint::Open(model_, environment.hub_cache);
    std::optional<Error> error;
    if (!checkpoint) {
      error = checkpoint.error();
      DescribeUnread(model_, environment, report);
    } else if (auto described = Describe(**checkpoint, report); !described) {
      error = described.error();
    }
    if (error) {
      report.unsupported.push_back(error->message);
    }
    FinishJson(report);
    if (json_) {
      fmt::print("{}\n", json::Dump(report.json));
    } else if (!error || error->code != ErrorCode::kNotFound) {
      PrintTable(report);
    }
    std::fflush(stdout);
    // A whole model that nibble merely does not read yet has been described: nothing went wrong.
    if (error && error->code != ErrorCode::kUnsupported) {
      return tl::unexpected<Error>(*error);
    }
    return kExitOk;
  }

 private:
  std::string model_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() { return std::make_unique<InspectCommand>(); }

}  // namespace nibble::cli
