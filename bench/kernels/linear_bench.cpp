// Speed of the linear layers, activation quantization and launch included, beside limits measured
// in the same run.
//   linear_bench [threads] [OUTxIN,...] [rows,...] [w4|w8|bf16|f32,...] [isa]
// Weights are streamed from at least 192 MB of distinct matrices, so that one row shows memory, not
// a cache.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/isa.h"
#include "kernels/limits_probe.h"
#include "kernels/linear.h"
#include "kernels/linear_table.h"
#include "kernels/pack.h"

namespace nibble {
namespace {

// With one thread: its own CPU time, which a busy machine disturbs least. Else wall time.
bool cpu_time = false;

double Seconds() {
  timespec now{};
  clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::vector<std::string> Split(std::string_view text, char at) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(at), text.size());
    parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(text.size(), end + 1));
  }
  return parts;
}

std::int64_t Number(std::string_view text) {
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

WeightSpec SpecOf(std::string_view format, std::int64_t rows, std::int64_t cols) {
  WeightSpec spec;
  spec.rows = rows;
  spec.cols = cols;
  if (format == "f32" || format == "bf16" || format == "f16") {
    spec.float_dtype = format == "f32"    ? DType::kF32
                       : format == "bf16" ? DType::kBF16
                                          : DType::kF16;
    return spec;
  }
  spec.kind = CodecKind::kUniform;
  spec.bits = format.starts_with("w8") ? 8 : 4;
  spec.group_size = format.ends_with("g32") ? 32 : 64;
  return spec;
}

void Bench(Device& device, const MachineLimits& limits, std::string_view format, std::int64_t out,
           std::int64_t in, std::int64_t rows, ActivationMode mode) {
  const WeightSpec spec = SpecOf(format, out, in);
  const std::size_t bytes = *PackedSizeBytes(device, spec);
  const std::size_t copies = std::max<std::size_t>(1, (std::size_t{192} << 20) / bytes + 1);
  std::vector<std::byte> memory(bytes * copies + 64);
  std::mt19937_64 rng(1);
  auto* words = reinterpret_cast<std::uint64_t*>(memory.data());
  for (std::size_t i = 0; i < memory.size() / 8; ++i) {
    words[i] = rng() & 0x3b3b3b3b3b3b3b3bU;  // no infinities among the scales
  }
  std::byte* base =
      memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  std::vector<PackedWeight> weights;
  for (std::size_t i = 0; i + 1 <= copies && (i + 1) * bytes + 64 <= memory.size(); ++i) {
    weights.push_back({spec, base + i * bytes, bytes});
  }
  std::vector<float> x(static_cast<std::size_t>(rows * in));
  std::normal_distribution<float> normal;
  for (float& v : x) {
    v = normal(rng);
  }
  std::vector<float> y(static_cast<std::size_t>(rows * out));
  auto scratch = device.Allocate("bench", LinearScratchBytes(device, rows, in));
  KernelContext context{.device = &device,
                        .scratch = scratch->data(),
                        .scratch_bytes = scratch->size_bytes(),
                        .activations = mode};
  std::size_t next = 0;
  const auto once = [&] {
    const LinearOutput output{&weights[next], y.data(), out};
    next = (next + 1) % weights.size();
    Linear(context, x.data(), in, rows, {&output, 1});
  };
  double begin = Seconds();
  once();
  once();
  // A sample is about 1 ms of launches; the median of 31.
  const double one = (Seconds() - begin) / 2;
  const int launches = std::max(1, static_cast<int>(1e-3 / one));
  std::vector<double> times;
  for (int i = 0; i < 31; ++i) {
    begin = Seconds();
    for (int j = 0; j < launches; ++j) {
      once();
    }
    times.push_back((Seconds() - begin) / launches);
  }
  std::ranges::sort(times);
  const double t = times[times.size() / 2];
  const double gb = static_cast<double>(bytes) / t / 1e9;
  const double gop = 2.0 * static_cast<double>(rows * out * in) / t / 1e9;
  const auto layout = LayoutOf(spec);
  const bool floats = spec.kind == CodecKind::kFloat;
  const bool int16 = mode == ActivationMode::kInt16;
  const double peak = floats  ? limits.f32_gop_per_s
                      : int16 ? limits.int8_gop_per_s / 2
                              : limits.int8_gop_per_s;
  const auto& kernel = SelectLinear(CurrentIsa(), layout->format,
                                    floats  ? LinearActivation::kF32
                                    : int16 ? LinearActivation::kInt16
                                            : LinearActivation::kInt8,
                                    rows);
  fmt::print(
      "{:32} out={:<6} in={:<5} rows={:<4} {:7.2f} MB {:9.1f} us (best {:9.1f}) {:6.1f} GB/s "
      "{:3.0f}% of "
      "read {:7.1f} GOP/s {:3.0f}% of peak\n",
      kernel.name, out, in, rows, static_cast<double>(bytes) / 1e6, t * 1e6, times.front() * 1e6,
      gb, 100.0 * gb / limits.read_gb_per_s, gop, 100.0 * gop / peak);
  std::fflush(stdout);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  const auto argument = [&](int i, const char* otherwise) {
    return std::string(argc > i ? argv[i] : otherwise);
  };
  const auto device = MakeCpuDevice(static_cast<int>(Number(argument(1, "0"))));
  cpu_time = device->pool().num_workers() == 1;
  if (const auto isa = ParseIsa(argument(5, "")); isa) {
    ForceIsa(*isa);
  }
  const MachineLimits limits = MeasureLimits(device->pool(), CurrentIsa());
  fmt::print(
      "{}; {} threads at {}: read {:.1f} GB/s (one thread {:.1f}), int8 {:.0f} GOP/s, fp32 {:.0f} "
      "GFLOP/s\n",
      DescribeCpu(), limits.num_threads, Name(CurrentIsa()), limits.read_gb_per_s,
      limits.read_gb_per_s_one, limits.int8_gop_per_s, limits.f32_gop_per_s);
  for (const auto& format : Split(argument(4, "w4,w8"), ',')) {
    for (const auto& shape :
         Split(argument(2, "2048x2048,8192x2048,2048x8192,576x576,1536x576,576x1536"), ',')) {
      const auto sides = Split(shape, 'x');
      for (const auto& rows : Split(argument(3, "1,8,32,512"), ',')) {
        for (const auto mode : {ActivationMode::kInt16, ActivationMode::kInt8}) {
          if (mode == ActivationMode::kInt8 && !format.starts_with("w")) {
            continue;
          }
          Bench(*device, limits, format, Number(sides[0]), Number(sides[1]), Number(rows), mode);
        }
      }
    }
  }
  return 0;
}
