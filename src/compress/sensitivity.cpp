#include "compress/sensitivity.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "codec/encode.h"
#include "compress/output_probe.h"
#include "compress/overlay_checkpoint.h"
#include "compress/read_weights.h"
#include "compress/solved_block.h"
#include "io/file.h"
#include "solve/gptq.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxJournalBytes = std::size_t{1} << 24;

std::string FileName(std::int64_t block) { return fmt::format("sensitivity-{:05}.json", block); }

// A model of which one block's groups are loaded, with all linears at one candidate.
struct Variant {
  std::unique_ptr<OverlayCheckpoint> weights;
  WeightPlan plan;  // of blocks, overlapping
  std::unique_ptr<LlamaModel> model;
};

// The calibration windows that make Hessians, and those that the output is compared on.
struct Texts {
  std::span<const TokenId> solving;
  std::vector<TokenId> probing;
  std::int64_t probe_length = 0;
};

Texts TextsOf(const CalibrationSet& calibration, const SensitivityOptions& options) {
  const std::int64_t windows = calibration.num_windows();
  // Apart, if there are enough: GPTQ fits what it has seen.
  const std::int64_t probed =
      std::min(options.probe_windows, std::max<std::int64_t>(windows / 2, 1));
  const std::int64_t solved =
      std::min(options.max_windows, std::max<std::int64_t>(windows - probed, 1));
  Texts out;
  out.solving =
      std::span(calibration.tokens).first(static_cast<std::size_t>(solved * calibration.length));
  out.probe_length = std::min(options.probe_tokens, calibration.length);
  for (std::int64_t i = windows - probed; i < windows; ++i) {
    const auto window = calibration.Window(i).first(static_cast<std::size_t>(out.probe_length));
    out.probing.insert(out.probing.end(), window.begin(), window.end());
  }
  return out;
}

}  // namespace

class SensitivityMeter::State {
 public:
  State(const SensitivityMeter& meter, AtomicWriter& out, const SolveProgress& progress)
      : meter_(meter),
        config_(meter.source_.config()),
        pool_(meter.device_.pool()),
        texts_(TextsOf(meter.calibration_, meter.options_)),
        out_(out),
        progress_(progress) {}

  Result<std::vector<GroupSensitivity>> Go() {
    NIBBLE_TRY_VOID(Prepare());
    std::vector<GroupSensitivity> all;
    for (std::int64_t block = 0; block < config_.num_layers; ++block) {
      NIBBLE_TRY(measured, RunBlock(block));
      std::ranges::move(measured, std::back_inserter(all));
    }
    return all;
  }

 private:
  OutputProbe::Text ProbeText() const {
    return {.tokens = texts_.probing,
            .length = texts_.probe_length,
            .position_stride = meter_.options_.position_stride};
  }

  Result<void> Prepare() {
    Device& device = meter_.device_;
    const auto tokens = static_cast<std::int64_t>(texts_.solving.size());
    const std::int64_t length = meter_.calibration_.length;
    NIBBLE_TRY_VOID(OutputProbe::Plan(meter_.source_, ProbeText(), device));
    NIBBLE_TRY_VOID(BlockWalk::Plan(meter_.source_, tokens, length, device));
    for (const Scheme& scheme : meter_.candidates_) {
      NIBBLE_TRY_VOID(PlanVariant(scheme));
    }
    PlanSolver();
    if (device.ledger().planned_bytes() > device.AvailableBytes()) {
      return Fail(ErrorCode::kOutOfMemory,
                  fmt::format("measuring sensitivity needs {} (the whole source model, and a block "
                              "at each candidate) and {} are available; write a --recipe by hand, "
                              "or use fewer --candidates",
                              HumanBytes(static_cast<double>(device.ledger().planned_bytes())),
                              HumanBytes(static_cast<double>(device.AvailableBytes()))));
    }
    if (meter_.options_.planned) {
      meter_.options_.planned(device);
    }
    NIBBLE_TRY(probe, OutputProbe::Create(meter_.source_, ProbeText(), device));
    probe_ = std::move(probe);
    for (Variant& variant : variants_) {
      NIBBLE_TRY(model, LlamaModel::Allocate(*variant.weights, variant.plan, probe_->limits(),
                                             ActivationMode::kInt16, device));
      variant.model = std::move(model);
    }
    NIBBLE_TRY(walk, BlockWalk::Create(meter_.source_, texts_.solving, length, device));
    walk_ = std::move(walk);
    return walk_->Embed();
  }

