#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "codec/codebook.h"

namespace nibble {

/// Floats as integers in the order of numbers, -0 before +0; and back. Not for NaN.
constexpr std::int32_t KeyOf(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
constexpr float FloatOf(std::int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

/// The floats whose NearestCode is `code`: those above the cell before, up to last_key.
struct CodeCell {
  std::int32_t last_key = 0;
  float value = 0.0F;
  std::uint8_t code = 0;
};
/// All finite floats in cells, ascending, found by asking NearestCode. Not for kNone.
std::vector<CodeCell> CellsOf(Codebook codebook);

}  // namespace nibble
