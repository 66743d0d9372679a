#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "model/llama.h"

namespace nibble {
namespace {

// Inverse frequencies theta^(-2i/d), fp32 as the reference implementations hold them, then scaled
// by the rope type.
std::vector<float> InverseFrequencies(const RopeConfig& rope, std::int64_t head_dim) {
  const std::int64_t half = head_dim / 2;
  std::vector<float> inverse(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inverse[static_cast<std::size_t>(i)] =
        1.0F / static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
  }
  const auto d = static_cast<double>(head_dim);
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (float& f : inverse) {
        f /= static_cast<float>(rope.factor);
      }
      break;
    case RopeType::kLlama3: {
      // Llama 3.1: long waves are slowed by `factor`, short ones kept, between them a smooth blend.
      const double low_wave = rope.original_max_position_embeddings / rope.low_freq_factor;
      const double high_wave = rope.original_max_position_embeddings / rope.high_freq_factor;
      for (float& f : inverse) {
        const double wave = 2.0 * std::numbers::pi / static_cast<double>(f);
        if (wave > low_wave) {
          f = static_cast<float>(static_cast<double>(f) / rope.factor);
        } else if (wave >= high_wave) {
          const double smooth =
              (rope.original_max_position_embeddings / wave - rope.low_freq_factor) /
              (rope.high_freq_factor - rope.low_freq_factor);
          const auto value = static_cast<double>(f);
          f = static_cast<float>((1.0 - smooth) * value / rope.factor + smooth * value);
        }
      }
      break;
    }
    case RopeType::kYarn: {
      // YaRN (Peng et al. 2023, section 3): interpolate slow dimensions, keep fast ones.
      const auto correction = [&](double rotations) {
        return d *
               std::log(rope.original_max_position_embeddings /
                        (rotations * 2.0 * std::numbers::pi)) /
               (2.0 * std::log(rope.theta));
      };
      double low = correction(rope.beta_fast);
      double high = correction(rope.beta_slow);
      if (rope.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
      }
      low = std::max(low, 0.0);
      high = std::min(high, d - 1.0);
      if (low == high) {
        high += 0.001;
      }
      for (std::int64_t i = 0; i < half; ++i) {
        float& f = inverse[static_cast<std::size_t>(i)];
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        const auto value = static_cast<double>(f);
        f = static_cast<float>(value / rope.factor * ramp + value * (1.0 - ramp));
      }
      break;
    }
  }
  return inverse;
}

}  // namespace

void FillRopeTable(const RopeConfig& rope, std::int64_t head_dim, std::int64_t max_positions,
                   float* cos_sin) {
  const std::vector<float> inverse = InverseFrequencies(rope, head_dim);
  const std::int64_t half = head_dim / 2;
  double attention_factor = 1.0;
  if (rope.type == RopeType::kYarn) {
    attention_factor =
        rope.attention_factor.value_or(rope.factor > 1.0 ? 0.1 * std::log(rope.factor) + 1.0 : 1.0);
  }
  for (std::int64_t position = 0; position < max_positions; ++position) {
    float* row = cos_sin + position * head_dim;
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * inverse[static_cast<std::size_t>(i)];
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * attention_factor);
      row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * attention_factor);
    }
  }
}

}  // namespace nibble
