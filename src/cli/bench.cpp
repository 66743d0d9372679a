// nibble bench: memory, latency and throughput of a model on this machine, beside the machine's
// limits.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "json/value.h"
#include "kernels/isa.h"
#include "kernels/limits_probe.h"

namespace nibble::cli {
namespace {

using Seconds = std::chrono::duration<double>;

// Counts tokens and times of many sequences; the engine runs on the same thread.
class Counter final : public OutputSink {
 public:
  void OnOutput(OutputEvent event) override {
    const Clock::TimePoint now = SystemClock().Now();
    if (!event.tokens.empty()) {
      if (tokens == 0) {
        first = now;
      }
      tokens += static_cast<std::int64_t>(event.tokens.size());
      if (event.num_output_tokens == static_cast<std::int32_t>(event.tokens.size())) {
        last_first = now;  // another sequence has its first token: from here on all of them decode
        tokens_at_last_first = tokens;
      }
      last = now;
    }
    if (event.finish) {
      ++ended;
      failed += *event.finish == FinishReason::kLength ? 0 : 1;
    }
  }
  std::int64_t tokens = 0;
  std::int64_t tokens_at_last_first = 0;
  int ended = 0;
  int failed = 0;
  Clock::TimePoint first, last_first, last;
};

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0.0 : values[values.size() / 2];
}

// Anonymous resident memory of this process, bytes.
std::uint64_t AnonymousBytes() {
  std::ifstream status("/proc/self/status");
  std::string key;
  std::uint64_t kib = 0;
  while (status >> key) {
    if (key == "RssAnon:" && status >> kib) {
      return kib * 1024;
    }
  }
  return 0;
}

struct Measured {
  double seconds_to_first = 0.0;  // from submitting to the first token
  double prefill_tokens_per_s = 0.0;
  double decode_tokens_per_s = 0.0;  // all sequences together, after every one has its first token
  double ms_per_token = 0.0;         // of one sequence
};

class BenchCommand final : public Command {
 public:
  std::string name() const override { return "bench"; }
  std::string summary() const override {
    return "measure memory, latency and throughput on this machine";
  }
  std::string description() const override {
    return "Drives the engine as the server does: a prompt of --input-len tokens, then "
           "--output-len tokens, at each batch size;\n"
           "the median of --iterations runs. Beside each decode figure: the bytes of one step, and "
           "their share of the memory\n"
           "bandwidth measured in the same run. Beside prefill: integer operations, and their "
           "share of the machine's peak.\n\n"
           "  nibble bench smol-int4 --json";
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
    flags_.DeclareEngine(options);
  }

  Result<int> Run(const Environment& environment) override {
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
    const double load_seconds = Seconds(SystemClock().Now() - begin).count();
    model.device->pool().PinCaller();
    NIBBLE_TRY(engine, MakeEngine(model, flags_));
    const std::uint64_t anonymous = AnonymousBytes();
    const MachineLimits limits = MeasureLimits(model.device->pool(), CurrentIsa());
    const std::uint64_t planned = model.device->ledger().planned_bytes();
    json::Object out;
    Describe(model, limits, load_seconds, planned, anonymous, out);
    json::Array rows;
    for (const int batch : batches) {
      NIBBLE_TRY(row, MeasureBatch(*engine, model, batch, limits));
      rows.push_back(std::move(row));
    }
    out.Set("batches", std::move(rows));
    if (json_) {
      fmt::print("{}\n", json::Dump(out, {.indent = 1, .key_separator = ": "}));
    }
    return kExitOk;
  }

 private:
  void Describe(LoadedModel& model, const MachineLimits& limits, double load_seconds,
                std::uint64_t planned, std::uint64_t anonymous, json::Object& out) const {
    const bool int8 = model.runner->model().activations() == ActivationMode::kInt8;
    out.Set("model", flags_.model.empty() ? flags_.model_flag : flags_.model);
    out.Set("cpu", DescribeCpu());
    out.Set("isa", Name(CurrentIsa()));
    out.Set("threads", model.device->pool().num_workers());
    out.Set("activations", int8 ? "int8" : "int16");
    out.Set("load_seconds", load_seconds);
    out.Set("planned_bytes", planned);
    out.Set("anonymous_bytes", anonymous);
    json::Object measured;
    measured.Set("read_gb_per_s_one_thread", limits.read_gb_per_s_one);
    measured.Set("read_gb_per_s", limits.read_gb_per_s);
    measured.Set("int8_gop_per_s", limits.int8_gop_per_s);
    measured.Set("f32_gop_per_s", limits.f32_gop_per_s);
    out.Set("limits", std::move(measured));
    if (!json_) {
      fmt::print("{}  {} threads  activations {}\n", DescribeCpu(),
                 model.device->pool().num_workers(), int8 ? "int8" : "int16");
      fmt::print("limits: memory read {:.1f} GB/s, int8 products {:.2f} TOPS, fp32 {:.2f} TFLOPS\n",
                 limits.read_gb_per_s, limits.int8_gop_per_s / 1e3, limits.f32_gop_per_s / 1e3);
      fmt::print("memory: plan {}, anonymous {} ({:+.1f} %)\n\n",
                 HumanBytes(static_cast<double>(planned)),
                 HumanBytes(static_cast<double>(anonymous)),
                 100.0 * (static_cast<double>(anonymous) / static_cast<double>(planned) - 1.0));
      fmt::print(
          "batch  prompt  first token  prefill tok/s   of peak   ms/token   decode tok/s   MB/step "
          "  of memory\n");
    }
  }

