#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"

namespace nibble {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

/// What each large allocation was planned to be and what it became. Every allocation names its
/// line.
class MemoryLedger {
 public:
  struct Line {
    std::string name;
    std::uint64_t planned_bytes = 0;
    std::uint64_t allocated_bytes = 0;
  };
  /// Adds to the plan of a line (created on first use).
  void Plan(std::string_view line, std::uint64_t bytes);
  std::vector<Line> lines() const;
  std::uint64_t planned_bytes() const;
  std::uint64_t allocated_bytes() const;
  /// After this, nothing large may be allocated: "ready".
  void Seal();
  bool sealed() const;

 private:
  friend class Device;
  Line& Find(std::string_view name);
  mutable std::mutex mutex_;
  std::vector<Line> lines_;
  bool sealed_ = false;
};

class Device;

/// A range of device memory with a fixed address for its whole life. Move-only.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  std::byte* data() const { return data_; }
  std::size_t size_bytes() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  friend class Device;
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t mapped_ = 0;
};

/// Completion of work on a queue, by a number that only grows.
enum class Event : std::uint64_t {};

/// One compute device. The CPU executes a step when it is launched, so its events are always
/// complete; a CUDA device will run its queue asynchronously behind the same calls. Kernels are
/// plain functions that switch on kind() once in kernels/*.cpp: no virtual call per kernel.
class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;

  /// Zero-filled memory, aligned to 2 MiB when large. Errors: kOutOfMemory naming the line,
  /// kInternal after Seal.
  Result<DeviceBuffer> Allocate(std::string_view line, std::size_t bytes);
  MemoryLedger& ledger() { return ledger_; }
  /// The workers that CPU kernels, and the host side of other devices, run on.
  virtual ThreadPool& pool() = 0;

  /// Marks the end of the work submitted so far.
  virtual Event Record() = 0;
  virtual bool IsComplete(Event event) = 0;
  virtual void Wait(Event event) = 0;
  /// Whether a whole step can be recorded once and replayed (CUDA graphs). The CPU's answer is no.
  virtual bool CanCaptureSteps() const = 0;

 protected:
  virtual Result<std::span<std::byte>> Map(std::size_t bytes) = 0;
  virtual void Unmap(std::span<std::byte> memory) = 0;

 private:
  friend class DeviceBuffer;
  MemoryLedger ledger_;
};

/// num_threads: 0 for one worker per usable core.
std::unique_ptr<Device> MakeCpuDevice(int num_threads = 0);

}  // namespace nibble
