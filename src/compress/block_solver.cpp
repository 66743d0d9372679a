#include "compress/block_solver.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "compress/block_walk.h"
#include "compress/calibration_match.h"
#include "compress/overlay_checkpoint.h"
#include "compress/read_weights.h"
#include "compress/rounded_checkpoint.h"
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
        rounded_truth_(solver.RoundedTruth()),
        store_(store),
        progress_(progress) {}

  Result<void> Go() {
    const CalibrationSet& calibration = solver_.calibration_;
    const std::int64_t stride = solver_.TruthStride();
    for (std::int64_t window = 0; window < calibration.num_windows(); window += stride) {
      const auto tokens = calibration.Window(window);
      truth_tokens_.insert(truth_tokens_.end(), tokens.begin(), tokens.end());
    }
    NIBBLE_TRY(walk,
               BlockWalk::Create(overlay_, calibration.tokens, calibration.length, solver_.device_,
                                 calibration.rows_folder, solver_.WalkActivations()));
    walk_ = std::move(walk);
    if (solver_.NeedsTruth()) {
      const Checkpoint& source = rounded_truth_ ? *rounded_truth_ : solver_.source_;
      NIBBLE_TRY(truth,
                 BlockWalk::Create(source, truth_tokens_, calibration.length, solver_.device_,
                                   calibration.rows_folder, solver_.TruthActivations()));
      truth_ = std::move(truth);
      NIBBLE_TRY_VOID(truth_->Embed());
    }
    NIBBLE_TRY_VOID(walk_->Embed());
    OrderChunks(stride);
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
    const bool learns = !done && solver_.options_.method == BlockMethod::kLearned;
    if (learns) {
      inputs_.assign(walk_->hidden().begin(), walk_->hidden().end());
    }
    NIBBLE_TRY_VOID(walk_->Begin(block_));
    if (truth_) {
      NIBBLE_TRY_VOID(truth_->Begin(block_));
    }
    for (const LinearGroup group : kLinearGroups) {
      if (done) {
        NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) { AdvanceBoth(group, chunk); }));
      } else {
        NIBBLE_TRY_VOID(SolveGroup(group, solved));
      }
      NIBBLE_TRY_VOID(walk_->Load(group));
      if (truth_) {
        NIBBLE_TRY_VOID(truth_->Load(group));
      }
    }
    if (learns) {
      NIBBLE_TRY_VOID(LearnBlock(solved));
    } else {
      steps_ += LearnSteps();
    }
    if (block_ + 1 < config_.num_layers) {
      NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
        walk_->End(chunk.index);
        if (!learns && chunk.truth) {
          truth_->End(*chunk.truth);
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

  std::uint64_t NumChunks() const { return static_cast<std::uint64_t>(walk_->num_chunks()); }
  // Of LearnBlock.
  std::uint64_t LearnSteps() const {
    return solver_.options_.method != BlockMethod::kLearned
               ? 0
               : static_cast<std::uint64_t>(solver_.options_.learn.iterations) +
                     std::size(kLinearGroups) * NumChunks();
  }

  // Counts a step; false to stop.
  bool Advanced() {
    // The last block's output goes nowhere.
    const std::uint64_t total = static_cast<std::uint64_t>(config_.num_layers) *
                                    (kStepsOfBlock * NumChunks() + LearnSteps()) -
                                NumChunks();
    ++steps_;
    return !progress_ ||
           progress_(steps_, total, fmt::format("block {} of {}", block_ + 1, config_.num_layers));
  }

  // A chunk of the walk, and of the truth if that walks its window too.
  struct Chunk {
    std::int64_t index = 0;
    std::optional<std::int64_t> truth;
  };

  // Those with a truth first: InputSums wants them together.
  void OrderChunks(std::int64_t stride) {
    const std::int64_t chunks_of_window = walk_->num_chunks() / solver_.calibration_.num_windows();
    for (std::int64_t i = 0; i < walk_->num_chunks(); ++i) {
      const std::int64_t window = i / chunks_of_window;
      Chunk& chunk = chunks_.emplace_back(Chunk{.index = i});
      if (truth_ && window % stride == 0) {
        chunk.truth = window / stride * chunks_of_window + i % chunks_of_window;
      }
    }
    std::ranges::stable_partition(chunks_,
                                  [](const Chunk& chunk) { return chunk.truth.has_value(); });
  }

  template <typename Body>
  Result<void> ForChunks(Body&& body) {
    for (const Chunk& chunk : chunks_) {
      body(chunk);
      if (!Advanced()) {
        return Fail(ErrorCode::kCancelled, "interrupted");
      }
    }
    return {};
  }

  // Of the walk; truth_inputs_ are what they should be, or nothing.
  BlockWalk::Inputs AdvanceBoth(LinearGroup group, const Chunk& chunk) {
    truth_inputs_ = chunk.truth ? truth_->Advance(group, *chunk.truth) : BlockWalk::Inputs{};
    return walk_->Advance(group, chunk.index);
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
      return ForChunks([&](const Chunk& chunk) { AdvanceBoth(group, chunk); });
    }
    return any_solved ? SolveByGptq(group, solved) : SolveByRounding(group, solved);
  }

  Result<void> SolveByRounding(LinearGroup group, std::vector<SolvedWeight>& solved) {
    const auto width = static_cast<std::size_t>(InputWidth(config_, group));
    std::vector<double> squares(width, 0.0);
    NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
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
    for (const double square : squares) {
      mean += square / static_cast<double>(squares.size());
    }
    std::vector<float> importance;
    for (const double square : squares) {
      importance.push_back(
          static_cast<float>(mean > 0.0 ? square / mean + solver_.options_.damping : 1.0));
    }
    return SolveLinears(group, takes, solved,
                        [&](const WeightSpec& spec, std::span<const float> weights,
                            json::Object& facts) -> Result<QuantizedTensor> {
                          SetChannelFacts(squares, facts);
                          return QuantizeWeighted(pool_, weights, spec, importance,
                                                  solver_.options_.scale_dtype,
                                                  /*search_scale=*/true, scale_divisor_);
                        });
  }

  Result<void> SolveByGptq(LinearGroup group, std::vector<SolvedWeight>& solved) {
    const std::int64_t width = InputWidth(config_, group);
    const InputSums::Shift shift = solver_.ShiftRows();
    const bool has_shift = shift != InputSums::Shift::kNone;
    InputSums sums(width, walk_->max_chunk_rows(), shift);
    NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
      const BlockWalk::Inputs inputs = AdvanceBoth(group, chunk);
      sums.Add(pool_, inputs.x, has_shift ? truth_inputs_.x : nullptr, inputs.num_rows);
    }));
    sums.Finish(pool_);
    std::vector<double> squares;
    for (std::int64_t i = 0; i < width; ++i) {
      squares.push_back(sums.hessian().At(i, i));
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
      NIBBLE_TRY_VOID(SolveGroupsOf(group_size, group, sums, has_shift, squares, solved));
    }
    return {};
  }

  // The linears of a group that have this size of groups.
  Result<void> SolveGroupsOf(std::int64_t group_size, LinearGroup group, const InputSums& sums,
                             bool has_shift, const std::vector<double>& squares,
                             std::vector<SolvedWeight>& solved) {
    const Hessian& hessian = sums.hessian();
    const auto factor = Factorize(pool_, hessian,
                                  {.order = solver_.options_.order,
                                   .group_size = group_size,
                                   .damping = solver_.options_.damping});
    if (!factor) {
      return Fail(factor.error(),
                  fmt::format("tensor {}: ", WeightName(block_, LinearsOf(group).front())));
    }
    std::optional<HessianFactor> other;
    if (has_shift && &sums.shift_hessian() != &hessian) {
      NIBBLE_TRY(made,
                 Factorize(pool_, sums.shift_hessian(),
                           {.order = ColumnOrder::kNatural, .damping = solver_.options_.damping}));
      other = std::move(made);
    }
    const HessianFactor& shift_factor = other ? *other : *factor;
    std::optional<InputShift> shift;
    if (has_shift) {
      shift = ShiftOf(pool_, shift_factor, sums,
                      CorrectionStrength(sums.num_shift_tokens(), hessian.width()));
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
              .sweep_scales = solver_.options_.order != ColumnOrder::kDescending,
              .scale_divisor = scale_divisor_};
          std::vector<float> corrected;
          if (shift) {
            corrected = CorrectWeights(pool_, weights, shift_factor, *shift);
            weights = corrected;
          }
          SolveReport report;
          NIBBLE_TRY(tensor, QuantizeGptq(pool_, weights, *factor, options, &report));
          facts.Set("relative_output_error",
                    report.energy > 0.0 ? std::sqrt(report.error / report.energy) : 0.0);
          facts.Set("damping", factor->damping);
          SetChannelFacts(squares, facts);
          return tensor;
        });
  }

  // What divides the scales of NVFP4: one number for the matrices of an input, which consumers
  // multiply as one.
  Result<void> FindScaleDivisor(LinearGroup group) {
    std::vector<const WeightInfo*> stored;
    for (const std::string_view linear : LinearsOf(group)) {
      const std::string name = WeightName(block_, linear);
      if (overlay_.Find(name)->spec.scale_grid == ScaleGrid::kE4M3) {
        stored.push_back(solver_.source_.Find(name));
      }
    }
    scale_divisor_ = 0.0F;
    if (!stored.empty()) {
      NIBBLE_TRY(absmax, ReadAbsMax(solver_.source_, stored, pool_));
      scale_divisor_ = ScaleDivisorOf(absmax);
    }
    return {};
  }

  // Calls solve(spec, weights, facts) for every quantized linear of a group that takes(weight)
  // wants, and puts the result in its place.
  template <typename Takes, typename Solve>
  Result<void> SolveLinears(LinearGroup group, Takes&& takes, std::vector<SolvedWeight>& solved,
                            Solve&& solve) {
    NIBBLE_TRY_VOID(FindScaleDivisor(group));
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

  // The linears that were solved one by one learn together from what the block puts out. inputs_:
  // what it sees; the truth's next hidden states are what it is asked for.
  Result<void> LearnBlock(std::vector<SolvedWeight>& solved) {
    for (std::int64_t chunk = 0; chunk < truth_->num_chunks(); ++chunk) {
      truth_->End(chunk);
    }
    NIBBLE_TRY(vectors, ReadBlockVectors(overlay_, block_, pool_));
    NIBBLE_TRY(linears, TakeLinears(solved));
    LearnOptions options = solver_.options_.learn;
    options.seed = static_cast<std::uint64_t>(block_);
    options.scale_dtype = solver_.options_.scale_dtype;
    BlockLearner learner(config_, std::move(vectors), solver_.calibration_.length, options, pool_);
    NIBBLE_TRY(report,
               learner.Learn(inputs_, truth_->hidden(), linears, [&] { return Advanced(); }));
    PutLinears(linears, report, solved);
    // Through the block once more, with what was learned.
    std::ranges::copy(inputs_, walk_->hidden().begin());
    for (const LinearGroup group : kLinearGroups) {
      NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) { walk_->Advance(group, chunk.index); }));
      NIBBLE_TRY_VOID(walk_->Load(group));
    }
    return {};
  }

  // Of the weights, by BlockLinear.
  std::array<std::string, kNumBlockLinears> WeightNames() const {
    std::array<std::string, kNumBlockLinears> names;
    auto next = names.begin();
    for (const LinearGroup group : kLinearGroups) {
      for (const std::string_view linear : LinearsOf(group)) {
        *next++ = WeightName(block_, linear);
      }
    }
    return names;
  }

  Result<LearnedLinears> TakeLinears(std::vector<SolvedWeight>& solved) const {
    LearnedLinears linears;
    auto linear = linears.begin();
    for (const std::string& name : WeightNames()) {
      const auto found = std::ranges::find(solved, name, &SolvedWeight::name);
      // FP8 has nothing to gain, and codes that are no numbers; a matrix with one scale has no
      // groups whose scales could learn.
      const bool learns = found != solved.end() && solver_.IsSolved(name) &&
                          !IsFp8(found->tensor.spec.codebook) && !found->tensor.spec.has_one_scale;
      const Checkpoint& from = learns ? solver_.source_ : static_cast<const Checkpoint&>(overlay_);
      NIBBLE_TRY(weights, ReadWeights(from, *from.Find(name), pool_));
      linear->weights = std::move(weights);
      if (learns) {
        linear->quantized = std::move(found->tensor);
      }
      ++linear;
    }
    return linears;
  }

  void PutLinears(LearnedLinears& linears, const LearnReport& report,
                  std::vector<SolvedWeight>& solved) {
    const auto names = WeightNames();
    for (SolvedWeight& weight : solved) {
      const auto index = std::ranges::find(names, weight.name) - names.begin();
      LearnedLinear& linear = linears[static_cast<std::size_t>(index)];
      if (!linear.quantized) {
        continue;
      }
      weight.tensor = std::move(*linear.quantized);
      overlay_.Replace(weight.name, weight.tensor);
      TensorStatistics statistics;
      statistics.Add(weight.tensor, linear.weights);
      json::Object facts = statistics.ToJson(weight.tensor.spec);
      facts.Set("block_error_before", report.error_before);
      facts.Set("block_error", report.error_after);
      for (const char* key : {"damping", "dead_channels"}) {
        if (const json::Value* kept = weight.facts.Find(key)) {
          facts.Set(key, *kept);
        }
      }
      weight.facts = std::move(facts);
    }
  }

  const BlockSolver& solver_;
  const ModelConfig& config_;
  ThreadPool& pool_;
  OverlayCheckpoint overlay_;
  std::unique_ptr<Checkpoint> rounded_truth_;  // or none
  SolvedBlocks& store_;
  const SolveProgress& progress_;
  std::vector<TokenId> truth_tokens_;
  std::unique_ptr<BlockWalk> walk_, truth_;
  std::vector<Chunk> chunks_;  // of walk_, in the order they are taken
  BlockWalk::Inputs truth_inputs_;
  std::vector<float> inputs_;  // of a block that learns, [num_rows, hidden_size]
  std::int64_t block_ = 0;
  float scale_divisor_ = 0.0F;  // of the group being solved, where it has one
  std::uint64_t steps_ = 0;
};