  Result<void> PlanVariant(const Scheme& scheme) {
    std::vector<WeightToWrite> weights;
    for (const ExpectedWeight& weight : ExpectedWeights(config_)) {
      const Scheme kept{.keeps_floats = true};
      NIBBLE_TRY(
          spec, SpecOf(weight.is_linear ? scheme : kept, weight, config_, SixteenBitType(config_)));
      weights.push_back({weight.name, spec});
    }
    Variant& variant = variants_.emplace_back();
    variant.weights = std::make_unique<OverlayCheckpoint>(meter_.source_, weights);
    NIBBLE_TRY(plan, PlanWeights(*variant.weights, meter_.device_, TableFormat::kAuto));
    variant.plan = OverlapBlocks(plan, config_);
    const auto rows = static_cast<std::int64_t>(texts_.probing.size());
    return LlamaModel::Plan(*variant.weights, variant.plan,
                            {.max_tokens = rows,
                             .max_sequences = rows / texts_.probe_length,
                             .max_positions = texts_.probe_length,
                             .max_logit_rows = 1},
                            ActivationMode::kInt16, meter_.device_);
  }

  // The widest Hessian, its factor, and a matrix of its linears as floats and as codes.
  void PlanSolver() {
    std::uint64_t most = 0;
    for (const LinearGroup group : kLinearGroups) {
      const std::int64_t width = InputWidth(config_, group);
      std::uint64_t largest = 0;
      for (const std::string_view linear : LinearsOf(group)) {
        const WeightSpec& spec = meter_.source_.Find(WeightName(0, linear))->spec;
        largest = std::max(largest, static_cast<std::uint64_t>(spec.rows * spec.cols));
      }
      const std::int64_t chunk = std::min<std::int64_t>(meter_.calibration_.length, 512);
      most =
          std::max(most, InputSums::SizeBytes(width, chunk, InputSums::Shift::kNone) +
                             HessianFactor::PeakBytes(width) + largest * (2 * sizeof(float) + 3));
    }
    meter_.device_.ledger().Plan("solver", most);
  }

  Result<std::vector<GroupSensitivity>> RunBlock(std::int64_t block) {
    NIBBLE_TRY_VOID(walk_->Begin(block));
    const bool done = out_.IsDone(FileName(block));
    std::vector<GroupSensitivity> measured;
    if (done) {
      NIBBLE_TRY(loaded, Load(block));
      measured = std::move(loaded);
    } else {
      for (Variant& variant : variants_) {
        NIBBLE_TRY_VOID(LoadInto(variant, [&](const PlannedWeight& weight) {
          return weight.is_vector && BlockOfWeight(weight.stored->name) == block;
        }));
      }
    }
    for (const LinearGroup group : kLinearGroups) {
      InputSums sums(InputWidth(config_, group), walk_->max_chunk_rows(), InputSums::Shift::kNone);
      for (std::int64_t chunk = 0; chunk < walk_->num_chunks(); ++chunk) {
        const BlockWalk::Inputs inputs = walk_->Advance(group, chunk);
        if (!done) {
          sums.Add(pool_, inputs.floats(), nullptr, inputs.num_rows);
        }
      }
      if (!done) {
        sums.Finish(pool_);
        NIBBLE_TRY(kl, Measure(block, group, sums.hessian()));
        measured.push_back({.block = block, .group = group, .kl = std::move(kl)});
      }
      NIBBLE_TRY_VOID(walk_->Load(group));
    }
    for (std::int64_t chunk = 0; chunk < walk_->num_chunks(); ++chunk) {
      walk_->End(chunk);
    }
    probe_->Advance();
    NIBBLE_TRY_VOID(done ? Step(block, std::size(kLinearGroups) * variants_.size())
                         : Save(block, measured));
    return measured;
  }

  Result<std::vector<double>> Measure(std::int64_t block, LinearGroup group,
                                      const Hessian& hessian) {
    std::map<std::int64_t, HessianFactor> factors;  // by size of groups
    std::vector<double> kl;
    for (Variant& variant : variants_) {
      for (const std::string_view linear : LinearsOf(group)) {
        const std::string name = WeightName(block, linear);
        const WeightSpec& spec = variant.weights->Find(name)->spec;
        if (spec.kind == CodecKind::kFloat) {
          continue;
        }
        NIBBLE_TRY(tensor, Solve(name, spec, hessian, factors));
        variant.weights->Replace(name, std::move(tensor));
      }
      NIBBLE_TRY_VOID(LoadInto(variant, [&](const PlannedWeight& weight) {
        return std::ranges::any_of(LinearsOf(group), [&](std::string_view linear) {
          return weight.stored->name == WeightName(block, linear);
        });
      }));
      for (const std::string_view linear : LinearsOf(group)) {
        variant.weights->Forget(WeightName(block, linear));
      }
      kl.push_back(probe_->Compare(group, *variant.model));
      NIBBLE_TRY_VOID(Step(block, 1));
    }
    return kl;
  }

