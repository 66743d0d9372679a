// nibble eval: what a quantization costs, in perplexity, KL divergence and answers to tasks.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <limits>

#include "base/check.h"
#include "base/sha256.h"
#include "base/text.h"
#include "checkpoint/digest.h"
#include "cli/command.h"
#include "cli/eval_html.h"
#include "cli/eval_tasks.h"
#include "cli/model_text.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "eval/gate.h"
#include "eval/perplexity.h"
#include "eval/task_registry.h"
#include "io/file.h"
#include "json/value.h"
#include "kernels/isa.h"

namespace nibble::cli {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

// A measured number that a gate may name.
struct Number {
  std::string name;
  Estimate estimate;
};

class EvalCommand final : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string summary() const override {
    return "measure quality: perplexity, KL divergence, top-1 agreement, tasks";
  }
  std::string description() const override {
    return "--perplexity: the file is tokenized once without special tokens and cut into disjoint "
           "windows of --context tokens;\n"
           "tokens 2..context of each are scored and the tail is dropped. With --reference the "
           "same tokens also run through that\n"
           "model, and KL(reference || model) and top-1 agreement are reported.\n"
           "--tasks: prompts and scores are those of lm-evaluation-harness 0.4.13. --output keeps "
           "a journal beside the file while it\n"
           "runs, so that the same command goes on where it was stopped.\n"
           "--gate: exit code 3 if a number is beyond its bound. Names: perplexity, nll, kl, "
           "kl_p99, kl_max, top1, TASK.METRIC.\n\n"
           "  nibble eval model.gguf --perplexity wiki.test.raw --context 2048 --windows 10\n"
           "  nibble eval int4/ --reference model.gguf --perplexity wiki.test.raw --gate "
           "'kl<=0.2'\n"
           "  nibble eval int4/ --tasks lambada,arc_easy --data DIR --output int4.json --gate "
           "'arc_easy.acc>=0.5'\n"
           "  nibble eval --compare int4.json int8.json --html quality.html";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Add("--perplexity", &text_file_, "text file to score");
    options.Add("--context", &context_, "tokens of a window");
    options.Add("--stride", &stride_,
                "windows slide by so many tokens, and each token is scored once, after up to "
                "--context of them (default: disjoint windows, the tail dropped)");
    options.Add("--windows", &windows_, "only the first N windows (0: all)");
    options.Add("--reference", &reference_, "model to compare with");
    tasks_.Declare(options);
    options.Add("--gate", &gate_texts_,
                "a bound such as 'kl<=0.2' or 'arc_easy.acc>=0.5'; may be given more than once");
    options.Add("--gate-kl", &gate_kl_, "the same as --gate 'kl<=X'");
    options.Add("--json", &json_, "print one JSON object on standard output");
    options.Add("--output", &output_, "write that object to a file");
    options.Add("--html", &html_, "write a page of HTML with tables and plots");
    options.Add(
        "--compare", &compare_,
        "with --html: make the page of the --output files of earlier runs, and run nothing");
    flags_.DeclareEngine(options);
  }

  Result<int> Run(const Environment& environment) override {
    if (tasks_.tasks == "list") {
      for (const TaskEntry& entry : KnownTasks()) {
        fmt::print("{:<16}{}\n", entry.name, entry.summary);
      }
      return kExitOk;
    }
    NIBBLE_TRY_VOID(CheckOutputs());
    if (!compare_.empty()) {
      NIBBLE_TRY_VOID(CompareResults(compare_, html_));
      return kExitOk;
    }
    NIBBLE_TRY_VOID(CheckFlags());
    NIBBLE_TRY(tasks, LoadTasks(tasks_));
    NIBBLE_TRY(gates, ReadGates(tasks));
    CatchInterrupts();
    std::string text;
    if (!text_file_.empty()) {
      auto read = ReadFile(text_file_, kMaxTextBytes);
      if (!read) {
        return Fail(ErrorCode::kInvalidArgument, read.error().message);
      }
      NIBBLE_TRY(found, Utf8Text(*read, text_file_));
      text = found;
    }
    NIBBLE_TRY_VOID(SetEngine(environment, tasks));
    NIBBLE_TRY(model, LoadModel(flags_, {}, environment));
    model.device->pool().PinCaller();
    json::Object out;
    if (!html_.empty() || !output_.empty()) {
      NIBBLE_TRY_VOID(DescribeForHtml(*model.checkpoint, out));
    }
    std::vector<Number> numbers;
    if (!text_file_.empty()) {
      NIBBLE_TRY_VOID(MeasureText(model, text, environment, out, numbers));
    }
    std::unique_ptr<TaskJournal> journal;
    if (!tasks.empty() || !output_.empty()) {
      NIBBLE_TRY(digest, WeightsDigest(*model.checkpoint));
      Describe(model, digest, out);
      if (!tasks.empty() && !output_.empty()) {
        NIBBLE_TRY(opened, TaskJournal::Open(output_ + ".journal", RunIdentity(model, digest)));
        journal = std::move(opened);
      }
    }
    if (!tasks.empty()) {
      NIBBLE_TRY_VOID(MeasureTasks(model, tasks, journal.get(), out, numbers));
    }
    const bool all_hold = CheckGates(gates, numbers, out);
    NIBBLE_TRY_VOID(Deliver(out));
    if (journal != nullptr) {
      NIBBLE_TRY_VOID(journal->Remove());
    }
    return all_hold ? kExitOk : kExitGate;
  }

