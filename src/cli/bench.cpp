// nibble bench: memory, latency and throughput of a model on this machine, beside the machine's
// limits.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/kernels.h"
#include "cli/limits_text.h"
#include "cli/measure.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "json/value.h"
#include "kernels/isa.h"
#include "kernels/limits_probe.h"

namespace nibble::cli {
namespace {

// What this machine, or its card, can do at most: the bars of the table.
struct Bars {
  double read_gb_per_s = 0.0;
  double copy_gb_per_s = 0.0;      // from host memory to the card; 0: not measured, or no card
  double product_gop_per_s = 0.0;  // of the products that the model's linears are; 0: not measured
  json::Object measured;           // all of them
  std::string text;                // in a line
};

Result<Bars> MeasureBars(LoadedModel& model) {
  if (model.device->kind() == DeviceKind::kCuda) {
    NIBBLE_TRY(limits, MeasureCardLimits(*model.device));
    return Bars{.read_gb_per_s = limits.read_gb_per_s,
                .copy_gb_per_s = limits.copy_gb_per_s,
                .product_gop_per_s = limits.f16_gflop_per_s,
                .measured = DescribeLimits(limits),
                .text = DescribeLimitsInWords(limits)};
  }
  const MachineLimits limits = MeasureLimits(model.device->pool(), CurrentIsa());
  const double limbs = model.runner->model().activations() == ActivationMode::kInt8 ? 1.0 : 2.0;
  return Bars{.read_gb_per_s = limits.read_gb_per_s,
              .product_gop_per_s = limits.int8_gop_per_s / limbs,
              .measured = DescribeLimits(limits),
              .text = fmt::format(
                  "memory read {:.1f} GB/s, int8 products {:.2f} TOPS, fp32 {:.2f} TFLOPS",
                  limits.read_gb_per_s, limits.int8_gop_per_s / 1e3, limits.f32_gop_per_s / 1e3)};
}

class BenchCommand final : public Command {
 public:
  std::string name() const override { return "bench"; }
  std::string summary() const override {
    return "measure memory, latency and throughput on this machine";
  }
  std::string description() const override {
    return "Drives the engine as the server does: a prompt of --input-len tokens, then "
           "--output-len tokens, at each batch size;\n"
           "the median of --iterations runs. Beside each decode figure: the bytes of one step, the "
           "time they take at the memory\n"
           "bandwidth measured in the same run (the floor), and the share of it reached. Beside "
           "prefill: its operations, and their\n"
           "share of the product rate measured in the same run (int8 on a CPU, dense fp16 on a "
           "card). With --cpu-offload-gb also the bytes that a step copies to the card, and the "
           "time they take at the copy rate\n"
           "of pinned memory measured in the same run.\n\n"
           "  nibble bench smol-int4 --json\n"
           "  nibble bench llama-7b-int4 --device cuda --input-len 2048\n"
           "  nibble bench kernels --cuda          single kernels, as nibble kernels";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Add("--input-len", &input_len_, "tokens of the prompt");
    options.Add("--output-len", &output_len_, "tokens to generate");
    options.Add("--batch", &batches_, "batch sizes (default: 1 8 32)");
    options.Add("--batch-input-len", &batch_input_len_,
                "tokens of each prompt where the batch is above 1");
    options.Add("--iterations", &iterations_, "runs of each; the median counts");
    options.Add("--json", &json_, "print one JSON object on standard output");
    options.Add("--cuda", &kernels_.cuda, "with kernels as MODEL: those of the card");
    options.Text("--filter", &kernels_.filter,
                 "with kernels as MODEL: only those whose name contains this");
    flags_.DeclareEngine(options);
  }

