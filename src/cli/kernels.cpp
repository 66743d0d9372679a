// nibble kernels: what this machine computes with, how fast, and whether it computes right.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "kernels/isa.h"
#include "kernels/kernel_table.h"
#include "kernels/limits_probe.h"

namespace nibble::cli {
namespace {

class KernelsCommand final : public Command {
 public:
  std::string name() const override { return "kernels"; }
  std::string summary() const override {
    return "List the kernels, their speed beside this machine's limits, or check them";
  }
  std::string description() const override {
    return "Measures every kernel variant that this machine runs, beside the memory and "
           "arithmetic\n"
           "limits measured in the same run.\n"
           "  nibble kernels                       the table (a minute)\n"
           "  nibble kernels --check               force each variant against the reference\n"
           "  nibble kernels --filter linear.w4    only names that contain this";
  }
  void Declare(OptionSet& options) override {
    options.Add("--check", &check_, "compare every variant with kernels/ref, bit for bit");
    options.Add("--list", &list_, "only list the table, measure nothing");
    options.Add("--filter", &filter_, "only kernels whose name contains this");
    options.Add("--seed", &seed_, "of the random shapes of --check");
  }
  Result<int> Run(const Environment& environment) override {
    std::vector<KernelInfo> table = KernelTable();
    std::erase_if(table, [&](const KernelInfo& info) {
      return info.name.find(filter_) == std::string::npos;
    });
    if (table.empty()) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("no kernel's name contains \"{}\"", filter_));
    }
    fmt::print("{}; kernels run at {}\n", DescribeCpu(), Name(CurrentIsa()));
    if (check_) {
      return Check(table);
    }
    if (list_) {
      for (const KernelInfo& info : table) {
        fmt::print("{:34} {:7} {}{}\n", info.name, Name(info.isa), info.accepts,
                   info.isa > DetectIsa() ? "  (not on this machine)" : "");
      }
      return kExitOk;
    }
    return Measure(table, environment);
  }

 private:
  int Check(const std::vector<KernelInfo>& table) const {
    int failed = 0;
    for (const KernelInfo& info : table) {
      const KernelReport report = info.check(static_cast<std::uint32_t>(seed_));
      failed += report.ok ? 0 : 1;
      const char* verdict = !report.ok ? "WRONG" : report.num_cases == 0 ? "skipped" : "ok";
      fmt::print("{:34} {:7} {:5} cases  {}{}{}\n", info.name, verdict, report.num_cases,
                 Name(info.isa), report.detail.empty() ? "" : ": ", report.detail);
      std::fflush(stdout);
    }
    fmt::print("{} variants, {} wrong\n", table.size(), failed);
    return failed == 0 ? kExitOk : kExitGate;
  }

  static int Measure(const std::vector<KernelInfo>& table, const Environment& environment) {
    const auto device = MakeCpuDevice(environment.num_threads);
    const MachineLimits limits = MeasureLimits(device->pool(), CurrentIsa());
    fmt::print(
        "{} threads: memory read {:.1f} GB/s ({:.1f} from one thread), int8 products {:.0f} GOP/s, "
        "fp32 FMA {:.0f} GFLOP/s\n",
        limits.num_threads, limits.read_gb_per_s, limits.read_gb_per_s_one, limits.int8_gop_per_s,
        limits.f32_gop_per_s);
    for (const KernelInfo& info : table) {
      if (info.isa > CurrentIsa()) {
        fmt::print("{:34} {}\n", info.name,
                   info.isa > DetectIsa() ? "not on this machine" : "above --isa");
        continue;
      }
      if (!info.bench) {
        fmt::print("{:34} {}\n", info.name, info.accepts);
        continue;
      }
      for (const KernelSpeed& speed : info.bench(*device)) {
        const double percent = 100.0 * FractionOfLimit(speed, limits);
        const char* limit = speed.limit == KernelSpeed::Limit::kRead   ? "memory read"
                            : speed.limit == KernelSpeed::Limit::kInt8 ? "int8 products"
                                                                       : "fp32 FMA";
        fmt::print(
            "{:34} {:28} {:8.2f} MB {:10.1f} us {:7.1f} GB/s {:8.1f} GOP/s  {:3.0f}% of {}\n",
            info.name, speed.shape, 1e-6 * speed.bytes, 1e6 * speed.seconds,
            1e-9 * speed.bytes / speed.seconds, 1e-9 * speed.ops / speed.seconds, percent, limit);
        std::fflush(stdout);
      }
    }
    return kExitOk;
  }

  bool check_ = false;
  bool list_ = false;
  std::string filter_;
  std::int64_t seed_ = 1;
};

}  // namespace

std::unique_ptr<Command> MakeKernelsCommand() { return std::make_unique<KernelsCommand>(); }

}  // namespace nibble::cli
