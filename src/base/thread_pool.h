#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace nibble {

/// CPUs this process may really use: the inherited affinity mask, one per physical core where the
/// mask offers siblings, cut by the cgroup's CPU quota (cpu.max). At least 1.
int UsableCpuCount();

/// A fixed team of workers for kernels. The thread that calls Run is worker 0; the others wait for
/// work with a bounded spin and then sleep in the kernel, so an idle pool costs nothing and a
/// descheduled worker cannot make the others burn its time slice. Run never nests, and only one
/// thread at a time may call it.
class ThreadPool {
 public:
  enum class Pinning { kNone, kCores };

  /// num_workers >= 1, the caller included. kCores pins workers 1.. to distinct cores if there are
  /// enough; the caller pins itself by PinCaller.
  explicit ThreadPool(int num_workers, Pinning pinning = Pinning::kNone);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_workers() const { return num_workers_; }
  /// Pins the calling thread to worker 0's core if the pool pins at all.
  void PinCaller() const;

  /// Calls body(worker) once on every worker, worker in [0, num_workers); returns when all have
  /// finished.
  template <typename Body>
  void Run(Body&& body) {
    using B = std::remove_reference_t<Body>;
    RunErased([](void* context, int worker) { (*static_cast<B*>(context))(worker); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

  /// Waits until every worker of the current Run has come here. Call it from inside a body, by all
  /// workers.
  void Barrier();

  /// The part [begin, end) of `total` items that belongs to `worker`, in multiples of `grain`
  /// items.
  std::pair<std::int64_t, std::int64_t> Share(std::int64_t total, std::int64_t grain,
                                              int worker) const;

  /// Splits [0, total) in chunks of `grain` and calls body(begin, end, worker). Which worker gets
  /// which chunk is not defined: a body must compute every item the same way wherever it runs.
  template <typename Body>
  void For(std::int64_t total, std::int64_t grain, Body&& body) {
    if (num_workers_ == 1 || total <= grain) {
      if (total > 0) {
        body(std::int64_t{0}, total, 0);
      }
      return;
    }
    std::atomic<std::int64_t> next{0};
    Run([&](int worker) {
      for (;;) {
        const std::int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= total) {
          return;
        }
        const std::int64_t end = begin + grain < total ? begin + grain : total;
        body(begin, end, worker);
      }
    });
  }

 private:
  using Task = void (*)(void* context, int worker);
  void RunErased(Task task, void* context);
  void WorkerLoop(int worker);

  struct alignas(64) Padded {
    std::atomic<std::uint32_t> value{0};
    std::atomic<std::uint32_t> sleepers{0};
  };

  int num_workers_;
  std::vector<int> cores_;  // by worker; empty: not pinned
  Task task_ = nullptr;
  void* context_ = nullptr;
  Padded epoch_;       // bumped to start work
  Padded pending_;     // workers still busy
  Padded generation_;  // of the barrier
  alignas(64) std::atomic<int> arrived_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace nibble