 private:
  // Before hours of work, not after.
  Result<void> CheckOutputs() const {
    if (!compare_.empty() && html_.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "--compare needs --html FILE, where the page goes");
    }
    for (const auto& [option, file] : {std::pair{"--html", &html_}, {"--output", &output_}}) {
      const std::filesystem::path folder = std::filesystem::path(*file).parent_path();
      if (!folder.empty() && !std::filesystem::is_directory(folder)) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{} {}: there is no folder {}", option, *file, folder.string()));
      }
      if (std::filesystem::is_directory(*file)) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{} {}: is a folder; give a name for the file", option, *file));
      }
    }
    return {};
  }

  Result<void> CheckFlags() const {
    if (text_file_.empty() && tasks_.tasks.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  "what is to be measured? Give --perplexity FILE, --tasks NAMES or both");
    }
    if (context_ < 2) {
      return Fail(ErrorCode::kInvalidArgument, "--context takes 2 or more");
    }
    if (stride_ && (*stride_ < 1 || *stride_ > context_)) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--stride takes 1 to {}, the tokens of a window", context_));
    }
    if (windows_ < 0) {
      return Fail(ErrorCode::kInvalidArgument, "--windows takes 0 (all) or more");
    }
    if (text_file_.empty() && !reference_.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  "--reference compares on a text: give --perplexity FILE, too");
    }
    if (gate_kl_ && reference_.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "--gate-kl needs --reference MODEL");
    }
    return {};
  }

  // Errors: a gate that no number of this run has the name of.
  Result<std::vector<Gate>> ReadGates(const std::vector<ReadyTask>& tasks) const {
    std::vector<std::string> names;
    if (!text_file_.empty()) {
      names = {"perplexity", "nll"};
      if (!reference_.empty()) {
        names.insert(names.end(), {"reference_perplexity", "kl", "kl_p99", "kl_max", "top1"});
      }
    }
    for (const ReadyTask& ready : tasks) {
      for (const Metric& metric : ready.task.metrics) {
        names.push_back(fmt::format("{}.{}", ready.task.name, metric.name));
      }
    }
    std::vector<std::string> texts = gate_texts_;
    if (gate_kl_) {
      texts.push_back(fmt::format("kl<={}", *gate_kl_));
    }
    std::vector<Gate> gates;
    for (const std::string& text : texts) {
      NIBBLE_TRY(gate, ParseGate(text));
      if (std::ranges::find(names, gate.name) == names.end()) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("--gate {}: this run measures no {}; it measures {}", Quote(text),
                                Quote(gate.name), fmt::join(names, ", ")));
      }
      gates.push_back(std::move(gate));
    }
    return gates;
  }

  // The engine is as large as what is to run through it.
  Result<void> SetEngine(const Environment& environment, std::vector<ReadyTask>& tasks) {
    std::int64_t longest = text_file_.empty() ? 0 : context_;
    NIBBLE_TRY(path, flags_.Path());
    NIBBLE_TRY(checkpoint, Checkpoint::Open(path, environment.hub_cache));
    const std::int64_t limit =
        flags_.max_model_len.value_or(checkpoint->config().max_position_embeddings);
    if (longest > limit) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--context {}: the model has {} positions; give that or less",
                              context_, limit));
    }
    if (tasks.empty()) {
      flags_.max_num_seqs = 1;
    } else {
      NIBBLE_TRY(tokenizer, LoadTokenizer(*checkpoint));
      EncodeRules rules{.max_positions = limit, .add_bos = tasks_.add_bos_token};
      std::unique_ptr<TextOfModel> text;
      if (tasks_.apply_chat_template) {
        NIBBLE_TRY(made, TextOfModel::Create(*checkpoint, *tokenizer, {}));
        text = std::move(made);
        rules.encode_chat = [&](const std::string& prompt) {
          return text->EncodeChat(UserTurn({}, prompt), /*add_special_tokens=*/false);
        };
      }
      NIBBLE_TRY(positions, EncodeTasks(*tokenizer, rules, tasks));
      longest = std::max(longest, positions);
    }
    flags_.max_model_len = std::max<std::int64_t>(longest, 64);  // room for the golden prompt
    if (tasks.empty() && !flags_.num_gpu_blocks_override) {
      const std::int64_t block = flags_.device == "cuda" ? 64 : 16;
      flags_.num_gpu_blocks_override = (*flags_.max_model_len + block - 1) / block;
    }
    return {};
  }

  Result<void> MeasureText(LoadedModel& model, const std::string& text,
                           const Environment& environment, json::Object& out,
                           std::vector<Number>& numbers) const {
    std::optional<LoadedModel> reference;
    if (!reference_.empty()) {
      ModelFlags flags = flags_;
      flags.model = reference_;
      flags.model_flag.clear();
      flags.activations = "auto";
      NIBBLE_TRY(loaded, LoadModel(flags, {}, environment));
      reference = std::move(loaded);
    }
    std::vector<TokenId> tokens = model.tokenizer->Encode(text, {.parse_special = false});
    // Windows that slide share tokens: only the first can begin otherwise.
    BeginWindows(model.checkpoint->config(), stride_ ? std::ssize(tokens) : context_, tokens);
    Progress progress("scoring");
    const auto report =
        EvaluateText(*model.runner, reference ? reference->runner.get() : nullptr, tokens,
                     {.context = context_, .max_windows = windows_, .stride = stride_.value_or(0)},
                     [&](std::int64_t done, std::int64_t total, double perplexity) {
                       return progress.Update(static_cast<std::uint64_t>(done),
                                              static_cast<std::uint64_t>(total),
                                              fmt::format("perplexity {:.3f}", perplexity));
                     });
    if (!report) {
      return Fail(report.error(), fmt::format("--perplexity {}: ", text_file_));
    }
    progress.Finish();
    ToJson(*report, text, static_cast<std::int64_t>(tokens.size()), out);
    out.Set("activations", ActivationsName(*model.runner));
    out.Set("cpu", DescribeCpu());
    AddNumbers(*report, numbers);
    if (!json_) {
      Print(*report);
    }
    return {};
  }

  Result<void> MeasureTasks(LoadedModel& model, const std::vector<ReadyTask>& tasks,
                            TaskJournal* journal, json::Object& out,
                            std::vector<Number>& numbers) const {
    NIBBLE_TRY(engine, MakeEngine(model, flags_));
    json::Object reports;
    for (const ReadyTask& ready : tasks) {
      const Clock::TimePoint begin = SystemClock().Now();
      auto records = RunReadyTask(*engine, ready, journal);
      if (!records && records.error().code == ErrorCode::kCancelled) {
        return Fail(ErrorCode::kCancelled,
                    journal == nullptr
                        ? "interrupted; with --output FILE the finished items would be kept"
                        : fmt::format("interrupted; the finished items are in {}: the same "
                                      "command goes on with them",
                                      journal->path().string()));
      }
      NIBBLE_TRY(done, std::move(records));
      const TaskReport report = Summarize(ready.task, done);
      json::Object task = nibble::ToJson(ready.task, report);
      task.Set("seconds", std::chrono::duration<double>(SystemClock().Now() - begin).count());
      if (tasks_.samples) {
        task.Set("samples", SamplesToJson(ready.task, done));
      }
      reports.Set(ready.task.name, std::move(task));
      for (const auto& [metric, estimate] : report.metrics) {
        numbers.push_back({fmt::format("{}.{}", ready.task.name, metric), estimate});
      }
      if (!json_) {
        PrintTask(ready.task, report);
      }
    }
    out.Set("tasks", std::move(reports));
    return {};
  }

  // Says on standard error which gates are missed.
  static bool CheckGates(const std::vector<Gate>& gates, const std::vector<Number>& numbers,
                         json::Object& out) {
    bool all_hold = true;
    json::Array rows;
    for (const Gate& gate : gates) {
      const auto number = std::ranges::find(numbers, gate.name, &Number::name);
      NIBBLE_CHECK(number != numbers.end(), "gates name what is measured");
      const bool holds = gate.Holds(number->estimate.value);
      if (!holds) {
        fmt::print(stderr, "gate {} is missed: {} is {:.5g} +- {:.2g}, the bound is {}\n",
                   gate.text, gate.name, number->estimate.value, number->estimate.standard_error,
                   gate.bound);
      }
      all_hold = all_hold && holds;
      json::Object row;
      row.Set("gate", gate.text);
      row.Set("value", number->estimate.value);
      row.Set("holds", holds);
      rows.emplace_back(std::move(row));
    }
    if (!gates.empty()) {
      out.Set("gates", std::move(rows));
    }
    return all_hold;
  }

  Result<void> Deliver(const json::Object& out) const {
    if (json_) {
      fmt::print("{}\n", json::Dump(out, {.item_separator = ", ", .key_separator = ": "}));
    }
    if (!html_.empty()) {
      NIBBLE_TRY_VOID(WriteHtml(out, html_));
    }
    return output_.empty()
               ? Result<void>{}
               : ReplaceFile(output_, json::Dump(out, {.indent = 1, .key_separator = ": "}) + "\n");
  }

  // What the answers to a task depend on besides the task.
  json::Value RunIdentity(const LoadedModel& model, const std::string& digest) const {
    json::Object run;
    run.Set("nibble", NIBBLE_VERSION);
    run.Set("weights_sha256", digest);
    run.Set("activations", ActivationsName(*model.runner));
    run.Set("kv_cache_dtype", Name(model.runner->config().kv_dtype));
    run.Set("device", flags_.device);
    run.Set("max_model_len", flags_.max_model_len.value_or(0));
    run.Set("add_bos_token", tasks_.add_bos_token);
    run.Set("apply_chat_template", tasks_.apply_chat_template);
    return run;
  }

  void Describe(const LoadedModel& model, const std::string& digest, json::Object& out) const {
    const json::Value identity = RunIdentity(model, digest);
    for (const auto& [key, value] : *identity.AsObject()) {
      out.Set(key, value);
    }
    out.Set("model", model.checkpoint->path().filename().string());
    out.Set("cpu", DescribeCpu());
    out.Set("threads", std::int64_t{model.device->pool().num_workers()});
  }

  void ToJson(const QualityReport& report, const std::string& text, std::int64_t text_tokens,
              json::Object& out) const {
    const auto error = [&](double over_windows) {
      return report.num_windows < 2 ? json::Value(nullptr) : json::Value(over_windows);
    };
    out.Set("perplexity", report.perplexity);
    out.Set("nll", report.nll);
    out.Set("nll_stderr", error(report.nll_stderr));
    if (!reference_.empty()) {
      out.Set("reference_perplexity", report.reference_perplexity);
      out.Set("kl_mean", report.kl_mean);
      out.Set("kl_stderr", error(report.kl_stderr));
      out.Set("kl_p99", report.kl_p99);
      out.Set("kl_max", report.kl_max);
      out.Set("top1", report.top1);
      out.Set("top1_stderr", error(report.top1_stderr));
    }
    out.Set("windows", report.num_windows);
    out.Set("context", context_);
    if (stride_) {
      out.Set("stride", *stride_);
    }
    out.Set("tokens_scored", report.num_tokens);
    out.Set("text", std::filesystem::path(text_file_).filename().string());
    out.Set("text_sha256", Sha256Hex(std::as_bytes(std::span(text))));
    out.Set("text_tokens", text_tokens);
  }

  void AddNumbers(const QualityReport& report, std::vector<Number>& numbers) const {
    const double unknown = std::numeric_limits<double>::quiet_NaN();
    numbers.push_back({"perplexity", {report.perplexity, report.perplexity * report.nll_stderr}});
    numbers.push_back({"nll", {report.nll, report.nll_stderr}});
    if (!reference_.empty()) {
      numbers.push_back({"reference_perplexity", {report.reference_perplexity, unknown}});
      numbers.push_back({"kl", {report.kl_mean, report.kl_stderr}});
      numbers.push_back({"kl_p99", {report.kl_p99, unknown}});
      numbers.push_back({"kl_max", {report.kl_max, unknown}});
      numbers.push_back({"top1", {report.top1, report.top1_stderr}});
    }
  }

  void Print(const QualityReport& report) const {
    fmt::print(
        "perplexity      {:.4f}   (nll {:.5f} +- {:.5f}, {} windows of {}, {} tokens scored)\n",
        report.perplexity, report.nll, report.nll_stderr, report.num_windows, context_,
        report.num_tokens);
    if (!reference_.empty()) {
      fmt::print(
          "reference       {:.4f}\nKL mean         {:.5f} +- {:.5f} nats\nKL 99 %         {:.4f}\n"
          "top-1 the same  {:.2f} +- {:.2f} %\n",
          report.reference_perplexity, report.kl_mean, report.kl_stderr, report.kl_p99,
          report.top1 * 100.0, report.top1_stderr * 100.0);
    }
  }

  ModelFlags flags_;
  TaskFlags tasks_;
  std::string text_file_, reference_, output_, html_;
  std::vector<std::string> compare_;
  std::int64_t context_ = 2048;
  std::int64_t windows_ = 0;
  std::optional<std::int64_t> stride_;
  std::vector<std::string> gate_texts_;
  std::optional<double> gate_kl_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace nibble::cli
