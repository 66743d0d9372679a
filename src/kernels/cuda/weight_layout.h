#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "codec/quantized_tensor.h"

namespace nibble::cuda {

// The packed weights of the CUDA backend: docs/formats/cuda_weight.md. Plain data, for host and
// device code.

enum class Format : std::uint8_t { kF16, kW4, kW8, kNf4, kFp8 };
enum class Grid : std::uint8_t {
  kSymmetric,   // w = (code - middle) * scale; kNf4, kFp8: w = value * scale
  kZeroPoints,  // w = (code - zero_point) * scale
  kMinima,      // w = code * scale + minimum
  kRow          // kFp8: w = value; the scale is the factor of the row
};

constexpr int kTileRows = 16;   // outputs of a tile: the M of mma.m16n8k16
constexpr int kHalfCols = 64;   // columns whose codes one lane holds in whole 16-byte words
constexpr int kNumSlices = 8;   // K is summed in so many slices: unit u belongs to slice u % 8
constexpr int kPairBytes = 32;  // a 16-bit value for each row of a tile, rows r and r + 8 adjacent

struct WeightLayout {
  Format format = Format::kF16;
  Grid grid = Grid::kSymmetric;
  int rows = 0;
  int cols = 0;
  int unit_cols = 128;  // 128 or 64
  int sub_cols = 128;   // columns of a unit that share a scale: 128, 64 or 32
  int num_units = 0;    // of a tile
  int num_tiles = 0;
  int unit_bytes = 0;

  constexpr std::size_t tile_bytes() const {
    return static_cast<std::size_t>(num_units) * static_cast<std::size_t>(unit_bytes);
  }
  /// One float a row, a power of two (Grid::kRow: the scale): behind the tiles.
  constexpr std::size_t factor_offset() const {
    return static_cast<std::size_t>(num_tiles) * tile_bytes();
  }
  constexpr std::size_t size_bytes() const {
    return factor_offset() + static_cast<std::size_t>(num_tiles) * kTileRows * sizeof(float);
  }
};

constexpr bool SameUnits(const WeightLayout& a, const WeightLayout& b) {
  return a.format == b.format && a.grid == b.grid && a.unit_cols == b.unit_cols &&
         a.sub_cols == b.sub_cols;
}

/// Errors: kUnsupported naming the spec, if no kernel runs it.
Result<WeightLayout> LayoutOf(const WeightSpec& spec);

/// Packs `rows` (whole tiles, but for the last of a matrix) to `tiles` [tiles][tile_bytes] and
/// `factors` [rows, rounded up to 16].
void PackTiles(const QuantizedTensor& rows, const WeightLayout& layout, std::byte* tiles,
               float* factors);

/// Row `row` of a packed weight as the kernels multiply it, fp32 [cols]: for tests and checks.
void DequantizeTileRow(const WeightLayout& layout, const std::byte* weight, int row, float* out);

}  // namespace nibble::cuda
