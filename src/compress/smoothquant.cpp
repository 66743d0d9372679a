#include "compress/smoothquant.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string_view>
#include <vector>

#include "compress/group_scales.h"
#include "compress/read_weights.h"

namespace nibble {
namespace {

constexpr float kLeast = 1e-5F;  // of a largest magnitude; keeps scales of dead channels finite

class SmoothScaler final : public GroupScaler {
 public:
  SmoothScaler(const Checkpoint& source, double alpha, ThreadPool& pool)
      : source_(source), alpha_(alpha), pool_(pool) {}

  void Begin(std::int64_t width, std::int64_t /*max_rows*/) override {
    largest_input_.assign(static_cast<std::size_t>(width), kLeast);
  }

  void Add(const BlockWalk::Inputs& inputs) override {
    TakeLargest(inputs.floats(), inputs.num_rows, largest_input_);
  }

  Result<std::vector<float>> Scales(std::int64_t block, LinearGroup group) override {
    const std::size_t width = largest_input_.size();
    std::vector<float> largest_weight(width, kLeast);
    for (const std::string_view linear : LinearsOf(group)) {
      NIBBLE_TRY(weights, ReadWeights(source_, *source_.Find(WeightName(block, linear)), pool_));
      TakeLargest(weights.data(), static_cast<std::int64_t>(weights.size() / width),
                  largest_weight);
    }
    std::vector<double> logs;
    double mean = 0.0;
    for (std::size_t j = 0; j < width; ++j) {
      logs.push_back(alpha_ * std::log(static_cast<double>(largest_input_[j])) -
                     (1.0 - alpha_) * std::log(static_cast<double>(largest_weight[j])));
      mean += logs.back() / static_cast<double>(width);
    }
    std::vector<float> scales;
    for (const double log : logs) {
      scales.push_back(static_cast<float>(std::exp(log - mean)));
    }
    if (group == LinearGroup::kOutput) {
      ShareAcrossHeads(source_.config(), scales);
    }
    return scales;
  }

 private:
  // largest[j] = max(largest[j], |rows of column j|)
  static void TakeLargest(const float* values, std::int64_t num_rows, std::vector<float>& largest) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      for (float& most : largest) {
        most = std::max(most, std::fabs(*values++));
      }
    }
  }

  const Checkpoint& source_;
  double alpha_;
  ThreadPool& pool_;
  std::vector<float> largest_input_;
};

}  // namespace

Result<FoldedScales> SmoothScales(const Checkpoint& source, const CalibrationSet& calibration,
                                  double alpha, Device& device, const SolveProgress& progress) {
  SmoothScaler scaler(source, alpha, device.pool());
  return FindGroupScales(source, calibration, scaler, device, progress);
}

}  // namespace nibble
