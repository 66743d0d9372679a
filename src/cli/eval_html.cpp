#include "cli/eval_html.h"

#include <fmt/format.h>

#include <filesystem>

#include "compress/certificate.h"
#include "eval/html_report.h"
#include "io/file.h"

namespace nibble::cli {
namespace {

constexpr const char* kLogFile = "quantization_log.json";

double BitsPerWeight(const Checkpoint& checkpoint) {
  double bits = 0.0, weights = 0.0;
  for (const ExpectedWeight& expected : ExpectedWeights(checkpoint.config())) {
    const WeightInfo* stored = expected.is_linear ? checkpoint.Find(expected.name) : nullptr;
    if (stored != nullptr) {
      bits += 8.0 * static_cast<double>(stored->size_bytes);
      weights += static_cast<double>(stored->spec.rows) * static_cast<double>(stored->spec.cols);
    }
  }
  return weights > 0.0 ? bits / weights : 0.0;
}

// "int4-gptq.json" -> "int4-gptq"
std::string NameOf(const std::string& file) { return std::filesystem::path(file).stem().string(); }

}  // namespace

Result<void> DescribeForHtml(const Checkpoint& checkpoint, json::Object& out) {
  out.Set("model", checkpoint.path().filename().string());
  std::uint64_t bytes = 0;
  for (const WeightInfo& weight : checkpoint.weights()) {
    bytes += weight.size_bytes;
  }
  out.Set("weight_bytes", bytes);
  out.Set("bits_per_weight", BitsPerWeight(checkpoint));
  const auto log_file = CertificateFolder(checkpoint.path()) / kLogFile;
  if (!std::filesystem::exists(log_file)) {
    return {};
  }
  NIBBLE_TRY(log, json::ParseFile(log_file.string()));
  json::Object errors;
  for (const auto& [name, facts] : log.AsObject() != nullptr ? *log.AsObject() : json::Object()) {
    if (const json::Value* error = facts.Find("relative_rms_error")) {
      errors.Set(name, *error);
    }
  }
  out.Set("layer_errors", std::move(errors));
  return {};
}

Result<void> CompareResults(const std::vector<std::string>& files, const std::string& html) {
  std::vector<EvaluatedModel> models;
  for (const std::string& file : files) {
    NIBBLE_TRY(result, json::ParseFile(file));
    if (result.Find("perplexity") == nullptr && result.Find("tasks") == nullptr) {
      return Fail(
          ErrorCode::kInvalidArgument,
          fmt::format("--compare {}: has neither perplexity nor tasks; expected what nibble "
                      "eval --output wrote",
                      file));
    }
    models.push_back({.name = NameOf(file), .result = std::move(result)});
  }
  return ReplaceFile(html, RenderHtml(models));
}

Result<void> WriteHtml(const json::Object& result, const std::string& html) {
  const json::Value* model = result.Find("model");
  const std::vector<EvaluatedModel> models = {
      {.name = model != nullptr && model->AsString() ? *model->AsString() : "model",
       .result = result}};
  return ReplaceFile(html, RenderHtml(models));
}

}  // namespace nibble::cli
