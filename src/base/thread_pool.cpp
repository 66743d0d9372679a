#include "base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <limits>
#include <set>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

// Long enough to bridge the gaps inside a step, short enough not to hurt a shared machine: a futex
// pair costs 33 to 40 us on a virtual machine, natural jitter between two workers is a few us.
constexpr auto kSpin = std::chrono::microseconds(50);

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

void FutexWait(std::atomic<std::uint32_t>& word, std::uint32_t expected) {
  static_assert(sizeof(word) == sizeof(std::uint32_t));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void FutexWakeAll(std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, std::numeric_limits<int>::max(), nullptr, nullptr,
          0);
}

// Waits until done(word) holds: spin a bounded time, then sleep until the word changes.
template <typename Word, typename Done>
std::uint32_t WaitUntil(Word& padded, Done&& done) {
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t value = padded.value.load(std::memory_order_acquire);
      if (done(value)) {
        return value;
      }
      Pause();
    }
    if (std::chrono::steady_clock::now() - begin > kSpin) {
      break;
    }
  }
  padded.sleepers.fetch_add(1, std::memory_order_seq_cst);
  std::uint32_t value = padded.value.load(std::memory_order_seq_cst);
  while (!done(value)) {
    FutexWait(padded.value, value);
    value = padded.value.load(std::memory_order_seq_cst);
  }
  padded.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  return value;
}

template <typename Word>
void Wake(Word& padded) {
  if (padded.sleepers.load(std::memory_order_seq_cst) != 0) {
    FutexWakeAll(padded.value);
  }
}

// One CPU per physical core out of the affinity mask, in order.
std::vector<int> PhysicalCores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) {
    return cores;
  }
  std::set<std::string> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) {
      continue;
    }
    std::ifstream siblings("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                           "/topology/thread_siblings_list");
    std::string list;
    if (std::getline(siblings, list) && !seen.insert(list).second) {
      continue;
    }
    cores.push_back(cpu);
  }
  return cores;
}

// CPUs' worth of time that the cgroup grants; 0 if unlimited or unknown.
int CgroupQuota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  long period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) {
    return 0;
  }
  long value = 0;
  const auto parsed = std::from_chars(quota.data(), quota.data() + quota.size(), value);
  if (parsed.ec != std::errc{} || value <= 0) {
    return 0;
  }
  return static_cast<int>(std::max(1L, value / period));
}

void PinTo(pthread_t thread, int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(static_cast<unsigned>(cpu), &mask);
  pthread_setaffinity_np(thread, sizeof mask, &mask);
}

}  // namespace

int UsableCpuCount() {
  int count = static_cast<int>(PhysicalCores().size());
  if (const int quota = CgroupQuota(); quota > 0) {
    count = std::min(count, quota);
  }
  return std::max(1, count);
}

ThreadPool::ThreadPool(int num_workers, Pinning pinning) : num_workers_(std::max(1, num_workers)) {
  if (pinning == Pinning::kCores) {
    cores_ = PhysicalCores();
    if (static_cast<int>(cores_.size()) < num_workers_) {
      cores_.clear();
    }
  }
  for (int worker = 1; worker < num_workers_; ++worker) {
    threads_.emplace_back([this, worker] { WorkerLoop(worker); });
    if (!cores_.empty()) {
      PinTo(threads_.back().native_handle(), cores_[static_cast<std::size_t>(worker)]);
    }
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_seq_cst);
  epoch_.value.fetch_add(1, std::memory_order_seq_cst);
  FutexWakeAll(epoch_.value);
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void ThreadPool::PinCaller() const {
  if (!cores_.empty()) {
    PinTo(pthread_self(), cores_.front());
  }
}

void ThreadPool::RunErased(Task task, void* context) {
  if (num_workers_ == 1) {
    task(context, 0);
    return;
  }
  task_ = task;
  context_ = context;
  pending_.value.store(static_cast<std::uint32_t>(num_workers_ - 1), std::memory_order_relaxed);
  epoch_.value.fetch_add(1, std::memory_order_seq_cst);
  Wake(epoch_);
  task(context, 0);
  WaitUntil(pending_, [](std::uint32_t pending) { return pending == 0; });
}

void ThreadPool::WorkerLoop(int worker) {
  std::uint32_t seen = 0;
  for (;;) {
    seen = WaitUntil(epoch_, [&](std::uint32_t epoch) { return epoch != seen; });
    if (stop_.load(std::memory_order_seq_cst)) {
      return;
    }
    task_(context_, worker);
    if (pending_.value.fetch_sub(1, std::memory_order_seq_cst) == 1) {
      Wake(pending_);
    }
  }
}

void ThreadPool::Barrier() {
  if (num_workers_ == 1) {
    return;
  }
  const std::uint32_t generation = generation_.value.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_workers_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.value.fetch_add(1, std::memory_order_seq_cst);
    Wake(generation_);
    return;
  }
  WaitUntil(generation_, [&](std::uint32_t now) { return now != generation; });
}

std::pair<std::int64_t, std::int64_t> ThreadPool::Share(std::int64_t total, std::int64_t grain,
                                                        int worker) const {
  const std::int64_t units = (total + grain - 1) / grain;
  const auto edge = [&](std::int64_t w) {
    return std::min(total, units * w / num_workers_ * grain);
  };
  return {edge(worker), edge(worker + 1)};
}

}  // namespace nibble
