#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/text.h"
#include "compress/block_solver.h"
#include "compress/block_walk.h"
#include "compress/overlay_checkpoint.h"
#include "compress/rounded_checkpoint.h"

// What a run of BlockSolver will do and take, before it begins: how exact the two walks are, how
// many windows the truth walks, and the memory of all of it.

namespace nibble {

// Inputs that are only compared over many tokens need not be exact: 8 bits a weight, and a fresh
// scale for every 64 columns of both factors, blur them by a fraction of what 4 bits do. What is
// learned from is exact, and what 5 bits or more are to make up for.
bool BlockSolver::NeedsExactTruth() const {
  if (IsCard()) {
    return true;  // its activations are fp16, its products as fast for 16 bits as for 8
  }
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
  constexpr std::int64_t kGroup = 64;
  const bool divides_all = std::ranges::all_of(kLinearGroups, [&](LinearGroup group) {
    return InputWidth(source_.config(), group) % kGroup == 0;
  });
  return std::make_unique<RoundedCheckpoint>(source_,
                                             RoundedFormat{.bits = 8,
                                                           .group_size = divides_all ? kGroup : 0,
                                                           .only_floats = true,
                                                           .search_scale = false});
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
// strength of its correction follows (docs/quantization.md: measured). A card walks all: that costs
// it little and saves it a second Hessian and its factor.
std::int64_t BlockSolver::TruthStride() const {
  const auto tokens = static_cast<std::int64_t>(calibration_.tokens.size());
  const std::int64_t walked = std::max<std::int64_t>(options_.truth_tokens, 1);
  return options_.method == BlockMethod::kLearned || IsCard()
             ? 1
             : std::max<std::int64_t>(1, (tokens + walked - 1) / walked);
}

InputSums::Shift BlockSolver::ShiftRows() const {
  if (!NeedsTruth() || !options_.correct_inputs) {
    return InputSums::Shift::kNone;
  }
  return TruthStride() == 1 ? InputSums::Shift::kAll : InputSums::Shift::kSome;
}

// The matrices of one input, as floats.
std::uint64_t BlockSolver::LargestInputBytes() const {
  std::int64_t most = 0;
  for (const LinearGroup group : kLinearGroups) {
    std::int64_t elements = 0;
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightSpec& spec = source_.Find(WeightName(0, linear))->spec;
      elements += spec.rows * spec.cols;
    }
    most = std::max(most, elements);
  }
  return static_cast<std::uint64_t>(most) * sizeof(float);
}

std::uint64_t BlockSolver::LargestMatrixBytes() const {
  std::int64_t largest = 0;
  for (const SolverLimits::Input& input : GptqLimits().inputs) {
    largest = std::max(largest, input.width * input.max_rows);
  }
  return static_cast<std::uint64_t>(largest) * sizeof(float);
}

SolverLimits BlockSolver::GptqLimits() const {
  SolverLimits limits{.max_tokens = BlockWalk::MaxChunkRows(device_, calibration_.length),
                      .shift = ShiftRows()};
  for (const LinearGroup group : kLinearGroups) {
    SolverLimits::Input input{.width = InputWidth(source_.config(), group)};
    for (const std::string_view linear : LinearsOf(group)) {
      input.max_rows = std::max(input.max_rows, source_.Find(WeightName(0, linear))->spec.rows);
    }
    limits.inputs.push_back(input);
  }
  return limits;
}

Result<void> BlockSolver::Plan() const {
  NIBBLE_CHECK(!IsCard() || options_.method != BlockMethod::kLearned, "CheckDevice comes first");
  MemoryLedger& ledger = device_.ledger();
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
  // The codes of a whole block, and what solving takes.
  std::uint64_t codes = 0, most = 0;
  for (const LinearGroup group : kLinearGroups) {
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightSpec& spec = overlay.Find(WeightName(0, linear))->spec;
      const auto elements = static_cast<std::uint64_t>(spec.rows * spec.cols);
      codes += elements + static_cast<std::uint64_t>(spec.rows * spec.num_groups()) * 5;
      most = std::max(most, 2 * elements * sizeof(float));
    }
  }
  if (UsesLinearSolver()) {
    const SolverLimits limits = GptqLimits();
    const SolverMemory memory = MemoryOfSolver(device_, limits);
    most = memory.device_bytes;
    if (IsCard()) {
      // The matrices of an input, and codes: those of the block before are being saved.
      ledger.Plan("solver (host)", memory.host_bytes + LargestInputBytes() + 3 * codes,
                  MemoryPlace::kHost);
      codes = 0;
      device_.KeepStaging();
    }
  }
  if (options_.method == BlockMethod::kLearned) {
    most = std::max(most, BlockLearner::SizeBytes(source_.config(), calibration_.length,
                                                  options_.learn, device_.pool().num_workers()));
    most += static_cast<std::uint64_t>(tokens * source_.config().hidden_size) * sizeof(float);
  }
  ledger.Plan("solver", most + 2 * codes);
  const auto check = [&](std::uint64_t planned, std::uint64_t available, const char* where) {
    return planned <= available
               ? Result<void>{}
               : Fail(ErrorCode::kOutOfMemory,
                      fmt::format(
                          "solving block by block needs {}{} and {} are available; use {}fewer "
                          "--calibration-samples or a smaller --calibration-length",
                          HumanBytes(static_cast<double>(planned)), where,
                          HumanBytes(static_cast<double>(available)),
                          IsCard()                           ? "--device cpu, "
                          : calibration_.rows_folder.empty() ? "--calibration-rows disk, "
                                                             : ""));
  };
  if (!IsCard()) {
    return check(ledger.planned_bytes(), device_.AvailableBytes(), "");
  }
  NIBBLE_TRY_VOID(check(ledger.planned_bytes(MemoryPlace::kDevice), device_.AvailableBytes(),
                        " of the card's memory"));
  return check(ledger.planned_bytes(MemoryPlace::kHost), AvailableMemoryBytes(),
               " of the host's memory");
}

}  // namespace nibble
