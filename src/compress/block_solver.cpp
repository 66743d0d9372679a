#include "compress/block_solver.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <future>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/stopwatch.h"
#include "compress/block_walk.h"
#include "compress/calibration_match.h"
#include "compress/card_matrices.h"
#include "compress/overlay_checkpoint.h"
#include "compress/read_weights.h"
#include "compress/tensor_statistics.h"
#include "solve/rtn.h"

namespace nibble {

// The state of one run.
class BlockSolver::Walks {
 public:
  Walks(const BlockSolver& solver, SolvedBlocks& store, const SolveProgress& progress)
      : solver_(solver),
        device_(solver.device_),
        config_(solver.source_.config()),
        pool_(solver.device_.pool()),
        overlay_(solver.source_, solver.weights_),
        rounded_truth_(solver.RoundedTruth()),
        store_(store),
        progress_(progress) {}

  Result<SolveTimes> Go() {
    {
      const Stopwatch watch(times_.total);
      NIBBLE_TRY_VOID(RunBlocks());
    }
    if (gptq_) {
      times_.solver = gptq_->times();
    }
    return times_;
  }

 private:
  static constexpr std::uint64_t kStepsOfBlock = std::size(kLinearGroups) + 1;

  Result<void> RunBlocks() {
    NIBBLE_TRY_VOID(Start());
    for (block_ = 0; block_ < config_.num_layers; ++block_) {
      NIBBLE_TRY_VOID(RunBlock());
    }
    return Saved();
  }

  Result<void> Start() {
    const Stopwatch watch(times_.start);
    for (std::int64_t block = 0; block < config_.num_layers; ++block) {
      done_.push_back(store_.Has(block));
    }
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
    if (solver_.UsesLinearSolver()) {
      const SolverLimits limits = solver_.GptqLimits();
      NIBBLE_TRY(gptq, MakeLinearSolver(device_, limits));
      gptq_ = std::move(gptq);
      if (solver_.WorksAhead()) {
        NIBBLE_TRY(card, CardMatrices::Create(device_, solver_.LargestInputBytes(),
                                              solver_.LargestMatrixBytes()));
        card_ = std::move(card);
      }
    }
    return {};
  }

