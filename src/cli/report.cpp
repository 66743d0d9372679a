// nibble report: what a model costs at 16, 8 and 4 bits, in one table.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "cli/command.h"
#include "cli/measure.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "compress/quantize.h"
#include "compress/rounded_checkpoint.h"
#include "device/energy_meter.h"
#include "json/value.h"
#include "kernels/isa.h"

namespace nibble::cli {
namespace {

struct Precision {
  std::string word;  // of --precisions
  std::string label;
  int bits = 0;  // 0: the checkpoint as it is
};
const std::vector<Precision>& Precisions() {
  static const std::vector<Precision> all = {
      {"bf16", "BF16", 16}, {"int8", "8 bit", 8}, {"int4", "4 bit", 4}, {"file", "the file", 0}};
  return all;
}

// One line of the table.
struct ReportRow {
  Precision precision;
  std::string linears;  // what the linears are stored as: "w4 g64 sym"
  std::uint64_t weight_bytes = 0;
  std::uint64_t planned_bytes = 0;  // all memory, the KV cache of this test included
  std::vector<double> latencies;    // seconds, of single requests
  double first_token_p50 = 0.0;
  double tokens_per_s = 0.0;  // output tokens of --batch requests at once, their prompts included
  std::optional<double> watts;
  std::optional<double> joules_per_token;
  std::string no_power;  // why there are no watts
};

double Mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value;
  }
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

// The spec that most linears have.
std::string SpecOfLinears(const Checkpoint& checkpoint) {
  for (const ExpectedWeight& weight : ExpectedWeights(checkpoint.config())) {
    if (weight.is_linear) {
      const WeightInfo* stored = checkpoint.Find(weight.name);
      return stored == nullptr ? "" : stored->spec.ToString();
    }
  }
  return "";
}

class ReportCommand final : public Command {
 public:
  std::string name() const override { return "report"; }
  std::string summary() const override {
    return "what a model costs at 16, 8 and 4 bits: memory, latency, throughput, power, price";
  }
  std::string description() const override {
    return "Loads the model as BF16, at 8 bit and at 4 bit, rounded in memory (no file is "
           "written), "
           "and, if its file is quantized,\n"
           "as it is. Latency: one request at a time, from submitting to its last token, "
           "--iterations times after one to warm up.\n"
           "Throughput: output tokens a second of --batch requests at once, prompts included; the "
           "median of three runs. Power is\n"
           "read from the hardware's counters of the CPU packages or the card, where they are "
           "readable, during those runs.\n"
           "Quality is not measured here: a rounded model is as fast as a carefully quantized one. "
           "nibble eval measures it.\n\n"
           "  nibble report model.gguf\n"
           "  nibble report DIR --iterations 100 --price-per-hour 0.40 --json";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Add("--iterations", &iterations_, "single requests whose latency is measured");
    options.Add("--input-len", &input_len_, "tokens of a prompt");
    options.Add("--output-len", &output_len_, "tokens to generate");
    options.Add("--batch", &batch_, "requests at once, for the throughput");
    options.Add("--price-per-hour", &price_per_hour_,
                "what an hour of this machine costs, in any currency: adds the cost of a million "
                "output tokens");
    options.Add("--precisions", &words_,
                "which lines: bf16 int8 int4, and file for the checkpoint as it is (default: all)");
    options.Add("--json", &json_, "print one JSON object on standard output");
  }

  Result<int> Run(const Environment& environment) override {
    NIBBLE_TRY_VOID(CheckFlags());
    NIBBLE_TRY(path, flags_.Path());
    NIBBLE_TRY(source, Checkpoint::Open(path, environment.hub_cache));
    NIBBLE_TRY(precisions, ChoosePrecisions(*source));
    CatchInterrupts();
    flags_.enable_prefix_caching = false;  // every run computes its prompt
    flags_.max_model_len = input_len_ + output_len_;
    flags_.max_num_seqs = batch_;
    const std::int64_t block = flags_.device == "cuda" ? 64 : 16;
    flags_.num_gpu_blocks_override = batch_ * ((*flags_.max_model_len + block - 1) / block);
    std::vector<ReportRow> rows;
    for (const Precision& precision : precisions) {
      NIBBLE_TRY(row, Measure(precision, environment));
      rows.push_back(std::move(row));
    }
    if (json_) {
      fmt::print("{}\n", json::Dump(ToValue(path, rows), {.indent = 1, .key_separator = ": "}));
    } else {
      Print(path, rows);
    }
    return kExitOk;
  }

