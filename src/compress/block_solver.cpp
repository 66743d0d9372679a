#include "compress/block_solver.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "compress/block_walk.h"
#include "compress/overlay_checkpoint.h"
#include "compress/read_weights.h"
#include "compress/tensor_statistics.h"
#include "solve/correction.h"
#include "solve/rtn.h"

namespace nibble {

// The state of one run.
class BlockSolver::Walks {
 public:
  Walks(const BlockSolver& solver, SolvedBlocks& store, const SolveProgress& progress)
      : solver_(solver),
        config_(solver.source_.config()),
        pool_(solver.device_.pool()),
        overlay_(solver.source_, solver.weights_),
        store_(store),
        progress_(progress) {}

  Result<void> Go() {
    const CalibrationSet& calibration = solver_.calibration_;
    NIBBLE_TRY(
        walk, BlockWalk::Create(overlay_, calibration.tokens, calibration.length, solver_.device_));
    walk_ = std::move(walk);
    if (solver_.NeedsTruth()) {
      NIBBLE_TRY(truth, BlockWalk::Create(solver_.source_, calibration.tokens, calibration.length,
                                          solver_.device_));
      truth_ = std::move(truth);
      NIBBLE_TRY_VOID(truth_->Embed());
    }
    NIBBLE_TRY_VOID(walk_->Embed());
    for (block_ = 0; block_ < config_.num_layers; ++block_) {
      NIBBLE_TRY_VOID(RunBlock());
    }
    return {};
  }

 private:
  static constexpr std::uint64_t kStepsOfBlock = std::size(kLinearGroups) + 1;

  Result<void> RunBlock() {
    const bool done = store_.Has(block_);
    std::vector<SolvedWeight> solved;
    if (done) {
      NIBBLE_TRY(loaded, store_.Load(block_));
      for (SolvedWeight& weight : loaded) {
        overlay_.Replace(weight.name, std::move(weight.tensor));
      }
    }
    NIBBLE_TRY_VOID(walk_->Begin(block_));
    if (truth_) {
      NIBBLE_TRY_VOID(truth_->Begin(block_));
    }
    for (const LinearGroup group : kLinearGroups) {
      if (done) {
        NIBBLE_TRY_VOID(ForChunks([&](std::int64_t chunk) { AdvanceBoth(group, chunk); }));
      } else {
        NIBBLE_TRY_VOID(SolveGroup(group, solved));
      }
      NIBBLE_TRY_VOID(walk_->Load(group));
      if (truth_) {
        NIBBLE_TRY_VOID(truth_->Load(group));
      }
    }
    if (block_ + 1 < config_.num_layers) {
      NIBBLE_TRY_VOID(ForChunks([&](std::int64_t chunk) {
        walk_->End(chunk);
        if (truth_) {
          truth_->End(chunk);
        }
      }));
    }
    if (!done) {
      NIBBLE_TRY_VOID(store_.Save(block_, solved));
    }
    for (const LinearGroup group : kLinearGroups) {
      for (const std::string_view linear : LinearsOf(group)) {
        overlay_.Forget(WeightName(block_, linear));
      }
    }
    return {};
  }

  template <typename Body>
  Result<void> ForChunks(Body&& body) {
    const auto chunks = static_cast<std::uint64_t>(walk_->num_chunks());
    // The last block's output goes nowhere.
    const auto total =
        (static_cast<std::uint64_t>(config_.num_layers) * kStepsOfBlock - 1) * chunks;
    for (std::int64_t chunk = 0; chunk < walk_->num_chunks(); ++chunk) {
      body(chunk);
      ++steps_;
      if (progress_ && !progress_(steps_, total,
                                  fmt::format("block {} of {}", block_ + 1, config_.num_layers))) {
        return Fail(ErrorCode::kCancelled, "interrupted");
      }
    }
    return {};
  }

  BlockWalk::Inputs AdvanceBoth(LinearGroup group, std::int64_t chunk) {
    if (truth_) {
      truth_inputs_ = truth_->Advance(group, chunk);
    }
    return walk_->Advance(group, chunk);
  }

  Result<void> SolveGroup(LinearGroup group, std::vector<SolvedWeight>& solved) {
    bool any = false, any_solved = false;
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightInfo* weight = overlay_.Find(WeightName(block_, linear));
      const bool quantized = weight->spec.kind != CodecKind::kFloat;
      any = any || quantized;
      any_solved = any_solved || (quantized && solver_.IsSolved(weight->name));
    }
    if (!any) {
      return ForChunks([&](std::int64_t chunk) { AdvanceBoth(group, chunk); });
    }
    return any_solved ? SolveByGptq(group, solved) : SolveByRounding(group, solved);
  }