  Result<json::Value> MeasureBatch(Engine& engine, LoadedModel& model, int batch,
                                   const MachineLimits& limits) const {
    const std::int64_t prompt = batch == 1 ? input_len_ : batch_input_len_;
    std::vector<double> first, prefill, decode, per_token;
    for (std::int64_t i = 0; i <= iterations_; ++i) {  // the first run warms up
      NIBBLE_TRY(measured, RunOnce(engine, batch, prompt));
      if (i > 0) {
        first.push_back(measured.seconds_to_first);
        prefill.push_back(measured.prefill_tokens_per_s);
        decode.push_back(measured.decode_tokens_per_s);
        per_token.push_back(measured.ms_per_token);
      }
    }
    const StepCost cost = CostOf(model, batch, prompt + output_len_ / 2);
    const double steps_per_s = Median(decode) / batch;
    const double limbs = model.runner->model().activations() == ActivationMode::kInt8 ? 1.0 : 2.0;
    const double memory_share = steps_per_s * cost.bytes / (limits.read_gb_per_s * 1e9);
    const double peak_share =
        Median(prefill) * 2.0 * cost.weights * limbs / (limits.int8_gop_per_s * 1e9);
    if (!json_) {
      fmt::print("{:5} {:7} {:9.1f} ms {:13.0f} {:8.0f} % {:10.2f} {:14.1f} {:9.1f} {:9.0f} %\n",
                 batch, prompt, Median(first) * 1e3, Median(prefill), peak_share * 100.0,
                 Median(per_token), Median(decode), cost.bytes / 1e6, memory_share * 100.0);
    }
    json::Object row;
    row.Set("batch", batch);
    row.Set("prompt_tokens", prompt);
    row.Set("output_tokens", output_len_);
    row.Set("iterations", iterations_);
    row.Set("seconds_to_first_token", Median(first));
    row.Set("prefill_tokens_per_s", Median(prefill));
    row.Set("prefill_share_of_integer_peak", peak_share);
    row.Set("decode_tokens_per_s", Median(decode));
    row.Set("decode_tokens_per_s_min", std::ranges::min(decode));
    row.Set("decode_tokens_per_s_max", std::ranges::max(decode));
    row.Set("ms_per_token", Median(per_token));
    row.Set("bytes_per_step", cost.bytes);
    row.Set("decode_share_of_memory_read", memory_share);
    return json::Value(std::move(row));
  }

  struct StepCost {
    double bytes = 0.0;    // packed weights + keys and values read by one decode step
    double weights = 0.0;  // multiplied per token of prefill (the head only once a prompt)
  };
  static StepCost CostOf(LoadedModel& model, int batch, std::int64_t context) {
    StepCost cost;
    for (const MemoryLedger::Line& line : model.device->ledger().lines()) {
      if (line.name == "weights") {
        cost.bytes = static_cast<double>(line.allocated_bytes);
      }
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

  Result<Measured> RunOnce(Engine& engine, int batch, std::int64_t prompt) const {
    const auto counter = std::make_shared<Counter>();
    const Clock::TimePoint begin = SystemClock().Now();
    for (int i = 0; i < batch; ++i) {
      GenerationRequest request{.external_id = "bench"};
      for (std::int64_t t = 0; t < prompt; ++t) {
        request.prompt.push_back(TokenId{static_cast<std::int32_t>(
            1 + (t * 7919 + i * 104729) % (engine.config().vocab_size - 1))});
      }
      request.sampling.temperature = 0.0F;
      request.sampling.max_tokens = static_cast<std::int32_t>(output_len_);
      request.sampling.ignore_eos = true;
      NIBBLE_TRY(id, engine.Submit(std::move(request), counter));
      static_cast<void>(id);
    }
    while (counter->ended < batch) {
      if (Progress::interrupted()) {
        return Fail(ErrorCode::kCancelled, "interrupted");
      }
      engine.Step();
    }
    if (counter->failed > 0) {
      return Fail(ErrorCode::kInternal, fmt::format("{} of {} sequences did not reach their length",
                                                    counter->failed, batch));
    }
    Measured out;
    out.seconds_to_first = Seconds(counter->first - begin).count();
    const double all_prefilled = Seconds(counter->last_first - begin).count();
    out.prefill_tokens_per_s = static_cast<double>(prompt * batch) / all_prefilled;
    const double decode_seconds = Seconds(counter->last - counter->last_first).count();
    out.decode_tokens_per_s =
        static_cast<double>(counter->tokens - counter->tokens_at_last_first) / decode_seconds;
    out.ms_per_token = 1e3 * batch / out.decode_tokens_per_s;
    return out;
  }

  ModelFlags flags_;
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
