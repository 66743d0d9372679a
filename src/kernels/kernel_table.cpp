#include "kernels/kernel_table.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace nibble {
namespace {

double Seconds() {
  return std::chrono::duration<double>(SystemClock().Now().time_since_epoch()).count();
}

double Fraction(double work, double seconds, double limit_giga) {
  return seconds > 0.0 && limit_giga > 0.0 ? 1e-9 * work / seconds / limit_giga : 0.0;
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
  switch (speed.limit) {
    case KernelSpeed::Limit::kRead:
      return Fraction(speed.bytes, speed.seconds, limits.read_gb_per_s);
    case KernelSpeed::Limit::kInt8:
      return Fraction(speed.ops * speed.limb_products, speed.seconds, limits.int8_gop_per_s);
    case KernelSpeed::Limit::kF32:
      return Fraction(speed.ops, speed.seconds, limits.f32_gop_per_s);
    case KernelSpeed::Limit::kInt16:
      return Fraction(speed.ops, speed.seconds, limits.int16_gop_per_s);
    case KernelSpeed::Limit::kF16:
    case KernelSpeed::Limit::kFp8:
      break;  // no CPU kernel multiplies those
  }
  return 0.0;
}

double FractionOfLimit(const KernelSpeed& speed, const CardLimits& limits) {
  if (speed.limit == KernelSpeed::Limit::kRead) {
    return Fraction(speed.bytes, speed.seconds, limits.read_gb_per_s);
  }
  const double rate_of_f16 = speed.limit == KernelSpeed::Limit::kFp8 ? 2.0 : 1.0;
  return Fraction(speed.ops, speed.seconds, rate_of_f16 * limits.f16_gflop_per_s);
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
