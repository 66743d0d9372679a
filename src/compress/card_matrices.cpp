#include "compress/card_matrices.h"

#include <utility>

#include "base/check.h"
#include "compress/read_weights.h"

namespace nibble {

Result<std::unique_ptr<CardMatrices>> CardMatrices::Create(Device& device, std::uint64_t host_bytes,
                                                           std::uint64_t card_bytes) {
  std::unique_ptr<CardMatrices> matrices(new CardMatrices(device));
  NIBBLE_TRY(host, device.AllocateHost("solver (host)", host_bytes));
  NIBBLE_TRY(card, device.Allocate("solver", card_bytes));
  matrices->host_ = std::move(host);
  matrices->card_ = std::move(card);
  return matrices;
}

void CardMatrices::Read(const Checkpoint& source, const std::vector<const WeightInfo*>& matrices) {
  matrices_.clear();
  float* at = host_.as<float>();
  for (const WeightInfo* matrix : matrices) {
    const std::span<float> values(at,
                                  static_cast<std::size_t>(matrix->spec.rows * matrix->spec.cols));
    at += values.size();
    Behind([this, &source, matrix, values] { return ReadWeights(source, *matrix, pool_, values); });
    matrices_.emplace(matrix->name, Matrix{.values = values, .read = last_});
  }
  NIBBLE_CHECK(reinterpret_cast<std::byte*>(at) <= host_.data() + host_.size_bytes(),
               "more matrices than one input has");
}

Result<std::span<const float>> CardMatrices::Values(const WeightInfo& matrix) {
  const Matrix& found = matrices_.find(matrix.name)->second;
  NIBBLE_TRY_VOID(found.read.get());
  return found.values;
}

std::span<const float> CardMatrices::OnCard(std::span<const float> values) {
  device_.Copy(card_.data(), reinterpret_cast<const std::byte*>(values.data()),
               values.size_bytes());
  device_.Wait(device_.Record());
  return {card_.as<float>(), values.size()};
}

void CardMatrices::Behind(std::function<Result<void>()> job) {
  last_ = std::async(std::launch::async,
                     [before = std::move(last_), job = std::move(job)]() mutable -> Result<void> {
                       if (before.valid()) {
                         // Lets go of it: a chain of all jobs would grow.
                         NIBBLE_TRY_VOID(std::exchange(before, {}).get());
                       }
                       return job();
                     });
}

Result<void> CardMatrices::Finish() {
  return last_.valid() ? std::exchange(last_, {}).get() : Result<void>{};
}

}  // namespace nibble