  Result<void> RunBlock() {
    const bool done = done_[static_cast<std::size_t>(block_)];
    std::vector<SolvedWeight>& solved = solved_;
    solved.clear();
    solved.reserve(kNumBlockLinears);  // what stands behind a card fills them where they are
    if (done) {
      NIBBLE_TRY_VOID(Saved());  // a store is one thread's at a time
      NIBBLE_TRY(loaded, store_.Load(block_));
      for (SolvedWeight& weight : loaded) {
        overlay_.Replace(weight.name, std::move(weight.tensor));
      }
    }
    const bool learns = !done && solver_.options_.method == BlockMethod::kLearned;
    if (learns) {
      inputs_.assign(walk_->hidden().begin(), walk_->hidden().end());
    }
    times_.num_blocks += done ? 0 : 1;
    NIBBLE_TRY_VOID(LoadBoth([&](BlockWalk& walk) { return walk.Begin(block_); }));
    for (const LinearGroup group : kLinearGroups) {
      if (done) {
        NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) { AdvanceBoth(group, chunk); }));
      } else {
        NIBBLE_TRY_VOID(SolveGroup(group, solved));
      }
      NIBBLE_TRY_VOID(LoadBoth([&](BlockWalk& walk) { return walk.Load(group); }));
    }
    if (learns) {
      NIBBLE_TRY_VOID(LearnBlock(solved));
    } else {
      steps_ += LearnSteps();
    }
    if (block_ + 1 < config_.num_layers) {
      NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
        const Stopwatch watch(times_.walk);
        walk_->End(chunk.index);
        if (!learns && chunk.truth) {
          truth_->End(*chunk.truth);
        }
        device_.Wait(device_.Record());
      }));
    }
    if (!done) {
      if (card_) {
        const Stopwatch watch(times_.log);
        NIBBLE_TRY_VOID(card_->Finish());
      }
      NIBBLE_TRY_VOID(Save(std::move(solved)));
    }
    for (const LinearGroup group : kLinearGroups) {
      for (const std::string_view linear : LinearsOf(group)) {
        overlay_.Forget(WeightName(block_, linear));
      }
    }
    return {};
  }

  // Beside a card while the next block is walked.
  Result<void> Save(std::vector<SolvedWeight> solved) {
    const Stopwatch watch(times_.save);
    NIBBLE_TRY_VOID(Saved());
    saving_ = std::async(
        solver_.WorksAhead() ? std::launch::async : std::launch::deferred,
        [this, block = block_, solved = std::move(solved)] { return store_.Save(block, solved); });
    return solver_.WorksAhead() ? Result<void>{} : Saved();
  }
  Result<void> Saved() { return saving_.valid() ? saving_.get() : Result<void>{}; }

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
    const std::int64_t chunks_of_window =
        std::max<std::int64_t>(1, walk_->num_chunks() / solver_.calibration_.num_windows());
    for (std::int64_t i = 0; i < walk_->num_chunks(); ++i) {
      const std::int64_t window = i / chunks_of_window;  // stride 1: or whatever the walks share
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

  // load(walk) of both.
  template <typename Load>
  Result<void> LoadBoth(Load&& load) {
    const Stopwatch watch(times_.load);
    NIBBLE_TRY_VOID(load(*walk_));
    return truth_ ? load(*truth_) : Result<void>{};
  }

  // Of the walk; truth_inputs_ are what they should be, or nothing.
  BlockWalk::Inputs AdvanceBoth(LinearGroup group, const Chunk& chunk) {
    const Stopwatch watch(times_.walk);
    truth_inputs_.reset();
    if (chunk.truth) {
      truth_inputs_ = truth_->Advance(group, *chunk.truth);
    }
    const BlockWalk::Inputs inputs = walk_->Advance(group, chunk.index);
    device_.Wait(device_.Record());
    return inputs;
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
    if (card_) {
      ReadAhead(group);
    }
    return any_solved ? SolveByGptq(group, solved) : SolveByRounding(group, solved);
  }

  Result<void> SolveByRounding(LinearGroup group, std::vector<SolvedWeight>& solved) {
    if (solver_.IsCard()) {
      NIBBLE_TRY(squares, SumInputs(group));
      gptq_->End();
      return RoundLinears(
          group, squares, [](std::string_view) { return true; }, solved);
    }
    const auto width = static_cast<std::size_t>(InputWidth(config_, group));
    std::vector<double> squares(width, 0.0);
    NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
      const BlockWalk::Inputs inputs = AdvanceBoth(group, chunk);
      for (std::int64_t row = 0; row < inputs.num_rows; ++row) {
        const float* x = inputs.floats() + row * static_cast<std::int64_t>(width);
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

  // Of each channel, the sum of squares; the solver has all sums.
  Result<std::vector<double>> SumInputs(LinearGroup group) {
    NIBBLE_TRY_VOID(gptq_->Begin(InputWidth(config_, group)));
    NIBBLE_TRY_VOID(ForChunks([&](const Chunk& chunk) {
      const BlockWalk::Inputs inputs = AdvanceBoth(group, chunk);
      gptq_->Add(inputs, truth_inputs_ ? &*truth_inputs_ : nullptr);
      device_.Wait(device_.Record());  // so that the walk's time is its own
    }));
    return gptq_->Finish();
  }

  Result<void> SolveByGptq(LinearGroup group, std::vector<SolvedWeight>& solved) {
    NIBBLE_TRY(squares, SumInputs(group));
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
      NIBBLE_TRY_VOID(SolveGroupsOf(group_size, group, squares, solved));
    }
    gptq_->End();
    return {};
  }

  // The linears of a group that have this size of groups.
  Result<void> SolveGroupsOf(std::int64_t group_size, LinearGroup group,
                             const std::vector<double>& squares,
                             std::vector<SolvedWeight>& solved) {
    const auto factorized = gptq_->Factorize({.order = solver_.options_.order,
                                              .group_size = group_size,
                                              .damping = solver_.options_.damping});
    if (!factorized) {
      return Fail(factorized.error(),
                  fmt::format("tensor {}: ", WeightName(block_, LinearsOf(group).front())));
    }
    return SolveLinears(
        group,
        [&](std::string_view weight) {
          return solver_.IsSolved(weight) && overlay_.Find(weight)->spec.group_size == group_size;
        },
        solved,
        [&](const WeightSpec& spec, std::span<const float> weights,
            json::Object& facts) -> Result<QuantizedTensor> {
          NIBBLE_TRY(linear,
                     gptq_->Solve(OnDevice(weights), {.spec = spec,
                                                      .scale_dtype = solver_.options_.scale_dtype,
                                                      .search_scale = solver_.options_.search_scale,
                                                      .sweep_scales = solver_.options_.order !=
                                                                      ColumnOrder::kDescending,
                                                      .scale_divisor = scale_divisor_}));
          const SolveReport& report = linear.report;
          facts.Set("relative_output_error",
                    report.energy > 0.0 ? std::sqrt(report.error / report.energy) : 0.0);
          facts.Set("damping", linear.damping);
          SetChannelFacts(squares, facts);
          return std::move(linear.tensor);
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

  // The values of a matrix that is to be solved, in `memory` or where a card takes them from.
  Result<std::span<const float>> Read(const WeightInfo& stored, std::vector<float>& memory) {
    const Stopwatch watch(times_.read);
    if (card_) {
      return card_->Values(stored);
    }
    NIBBLE_TRY(weights, ReadWeights(solver_.source_, stored, pool_));
    memory = std::move(weights);
    return memory;
  }

  // What Read gave, in the device's memory.
  std::span<const float> OnDevice(std::span<const float> weights) {
    const Stopwatch watch(times_.read);
    return card_ ? card_->OnCard(weights) : weights;
  }

  // What the log says of a matrix: of the tensor, then these facts.
  json::Object LogOf(const QuantizedTensor& tensor, std::span<const float> weights,
                     const json::Object& facts) {
    TensorStatistics statistics;
    if (card_) {
      statistics = StatisticsOf(tensor, weights, card_->pool());
    } else {
      statistics.Add(tensor, weights);  // in one piece: the last digits of a CPU's logs are old
    }
    json::Object all = statistics.ToJson(tensor.spec);
    for (const auto& [key, value] : facts) {
      all.Set(key, value);
    }
    return all;
  }

  // Reads ahead what SolveLinears will take, while a card walks.
  void ReadAhead(LinearGroup group) {
    std::vector<const WeightInfo*> matrices;
    for (const std::string_view linear : LinearsOf(group)) {
      const std::string name = WeightName(block_, linear);
      if (overlay_.Find(name)->spec.kind != CodecKind::kFloat) {
        matrices.push_back(solver_.source_.Find(name));
      }
    }
    card_->Read(solver_.source_, matrices);
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
      std::vector<float> memory;
      NIBBLE_TRY(weights, Read(*stored, memory));
      json::Object facts;
      auto tensor = solve(overlay_.Find(name)->spec, weights, facts);
      if (!tensor) {
        return Fail(tensor.error(), fmt::format("tensor {}: ", name));
      }
      SolvedWeight& weight = solved.emplace_back(SolvedWeight{.name = name});
      const QuantizedTensor& kept = overlay_.Replace(name, std::move(*tensor));
      const auto finish = [this, &weight, &kept, weights, facts = std::move(facts)] {
        weight.tensor = kept;
        weight.facts = LogOf(kept, weights, facts);
        return Result<void>{};
      };
      if (card_) {
        card_->Behind(finish);
      } else {
        const Stopwatch watch(times_.log);
        NIBBLE_TRY_VOID(finish());
      }
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
  Device& device_;
  const ModelConfig& config_;
  ThreadPool& pool_;
  OverlayCheckpoint overlay_;
  std::unique_ptr<Checkpoint> rounded_truth_;  // or none
  SolvedBlocks& store_;
  const SolveProgress& progress_;
  std::vector<TokenId> truth_tokens_;
  std::unique_ptr<BlockWalk> walk_, truth_;
  std::vector<Chunk> chunks_;  // of walk_, in the order they are taken
  std::optional<BlockWalk::Inputs> truth_inputs_;
  std::unique_ptr<LinearSolver> gptq_;  // null if all is rounded on a CPU
  SolveTimes times_;
  std::vector<SolvedWeight> solved_;    // of the block
  std::vector<bool> done_;              // blocks that the store had
  std::unique_ptr<CardMatrices> card_;  // its jobs see what is above; null on a CPU
  std::future<Result<void>> saving_;    // of the block solved last
  std::vector<float> inputs_;           // of a block that learns, [num_rows, hidden_size]
  std::int64_t block_ = 0;
  float scale_divisor_ = 0.0F;  // of the group being solved, where it has one
  std::uint64_t steps_ = 0;
};

std::string SolveTimes::ToString() const {
  return fmt::format(
      "{} blocks in {:.2f} s: start {:.2f}, walk {:.2f}, load {:.2f}, sums {:.2f}, factor {:.2f}, "
      "correction "
      "{:.2f}, sweep {:.2f}, read {:.2f}, log {:.2f}, save {:.2f}",
      num_blocks, total, start, walk, load, solver.sums, solver.factor, solver.correction,
      solver.sweep, read, log, save);
}

Result<SolveTimes> BlockSolver::Run(SolvedBlocks& store, const SolveProgress& progress) const {
  return Walks(*this, store, progress).Go();
}

}  // namespace nibble
