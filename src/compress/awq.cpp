#include "compress/awq.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "compress/group_scales.h"
#include "compress/read_weights.h"
#include "solve/hessian.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

constexpr int kSteps = 8;
constexpr double kStep = 0.1;

class AwqScaler final : public GroupScaler {
 public:
  AwqScaler(const Checkpoint& source, std::span<const WeightToWrite> weights, DType scale_dtype,
            ThreadPool& pool)
      : source_(source), weights_(weights), scale_dtype_(scale_dtype), pool_(pool) {}

  void Begin(std::int64_t width, std::int64_t max_rows) override {
    hessian_.emplace(width, max_rows);
  }
  void Add(const BlockWalk::Inputs& inputs) override {
    hessian_->Add(pool_, inputs.floats(), inputs.num_rows);
  }

  // The best scales of one group, empty if none beat 1.
  Result<std::vector<float>> Scales(std::int64_t block, LinearGroup group) override {
    const Hessian& hessian = *hessian_;
    const std::int64_t width = hessian.width();
    std::vector<double> square;
    double mean = 0.0;
    for (std::int64_t i = 0; i < width; ++i) {
      square.push_back(hessian.At(i, i));
      mean += square.back() / static_cast<double>(width);
    }
    if (!(mean > 0.0) || !std::isfinite(mean)) {
      return std::vector<float>();
    }
    struct Linear {
      WeightSpec spec;
      std::vector<float> weights;
    };
    std::vector<Linear> linears;
    for (const std::string_view linear : LinearsOf(group)) {
      const std::string name = WeightName(block, linear);
      const auto found = std::ranges::find_if(
          weights_, [&](const WeightToWrite& weight) { return weight.name == name; });
      NIBBLE_CHECK(found != weights_.end(), "a weight that will be written");
      if (found->spec.kind == CodecKind::kFloat) {
        continue;
      }
      NIBBLE_TRY(values, ReadWeights(source_, *source_.Find(name), pool_));
      linears.push_back({.spec = found->spec, .weights = std::move(values)});
    }
    if (linears.empty()) {
      return std::vector<float>();
    }
    std::vector<float> best;
    double least = 0.0;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<float> scales = ScalesAt(kStep * step, group, square, mean);
      std::vector<float> importance;  // of the scaled inputs
      for (std::size_t i = 0; i < scales.size(); ++i) {
        const auto s = static_cast<double>(scales[i]);
        importance.push_back(static_cast<float>((square[i] / mean + 0.01) / (s * s)));
      }
      double error = 0.0;
      for (const Linear& linear : linears) {
        NIBBLE_TRY(change, ErrorAt(linear.spec, linear.weights, scales, importance, hessian));
        error += change;
      }
      if (step == 0 || error < least) {
        least = error;
        best = step == 0 ? std::vector<float>() : std::move(scales);
      }
    }
    return best;
  }

 private:
  std::vector<float> ScalesAt(double power, LinearGroup group, const std::vector<double>& square,
                              double mean) const {
    std::vector<float> scales;
    double log_sum = 0.0;
    for (const double value : square) {
      scales.push_back(static_cast<float>(std::pow(std::max(value / mean, 1e-6), power / 2.0)));
      log_sum += std::log(static_cast<double>(scales.back()));
    }
    const auto centre = static_cast<float>(std::exp(log_sum / static_cast<double>(scales.size())));
    for (float& scale : scales) {
      scale /= centre;
    }
    if (group == LinearGroup::kOutput) {
      ShareAcrossHeads(source_.config(), scales);
    }
    return scales;
  }

  // tr(E H E^T) of E = rounded(W s) / s - W.
  Result<double> ErrorAt(const WeightSpec& spec, const std::vector<float>& weights,
                         const std::vector<float>& scales, const std::vector<float>& importance,
                         const Hessian& hessian) const {
    const std::size_t width = scales.size();
    std::vector<float> e(weights.size());
    for (std::size_t i = 0; i < e.size(); ++i) {
      e[i] = weights[i] * scales[i % width];
    }
    NIBBLE_TRY(rounded, QuantizeWeighted(pool_, e, spec, importance, scale_dtype_));
    e = Dequantize(rounded);
    for (std::size_t i = 0; i < e.size(); ++i) {
      e[i] = e[i] / scales[i % width] - weights[i];
    }
    return QuadraticForm(pool_, e, hessian);
  }

  const Checkpoint& source_;
  std::span<const WeightToWrite> weights_;
  DType scale_dtype_;
  ThreadPool& pool_;
  std::optional<Hessian> hessian_;  // of the group's input
};

}  // namespace

Result<FoldedScales> SearchAwqScales(const Checkpoint& source,
                                     std::span<const WeightToWrite> weights,
                                     const CalibrationSet& calibration, DType scale_dtype,
                                     Device& device, const SolveProgress& progress) {
  AwqScaler scaler(source, weights, scale_dtype, device.pool());
  return FindGroupScales(source, calibration, scaler, device, progress);
}

std::uint64_t AwqBytes(const Checkpoint& source, std::int64_t max_rows) {
  std::uint64_t most = 0;
  for (const LinearGroup group : kLinearGroups) {
    const std::int64_t width = InputWidth(source.config(), group);
    std::uint64_t all = 0, largest = 0;
    std::int64_t rows = 0;
    for (const std::string_view linear : LinearsOf(group)) {
      const WeightSpec& spec = source.Find(WeightName(0, linear))->spec;
      const auto elements = static_cast<std::uint64_t>(spec.rows * spec.cols);
      all += elements;
      largest = std::max(largest, elements);
      rows = std::max(rows, spec.rows);
    }
    // H, E^T E and its panels, the group's matrices, and of one of them E, codes and values.
    most = std::max(most, Hessian::SizeBytes(width, max_rows) +
                              Hessian::SizeBytes(width, std::min(rows, kQuadraticFormRows)) +
                              all * sizeof(float) + largest * (2 * sizeof(float) + 1));
  }
  return most;
}

}  // namespace nibble
