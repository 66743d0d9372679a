#include "compress/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/sha256.h"
#include "base/text.h"
#include "checkpoint/digest.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/weight_writer.h"
#include "compress/awq.h"
#include "compress/block_solver.h"
#include "compress/block_walk.h"
#include "compress/calibration_match.h"
#include "compress/certify.h"
#include "compress/describe_quantization.h"
#include "compress/fold.h"
#include "compress/output_plan.h"
#include "compress/rounded_writer.h"
#include "compress/side_files.h"
#include "compress/smoothquant.h"
#include "compress/solved_block.h"
#include "compress/spend_budget.h"
#include "io/atomic_writer.h"
#include "io/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kScalesFile = "scales.json";  // while it runs
constexpr std::size_t kMaxScalesBytes = std::size_t{1} << 30;
constexpr const char* kLogFile = "quantization_log.json";
// Raised when the same options give other bytes: a run is not resumed by a program that solves
// otherwise.
constexpr int kArithmetic = 4;
constexpr int kCudaArithmetic = 1;  // the same of a run on a card

// A folder of quantized linears is refused: rounding what was rounded adds a second error, and the
// certificate would compare with the first. A GGUF may be all that its user has.
Result<void> CheckSource(const Checkpoint& source, const std::vector<ExpectedWeight>& weights,
                         bool allow_requantize) {
  if (allow_requantize || source.format() == CheckpointFormat::kGguf) {
    return {};
  }
  for (const ExpectedWeight& weight : weights) {
    const WeightInfo* stored = weight.is_linear ? source.Find(weight.name) : nullptr;
    if (stored != nullptr && stored->spec.kind != CodecKind::kFloat) {
      return Fail(
          ErrorCode::kInvalidArgument,
          fmt::format("{} is quantized already ({} is {}): quantize the original model instead, or "
                      "pass --allow-requantize to add a second rounding to the first",
                      source.path().string(), weight.name, stored->stored_as));
    }
  }
  return {};
}

class Run {
 public:
  Run(const Checkpoint& source, const Tokenizer& tokenizer, const fs::path& out,
      const QuantizeOptions& options, int num_threads, const QuantizeProgress& progress)
      : source_(source),
        tokenizer_(tokenizer),
        out_(out),
        options_(options),
        num_threads_(num_threads),
        progress_(progress),
        expected_(ExpectedWeights(source.config())) {}

  Result<QuantizeSummary> Go() {
    NIBBLE_TRY_VOID(ChooseMethod());
    // What is wrong with the command is said before any work; AtomicWriter looks at `out` again.
    NIBBLE_TRY_VOID(options_.budget ? PlanCandidates() : Plan());
    NIBBLE_TRY_VOID(CheckSource(source_, expected_, options_.allow_requantize));
    std::error_code ignored;
    if (fs::exists(out_, ignored)) {
      return Fail(
          ErrorCode::kInvalidArgument,
          fmt::format("{} exists already; remove it or choose another name", out_.string()));
    }
    NIBBLE_TRY(certifier,
               Certifier::Create(source_, tokenizer_, options_, num_threads_, progress_));
    certifier_.emplace(std::move(certifier));
    NIBBLE_TRY(device, MakeDevice());
    program_bytes_ = AnonymousBytes();
    if (options_.budget) {
      const auto bound = MakeCpuDevice(num_threads_);
      NIBBLE_TRY_VOID(PlanSolver(*bound, "then, with the largest candidate, calibrating"));
    } else {
      NIBBLE_TRY_VOID(PlanSolver(*device, "calibrating"));
    }
    if (Calibrates()) {
      NIBBLE_TRY_VOID(Match());
    }
    NIBBLE_TRY(digest, WeightsDigest(source_, [&](std::uint64_t done, std::uint64_t total) {
                 return !progress_ || progress_("hashing the source", done, total, {});
               }));
    source_digest_ = digest;
    const std::uint64_t work_bytes = Calibrates() ? SolvedBlocks::SizeBytes(solved_) : 0;
    NIBBLE_TRY(writer, AtomicWriter::Create(out_, Fingerprint(),
                                            SizeBytes(plan_, options_.shard_bytes) + work_bytes));
    if (options_.budget) {
      const auto searched = SearchBudget(*writer);
      if (!searched && searched.error().code == ErrorCode::kInvalidArgument) {
        writer->Discard();  // no candidates reach it: the next command will be another one
      }
      NIBBLE_TRY_VOID(searched);
      NIBBLE_TRY_VOID(Plan());
      NIBBLE_TRY_VOID(PlanSolver(*device, "calibrating"));
    }
    if (FoldsScales(method_)) {
      NIBBLE_TRY_VOID(Fold(*writer, *device));
    }
    NIBBLE_TRY_VOID(WriteWeights(*writer, *device));
    NIBBLE_TRY_VOID(writer->Remove(kScalesFile));
    NIBBLE_TRY_VOID(WriteFiles(*writer));
    NIBBLE_TRY_VOID(Certify(*writer));
    NIBBLE_TRY_VOID(writer->Commit());
    for (const WeightInfo& weight : source_.weights()) {
      summary_.source_bytes += weight.size_bytes;
    }
    summary_.output_bytes = SizeBytes(plan_, options_.shard_bytes);
    summary_.log = log_;
    return std::move(summary_);
  }

