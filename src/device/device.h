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

/// Whose memory: the device's own, or the host's that the device reads and writes by itself. On a
/// CPU both are the same.
enum class MemoryPlace : std::uint8_t { kDevice, kHost };

/// What each large allocation was planned to be and what it became. Every allocation names its
/// line.
class MemoryLedger {
 public:
  struct Line {
    std::string name;
    MemoryPlace place = MemoryPlace::kDevice;
    std::uint64_t planned_bytes = 0;
    std::uint64_t allocated_bytes = 0;
  };
  /// Adds to the plan of a line (created on first use, at `place`).
  void Plan(std::string_view line, std::uint64_t bytes, MemoryPlace place = MemoryPlace::kDevice);
  std::vector<Line> lines() const;
  std::uint64_t planned_bytes() const;
  std::uint64_t planned_bytes(MemoryPlace place) const;
  std::uint64_t allocated_bytes() const;
  /// After this, nothing large may be allocated: "ready".
  void Seal();
  bool sealed() const;

 private:
  friend class Device;
  Line& Find(std::string_view name, MemoryPlace place);
  mutable std::mutex mutex_;
  std::vector<Line> lines_;
  bool sealed_ = false;
};

class Device;

/// Where bytes for the device are prepared: on a CPU the destination itself, on CUDA a pinned
/// buffer whose content travels to the destination when this object is closed. Move-only, one
/// thread.
class DeviceWrite {
 public:
  DeviceWrite(DeviceWrite&& other) noexcept;
  DeviceWrite& operator=(DeviceWrite&&) = delete;
  ~DeviceWrite();
  std::byte* data() const { return staging_; }

 private:
  friend class Device;
  DeviceWrite(Device* device, std::byte* staging, std::byte* destination, std::size_t bytes)
      : device_(device), staging_(staging), destination_(destination), bytes_(bytes) {}
  Device* device_;
  std::byte* staging_;
  std::byte* destination_;
  std::size_t bytes_;
};

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
  bool host_ = false;
};

/// Completion of work on a queue, by a number that only grows.
enum class Event : std::uint64_t {};

/// A step that was recorded once and can be replayed (CUDA graphs).
enum class CapturedStep : std::int32_t {};

/// One compute device. The CPU executes a step when it is launched, so its events are always
/// complete; a CUDA device runs its queue asynchronously behind the same calls. Kernels are
/// plain functions that switch on kind() once in kernels/*.cpp: no virtual call per kernel.
class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;

  /// Zero-filled memory, aligned to 2 MiB when large. Errors: kOutOfMemory naming the line,
  /// kInternal after Seal.
  Result<DeviceBuffer> Allocate(std::string_view line, std::size_t bytes);
  /// The same in host memory that the device reads and writes by itself (pinned).
  Result<DeviceBuffer> AllocateHost(std::string_view line, std::size_t bytes);
  MemoryLedger& ledger() { return ledger_; }
  const MemoryLedger& ledger() const { return ledger_; }

  /// Bytes that may still be allocated: memory that the machine (its cgroup), or the card, has
  /// free.
  virtual std::uint64_t AvailableBytes() const = 0;
  /// All memory of the machine or card: what shares of it (--gpu-memory-utilization) refer to.
  virtual std::uint64_t TotalBytes() const = 0;

  /// The most bytes of one write: what a pinned buffer holds.
  static constexpr std::size_t kMaxWriteBytes = std::size_t{4} << 20;
  /// Opens a write of `bytes` at `destination` inside a buffer of this device; closed by the
  /// destructor. Any thread; steps that read the bytes must be launched after FinishWrites. In
  /// memory of AllocateHost it is a write to the place itself.
  DeviceWrite Write(std::byte* destination, std::size_t bytes);
  /// Waits until all closed writes have arrived. Errors: kUnavailable if the device failed.
  virtual Result<void> FinishWrites() = 0;
  /// Writes will go on: what they are staged in stays, as the line "staging (host)" of the plan.
  virtual void KeepStaging() {}
  /// Copies device memory to the host, after all work submitted so far. Slow: for evaluation and
  /// tests. Errors: kUnavailable if the device failed.
  virtual Result<void> Read(std::byte* host, const std::byte* device, std::size_t bytes) = 0;
  /// Copies between memory of this device, or from or to memory of AllocateHost, as a part of the
  /// steps' queue: after all work submitted so far, before what follows. Not while capturing. A
  /// failure is told by Health.
  virtual void Copy(std::byte* to, const std::byte* from, std::size_t bytes) = 0;
  /// The workers that CPU kernels, and the host side of other devices, run on.
  virtual ThreadPool& pool() = 0;

  /// Marks the end of the work submitted so far.
  virtual Event Record() = 0;
  virtual bool IsComplete(Event event) = 0;
  virtual void Wait(Event event) = 0;
  /// What went wrong with the work submitted so far, if anything did: kUnavailable. A CPU never
  /// fails.
  virtual Result<void> Health() { return {}; }

  /// Whether a whole step can be recorded once and replayed (CUDA graphs). The CPU's answer is no,
  /// and then the three calls below are bugs.
  virtual bool CanCaptureSteps() const = 0;
  /// Work submitted between the two is recorded, not run. Errors: kUnavailable.
  virtual void BeginCapture();
  virtual Result<CapturedStep> EndCapture();
  virtual void Replay(CapturedStep step);

 protected:
  using Place = MemoryPlace;
  virtual Result<std::span<std::byte>> Map(std::size_t bytes, Place place) = 0;
  virtual void Unmap(std::span<std::byte> memory, Place place) = 0;
  /// A staging range for `bytes` at `destination`, and its end.
  virtual std::byte* OpenWrite(std::byte* destination, std::size_t bytes) = 0;
  virtual void CloseWrite(std::byte* staging, std::byte* destination, std::size_t bytes) = 0;

 private:
  friend class DeviceBuffer;
  friend class DeviceWrite;
  Result<DeviceBuffer> AllocateAt(std::string_view line, std::size_t bytes, Place place);
  MemoryLedger ledger_;
};

/// Copies host bytes to `destination`, by as many writes as it takes.
void WriteBytes(Device& device, std::byte* destination, std::span<const std::byte> bytes);

/// num_threads: 0 for one worker per usable core.
std::unique_ptr<Device> MakeCpuDevice(int num_threads = 0);

/// The CUDA device `ordinal`, its host side on num_threads workers. Errors: kUnavailable saying
/// what is missing (a build without CUDA, the driver, a card, a card that is too old).
Result<std::unique_ptr<Device>> MakeCudaDevice(int ordinal, int num_threads = 0);

/// Memory of the machine and of the cgroup around this process; 0: unknown, or no limit.
struct MachineMemory {
  std::uint64_t total_bytes = 0;
  std::uint64_t available_bytes = 0;  // of the machine
  std::uint64_t cgroup_limit_bytes = 0;
  std::uint64_t cgroup_used_bytes = 0;
};
MachineMemory ReadMachineMemory();

/// Bytes of memory that the machine, and the cgroup around this process, still have to give.
std::uint64_t AvailableMemoryBytes();

/// Bytes that this process has for itself by now, mapped files left out; 0: unknown.
std::uint64_t AnonymousBytes();

/// Gives back to the machine what was freed: the allocator keeps some tens of MiB of it, which
/// would stand beside the device memory of what comes next.
void ReturnFreedMemory();

}  // namespace nibble
