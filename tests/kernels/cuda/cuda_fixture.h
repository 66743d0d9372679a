#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/cuda_device.h"
#include "kernels/step.h"
#include "tensor/float16.h"

namespace nibble::cuda {

/// Skips, with the reason, where there is no card.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeCudaDevice(0, 2);
    if (!device) {
      GTEST_SKIP() << device.error().message;
    }
    device_ = std::move(*device);
  }
  CudaDevice& device() { return static_cast<CudaDevice&>(*device_); }
  CUstream_st* stream() { return device().stream(); }

  template <typename T>
  DeviceBuffer Upload(const std::vector<T>& values) {
    auto buffer = device().Allocate("test", std::max<std::size_t>(1, values.size()) * sizeof(T));
    EXPECT_TRUE(buffer) << buffer.error().message;
    constexpr std::size_t kPiece = std::size_t{1} << 20;
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    for (std::size_t at = 0; at < values.size() * sizeof(T); at += kPiece) {
      const std::size_t count = std::min(kPiece, values.size() * sizeof(T) - at);
      const DeviceWrite write = device().Write(buffer->data() + at, count);
      std::memcpy(write.data(), bytes + at, count);
    }
    EXPECT_TRUE(device().FinishWrites());
    return std::move(*buffer);
  }
  /// A buffer of NaNs, so that what nobody writes is noticed.
  template <typename T>
  DeviceBuffer Poisoned(std::size_t count) {
    return Upload(std::vector<std::uint8_t>(count * sizeof(T), 0xff));
  }
  template <typename T>
  std::vector<T> Download(const DeviceBuffer& buffer, std::size_t count) {
    std::vector<T> values(count);
    const auto read = device().Read(reinterpret_cast<std::byte*>(values.data()), buffer.data(),
                                    count * sizeof(T));
    EXPECT_TRUE(read) << read.error().message;
    return values;
  }

 private:
  std::unique_ptr<Device> device_;
};

inline std::vector<std::uint16_t> ToHalf(const std::vector<float>& values) {
  std::vector<std::uint16_t> out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    out[i] = FloatToF16(values[i]);
  }
  return out;
}

inline std::vector<float> Normal(std::size_t count, float stddev, std::uint32_t seed,
                                 float outliers = 0.0F) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> out(count);
  for (float& v : out) {
    v = normal(rng);
    if (outliers > 0.0F && rng() % 1000 == 0) {
      v *= outliers;
    }
  }
  return out;
}

}  // namespace nibble::cuda
