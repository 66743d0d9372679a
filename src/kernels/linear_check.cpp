#include "kernels/linear_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "codec/quantized_tensor.h"
#include "kernels/isa.h"
#include "kernels/linear_table.h"
#include "kernels/pack.h"

namespace nibble {
namespace {

// Bytes whose start is aligned to 64.
class Aligned {
 public:
  explicit Aligned(std::size_t bytes) : memory_(bytes + 64) {}
  std::byte* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (64 - address % 64) % 64;
  }
  std::uint8_t* bytes() { return reinterpret_cast<std::uint8_t*>(data()); }

 private:
  std::vector<std::byte> memory_;
};

// Random bytes in which no 16-bit or 32-bit float is infinite or huge: the top two bits of every
// exponent are never both set.
void FillWeights(std::uint8_t* data, std::size_t bytes, std::mt19937_64& rng) {
  for (std::size_t i = 0; i < bytes; ++i) {
    data[i] = static_cast<std::uint8_t>(rng() & 0xbfU);
  }
}

WeightSpec SpecOf(LinearFormat format, LinearGrid grid, std::int64_t group, bool f32_scales,
                  std::int64_t rows, std::int64_t cols) {
  WeightSpec spec;
  spec.rows = rows;
  spec.cols = cols;
  switch (format) {
    case LinearFormat::kF32:
      spec.float_dtype = DType::kF32;
      return spec;
    case LinearFormat::kF16:
      spec.float_dtype = DType::kF16;
      return spec;
    case LinearFormat::kBF16:
      spec.float_dtype = DType::kBF16;
      return spec;
    case LinearFormat::kNf4:
      spec.codebook = Codebook::kNf4;
      break;
    case LinearFormat::kFp8:
      spec.codebook = Codebook::kFp8E4M3;
      break;
    case LinearFormat::kW4:
    case LinearFormat::kW8:
      break;
  }
  spec.kind = spec.codebook != Codebook::kNone ? CodecKind::kCodebook
              : grid == LinearGrid::kMinima    ? CodecKind::kMinimum
                                               : CodecKind::kUniform;
  spec.bits = HasFourBits(format) ? 4 : 8;
  spec.group_size = std::min(group, cols);
  spec.has_zero_points = grid == LinearGrid::kZeroPoints;
  spec.has_f32_scales = f32_scales;
  return spec;
}

std::vector<float> RandomRows(std::int64_t rows, std::int64_t cols, std::mt19937_64& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(rows * cols));
  for (float& v : x) {
    v = normal(rng);
  }
  if (rows > 2) {
    std::fill_n(x.begin() + cols, cols, 0.0F);  // a row of zeros
  }
  return x;
}

bool SameFloat(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

const LinearKernel& ReferenceOf(const LinearKernel& kernel) {
  return SelectLinear(Isa::kRef, kernel.format, kernel.activation, 1);
}

KernelReport NotHere(Isa isa) {
  return {.ok = true, .num_cases = 0, .detail = fmt::format("this machine has no {}", Name(isa))};
}

}  // namespace

KernelReport CheckLinearKernel(const LinearKernel& kernel, std::uint32_t seed) {
  if (kernel.isa > DetectIsa()) {
    return NotHere(kernel.isa);
  }
  struct Size {
    std::int64_t rows, cols;
  };
  constexpr Size kSizes[] = {{1, 32}, {17, 100}, {48, 96}, {33, 328}, {70, 192}};
  constexpr std::int64_t kTokens[] = {1, 2, 3, 4, 5, 7, 16, 33};
  const bool floats = kernel.activation == LinearActivation::kF32;
  const bool codes = kernel.format == LinearFormat::kNf4 || kernel.format == LinearFormat::kFp8;
  std::mt19937_64 rng(seed);
  KernelReport report;
  Aligned scratch(static_cast<std::size_t>(kLinearKernelScratchBytes));
  for (const LinearGrid grid :
       {LinearGrid::kSymmetric, LinearGrid::kZeroPoints, LinearGrid::kMinima}) {
    for (const std::int64_t group : {std::int64_t{32}, std::int64_t{64}, std::int64_t{1} << 20}) {
      if (floats && (grid != LinearGrid::kSymmetric || (!codes && group != 64))) {
        continue;
      }
      for (const Size shape : kSizes) {
        // Every other case with f32 scales: the seeds of repeated checks move them around.
        const bool f32_scales = rng() % 2 == 1;
        const WeightSpec spec =
            SpecOf(kernel.format, grid, group, f32_scales, shape.rows, shape.cols);
        const auto layout = LayoutOf(spec);
        if (!layout) {
          continue;  // a group that does not fit this width
        }
        const auto bytes = static_cast<std::size_t>(layout->num_panels * layout->panel_bytes);
        Aligned weight(bytes);
        FillWeights(weight.bytes(), bytes, rng);
        for (const std::int64_t tokens : kTokens) {
          if (tokens < kernel.min_rows || tokens > kernel.max_rows) {
            continue;
          }
          const std::vector<float> x = RandomRows(tokens, shape.cols, rng);
          Aligned packed_memory(ActivationBytes(kernel.activation, tokens, shape.cols));
          LinearCall call;
          call.layout = *layout;
          call.weight = weight.bytes();
          call.x = PlaceActivations(kernel.activation, tokens, shape.cols, packed_memory.data());
          SelectActivation(Isa::kRef, kernel.activation)
              .run(x.data(), shape.cols, 0, tokens, call.x);
          call.panel_end = layout->num_panels;
          call.y_stride = shape.rows + 3;  // what lies between the rows must stay as it is
          call.scratch = scratch.bytes();
          const auto size = static_cast<std::size_t>(tokens * call.y_stride);
          std::vector<float> want(size, -7.0F);
          std::vector<float> found(size, -7.0F);
          call.y = want.data();
          ReferenceOf(kernel).run(call);
          call.y = found.data();
          kernel.run(call);
          ++report.num_cases;
          for (std::size_t i = 0; i < size && report.ok; ++i) {
            if (!SameFloat(want[i], found[i])) {
              report.ok = false;
              report.detail = fmt::format(
                  "{} [{}, {}], {} rows: row {} output {} is {:a}, ref gives {:a}", spec.ToString(),
                  shape.rows, shape.cols, tokens, static_cast<std::int64_t>(i) / call.y_stride,
                  static_cast<std::int64_t>(i) % call.y_stride, found[i], want[i]);
            }
          }
          if (!report.ok) {
            return report;
          }
        }
      }
    }
  }
  return report;
}