 private:
  // What walks and solves.
  Result<std::unique_ptr<Device>> MakeDevice() const {
    return options_.device == DeviceKind::kCuda
               ? MakeCudaDevice(0, num_threads_)
               : Result<std::unique_ptr<Device>>(MakeCpuDevice(num_threads_));
  }

  Result<void> Plan() {
    NIBBLE_TRY(plan, PlanOutput(source_, options_));
    plan_ = std::move(plan);
    if (!header_bytes_) {
      NIBBLE_TRY(bytes, HeaderBytes(plan_, source_, tokenizer_));
      header_bytes_ = bytes;
    }
    plan_.header_bytes = *header_bytes_;
    NIBBLE_TRY_VOID(CheckSolvable());
    solved_ = plan_.weights;
    for (WeightToWrite& weight : solved_) {
      if (!BlockOfWeight(weight.name)) {  // solvers see tables as floats
        weight.spec = {
            .rows = weight.spec.rows, .cols = weight.spec.cols, .float_dtype = plan_.float_dtype};
      }
    }
    return {};
  }

  // Each candidate for the whole model, so that none fails later; what is planned in the end is the
  // largest.
  Result<void> PlanCandidates() {
    if (options_.candidates.empty()) {
      options_.candidates = UsualCandidates(source_.config());
    }
    std::optional<Scheme> largest;
    std::uint64_t most = 0;
    std::vector<WeightToWrite> mixed;  // as many linears as there are candidates, one of each
    for (const Scheme& scheme : options_.candidates) {
      options_.scheme = scheme;
      NIBBLE_TRY_VOID(Plan());
      options_.format = plan_.format;  // one for all
      for (std::size_t i = mixed.size(); i < plan_.weights.size(); ++i) {
        mixed.push_back(plan_.weights[i]);
        if (BlockOfWeight(mixed.back().name) && mixed.back().spec.rows > 1) {
          break;
        }
      }
      if (const std::uint64_t bits = BitsOfLinears(plan_); bits > most) {
        most = bits;
        largest = scheme;
      }
    }
    options_.scheme = *largest;
    NIBBLE_TRY_VOID(Plan());
    if (const auto folder = FolderFormatOf(plan_.format)) {
      NIBBLE_TRY_VOID(QuantizationConfigOf(*folder, mixed, plan_.float_dtype, {}));
    }
    return CheckBudget(source_, options_, plan_);
  }

  // Leaves the recipe that fits the budget, measured or of an earlier run.
  Result<void> SearchBudget(AtomicWriter& out) {
    const auto device = MakeCpuDevice(num_threads_);
    const SensitivityMeter meter(
        source_, options_.candidates, *options_.calibration,
        {.method = SolvesBlocks(method_) ? BlockMethod::kGptq : BlockMethod::kWeighted,
         .scale_dtype = plan_.scale_dtype,
         .damping = options_.damping,
         .planned =
             [&](const Device& planned) {
               if (options_.notice) {
                 options_.notice(Describe("measuring", planned));
               }
             }},
        *device);
    if (!out.IsDone(kRecipeFile)) {
      NIBBLE_TRY(groups, meter.Run(out, [&](std::uint64_t done, std::uint64_t total,
                                            const std::string& detail) {
        return !progress_ || progress_("measuring sensitivity", done, total, detail);
      }));
      NIBBLE_TRY(text, SpendBudget(source_, options_, plan_, groups,
                                   SolvesBlocks(method_) ? "auto" : "rtn"));
      NIBBLE_TRY_VOID(out.WriteWhole(kRecipeFile, text));
    }
    NIBBLE_TRY_VOID(meter.Clear(out));
    NIBBLE_TRY(text, ReadFile(out.partial_path() / kRecipeFile, kMaxScalesBytes));
    NIBBLE_TRY(recipe, ParseRecipe(text, kRecipeFile));
    options_.recipe = std::move(recipe);
    return {};
  }

