// nibble kernels: what this machine computes with, how fast, and whether it computes right.
#include "cli/kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/limits_text.h"
#include "json/value.h"
#include "kernels/isa.h"
#include "kernels/kernel_table.h"
#include "kernels/limits_probe.h"

namespace nibble::cli {
namespace {

// Prints measurements as a table while they are made, or collects them as JSON.
class Report {
 public:
  Report(bool json, std::function<double(const KernelSpeed&)> fraction)
      : json_(json), fraction_(std::move(fraction)) {}

  void Add(const std::string& name, const KernelSpeed& speed) {
    if (json_) {
      json::Object row;
      row.Set("kernel", name);
      row.Set("shape", speed.shape);
      if (speed.seconds > 0.0) {
        row.Set("bytes", speed.bytes);
        row.Set("operations", speed.ops);
        row.Set("seconds", speed.seconds);
        row.Set("runs", speed.num_runs);
        row.Set("gb_per_s", 1e-9 * speed.bytes / speed.seconds);
        row.Set("gop_per_s", 1e-9 * speed.ops / speed.seconds);
        row.Set("limit", LimitName(speed.limit));
        row.Set("fraction_of_limit", fraction_(speed));
      }
      rows_.push_back(std::move(row));
      return;
    }
    if (speed.seconds <= 0.0) {
      fmt::print("{:34} not measured: {}\n", name, speed.shape);
      return;
    }
    fmt::print("{:34} {:40} {:8.2f} MB {:10.1f} us {:7.1f} GB/s {:9.1f} GOP/s  {:3.0f}% of {}\n",
               name, speed.shape, 1e-6 * speed.bytes, 1e6 * speed.seconds,
               1e-9 * speed.bytes / speed.seconds, 1e-9 * speed.ops / speed.seconds,
               100.0 * fraction_(speed), LimitName(speed.limit));
    std::fflush(stdout);
  }
  void Note(const std::string& name, const std::string& text) const {
    if (!json_) {
      fmt::print("{:34} {}\n", name, text);
    }
  }
  void Finish(json::Object limits) {
    if (json_) {
      json::Object out;
      out.Set("limits", std::move(limits));
      out.Set("kernels", std::move(rows_));
      fmt::print("{}\n", json::Dump(out, {.indent = 1, .key_separator = ": "}));
    }
  }