KernelReport CheckActivationKernel(const ActivationKernel& kernel, std::uint32_t seed) {
  if (kernel.isa > DetectIsa()) {
    return NotHere(kernel.isa);
  }
  std::mt19937_64 rng(seed);
  KernelReport report;
  for (const std::int64_t cols : {1, 17, 64, 100, 576, 1000}) {
    for (const std::int64_t rows : {1, 3, 8}) {
      std::vector<float> x = RandomRows(rows, cols, rng);
      if (rows == 8) {
        x[static_cast<std::size_t>(3 * cols)] = INFINITY;
        x[static_cast<std::size_t>(5 * cols - 1)] = NAN;
        std::fill_n(x.begin() + 5 * cols, cols, 1e-40F);
        std::fill_n(x.begin() + 6 * cols, cols, -1e37F);
      }
      const std::size_t bytes = ActivationBytes(kernel.activation, rows, cols);
      Aligned want_memory(bytes);
      Aligned found_memory(bytes);
      const auto want = PlaceActivations(kernel.activation, rows, cols, want_memory.data());
      const auto found = PlaceActivations(kernel.activation, rows, cols, found_memory.data());
      SelectActivation(Isa::kRef, kernel.activation).run(x.data(), cols, 0, rows, want);
      kernel.run(x.data(), cols, 0, rows, found);
      ++report.num_cases;
      const auto count = static_cast<std::size_t>(rows * want.num_blocks);
      bool same = true;
      if (kernel.activation == LinearActivation::kF32) {
        for (std::size_t i = 0; i < count * kActivationBlock; ++i) {
          same = same && SameFloat(want.values[i], found.values[i]);
        }
      } else {
        const std::size_t limbs =
            count * kActivationBlock * (kernel.activation == LinearActivation::kInt16 ? 2 : 1);
        same = std::memcmp(want.limbs, found.limbs, limbs) == 0;
        for (std::size_t i = 0; i < count; ++i) {
          const ActivationBlock& a = want.blocks[i];
          const ActivationBlock& b = found.blocks[i];
          same = same && SameFloat(a.scale, b.scale);
          for (int part = 0; part < 3; ++part) {
            same = same && a.minus_sum[part] == b.minus_sum[part] &&
                   SameFloat(a.scaled_sum[part], b.scaled_sum[part]);
          }
        }
        if (kernel.activation == LinearActivation::kInt16) {
          for (std::int64_t m = 0; m < rows; ++m) {
            same = same && SameFloat(want.row_scales[m], found.row_scales[m]);
          }
        }
      }
      if (!same) {
        report.ok = false;
        report.detail = fmt::format("{} rows of {} values differ from ref", rows, cols);
        return report;
      }
    }
  }
  return report;
}