  Result<int> Run(const Environment& environment) override {
    if (flags_.model == "kernels" && !std::filesystem::exists("kernels")) {
      kernels_.json = json_;
      kernels_.cuda = kernels_.cuda || flags_.device == "cuda";
      return MeasureKernels(kernels_, environment);
    }
    if (kernels_.cuda || !kernels_.filter.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--cuda and --filter go with nibble bench kernels; a model runs on a card with "
                  "--device cuda");
    }
    CatchInterrupts();
    std::vector<int> batches;
    for (const std::string& word :
         batches_.empty() ? std::vector<std::string>{"1", "8", "32"} : batches_) {
      int value = 0;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
      if (error != std::errc{} || end != word.data() + word.size() || value < 1 || value > 4096) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("--batch {}: expected 1 to 4096", word));
      }
      batches.push_back(value);
    }
    if (input_len_ < 1 || output_len_ < 2 || batch_input_len_ < 1 || iterations_ < 1) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--input-len and --iterations take 1 or more, --output-len 2 or more");
    }
    flags_.enable_prefix_caching = false;  // every run computes its prompt
    const std::int64_t longest = std::max(input_len_, batch_input_len_) + output_len_;
    if (!flags_.max_model_len) {
      flags_.max_model_len = longest;
    }
    flags_.max_num_seqs = std::max<std::int64_t>(flags_.max_num_seqs, std::ranges::max(batches));
    const Clock::TimePoint begin = SystemClock().Now();
    NIBBLE_TRY(model, LoadModel(flags_, {.need_tokenizer = false}, environment));
    const double load_seconds = std::chrono::duration<double>(SystemClock().Now() - begin).count();
    model.device->pool().PinCaller();
    NIBBLE_TRY(engine, MakeEngine(model, flags_));
    const Memory memory{.planned = model.device->ledger().planned_bytes(MemoryPlace::kDevice),
                        .used = model.device->kind() == DeviceKind::kCuda
                                    ? static_cast<std::uint64_t>(CardUsedBytes(*model.device))
                                    : AnonymousBytes()};
    NIBBLE_TRY(bars, MeasureBars(model));
    json::Object out;
    Describe(model, bars, load_seconds, memory, out);
    const bool cuda = model.device->kind() == DeviceKind::kCuda;
    const std::int64_t before = cuda ? CardUsedBytes(*model.device) : 0;
    json::Array rows;
    for (const int batch : batches) {
      NIBBLE_TRY(row, MeasureBatch(*engine, model, batch, bars));
      rows.push_back(std::move(row));
    }
    out.Set("batches", std::move(rows));
    if (cuda) {  // recorded steps, mostly
      out.Set("card_growth_bytes", CardUsedBytes(*model.device) - before);
    }
    if (json_) {
      fmt::print("{}\n", json::Dump(out, {.indent = 1, .key_separator = ": "}));
    }
    return kExitOk;
  }

 private:
  struct Memory {
    std::uint64_t planned = 0;
    std::uint64_t used = 0;  // of a card: all that is in use; else anonymous memory of this process
  };

  void Describe(LoadedModel& model, const Bars& bars, double load_seconds, const Memory& memory,
                json::Object& out) const {
    const bool cuda = model.device->kind() == DeviceKind::kCuda;
    const char* activations = ActivationsName(*model.runner);
    out.Set("model", flags_.model.empty() ? flags_.model_flag : flags_.model);
    out.Set("cpu", DescribeCpu());
    out.Set("isa", Name(CurrentIsa()));
    out.Set("threads", model.device->pool().num_workers());
    out.Set("activations", activations);
    out.Set("load_seconds", load_seconds);
    out.Set("planned_bytes", memory.planned);
    out.Set(cuda ? "card_used_bytes" : "anonymous_bytes", memory.used);
    json::Object plan;
    for (const MemoryLedger::Line& line : model.device->ledger().lines()) {
      plan.Set(line.name, line.planned_bytes);
    }
    out.Set("plan_bytes", std::move(plan));
    out.Set("limits", bars.measured);
    if (!json_) {
      fmt::print("{}  {} threads  activations {}\n", DescribeCpu(),
                 model.device->pool().num_workers(), activations);
      fmt::print("limits: {}\n", bars.text);
      fmt::print(
          "memory: plan {}, {} {} ({:+.1f} %)\n\n", HumanBytes(static_cast<double>(memory.planned)),
          cuda ? "in use on the card" : "anonymous", HumanBytes(static_cast<double>(memory.used)),
          100.0 * (static_cast<double>(memory.used) / static_cast<double>(memory.planned) - 1.0));
      fmt::print(
          "batch  prompt  first token  prefill tok/s   GOP/tok   of peak    ms/step  floor ms  of "
          "floor   MB/step   decode tok/s\n");
    }
  }

  Result<json::Value> MeasureBatch(Engine& engine, LoadedModel& model, int batch,
                                   const Bars& bars) const {
    const std::int64_t prompt = batch == 1 ? input_len_ : batch_input_len_;
    std::vector<double> first, prefill, decode, per_token;
    for (std::int64_t i = 0; i <= iterations_; ++i) {  // the first run warms up
      NIBBLE_TRY(measured, RunRequests(engine, {batch, prompt, output_len_}));
      if (i > 0) {
        first.push_back(measured.seconds_to_first);
        prefill.push_back(measured.prefill_tokens_per_s);
        decode.push_back(measured.decode_tokens_per_s);
        per_token.push_back(measured.ms_per_token);
      }
    }
    const StepCost cost = CostOf(model, batch, prompt + output_len_ / 2);
    const double steps_per_s = Median(decode) / batch;
    const double floor_seconds = cost.bytes / (bars.read_gb_per_s * 1e9);
    const double floor_share = steps_per_s * floor_seconds;
    const double peak_share = bars.product_gop_per_s > 0.0 ? Median(prefill) * 2.0 * cost.weights /
                                                                 (bars.product_gop_per_s * 1e9)
                                                           : 0.0;
    if (!json_) {
      fmt::print(
          "{:5} {:7} {:9.1f} ms {:14.0f} {:9.2f} {:>9} {:10.3f} {:9.3f} {:7.0f} % {:9.1f} "
          "{:14.1f}\n",
          batch, prompt, Median(first) * 1e3, Median(prefill), 2e-9 * cost.weights,
          bars.product_gop_per_s > 0.0 ? fmt::format("{:.0f} %", peak_share * 100.0) : "?",
          1e3 / steps_per_s, 1e3 * floor_seconds, floor_share * 100.0, cost.bytes / 1e6,
          Median(decode));
    }
    const auto streamed = static_cast<double>(model.runner->streamed_bytes_per_step());
    const double stream_seconds =
        bars.copy_gb_per_s > 0.0 ? streamed / (bars.copy_gb_per_s * 1e9) : 0.0;
    if (!json_ && streamed > 0.0) {
      fmt::print("      streamed weights: {} a step, {}\n", HumanBytes(streamed),
                 stream_seconds > 0.0
                     ? fmt::format("{:.3f} ms at the copy rate: {:.0f} % of that limit",
                                   1e3 * stream_seconds, 100.0 * steps_per_s * stream_seconds)
                     : "the copy rate was not measured");
    }
    json::Object row;
    row.Set("batch", batch);
    row.Set("prompt_tokens", prompt);
    row.Set("output_tokens", output_len_);
    row.Set("iterations", iterations_);
    row.Set("seconds_to_first_token", Median(first));
    row.Set("prefill_tokens_per_s", Median(prefill));
    row.Set("prefill_operations_per_token", 2.0 * cost.weights);
    row.Set("prefill_share_of_peak",
            bars.product_gop_per_s > 0.0 ? json::Value(peak_share) : json::Value(nullptr));
    row.Set("decode_tokens_per_s", Median(decode));
    row.Set("decode_tokens_per_s_min", std::ranges::min(decode));
    row.Set("decode_tokens_per_s_max", std::ranges::max(decode));
    row.Set("ms_per_token", Median(per_token));
    row.Set("bytes_per_step", cost.bytes);
    row.Set("floor_seconds_per_step", floor_seconds);
    row.Set("floor_tokens_per_s", batch / floor_seconds);
    row.Set("decode_share_of_floor", floor_share);
    if (streamed > 0.0) {
      row.Set("streamed_bytes_per_step", streamed);
      row.Set("stream_floor_seconds_per_step",
              stream_seconds > 0.0 ? json::Value(stream_seconds) : json::Value(nullptr));
      row.Set("decode_share_of_stream_floor", stream_seconds > 0.0
                                                  ? json::Value(steps_per_s * stream_seconds)
                                                  : json::Value(nullptr));
    }
    return json::Value(std::move(row));
  }

  struct StepCost {
    double bytes = 0.0;    // packed weights, keys and values that one decode step reads
    double weights = 0.0;  // multiplied per token of prefill (the head only once a prompt)
  };
  static StepCost CostOf(LoadedModel& model, int batch, std::int64_t context) {
    StepCost cost;
    const auto plan = PlanWeights(*model.checkpoint, *model.device, model.runner->config().tables);
    for (const PlannedWeight& weight : plan ? plan->weights : std::vector<PlannedWeight>{}) {
      // A step reads a row of the embedding for each token, and all of it only as the head.
      const bool only_looked_up = weight.stored->name == "model.embed_tokens.weight" &&
                                  plan->Find("lm_head.weight") != nullptr;
      cost.bytes += only_looked_up ? 0.0 : static_cast<double>(weight.size_bytes);
    }
    const ModelConfig& config = model.checkpoint->config();
    const KvCacheSpec spec = model.runner->model().kv_spec(model.runner->config().kv_dtype);
    cost.bytes += static_cast<double>(spec.BlockBytes()) /
                  static_cast<double>(spec.block_size_tokens) * static_cast<double>(context) *
                  batch;
    for (const ExpectedWeight& weight : ExpectedWeights(config)) {
      cost.weights += weight.is_linear
                          ? static_cast<double>(weight.rows) * static_cast<double>(weight.cols)
                          : 0.0;
    }
    return cost;
  }

  ModelFlags flags_;
  KernelOptions kernels_;
  std::vector<std::string> batches_;
  std::int64_t input_len_ = 512;
  std::int64_t output_len_ = 128;
  std::int64_t batch_input_len_ = 32;
  std::int64_t iterations_ = 3;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand() { return std::make_unique<BenchCommand>(); }

}  // namespace nibble::cli
