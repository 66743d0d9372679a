#include "kernels/kernel_table.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace nibble {
namespace {

double Seconds() {
  return std::chrono::duration<double>(SystemClock().Now().time_since_epoch()).count();
}

}  // namespace

std::vector<KernelInfo> KernelTable() {
  using Source = std::vector<KernelInfo> (*)();
  constexpr Source kSources[] = {LinearKernelInfos, FloatKernelInfos};
  std::vector<KernelInfo> table;
  for (const Source source : kSources) {
    for (KernelInfo& info : source()) {
      table.push_back(std::move(info));
    }
  }
  return table;
}

double FractionOfLimit(const KernelSpeed& speed, const MachineLimits& limits) {
  if (speed.seconds <= 0.0) {
    return 0.0;
  }
  const auto fraction = [&](double work, double limit) {
    return limit > 0.0 ? 1e-9 * work / speed.seconds / limit : 0.0;
  };
  switch (speed.limit) {
    case KernelSpeed::Limit::kRead:
      return fraction(speed.bytes, limits.read_gb_per_s);
    case KernelSpeed::Limit::kInt8:
      return fraction(speed.ops * speed.limb_products, limits.int8_gop_per_s);
    case KernelSpeed::Limit::kF32:
      return fraction(speed.ops, limits.f32_gop_per_s);
  }
  return 0.0;
}

Timing MedianTime(double seconds, const std::function<void()>& run) {
  constexpr std::size_t kRuns = 10;
  run();
  std::vector<double> times;
  const double end = Seconds() + seconds;
  while (times.size() < kRuns || (Seconds() < end && times.size() < 10'000)) {
    const double begin = Seconds();
    run();
    times.push_back(Seconds() - begin);
  }
  std::ranges::sort(times);
  return {times[times.size() / 2], static_cast<int>(times.size())};
}

}  // namespace nibble