namespace {

std::vector<KernelSpeed> BenchLinearKernel(const LinearKernel& kernel, Device& device) {
  const bool reference = kernel.isa == Isa::kRef;
  const std::int64_t side = reference ? 256 : 2048;
  const bool floats = kernel.activation == LinearActivation::kF32;
  const auto layout =
      LayoutOf(SpecOf(kernel.format, LinearGrid::kSymmetric, 64, false, side, side));
  const auto bytes = static_cast<std::size_t>(layout->num_panels * layout->panel_bytes);
  // One row streams from more memory than a cache holds.
  const std::size_t copies =
      reference ? 1 : std::max<std::size_t>(2, (std::size_t{96} << 20) / bytes);
  Aligned weights(bytes * copies);
  std::mt19937_64 rng(1);
  FillWeights(weights.bytes(), bytes, rng);
  for (std::size_t i = 1; i < copies; ++i) {
    std::memcpy(weights.bytes() + i * bytes, weights.bytes(), bytes);
  }
  ThreadPool& pool = device.pool();
  Aligned scratch(static_cast<std::size_t>(kLinearKernelScratchBytes) *
                  static_cast<std::size_t>(pool.num_workers()));
  std::vector<KernelSpeed> speeds;
  for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{32}, std::int64_t{512}}) {
    if (tokens < kernel.min_rows || tokens > kernel.max_rows || (reference && tokens > 1)) {
      continue;
    }
    const std::vector<float> x = RandomRows(tokens, side, rng);
    Aligned packed_memory(ActivationBytes(kernel.activation, tokens, side));
    const auto packed = PlaceActivations(kernel.activation, tokens, side, packed_memory.data());
    SelectActivation(CurrentIsa(), kernel.activation).run(x.data(), side, 0, tokens, packed);
    std::vector<float> y(static_cast<std::size_t>(tokens * side));
    std::size_t next = 0;
    const Timing timing = MedianTime(0.15, [&] {
      const std::uint8_t* weight = weights.bytes() + next * bytes;
      next = (next + 1) % copies;
      pool.Run([&](int worker) {
        const auto [begin, end] = pool.Share(layout->num_panels, 4, worker);
        LinearCall call;
        call.layout = *layout;
        call.weight = weight;
        call.x = packed;
        call.panel_begin = begin;
        call.panel_end = end;
        call.y = y.data();
        call.y_stride = side;
        call.scratch = scratch.bytes() + worker * kLinearKernelScratchBytes;
        kernel.run(call);
      });
    });
    KernelSpeed speed;
    speed.shape = fmt::format("out={} in={} rows={}", side, side, tokens);
    speed.bytes = static_cast<double>(bytes);
    speed.ops = 2.0 * static_cast<double>(side * side * tokens);
    speed.seconds = timing.seconds;
    speed.num_runs = timing.num_runs;
    speed.limit = tokens == 1 ? KernelSpeed::Limit::kRead
                  : floats    ? KernelSpeed::Limit::kF32
                              : KernelSpeed::Limit::kInt8;
    speed.limb_products = kernel.activation == LinearActivation::kInt16 ? 2.0 : 1.0;
    speeds.push_back(speed);
  }
  return speeds;
}

std::vector<KernelSpeed> BenchActivationKernel(const ActivationKernel& kernel, Device& device) {
  constexpr std::int64_t kTokens = 512;
  constexpr std::int64_t kCols = 2048;
  std::mt19937_64 rng(1);
  const std::vector<float> x = RandomRows(kTokens, kCols, rng);
  Aligned memory(ActivationBytes(kernel.activation, kTokens, kCols));
  const auto packed = PlaceActivations(kernel.activation, kTokens, kCols, memory.data());
  ThreadPool& pool = device.pool();
  const Timing timing = MedianTime(0.1, [&] {
    pool.Run([&](int worker) {
      const auto [begin, end] = pool.Share(kTokens, 1, worker);
      kernel.run(x.data(), kCols, begin, end, packed);
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("in={} rows={}", kCols, kTokens);
  speed.bytes = static_cast<double>(kTokens * kCols * 4) +
                static_cast<double>(ActivationBytes(kernel.activation, kTokens, kCols));
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  return {speed};
}

}  // namespace

std::vector<KernelInfo> LinearKernelInfos() {
  std::vector<KernelInfo> infos;
  for (const LinearKernel& kernel : LinearKernels()) {
    infos.push_back(
        {.name = kernel.name,
         .family = "linear",
         .isa = kernel.isa,
         .accepts = kernel.max_rows > 1'000'000
                        ? fmt::format("{}+ rows", kernel.min_rows)
                        : fmt::format("{}-{} rows", kernel.min_rows, kernel.max_rows),
         .check = [kernel](std::uint32_t seed) { return CheckLinearKernel(kernel, seed); },
         .bench = [kernel](Device& device) { return BenchLinearKernel(kernel, device); }});
  }
  for (const ActivationKernel& kernel : ActivationKernels()) {
    infos.push_back(
        {.name = kernel.name,
         .family = "activations",
         .isa = kernel.isa,
         .accepts = "1+ rows",
         .check = [kernel](std::uint32_t seed) { return CheckActivationKernel(kernel, seed); },
         .bench = [kernel](Device& device) { return BenchActivationKernel(kernel, device); }});
  }
  return infos;
}

}  // namespace nibble