  Result<void> SolveByRounding(LinearGroup group, std::vector<SolvedWeight>& solved) {
    const auto width = static_cast<std::size_t>(InputWidth(config_, group));
    std::vector<double> squares(width, 0.0);
    NIBBLE_TRY_VOID(ForChunks([&](std::int64_t chunk) {
      const BlockWalk::Inputs inputs = AdvanceBoth(group, chunk);
      for (std::int64_t row = 0; row < inputs.num_rows; ++row) {
        const float* x = inputs.x + row * static_cast<std::int64_t>(width);
        for (std::size_t i = 0; i < width; ++i) {
          squares[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
      }
    }));
    return RoundLinears(
        group, squares, [](std::string_view) { return true; }, solved);
  }

  // squares: of each input channel, summed. takes(weight): which linears.
  template <typename Takes>
  Result<void> RoundLinears(LinearGroup group, const std::vector<double>& squares, Takes&& takes,
                            std::vector<SolvedWeight>& solved) {
    // A channel that was never seen still counts a little.
    double mean = 0.0;
    std::int64_t dead = 0;
    for (const double square : squares) {
      mean += square / static_cast<double>(squares.size());
      dead += square == 0.0 ? 1 : 0;
    }
    std::vector<float> importance;
    for (const double square : squares) {
      importance.push_back(
          static_cast<float>(mean > 0.0 ? square / mean + solver_.options_.damping : 1.0));
    }
    return SolveLinears(group, takes, solved,
                        [&](const WeightSpec& spec, std::span<const float> weights,
                            json::Object& facts) -> Result<QuantizedTensor> {
                          if (dead > 0) {
                            facts.Set("dead_channels", dead);
                          }
                          return QuantizeWeighted(pool_, weights, spec, importance,
                                                  solver_.options_.scale_dtype);
                        });
  }

  Result<void> SolveByGptq(LinearGroup group, std::vector<SolvedWeight>& solved) {
    const std::int64_t width = InputWidth(config_, group);
    Hessian hessian(width, walk_->max_chunk_rows());
    std::optional<CrossGram> cross;
    if (truth_) {
      cross.emplace(width, walk_->max_chunk_rows());
    }
    NIBBLE_TRY_VOID(ForChunks([&](std::int64_t chunk) {
      const BlockWalk::Inputs inputs = AdvanceBoth(group, chunk);
      hessian.Add(pool_, inputs.x, inputs.num_rows);
      if (cross) {
        cross->Add(pool_, truth_inputs_.x, inputs.x, inputs.num_rows);
      }
    }));
    std::vector<double> squares;
    for (std::int64_t i = 0; i < width; ++i) {
      squares.push_back(hessian.At(i, i));
    }
    NIBBLE_TRY_VOID(RoundLinears(
        group, squares, [&](std::string_view weight) { return !solver_.IsSolved(weight); },
        solved));
    // An order of columns serves one size of groups.
    std::set<std::int64_t> group_sizes;
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightInfo* weight = overlay_.Find(WeightName(block_, linear));
      if (weight->spec.kind != CodecKind::kFloat && solver_.IsSolved(weight->name)) {
        group_sizes.insert(weight->spec.group_size);
      }
    }
    for (const std::int64_t group_size : group_sizes) {
      NIBBLE_TRY_VOID(SolveGroupsOf(group_size, group, hessian, cross, solved));
    }
    return {};
  }

  // The linears of a group that have this size of groups.
  Result<void> SolveGroupsOf(std::int64_t group_size, LinearGroup group, const Hessian& hessian,
                             const std::optional<CrossGram>& cross,
                             std::vector<SolvedWeight>& solved) {
    const auto factor = Factorize(pool_, hessian,
                                  {.order = solver_.options_.order,
                                   .group_size = group_size,
                                   .damping = solver_.options_.damping});
    if (!factor) {
      return Fail(factor.error(),
                  fmt::format("tensor {}: ", WeightName(block_, LinearsOf(group).front())));
    }
    std::optional<InputShift> shift;
    if (cross) {
      shift = ShiftOf(pool_, *factor, hessian, *cross,
                      CorrectionStrength(hessian.num_tokens(), hessian.width()));
    }
    return SolveLinears(
        group,
        [&](std::string_view weight) {
          return solver_.IsSolved(weight) && overlay_.Find(weight)->spec.group_size == group_size;
        },
        solved,
        [&](const WeightSpec& spec, std::span<const float> weights,
            json::Object& facts) -> Result<QuantizedTensor> {
          const GptqOptions options{
              .spec = spec,
              .scale_dtype = solver_.options_.scale_dtype,
              .search_scale = solver_.options_.search_scale,
              .sweep_scales = solver_.options_.order != ColumnOrder::kDescending};
          std::vector<float> corrected;
          if (shift) {
            corrected = CorrectWeights(pool_, weights, *factor, *shift);
            weights = corrected;
          }
          SolveReport report;
          NIBBLE_TRY(tensor, QuantizeGptq(pool_, weights, *factor, options, &report));
          facts.Set("relative_output_error",
                    report.energy > 0.0 ? std::sqrt(report.error / report.energy) : 0.0);
          facts.Set("damping", factor->damping);
          if (factor->num_dead > 0) {
            facts.Set("dead_channels", factor->num_dead);
          }
          return tensor;
        });
  }

  // Calls solve(spec, weights, facts) for every quantized linear of a group that takes(weight)
  // wants, and puts the result in its place.
  template <typename Takes, typename Solve>
  Result<void> SolveLinears(LinearGroup group, Takes&& takes, std::vector<SolvedWeight>& solved,
                            Solve&& solve) {
    for (const std::string_view linear : LinearsOf(group)) {
      const std::string name = WeightName(block_, linear);
      if (overlay_.Find(name)->spec.kind == CodecKind::kFloat || !takes(name)) {
        continue;
      }
      const WeightInfo* stored = solver_.source_.Find(name);
      NIBBLE_CHECK(stored != nullptr, "Checkpoint::Open guarantees every expected weight");
      NIBBLE_TRY(weights, ReadWeights(solver_.source_, *stored, pool_));
      json::Object facts;
      auto tensor = solve(overlay_.Find(name)->spec, std::span<const float>(weights), facts);
      if (!tensor) {
        return Fail(tensor.error(), fmt::format("tensor {}: ", name));
      }
      TensorStatistics statistics;
      statistics.Add(*tensor, weights);
      json::Object all = statistics.ToJson(tensor->spec);
      for (const auto& [key, value] : facts) {
        all.Set(key, value);
      }
      overlay_.Replace(name, *tensor);
      solved.push_back({.name = name, .tensor = std::move(*tensor), .facts = std::move(all)});
    }
    return {};
  }

  const BlockSolver& solver_;
  const ModelConfig& config_;
  ThreadPool& pool_;
  OverlayCheckpoint overlay_;
  SolvedBlocks& store_;
  const SolveProgress& progress_;
  std::unique_ptr<BlockWalk> walk_, truth_;
  BlockWalk::Inputs truth_inputs_;
  std::int64_t block_ = 0;
  std::uint64_t steps_ = 0;
};

Result<void> BlockSolver::Plan() const {
  const OverlayCheckpoint overlay(source_, weights_);
  const auto tokens = static_cast<std::int64_t>(calibration_.tokens.size());
  NIBBLE_TRY_VOID(BlockWalk::Plan(overlay, tokens, calibration_.length, device_));
  if (NeedsTruth()) {
    NIBBLE_TRY_VOID(BlockWalk::Plan(source_, tokens, calibration_.length, device_));
  }
  // Of the group that needs most: its sums, their factor, one of its matrices, and the codes of the
  // whole block.
  const std::int64_t chunk = std::min<std::int64_t>(calibration_.length, 512);
  std::uint64_t most = 0, codes = 0;
  for (const LinearGroup group : kLinearGroups) {
    const std::int64_t width = InputWidth(source_.config(), group);
    std::uint64_t largest = 0;
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightSpec& spec = overlay.Find(WeightName(0, linear))->spec;
      const auto elements = static_cast<std::uint64_t>(spec.rows * spec.cols);
      largest = std::max(largest, elements);
      codes += elements + static_cast<std::uint64_t>(spec.rows * spec.num_groups()) * 5;
    }
    const std::uint64_t floats = largest * (NeedsTruth() ? 3 : 2);
    std::uint64_t sums = 0;
    if (options_.method == BlockMethod::kGptq) {
      sums = Hessian::SizeBytes(width, chunk) + HessianFactor::SizeBytes(width);
    }
    if (NeedsTruth()) {
      sums += CrossGram::SizeBytes(width, chunk) + InputShift::SizeBytes(width);
    }
    most = std::max(most, sums + floats * sizeof(float));
  }
  device_.ledger().Plan("solver", most + 2 * codes);
  if (device_.ledger().planned_bytes() > device_.AvailableBytes()) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("solving block by block needs {} and {} are available; use fewer "
                            "--calibration-samples or a smaller --calibration-length",
                            HumanBytes(static_cast<double>(device_.ledger().planned_bytes())),
                            HumanBytes(static_cast<double>(device_.AvailableBytes()))));
  }
  return {};
}

Result<void> BlockSolver::Run(SolvedBlocks& store, const SolveProgress& progress) const {
  return Walks(*this, store, progress).Go();
}

}  // namespace nibble
