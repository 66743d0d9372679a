#include "compress/group_scales.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

namespace nibble {

Result<FoldedScales> FindGroupScales(const Checkpoint& source, const CalibrationSet& calibration,
                                     GroupScaler& scaler, Device& device,
                                     const SolveProgress& progress) {
  const ModelConfig& config = source.config();
  NIBBLE_TRY(walk, BlockWalk::Create(source, calibration.tokens, calibration.length, device,
                                     calibration.rows_folder));
  NIBBLE_TRY_VOID(walk->Embed());
  FoldedScales out;
  const auto chunks = static_cast<std::uint64_t>(walk->num_chunks());
  const std::uint64_t total =
      static_cast<std::uint64_t>(config.num_layers) * std::size(kLinearGroups) * chunks;
  std::uint64_t done = 0;
  for (std::int64_t block = 0; block < config.num_layers; ++block) {
    out.blocks.emplace_back();
    NIBBLE_TRY_VOID(walk->Begin(block));
    for (const LinearGroup group : kLinearGroups) {
      scaler.Begin(InputWidth(config, group), walk->max_chunk_rows());
      for (std::int64_t chunk = 0; chunk < walk->num_chunks(); ++chunk) {
        scaler.Add(walk->Advance(group, chunk));
        if (progress &&
            !progress(++done, total, fmt::format("block {} of {}", block + 1, config.num_layers))) {
          return Fail(ErrorCode::kCancelled, "interrupted");
        }
      }
      NIBBLE_TRY(scales, scaler.Scales(block, group));
      out.blocks.back()[static_cast<std::size_t>(group)] = std::move(scales);
      NIBBLE_TRY_VOID(walk->Load(group));
    }
    if (block + 1 < config.num_layers) {
      for (std::int64_t chunk = 0; chunk < walk->num_chunks(); ++chunk) {
        walk->End(chunk);
      }
    }
  }
  return out;
}

}  // namespace nibble
