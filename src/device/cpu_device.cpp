#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "device/device.h"

namespace nibble {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

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

 protected:
  Result<std::span<std::byte>> Map(std::size_t bytes) override {
    // Large ranges start on a huge page; the slack in front is given back at once.
    const bool large = bytes >= kHugePage;
    const std::size_t page = large ? kHugePage : std::size_t{4096};
    const std::size_t rounded = (bytes + page - 1) / page * page;
    const std::size_t reserve = large ? rounded + kHugePage : rounded;
    void* raw = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
      return Fail(ErrorCode::kOutOfMemory, std::strerror(errno));
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

  void Unmap(std::span<std::byte> memory) override { munmap(memory.data(), memory.size()); }

 private:
  ThreadPool pool_;
  std::uint64_t recorded_ = 0;
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(int num_threads) {
  return std::make_unique<CpuDevice>(num_threads);
}

}  // namespace nibble