  // Calibration data goes to solvers, which know uniform grids and tables.
  Result<void> CheckSolvable() const {
    for (const WeightToWrite& weight : plan_.weights) {
      if (Calibrates() && weight.spec.codebook == Codebook::kFp8E4M3 &&
          weight.spec.group_size < weight.spec.cols) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{}: blocks of {} x {} are rounded without calibration data: leave "
                                "it out, or use --scheme fp8, whose scales follow it",
                                weight.name, kFp8Block, kFp8Block));
      }
      const bool blocks = weight.spec.kind == CodecKind::kMinimum ||
                          (weight.spec.kind == CodecKind::kUniform && weight.spec.has_f32_scales);
      if (Calibrates() && blocks) {
        return Fail(
            ErrorCode::kInvalidArgument,
            fmt::format("{}: {} blocks are rounded without calibration data: leave it out, or use "
                        "--scheme int4 --group-size 32 --format gguf, which GPTQ solves",
                        weight.name,
                        GgufTypeName(static_cast<std::uint32_t>(*GgufTypeOf(weight.spec)))));
      }
    }
    return {};
  }

  // Is the calibration data like what the model is judged on?
  Result<void> Match() {
    std::vector<TokenText> texts = {{.name = options_.text_name, .tokens = certifier_->tokens()}};
    texts.insert(texts.end(), options_.evaluations.begin(), options_.evaluations.end());
    NIBBLE_TRY(match, MatchCalibration(
                          source_, *options_.calibration, texts, num_threads_,
                          [&](std::uint64_t done, std::uint64_t total, const std::string& detail) {
                            return !progress_ || progress_("comparing texts", done, total, detail);
                          }));
    ReturnFreedMemory();
    match_ = match.ToJson();
    for (const std::string& line : match.Describe()) {
      if (options_.notice) {
        options_.notice(line);
      }
    }
    return {};
  }

  // GPTQ and what it saw, or plain rounding.
  Result<void> ChooseMethod() {
    NIBBLE_TRY(choice, nibble::ChooseMethod(options_));
    method_ = choice.method;
    if (method_ == QuantizeMethod::kLearned &&
        source_.config().architecture == Architecture::kGemma3) {
      return Fail(ErrorCode::kUnsupported,
                  "--method learned: the derivatives of gemma3's blocks are not known; use gptq");
    }
    summary_.method_reason = choice.reason;
    return CheckDevice(options_, method_, source_.config());
  }

  // What is quantized: the source, or the source with scales folded in.
  const Checkpoint& Weights() const { return folded_ ? *folded_ : source_; }

  // Says what it will take.
  Result<void> PlanSolver(Device& device, std::string_view what) {
    NIBBLE_TRY(certificate, certifier_->PeakBytes(plan_));  // and whether the model runs at all
    if (!Calibrates()) {
      return {};
    }
    if (FoldsScales(method_)) {  // with whatever scales
      FoldedScales ones;
      ones.blocks.resize(static_cast<std::size_t>(source_.config().num_layers));
      for (auto& block : ones.blocks) {
        for (const LinearGroup group : kLinearGroups) {
          block[static_cast<std::size_t>(group)].assign(
              static_cast<std::size_t>(InputWidth(source_.config(), group)), 1.0F);
        }
      }
      folded_.emplace(source_, ones);
    }
    NIBBLE_TRY_VOID(Solver(device).Plan());
    NIBBLE_TRY(scaling, ScalingBytes());
    if (options_.notice) {
      options_.notice(Describe(what, device, scaling, certificate));
    }
    return {};
  }

  // What finding scales to fold will take, on a walk of the source.
  Result<std::uint64_t> ScalingBytes() const {
    if (!FoldsScales(method_)) {
      return 0;
    }
    const auto device = MakeCpuDevice(num_threads_);
    const CalibrationSet& calibration = *options_.calibration;
    NIBBLE_TRY_VOID(BlockWalk::Plan(source_, std::ssize(calibration.tokens), calibration.length,
                                    *device, calibration.rows_folder));
    return device->ledger().planned_bytes() +
           (method_ == QuantizeMethod::kSmoothQuant
                ? 0
                : AwqBytes(source_, std::min<std::int64_t>(calibration.length, 512)));
  }

  // Finds the scales, or takes those of an earlier run.
  Result<void> Fold(AtomicWriter& out, Device& device) {
    if (out.IsDone(kScalesFile)) {
      NIBBLE_TRY(text, ReadFile(out.partial_path() / kScalesFile, kMaxScalesBytes));
      NIBBLE_TRY(value, json::Parse(text, {.max_bytes = kMaxScalesBytes}));
      NIBBLE_TRY(scales, FoldedScales::FromJson(value, source_.config()));
      folded_.emplace(source_, scales);
      return {};
    }
    const SolveProgress progress = [&](std::uint64_t done, std::uint64_t total,
                                       const std::string& detail) {
      return !progress_ || progress_("scaling", done, total, detail);
    };
    NIBBLE_TRY(scales, method_ == QuantizeMethod::kSmoothQuant
                           ? SmoothScales(source_, *options_.calibration, options_.smooth_alpha,
                                          device, progress)
                           : SearchAwqScales(source_, solved_, *options_.calibration,
                                             plan_.scale_dtype, device, progress));
    ReturnFreedMemory();
    NIBBLE_TRY_VOID(out.WriteWhole(kScalesFile, json::Dump(scales.ToJson())));
    folded_.emplace(source_, scales);
    return {};
  }

  bool Calibrates() const { return options_.calibration != nullptr; }

  // What the solver will see and take.
  std::string Describe(std::string_view what, const Device& device, std::uint64_t scaling = 0,
                       std::uint64_t certificate = 0) const {
    std::string lines =
        fmt::format("program and tokenizer {}", HumanBytes(static_cast<double>(program_bytes_)));
    for (const MemoryLedger::Line& line : device.ledger().lines()) {
      lines +=
          fmt::format(", {} {}", line.name, HumanBytes(static_cast<double>(line.planned_bytes)));
    }
    const CalibrationSet& calibration = *options_.calibration;
    std::string on_disk;
    if (!calibration.rows_folder.empty()) {
      const std::uint64_t rows =
          BlockWalk::RowBytes(source_.config(), std::ssize(calibration.tokens));
      on_disk = fmt::format(
          "; activations in {} of {} in {}", SolvesBlocks(method_) ? "two files" : "a file",
          HumanBytes(static_cast<double>(rows)), calibration.rows_folder.string());
    }
    if (scaling > 0) {
      lines += fmt::format("; before it the scales {}", HumanBytes(static_cast<double>(scaling)));
    }
    if (certificate > 0) {
      lines +=
          fmt::format("; later the certificate {}", HumanBytes(static_cast<double>(certificate)));
    }
    const bool is_card = device.kind() == DeviceKind::kCuda;
    const std::uint64_t here = is_card ? device.ledger().planned_bytes(MemoryPlace::kHost)
                                       : device.ledger().planned_bytes();
    const std::uint64_t most = program_bytes_ + std::max({here, scaling, certificate});
    std::string on_card;
    if (is_card) {
      on_card = fmt::format(
          "at most {} of the card's {} free and ",
          HumanBytes(static_cast<double>(device.ledger().planned_bytes(MemoryPlace::kDevice))),
          HumanBytes(static_cast<double>(device.AvailableBytes())));
    }
    return fmt::format(
        "{} on {} samples of {} tokens; {}at most {} of {} free ({}){}", what,
        calibration.num_windows(), calibration.length, on_card,
        HumanBytes(static_cast<double>(most)),
        HumanBytes(static_cast<double>(is_card ? AvailableMemoryBytes() : device.AvailableBytes())),
        lines, on_disk);
  }

  LearnOptions Learning() const {
    // Half of it is how far all steps together go (docs/quantization.md: measured).
    constexpr double kPositions = 0.1, kFactors = 0.3;
    const auto steps = static_cast<double>(options_.learn_iterations);
    return {.iterations = options_.learn_iterations,
            .batch_tokens = options_.learn_batch_tokens,
            .position_rate = kPositions / steps,
            .factor_rate = kFactors / steps};
  }

  BlockSolver Solver(Device& device) const {
    return {Weights(),
            solved_,
            *options_.calibration,
            {.method = method_ == QuantizeMethod::kLearned ? BlockMethod::kLearned
                       : SolvesBlocks(method_)             ? BlockMethod::kGptq
                                                           : BlockMethod::kWeighted,
             .scale_dtype = plan_.scale_dtype,
             .search_scale = options_.search_scale,
             .damping = options_.damping,
             .correct_inputs = options_.correct_inputs,
             .truth_tokens = options_.truth_tokens,
             .learn = Learning(),
             .rounded = plan_.rounded},
            device};
  }

  json::Value Fingerprint() const {
    json::Object out;
    out.Set("source_sha256", source_digest_);
    out.Set("side_files_sha256", SideFilesDigest(source_));
    out.Set("recipe", DescribeQuantization(source_, options_, plan_, method_));
    out.Set("arithmetic", kArithmetic);
    if (options_.device == DeviceKind::kCuda) {
      out.Set("cuda_arithmetic", kCudaArithmetic);
    }
    out.Set("truth_tokens", options_.truth_tokens);
    out.Set("text_sha256", Sha256Hex(std::as_bytes(std::span(options_.text))));
    json::Array texts;
    for (const TokenText& text : options_.evaluations) {
      texts.emplace_back(json::Array{text.name, text.sha256});
    }
    out.Set("evaluations", std::move(texts));
    out.Set("context", certifier_->context());
    out.Set("shard_bytes", options_.shard_bytes);
    return out;
  }

  Result<void> WriteWeights(AtomicWriter& out, Device& device) {
    NIBBLE_TRY(writer, CreateWriter(plan_, source_, tokenizer_, options_.shard_bytes, out));
    SolvedBlocks solved(out, solved_);
    const RoundedWriter rounded(Weights(), plan_, options_.search_scale);
    const bool all_done = std::ranges::all_of(
        plan_.weights, [&](const WeightToWrite& weight) { return writer->IsDone(weight.name); });
    if (Calibrates() && !all_done) {
      NIBBLE_TRY(times, Solver(device).Run(solved, [&](std::uint64_t done, std::uint64_t total,
                                                       const std::string& detail) {
        return !progress_ || progress_("calibrating", done, total, detail);
      }));
      if (options_.notice) {
        options_.notice("calibrated " + times.ToString());
      }
    }
    std::uint64_t done = 0, total = 0;
    for (const WeightToWrite& weight : plan_.weights) {
      total += static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
    }
    std::uint64_t bits = 0, quantized = 0;
    for (const WeightToWrite& weight : plan_.weights) {
      const auto elements = static_cast<std::uint64_t>(weight.spec.rows * weight.spec.cols);
      if (writer->IsDone(weight.name)) {
        if (const auto facts = writer->DoneFacts(weight.name); facts && facts->IsObject()) {
          log_.Set(weight.name, *facts);
        }
      } else if (BlockOfWeight(weight.name) && weight.spec.kind != CodecKind::kFloat &&
                 Calibrates()) {
        NIBBLE_TRY_VOID(WriteSolved(*writer, weight, solved));
      } else {
        NIBBLE_TRY(facts, rounded.Write(*writer, weight, device.pool()));
        if (!facts.IsNull()) {
          log_.Set(weight.name, std::move(facts));
        }
      }
      if (BlockOfWeight(weight.name) && weight.spec.rows > 1) {
        quantized += elements;
        bits += StoredBits(plan_, weight.spec);
      }
      done += elements;
      if (progress_ && !progress_("quantizing", done, total, weight.name)) {
        return Fail(ErrorCode::kCancelled, "interrupted");
      }
    }
    summary_.bits_per_weight = static_cast<double>(bits) / static_cast<double>(quantized);
    block_.clear();
    NIBBLE_TRY_VOID(writer->Finish());
    return solved.Clear(source_.config().num_layers);
  }

  // A linear that a solver has left in its block's file.
  Result<void> WriteSolved(WeightWriter& writer, const WeightToWrite& weight,
                           const SolvedBlocks& solved) {
    const auto find = [&] {
      return std::ranges::find_if(
          block_, [&](const SolvedWeight& in_block) { return in_block.name == weight.name; });
    };
    auto found = find();
    if (found == block_.end()) {
      const auto block = BlockOfWeight(weight.name);
      NIBBLE_CHECK(block.has_value(), "quantized weights are in blocks");
      NIBBLE_TRY(loaded, solved.Load(*block));
      block_ = std::move(loaded);
      found = find();
      NIBBLE_CHECK(found != block_.end(), "a solver leaves every linear of a block");
    }
    log_.Set(weight.name, found->facts);
    return writer.Write(weight.name, found->tensor, found->facts);
  }

  Result<void> WriteFiles(AtomicWriter& out) {
    NIBBLE_TRY_VOID(WriteOutputFiles(plan_, source_, tokenizer_, out));
    if (options_.recipe && !out.IsDone(kRecipeFile)) {
      NIBBLE_TRY_VOID(out.WriteWhole(kRecipeFile, options_.recipe->text));
    }
    return out.IsDone(kLogFile)
               ? Result<void>{}
               : out.WriteWhole(kLogFile,
                                json::Dump(log_, {.indent = 1, .key_separator = ": "}) + "\n");
  }

  Result<void> Certify(AtomicWriter& out) {
    Certificate& certificate = summary_.certificate;
    NIBBLE_TRY(quantized, Checkpoint::Open(out.partial_path().string()));
    NIBBLE_TRY(measured, certifier_->Measure(*quantized));
    certificate = std::move(measured);
    if (Calibrates()) {
      const ChannelCounts channels = CountChannels(log_);
      match_.Set("dead_channels", channels.dead);
      match_.Set("rare_channels", channels.rare);
      certificate.calibration_match = match_;
    }
    json::Object origin;
    origin.Set("name", source_.path().filename().string());
    origin.Set("format", source_.format() == CheckpointFormat::kGguf ? "gguf" : "safetensors");
    origin.Set("sha256", source_digest_);
    certificate.source = std::move(origin);
    certificate.recipe = DescribeQuantization(source_, options_, plan_, method_);
    const WeightInfo* table = quantized->Find("model.embed_tokens.weight");
    certificate.tables_stored = table->spec.ToString();
    const auto device = MakeCpuDevice(num_threads_);
    NIBBLE_TRY(plan, PlanWeights(*quantized, *device, TableFormat::kAuto));
    certificate.tables_served = plan.Find("model.embed_tokens.weight")->packed.ToString();
    NIBBLE_TRY_VOID(HashCheckpoint(*quantized, certificate));
    return out.WriteWhole(kCertificateFile, ToJson(certificate));
  }

  const Checkpoint& source_;
  const Tokenizer& tokenizer_;
  const fs::path& out_;
  QuantizeOptions options_;
  int num_threads_;
  const QuantizeProgress& progress_;
  std::vector<ExpectedWeight> expected_;
  OutputPlan plan_;
  std::optional<std::uint64_t> header_bytes_;  // the same for every plan
  std::vector<WeightToWrite> solved_;          // the same as the solver sees them
  std::optional<Certifier> certifier_;
  std::uint64_t program_bytes_ =
      0;  // of its own, before the work: the tokenizer's for the most part
  QuantizeMethod method_ = QuantizeMethod::kRtn;
  std::optional<FoldedCheckpoint> folded_;
  std::vector<SolvedWeight> block_;  // whose weights are being written
  std::string source_digest_;
  json::Object match_;  // how near the calibration data is to the texts
  json::Object log_;
  QuantizeSummary summary_;
};

}  // namespace

Result<QuantizeSummary> QuantizeCheckpoint(const Checkpoint& source, const Tokenizer& tokenizer,
                                           const fs::path& out, const QuantizeOptions& options,
                                           int num_threads, const QuantizeProgress& progress) {
  return Run(source, tokenizer, out, options, num_threads, progress).Go();
}

}  // namespace nibble