// Inputs that are only compared over many tokens need not be exact: 8 bits a weight, and a fresh
// scale for every 64 columns of both factors, blur them by a fraction of what 4 bits do. What is
// learned from is exact, and what 5 bits or more are to make up for.
bool BlockSolver::NeedsExactTruth() const {
  const auto is_fine = [&](const WeightToWrite& weight) {
    return weight.spec.kind != CodecKind::kFloat && weight.spec.bits > 4 && IsSolved(weight.name) &&
           weight.name.starts_with("model.layers.");
  };
  return options_.method == BlockMethod::kLearned || std::ranges::any_of(weights_, is_fine);
}

std::unique_ptr<Checkpoint> BlockSolver::RoundedTruth() const {
  if (NeedsExactTruth()) {
    return nullptr;
  }
  RoundedFormat format{.bits = 8, .group_size = 64, .only_floats = true, .search_scale = false};
  for (const LinearGroup group : kLinearGroups) {
    if (InputWidth(source_.config(), group) % format.group_size != 0) {
      format.group_size = 0;
    }
  }
  return std::make_unique<RoundedCheckpoint>(source_, format);
}

ActivationMode BlockSolver::TruthActivations() const {
  return NeedsExactTruth() ? ActivationMode::kInt16 : ActivationMode::kInt8;
}

