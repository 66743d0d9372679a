#include "codec/code_cells.h"

#include <limits>

namespace nibble {

std::vector<CodeCell> CellsOf(Codebook codebook) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::int64_t last = KeyOf(kLargest);
  const auto values = ValuesOf(codebook);
  const auto code_of = [&](std::int64_t key) {
    return NearestCode(codebook, FloatOf(static_cast<std::int32_t>(key)));
  };
  std::vector<CodeCell> cells;
  for (std::int64_t key = KeyOf(-kLargest); key <= last;) {
    const std::uint8_t code = code_of(key);
    std::int64_t end = last;  // the last key that has this code
    for (std::int64_t begin = key; begin < end;) {
      const std::int64_t middle = begin + (end - begin + 1) / 2;
      if (code_of(middle) == code) {
        begin = middle;
      } else {
        end = middle - 1;
      }
    }
    cells.push_back(
        {.last_key = static_cast<std::int32_t>(end), .value = values[code], .code = code});
    key = end + 1;
  }
  return cells;
}

}  // namespace nibble