 private:
  Result<void> CheckFlags() const {
    if (iterations_ < 1 || input_len_ < 1 || output_len_ < 2 || batch_ < 1 || batch_ > 4096) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--iterations and --input-len take 1 or more, --output-len 2 or more, --batch 1 "
                  "to 4096");
    }
    if (price_per_hour_ && !(*price_per_hour_ >= 0.0 && std::isfinite(*price_per_hour_))) {
      return Fail(ErrorCode::kInvalidArgument, "--price-per-hour takes 0 or more");
    }
    return {};
  }

  Result<std::vector<Precision>> ChoosePrecisions(const Checkpoint& source) const {
    std::vector<Precision> chosen;
    if (words_.empty()) {
      chosen.assign(Precisions().begin(), Precisions().end() - 1);
      if (SpecOfLinears(source) != "bf16") {
        chosen.push_back(Precisions().back());
      }
    }
    for (const std::string& word : words_) {
      const auto found = std::ranges::find(Precisions(), word, &Precision::word);
      if (found == Precisions().end()) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("--precisions {}: expected bf16, int8, int4 or file", Quote(word)));
      }
      chosen.push_back(*found);
    }
    return chosen;
  }

  Result<ReportRow> Measure(const Precision& precision, const Environment& environment) const {
    LoadOptions options{.need_tokenizer = false, .show_progress = false};
    if (precision.bits != 0) {
      options.wrap = [&](std::unique_ptr<Checkpoint> source) -> std::unique_ptr<Checkpoint> {
        const std::int64_t group = DefaultGroupSize(source->config());
        return std::make_unique<RoundedCheckpoint>(
            std::move(source), RoundedFormat{.bits = precision.bits, .group_size = group});
      };
    }
    NIBBLE_TRY(model, LoadModel(flags_, options, environment));
    model.device->pool().PinCaller();
    NIBBLE_TRY(engine, MakeEngine(model, flags_, std::max(static_cast<int>(batch_), 1)));
    ReportRow row{.precision = precision, .linears = SpecOfLinears(*model.checkpoint)};
    for (const MemoryLedger::Line& line : model.device->ledger().lines()) {
      row.weight_bytes += line.name == "weights" ? line.planned_bytes : 0;
    }
    row.planned_bytes = model.device->ledger().planned_bytes(MemoryPlace::kDevice);
    NIBBLE_TRY_VOID(MeasureLatency(*engine, row));
    NIBBLE_TRY_VOID(MeasureThroughput(*engine, row));
    return row;
  }

  Result<void> MeasureLatency(Engine& engine, ReportRow& row) const {
    Progress progress(row.precision.label + ": latency");
    std::vector<double> first;
    const RequestShape shape{1, input_len_, output_len_};
    NIBBLE_TRY(warm, RunRequests(engine, shape));
    static_cast<void>(warm);
    for (std::int64_t i = 0; i < iterations_; ++i) {
      NIBBLE_TRY(measured, RunRequests(engine, shape));
      row.latencies.push_back(measured.seconds);
      first.push_back(measured.seconds_to_first);
      progress.Update(static_cast<std::uint64_t>(i + 1), static_cast<std::uint64_t>(iterations_));
    }
    progress.Finish();
    row.first_token_p50 = Quantile(first, 0.5);
    return {};
  }

  // Three runs, and more until two seconds are over: counters of energy tick in milliseconds.
  Result<void> MeasureThroughput(Engine& engine, ReportRow& row) const {
    const RequestShape shape{static_cast<int>(batch_), input_len_, output_len_};
    NIBBLE_TRY(warm, RunRequests(engine, shape));
    static_cast<void>(warm);
    EnergyMeter meter = flags_.device == "cuda" ? EnergyMeter::OfCard(0) : EnergyMeter::OfCpu();
    std::vector<double> rates;
    double seconds = 0.0;
    const auto tokens = static_cast<double>(batch_ * output_len_);
    while (rates.size() < 3 || seconds < 2.0) {
      NIBBLE_TRY(measured, RunRequests(engine, shape));
      rates.push_back(tokens / measured.seconds);
      seconds += measured.seconds;
    }
    if (const auto joules = meter.Joules()) {
      row.watts = *joules / seconds;
      row.joules_per_token = *joules / (tokens * static_cast<double>(rates.size()));
    } else {
      row.no_power = meter.reason();
    }
    row.tokens_per_s = Median(rates);
    return {};
  }

  double CostOfMillion(const ReportRow& row) const {
    return *price_per_hour_ / 3600.0 / row.tokens_per_s * 1e6;
  }

  void Print(const std::string& path, const std::vector<ReportRow>& rows) const {
    fmt::print(
        "{} on {}\n{} tokens in, {} out; latency of {} single requests, throughput of {} at "
        "once\n\n",
        std::filesystem::path(path).filename().string(),
        flags_.device == "cuda" ? "the card" : DescribeCpu(), input_len_, output_len_, iterations_,
        batch_);
    fmt::print("{:<9} {:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}{}\n", "", "linears",
               "weights", "memory", "mean ms", "p50 ms", "p99 ms", "tokens/s", "power",
               price_per_hour_ ? "  cost of 1M tokens" : "");
    for (const ReportRow& row : rows) {
      fmt::print("{:<9} {:<14} {:>9} {:>9} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.1f} {:>8}{}\n",
                 row.precision.label, row.linears,
                 HumanBytes(static_cast<double>(row.weight_bytes)),
                 HumanBytes(static_cast<double>(row.planned_bytes)), 1e3 * Mean(row.latencies),
                 1e3 * Quantile(row.latencies, 0.5), 1e3 * Quantile(row.latencies, 0.99),
                 row.tokens_per_s, row.watts ? fmt::format("{:.1f} W", *row.watts) : "?",
                 price_per_hour_ ? fmt::format("  {:>17.4f}", CostOfMillion(row)) : "");
    }
    if (!rows.empty() && !rows.front().watts) {
      fmt::print("\npower: {}\n", rows.front().no_power);
    }
  }

  json::Object ToValue(const std::string& path, const std::vector<ReportRow>& rows) const {
    json::Object out;
    out.Set("model", std::filesystem::path(path).filename().string());
    out.Set("device", flags_.device);
    out.Set("cpu", DescribeCpu());
    out.Set("input_len", input_len_);
    out.Set("output_len", output_len_);
    out.Set("iterations", iterations_);
    out.Set("batch", batch_);
    json::Array lines;
    for (const ReportRow& row : rows) {
      json::Object line;
      line.Set("precision", row.precision.word);
      line.Set("linears", row.linears);
      line.Set("weight_bytes", row.weight_bytes);
      line.Set("planned_bytes", row.planned_bytes);
      line.Set("latency_mean_seconds", Mean(row.latencies));
      line.Set("latency_p50_seconds", Quantile(row.latencies, 0.5));
      line.Set("latency_p99_seconds", Quantile(row.latencies, 0.99));
      line.Set("first_token_p50_seconds", row.first_token_p50);
      line.Set("output_tokens_per_second", row.tokens_per_s);
      line.Set("watts", row.watts ? json::Value(*row.watts) : json::Value(nullptr));
      line.Set("joules_per_output_token",
               row.joules_per_token ? json::Value(*row.joules_per_token) : json::Value(nullptr));
      if (!row.watts) {
        line.Set("power_unreadable", row.no_power);
      }
      if (price_per_hour_) {
        line.Set("cost_per_million_output_tokens", CostOfMillion(row));
      }
      lines.push_back(std::move(line));
    }
    out.Set("rows", std::move(lines));
    return out;
  }

  ModelFlags flags_;
  std::vector<std::string> words_;
  std::int64_t iterations_ = 1000;
  std::int64_t input_len_ = 128;
  std::int64_t output_len_ = 32;
  std::int64_t batch_ = 32;
  std::optional<double> price_per_hour_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeReportCommand() { return std::make_unique<ReportCommand>(); }

}  // namespace nibble::cli