  Result<QuantizedTensor> Solve(const std::string& name, const WeightSpec& spec,
                                const Hessian& hessian,
                                std::map<std::int64_t, HessianFactor>& factors) {
    NIBBLE_TRY(weights, ReadWeights(meter_.source_, *meter_.source_.Find(name), pool_));
    const SensitivityOptions& options = meter_.options_;
    if (options.method == BlockMethod::kWeighted ||
        (spec.kind == CodecKind::kUniform && spec.bits >= 8)) {
      return QuantizeWeighted(pool_, weights, spec, ImportanceOf(hessian, options.damping),
                              options.scale_dtype);
    }
    auto found = factors.find(spec.group_size);
    if (found == factors.end()) {
      auto factor =
          Factorize(pool_, hessian, {.group_size = spec.group_size, .damping = options.damping});
      if (!factor) {
        return Fail(factor.error(), fmt::format("tensor {}: ", name));
      }
      found = factors.emplace(spec.group_size, std::move(*factor)).first;
    }
    return QuantizeGptq(pool_, weights, found->second,
                        {.spec = spec, .scale_dtype = options.scale_dtype});
  }

  static std::vector<float> ImportanceOf(const Hessian& hessian, double damping) {
    double mean = 0.0;
    for (std::int64_t i = 0; i < hessian.width(); ++i) {
      mean += hessian.At(i, i) / static_cast<double>(hessian.width());
    }
    std::vector<float> out;
    for (std::int64_t i = 0; i < hessian.width(); ++i) {
      out.push_back(static_cast<float>(mean > 0.0 ? hessian.At(i, i) / mean + damping : 1.0));
    }
    return out;
  }

  template <typename Wanted>
  Result<void> LoadInto(Variant& variant, Wanted&& wanted) {
    WeightPlan part;
    for (const PlannedWeight& weight : variant.plan.weights) {
      if (wanted(weight)) {
        part.weights.push_back(weight);
        part.arena_bytes += weight.size_bytes;
      }
    }
    return LoadWeights(*variant.weights, part, meter_.device_, variant.model->weight_places(), {},
                       {});
  }

  Result<void> Step(std::int64_t block, std::uint64_t steps) {
    steps_ += steps;
    const std::uint64_t total = static_cast<std::uint64_t>(config_.num_layers) *
                                std::size(kLinearGroups) * variants_.size();
    return !progress_ || progress_(steps_, total,
                                   fmt::format("block {} of {}", block + 1, config_.num_layers))
               ? Result<void>{}
               : Fail(ErrorCode::kCancelled, "interrupted");
  }

  Result<void> Save(std::int64_t block, const std::vector<GroupSensitivity>& measured) {
    json::Array groups;
    for (const GroupSensitivity& one : measured) {
      groups.push_back(json::Array(one.kl.begin(), one.kl.end()));
    }
    return out_.WriteWhole(FileName(block), json::Dump(groups));
  }

  Result<std::vector<GroupSensitivity>> Load(std::int64_t block) const {
    const std::filesystem::path path = out_.partial_path() / FileName(block);
    NIBBLE_TRY(text, ReadFile(path, kMaxJournalBytes));
    NIBBLE_TRY(value, json::Parse(text));
    const json::Array* groups = value.AsArray();
    std::vector<GroupSensitivity> out;
    for (std::size_t i = 0; i < std::size(kLinearGroups); ++i) {
      const json::Array* kl =
          groups == nullptr || i >= groups->size() ? nullptr : (*groups)[i].AsArray();
      if (kl == nullptr || kl->size() != variants_.size()) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: does not hold {} groups of {} numbers", path.string(),
                                std::size(kLinearGroups), variants_.size()));
      }
      out.push_back({.block = block, .group = kLinearGroups[i]});
      for (const json::Value& one : *kl) {
        out.back().kl.push_back(one.AsDouble().value_or(0.0));
      }
    }
    return out;
  }

  const SensitivityMeter& meter_;
  const ModelConfig& config_;
  ThreadPool& pool_;
  Texts texts_;
  AtomicWriter& out_;
  const SolveProgress& progress_;
  std::unique_ptr<OutputProbe> probe_;
  std::unique_ptr<BlockWalk> walk_;
  std::vector<Variant> variants_;
  std::uint64_t steps_ = 0;
};

Result<std::vector<GroupSensitivity>> SensitivityMeter::Run(AtomicWriter& out,
                                                            const SolveProgress& progress) const {
  return State(*this, out, progress).Go();
}

Result<void> SensitivityMeter::Clear(AtomicWriter& out) const {
  for (std::int64_t block = 0; block < source_.config().num_layers; ++block) {
    NIBBLE_TRY_VOID(out.Remove(FileName(block)));
  }
  return {};
}

}  // namespace nibble
