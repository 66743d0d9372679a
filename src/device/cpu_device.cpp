#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <system_error>

#include "device/device.h"
#include "device/populate.h"

namespace nibble {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::optional<std::uint64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  std::string word;
  std::uint64_t value = 0;
  if (!(file >> word)) {
    return std::nullopt;
  }
  const auto parsed = std::from_chars(word.data(), word.data() + word.size(), value);
  return parsed.ec == std::errc{} ? std::optional(value) : std::nullopt;
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int num_threads)
      : pool_(num_threads > 0 ? num_threads : UsableCpuCount(), ThreadPool::Pinning::kCores) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  ThreadPool& pool() override { return pool_; }
  Event Record() override { return Event{++recorded_}; }
  bool IsComplete(Event) override { return true; }
  void Wait(Event) override {}
  bool CanCaptureSteps() const override { return false; }
  std::uint64_t AvailableBytes() const override { return AvailableMemoryBytes(); }
  std::uint64_t TotalBytes() const override {
    return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
           static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  }
  Result<void> FinishWrites() override { return {}; }
  Result<void> Read(std::byte* host, const std::byte* device, std::size_t bytes) override {
    std::memcpy(host, device, bytes);
    return {};
  }
  void Copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    std::memcpy(to, from, bytes);
  }

 protected:
  Result<std::span<std::byte>> Map(std::size_t bytes, Place) override {
    // Large ranges start on a huge page; the slack around them is given back at once, so that what
    // the last page would add to the plan is not taken.
    const bool large = bytes >= kHugePage;
    constexpr std::size_t kPage = 4096;
    const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    const std::size_t reserve = large ? rounded + kHugePage : rounded;
    void* raw = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
      return Fail(ErrorCode::kOutOfMemory, std::generic_category().message(errno));
    }
    auto* begin = static_cast<std::byte*>(raw);
    if (large) {
      const auto address = reinterpret_cast<std::uintptr_t>(begin);
      const std::size_t front = (kHugePage - address % kHugePage) % kHugePage;
      if (front > 0) {
        munmap(begin, front);
      }
      if (const std::size_t back = reserve - rounded - front; back > 0) {
        munmap(begin + front + rounded, back);
      }
      begin += front;
      madvise(begin, rounded, MADV_HUGEPAGE);
    }
    return std::span<std::byte>(begin, rounded);
  }

  void Unmap(std::span<std::byte> memory, Place) override { munmap(memory.data(), memory.size()); }
  std::byte* OpenWrite(std::byte* destination, std::size_t) override { return destination; }
  void CloseWrite(std::byte*, std::byte*, std::size_t) override {}

 private:
  ThreadPool pool_;
  std::uint64_t recorded_ = 0;
};

}  // namespace

MachineMemory ReadMachineMemory() {
  MachineMemory memory;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::string unit;
  std::uint64_t kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemTotal:") {
      memory.total_bytes = kib * 1024;
    }
    if (key == "MemAvailable:") {
      memory.available_bytes = kib * 1024;
      break;
    }
  }
  // "max", no number, is no limit.
  memory.cgroup_limit_bytes = ReadNumber("/sys/fs/cgroup/memory.max").value_or(0);
  memory.cgroup_used_bytes = ReadNumber("/sys/fs/cgroup/memory.current").value_or(0);
  return memory;
}

std::uint64_t AvailableMemoryBytes() {
  const MachineMemory memory = ReadMachineMemory();
  std::uint64_t available = memory.available_bytes > 0 ? memory.available_bytes
                                                       : std::numeric_limits<std::uint64_t>::max();
  if (memory.cgroup_limit_bytes > memory.cgroup_used_bytes) {
    available = std::min(available, memory.cgroup_limit_bytes - memory.cgroup_used_bytes);
  }
  return available;
}

std::uint64_t AnonymousBytes() {
  std::ifstream status("/proc/self/status");
  std::string key;
  std::uint64_t kib = 0;
  while (status >> key) {
    if (key == "RssAnon:" && status >> kib) {
      return kib * 1024;
    }
  }
  return 0;
}

void ReturnFreedMemory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

bool PopulatePages(std::byte* data, std::size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(data) / kPage * kPage;
  const auto end = reinterpret_cast<std::uintptr_t>(data) + bytes;
  return bytes == 0 ||
         madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE) == 0;
#else
  static_cast<void>(data);
  return bytes == 0;
#endif
}

std::unique_ptr<Device> MakeCpuDevice(int num_threads) {
  return std::make_unique<CpuDevice>(num_threads);
}

}  // namespace nibble