// What int8 activations add to a token's inputs evens out over as many tokens as let the truth walk
// part of them.
ActivationMode BlockSolver::WalkActivations() const {
  return NeedsTruth() && !NeedsExactTruth() && TruthStride() > 1 ? ActivationMode::kInt8
                                                                 : ActivationMode::kInt16;
}

// A shift is small beside what it is a shift of, so part of the tokens tell much of it; the
// strength of its correction follows (docs/quantization.md: measured).
std::int64_t BlockSolver::TruthStride() const {
  const auto tokens = static_cast<std::int64_t>(calibration_.tokens.size());
  const std::int64_t walked = std::max<std::int64_t>(options_.truth_tokens, 1);
  return options_.method == BlockMethod::kLearned
             ? 1
             : std::max<std::int64_t>(1, (tokens + walked - 1) / walked);
}

InputSums::Shift BlockSolver::ShiftRows() const {
  if (!NeedsTruth() || !options_.correct_inputs) {
    return InputSums::Shift::kNone;
  }
  return TruthStride() == 1 ? InputSums::Shift::kAll : InputSums::Shift::kSome;
}

Result<void> BlockSolver::Plan() const {
  const OverlayCheckpoint overlay(source_, weights_);
  const auto tokens = static_cast<std::int64_t>(calibration_.tokens.size());
  NIBBLE_TRY_VOID(BlockWalk::Plan(overlay, tokens, calibration_.length, device_,
                                  calibration_.rows_folder, WalkActivations()));
  if (NeedsTruth()) {
    const auto rounded = RoundedTruth();
    const std::int64_t stride = TruthStride();
    const std::int64_t truth_windows = (calibration_.num_windows() + stride - 1) / stride;
    NIBBLE_TRY_VOID(BlockWalk::Plan(rounded ? *rounded : source_,
                                    truth_windows * calibration_.length, calibration_.length,
                                    device_, calibration_.rows_folder, TruthActivations()));
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
    // A matrix is solved when its factors are there and the matrices that these came of are gone.
    std::uint64_t solve = largest * (NeedsTruth() ? 3 : 2) * sizeof(float);
    std::uint64_t sums = 0, factorize = 0;
    if (options_.method != BlockMethod::kWeighted) {
      const InputSums::Shift shift = ShiftRows();
      const std::uint64_t factor = HessianFactor::SizeBytes(width);
      const std::uint64_t before = shift == InputSums::Shift::kSome ? factor : 0;
      sums = InputSums::SizeBytes(width, chunk, shift) + before;
      factorize = HessianFactor::PeakBytes(width);
      solve += factor + (shift == InputSums::Shift::kNone ? 0 : InputShift::SizeBytes(width));
    }
    most = std::max(most, sums + std::max(factorize, solve));
  }
  if (options_.method == BlockMethod::kLearned) {
    most = std::max(most, BlockLearner::SizeBytes(source_.config(), calibration_.length,
                                                  options_.learn, device_.pool().num_workers()));
    most += static_cast<std::uint64_t>(tokens * source_.config().hidden_size) * sizeof(float);
  }
  device_.ledger().Plan("solver", most + 2 * codes);
  if (device_.ledger().planned_bytes() > device_.AvailableBytes()) {
    return Fail(ErrorCode::kOutOfMemory,
                fmt::format("solving block by block needs {} and {} are available; use {}fewer "
                            "--calibration-samples or a smaller --calibration-length",
                            HumanBytes(static_cast<double>(device_.ledger().planned_bytes())),
                            HumanBytes(static_cast<double>(device_.AvailableBytes())),
                            calibration_.rows_folder.empty() ? "--calibration-rows disk, " : ""));
  }
  return {};
}

Result<void> BlockSolver::Run(SolvedBlocks& store, const SolveProgress& progress) const {
  return Walks(*this, store, progress).Go();
}

}  // namespace nibble