 private:
  static const char* LimitName(KernelSpeed::Limit limit) {
    switch (limit) {
      case KernelSpeed::Limit::kRead:
        return "memory read";
      case KernelSpeed::Limit::kInt8:
        return "int8 products";
      case KernelSpeed::Limit::kF32:
        return "fp32 FMA";
      case KernelSpeed::Limit::kInt16:
        return "int16 products";
      case KernelSpeed::Limit::kF16:
        return "dense fp16";
      case KernelSpeed::Limit::kFp8:
        return "twice dense fp16";
    }
    return "";
  }
  bool json_;
  std::function<double(const KernelSpeed&)> fraction_;
  json::Array rows_;
};

Result<std::vector<KernelInfo>> Only(std::vector<KernelInfo> table, const std::string& filter) {
  std::erase_if(
      table, [&](const KernelInfo& info) { return info.name.find(filter) == std::string::npos; });
  if (table.empty()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("no kernel's name contains \"{}\"", filter));
  }
  return table;
}

Result<int> MeasureCpu(const KernelOptions& options, const Environment& environment) {
  NIBBLE_TRY(table, Only(KernelTable(), options.filter));
  const auto device = MakeCpuDevice(environment.num_threads);
  const MachineLimits limits = MeasureLimits(device->pool(), CurrentIsa());
  if (!options.json) {
    fmt::print("{}; kernels run at {}\n", DescribeCpu(), Name(CurrentIsa()));
    fmt::print(
        "{} threads: memory read {:.1f} GB/s ({:.1f} from one thread), int8 products {:.0f} GOP/s, "
        "fp32 FMA {:.0f} GFLOP/s, int16 products {:.0f} GOP/s\n",
        limits.num_threads, limits.read_gb_per_s, limits.read_gb_per_s_one, limits.int8_gop_per_s,
        limits.f32_gop_per_s, limits.int16_gop_per_s);
  }
  Report report(options.json,
                [&](const KernelSpeed& speed) { return FractionOfLimit(speed, limits); });
  for (const KernelInfo& info : table) {
    if (info.isa > CurrentIsa()) {
      report.Note(info.name, info.isa > DetectIsa() ? "not on this machine" : "above --isa");
    } else if (!info.bench) {
      report.Note(info.name, info.accepts);
    } else {
      for (const KernelSpeed& speed : info.bench(*device)) {
        report.Add(info.name, speed);
      }
    }
  }
  json::Object found = DescribeLimits(limits);
  found.Set("cpu", DescribeCpu());
  found.Set("isa", Name(CurrentIsa()));
  report.Finish(std::move(found));
  return kExitOk;
}

Result<int> MeasureCuda(const KernelOptions& options, const Environment& environment) {
  NIBBLE_TRY(device, MakeCudaDevice(0, environment.num_threads));
  NIBBLE_TRY(table, Only(CudaKernelInfos(), options.filter));
  NIBBLE_TRY(limits, MeasureCardLimits(*device));
  if (!options.json) {
    fmt::print("{}\n", DescribeLimitsInWords(limits));
  }
  Report report(options.json,
                [&](const KernelSpeed& speed) { return FractionOfLimit(speed, limits); });
  for (const KernelInfo& info : table) {
    for (const KernelSpeed& speed : info.bench(*device)) {
      report.Add(info.name, speed);
    }
  }
  NIBBLE_TRY_VOID(device->Health());
  report.Finish(DescribeLimits(limits));
  return kExitOk;
}

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
           "  nibble kernels --filter linear.w4    only names that contain this\n"
           "  nibble kernels --cuda                the card's kernels beside the card's limits";
  }
  void Declare(OptionSet& options) override {
    options.Add("--check", &check_, "compare every variant with kernels/ref, bit for bit");
    options.Add("--list", &list_, "only list the table, measure nothing");
    options.Text("--filter", &options_.filter, "only kernels whose name contains this");
    options.Add("--cuda", &options_.cuda, "the kernels of the card, on a layer of Llama-2-7B");
    options.Add("--json", &options_.json, "print one JSON object on standard output");
    options.Add("--seed", &seed_, "of the random shapes of --check");
  }
  Result<int> Run(const Environment& environment) override {
    if (!check_ && !list_) {
      return MeasureKernels(options_, environment);
    }
    if (options_.cuda && check_) {
      return Fail(ErrorCode::kUnsupported,
                  "--check knows the CPU's kernels; the card's are checked by kernels_cuda_test");
    }
    NIBBLE_TRY(table, Only(options_.cuda ? CudaKernelInfos() : KernelTable(), options_.filter));
    fmt::print("{}; kernels run at {}\n", DescribeCpu(), Name(CurrentIsa()));
    if (check_) {
      return Check(table);
    }
    for (const KernelInfo& info : table) {
      fmt::print("{:34} {:7} {}{}\n", info.name, options_.cuda ? "cuda" : Name(info.isa),
                 info.accepts, info.isa > DetectIsa() ? "  (not on this machine)" : "");
    }
    return kExitOk;
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

  bool check_ = false;
  bool list_ = false;
  KernelOptions options_;
  std::int64_t seed_ = 1;
};

}  // namespace

Result<int> MeasureKernels(const KernelOptions& options, const Environment& environment) {
  return options.cuda ? MeasureCuda(options, environment) : MeasureCpu(options, environment);
}

std::unique_ptr<Command> MakeKernelsCommand() { return std::make_unique<KernelsCommand>(); }

}  // namespace nibble::cli
