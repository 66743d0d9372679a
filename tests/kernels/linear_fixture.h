#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "tensor/float16.h"

namespace nibble {

/// A random weight of a spec. Scales, minima and float values are exact in f16, or use all of f32
/// if the spec says so.
inline QuantizedTensor RandomWeight(const WeightSpec& spec, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  const auto elements = static_cast<std::size_t>(spec.rows * spec.cols);
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  const auto half = [](float v) { return F16ToFloat(FloatToF16(v)); };
  const auto scale_of = [&](float v) { return spec.has_f32_scales ? v : half(v); };
  QuantizedTensor t;
  t.spec = spec;
  if (spec.kind == CodecKind::kFloat) {
    t.values.resize(elements);
    for (float& v : t.values) {
      v = spec.float_dtype == DType::kF32    ? normal(rng)
          : spec.float_dtype == DType::kBF16 ? BF16ToFloat(FloatToBF16(normal(rng)))
                                             : half(normal(rng));
    }
    return t;
  }
  const auto mask = static_cast<std::uint8_t>((1 << spec.bits) - 1);
  t.codes.resize(elements);
  for (auto& code : t.codes) {
    do {
      code = static_cast<std::uint8_t>(rng() & mask);
    } while (IsNan(spec.codebook, code));
  }
  t.scales.resize(groups);
  for (float& s : t.scales) {
    s = scale_of(normal(rng) / 8.0F);
  }
  if (spec.has_zero_points) {
    t.zero_points.resize(groups);
    for (auto& z : t.zero_points) {
      z = static_cast<std::uint8_t>(rng() & mask);
    }
  }
  if (spec.kind == CodecKind::kMinimum) {
    t.minima.resize(groups);
    for (float& m : t.minima) {
      m = scale_of(normal(rng));
    }
  }
  return t;
}

/// Rows of normal values with one outlier each.
inline std::vector<float> RandomActivations(std::int64_t rows, std::int64_t cols,
                                            std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(rows * cols));
  for (float& v : x) {
    v = normal(rng);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    x[static_cast<std::size_t>(
        row * cols + static_cast<std::int64_t>(rng() % static_cast<std::uint32_t>(cols)))] *= 20.0F;
  }
  return x;
}

struct Packed {
  std::vector<std::byte> memory;
  PackedWeight weight;
};

inline Result<Packed> PackAll(Device& device, const QuantizedTensor& tensor) {
  NIBBLE_TRY(bytes, PackedSizeBytes(device, tensor.spec));
  Packed packed;
  packed.memory.resize(bytes);
  packed.weight = {.spec = tensor.spec, .data = packed.memory.data(), .size_bytes = bytes};
  NIBBLE_TRY_VOID(PackRows(device, tensor, 0, packed.weight));
  return packed;
}

/// A CPU device of `num_threads` workers with scratch for `max_tokens` x `max_cols`.
class LinearRunner {
 public:
  LinearRunner(int num_threads, std::int64_t max_tokens, std::int64_t max_cols)
      : device_(MakeCpuDevice(num_threads)),
        scratch_(LinearScratchBytes(*device_, max_tokens, max_cols) + 64) {
    const auto address = reinterpret_cast<std::uintptr_t>(scratch_.data());
    const std::size_t skip = (64 - address % 64) % 64;
    context_ = {.device = device_.get(),
                .scratch = scratch_.data() + skip,
                .scratch_bytes = scratch_.size() - skip};
  }
  Device& device() { return *device_; }
  KernelContext& context() { return context_; }

  std::vector<float> Run(const PackedWeight& weight, const std::vector<float>& x,
                         std::int64_t num_tokens, ActivationMode mode) {
    std::vector<float> y(static_cast<std::size_t>(num_tokens * weight.spec.rows));
    context_.activations = mode;
    const LinearOutput output{.weight = &weight, .y = y.data(), .y_stride = weight.spec.rows};
    Linear(context_, x.data(), weight.spec.cols, num_tokens, {&output, 1});
    return y;
  }

 private:
  std::unique_ptr<Device> device_;
  std::vector<std::byte> scratch_;
  KernelContext context_;
};

/// Whether two vectors hold the same bits; NaNs are all alike.
inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i]) ||
        (!std::isnan(a[i]) && std::memcmp(&a[i], &b[i], sizeof(float)) != 0)) {
      return false;
    }
  }
  return true;
}

}  // namespace nibble
