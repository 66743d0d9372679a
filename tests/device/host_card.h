#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>

#include "device/cuda_device.h"

namespace nibble::testing {

/// Says that it is a card and keeps its memory on the host: for what is decided and packed before a
/// kernel runs. Writes go through buffers of their own, as a card's do.
class HostCard final : public CudaDevice {
 public:
  explicit HostCard(std::uint64_t total_bytes = std::uint64_t{80} << 30)
      : total_bytes_(total_bytes) {}

  std::uint64_t AvailableBytes() const override { return total_bytes_; }
  std::uint64_t TotalBytes() const override { return total_bytes_; }
  Result<void> FinishWrites() override { return {}; }
  Result<void> Read(std::byte* host, const std::byte* device, std::size_t bytes) override {
    std::copy_n(device, bytes, host);
    return {};
  }
  void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    std::copy_n(from, bytes, to);
  }
  ThreadPool& pool() override { return pool_; }
  Event Record() override { return Event{0}; }
  bool IsComplete(Event) override { return true; }
  void Wait(Event) override {}
  bool CanCaptureSteps() const override { return true; }

  CUstream_st* stream() const override { return nullptr; }
  CUstream_st* copy_stream() const override { return nullptr; }
  int num_sms() const override { return 132; }
  int compute_capability() const override { return 90; }
  void NoteError(int, const char*) override {}
  bool capturing() const override { return false; }
  void BetweenKernels(std::function<void()> work) override { work(); }

  /// Of the writes so far.
  std::size_t largest_write() const { return largest_write_; }

 protected:
  Result<std::span<std::byte>> Map(std::size_t bytes, Place) override {
    auto* const data = static_cast<std::byte*>(::operator new(bytes));
    std::fill_n(data, bytes, std::byte{0});
    return std::span(data, bytes);
  }
  void Unmap(std::span<std::byte> memory, Place) override { ::operator delete(memory.data()); }
  std::byte* OpenWrite(std::byte*, std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    largest_write_ = std::max(largest_write_, bytes);
    return static_cast<std::byte*>(::operator new(bytes));
  }
  void CloseWrite(std::byte* data, std::byte* destination, std::size_t bytes) override {
    std::copy_n(data, bytes, destination);
    ::operator delete(data);
  }

 private:
  const std::uint64_t total_bytes_;
  ThreadPool pool_{1};
  std::mutex mutex_;
  std::size_t largest_write_ = 0;
};

}  // namespace nibble::testing
