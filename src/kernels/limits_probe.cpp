#include "kernels/limits_probe.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "kernels/isa.h"
#include "kernels/limits_kernel.h"

namespace nibble {
namespace {

double Seconds() {
  return std::chrono::duration<double>(SystemClock().Now().time_since_epoch()).count();
}

void ReadScalar(const std::uint8_t* data, std::int64_t size_bytes) {
  std::uint64_t sum = 0;
  const auto* words = reinterpret_cast<const std::uint64_t*>(data);
  for (std::int64_t i = 0; i < size_bytes / 8; ++i) {
    sum ^= words[i];
  }
  volatile std::uint64_t keep = sum;
  static_cast<void>(keep);
}

LimitKernels KernelsOf(Isa isa) {
  if (isa >= Isa::kAvx512) {
    return Avx512LimitKernels();
  }
  if (isa == Isa::kAvx2) {
    return Avx2LimitKernels();
  }
  return {.isa = Isa::kRef,
          .read = ReadScalar,
          .int8_products = nullptr,
          .int8_ops_per_iteration = 0.0,
          .f32_fma = nullptr,
          .f32_ops_per_iteration = 0.0,
          .int16_products = nullptr,
          .int16_ops_per_iteration = 0.0};
}

// The highest rate of `work` units that one call of `run` reaches, over a time.
template <typename Run>
double BestRate(double work, double seconds, Run&& run) {
  double best = 0.0;
  const double end = Seconds() + seconds;
  int repeats = 0;
  while (repeats < 3 || Seconds() < end) {
    const double begin = Seconds();
    run();
    best = std::max(best, work / (Seconds() - begin));
    ++repeats;
  }
  return best;
}

}  // namespace

MachineLimits MeasureLimits(ThreadPool& pool, Isa isa, double seconds) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20;
  constexpr std::int64_t kIterations = 200'000;
  const LimitKernels kernels = KernelsOf(isa);
  const int workers = pool.num_workers();
  MachineLimits limits;
  limits.num_threads = workers;
  std::vector<std::uint8_t> memory(static_cast<std::size_t>(kBytes), std::uint8_t{1});
  const double part = seconds / 5.0;
  limits.read_gb_per_s_one =
      BestRate(1e-9 * kBytes / 2, part, [&] { kernels.read(memory.data(), kBytes / 2); });
  limits.read_gb_per_s = BestRate(1e-9 * kBytes, part, [&] {
    pool.Run([&](int worker) {
      const auto [begin, end] = pool.Share(kBytes, 4096, worker);
      kernels.read(memory.data() + begin, end - begin);
    });
  });
  if (kernels.int8_products != nullptr) {
    limits.int8_gop_per_s =
        BestRate(1e-9 * kernels.int8_ops_per_iteration * kIterations * workers, part,
                 [&] { pool.Run([&](int) { kernels.int8_products(kIterations); }); });
    limits.f32_gop_per_s =
        BestRate(1e-9 * kernels.f32_ops_per_iteration * kIterations * workers, part,
                 [&] { pool.Run([&](int) { kernels.f32_fma(kIterations); }); });
    limits.int16_gop_per_s =
        BestRate(1e-9 * kernels.int16_ops_per_iteration * kIterations * workers, part,
                 [&] { pool.Run([&](int) { kernels.int16_products(kIterations); }); });
  }
  return limits;
}

}  // namespace nibble
