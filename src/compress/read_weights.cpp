#include "compress/read_weights.h"

#include <algorithm>
#include <cstdint>
#include <optional>

namespace nibble {
namespace {

constexpr std::int64_t kChunkRows = 256;  // that a worker reads at a time

}  // namespace

Result<std::vector<float>> ReadWeights(const Checkpoint& source, const WeightInfo& stored,
                                       ThreadPool& pool) {
  const std::int64_t rows = stored.spec.rows;
  const std::int64_t cols = stored.spec.cols;
  std::vector<float> weights(static_cast<std::size_t>(rows * cols));
  const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  std::vector<std::optional<Error>> errors(static_cast<std::size_t>(chunks));
  pool.For(chunks, 1, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t begin = i * kChunkRows;
      const auto read = source.ReadRows(stored, begin, std::min(rows, begin + kChunkRows));
      if (!read) {
        errors[static_cast<std::size_t>(i)] = read.error();
        continue;
      }
      const std::vector<float> values = Dequantize(*read);
      std::ranges::copy(values, weights.begin() + begin * cols);
    }
  });
  for (const auto& error : errors) {
    if (error) {
      return tl::unexpected<Error>(*error);
    }
  }
  source.Release(stored);
  return weights;
}

}  // namespace nibble
