// Packing for a card: host code alone, in every build.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/weight_layout.h"

namespace nibble::cuda {

Result<std::size_t> PackedSizeBytes(const WeightSpec& spec) {
  NIBBLE_TRY(layout, LayoutOf(spec));
  return layout.size_bytes();
}

Result<void> PackRows(Device& device, const QuantizedTensor& rows, std::int64_t row_begin,
                      PackedWeight& weight) {
  NIBBLE_TRY(layout, LayoutOf(weight.spec));
  NIBBLE_TRY_VOID(nibble::Validate(rows));
  const std::int64_t row_end = row_begin + rows.spec.rows;
  if (row_begin < 0 || row_begin % kTileRows != 0 || row_end > layout.rows ||
      (row_end % kTileRows != 0 && row_end != layout.rows) || rows.spec.cols != layout.cols ||
      weight.size_bytes < layout.size_bytes()) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("rows [{}, {}) of {} do not fit a packed {} [{}, {}]", row_begin, row_end,
                    rows.spec.ToString(), weight.spec.ToString(), layout.rows, layout.cols));
  }
  // Rows are wide in large models: as many tiles at a time as a write takes.
  const auto most_rows = static_cast<std::int64_t>(Device::kMaxWriteBytes / layout.tile_bytes()) *
                         std::int64_t{kTileRows};
  for (std::int64_t begin = 0; begin < rows.spec.rows; begin += most_rows) {
    const std::int64_t count = std::min(most_rows, rows.spec.rows - begin);
    const auto first_tile = static_cast<std::size_t>((row_begin + begin) / kTileRows);
    const auto tiles = static_cast<std::size_t>((count + kTileRows - 1) / kTileRows);
    std::vector<float> factors(tiles * kTileRows, 1.0F);
    {
      const DeviceWrite write =
          device.Write(weight.data + first_tile * layout.tile_bytes(), tiles * layout.tile_bytes());
      if (count == rows.spec.rows) {
        PackTiles(rows, layout, write.data(), factors.data());
      } else {
        PackTiles(SliceRows(rows, begin, begin + count), layout, write.data(), factors.data());
      }
    }
    const DeviceWrite write =
        device.Write(weight.data + layout.factor_offset() + first_tile * kTileRows * sizeof(float),
                     factors.size() * sizeof(float));
    std::memcpy(write.data(), factors.data(), factors.size() * sizeof(float));
  }
  return {};
}

}  // namespace nibble::cuda
