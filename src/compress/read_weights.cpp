#include "compress/read_weights.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>

#include "solve/rtn.h"

namespace nibble {
namespace {

constexpr std::int64_t kChunkRows = 256;  // that a worker reads at a time

// take(first row, weights) of every chunk, on all workers in any order.
template <typename Take>
Result<void> ForChunks(const Checkpoint& source, const WeightInfo& stored, ThreadPool& pool,
                       Take&& take) {
  const std::int64_t rows = stored.spec.rows;
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
      take(begin, Dequantize(*read));
    }
  });
  for (const auto& error : errors) {
    if (error) {
      return tl::unexpected<Error>(*error);
    }
  }
  source.Release(stored);
  return {};
}

}  // namespace

Result<std::vector<float>> ReadWeights(const Checkpoint& source, const WeightInfo& stored,
                                       ThreadPool& pool) {
  std::vector<float> weights(static_cast<std::size_t>(stored.spec.rows * stored.spec.cols));
  NIBBLE_TRY_VOID(ReadWeights(source, stored, pool, weights));
  return weights;
}

Result<void> ReadWeights(const Checkpoint& source, const WeightInfo& stored, ThreadPool& pool,
                         std::span<float> weights) {
  return ForChunks(source, stored, pool, [&](std::int64_t row, const std::vector<float>& values) {
    std::ranges::copy(values, weights.begin() + row * stored.spec.cols);
  });
}

Result<float> ReadAbsMax(const Checkpoint& source, std::span<const WeightInfo* const> stored,
                         ThreadPool& pool) {
  float absmax = 0.0F;
  std::mutex mutex;
  for (const WeightInfo* weight : stored) {
    NIBBLE_TRY_VOID(
        ForChunks(source, *weight, pool, [&](std::int64_t, const std::vector<float>& values) {
          const float largest = AbsMaxOf(values);
          const std::lock_guard lock(mutex);
          absmax = std::max(absmax, largest);
        }));
  }
  return absmax;
}

}  // namespace nibble
