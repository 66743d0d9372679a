#include "kernels/cuda/gptq_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "device/cuda_device.h"
#include "kernels/cuda/dense_algebra.h"
#include "kernels/cuda/gptq_kernel.h"
#include "kernels/cuda/launch_timer.h"
#include "kernels/cuda/limits_kernel.h"

namespace nibble::cuda {
namespace {

constexpr std::int64_t kTokens = 2048;
constexpr std::int64_t kWidths[] = {4096, 11008};
constexpr int kRows = 4096;
constexpr int kGroup = 64;

// Device memory, filled.
Result<DeviceBuffer> Take(CudaDevice& device, std::int64_t bytes) {
  const std::int64_t rounded = (bytes + 255) / 256 * 256;
  NIBBLE_TRY(buffer, device.Allocate("bench", static_cast<std::size_t>(rounded)));
  device.NoteError(LaunchFill(buffer.data(), rounded, device.stream()), "filling memory");
  return buffer;
}

// Of one call; `launches` of them are one run.
template <typename Launch>
Result<KernelSpeed> Measure(CudaDevice& device, std::string shape, int launches, Launch&& launch) {
  NIBBLE_TRY(timing, TimeLaunches(device, [&] {
               int error = 0;
               for (int i = 0; i < launches && error == 0; ++i) {
                 error = launch(i);
               }
               return error;
             }));
  KernelSpeed speed;
  speed.shape = std::move(shape);
  speed.seconds = timing.seconds / launches;
  speed.num_runs = timing.num_runs;
  return speed;
}

// Two inputs of fp16, packed to bf16; others in each launch, so that no cache has them.
Result<KernelSpeed> MeasurePack(CudaDevice& device, std::int64_t n) {
  constexpr int kCopies = 8;
  const std::int64_t input_bytes = kTokens * n * 4;  // at the pitch of fp32
  NIBBLE_TRY(x, Take(device, kCopies * input_bytes));
  NIBBLE_TRY(y, Take(device, kCopies * input_bytes));
  NIBBLE_TRY(out, Take(device, kTokens * n * 2));
  NIBBLE_TRY(moved, Take(device, kTokens * n * 2));
  PackInputsArgs args{.y = {.is_f16 = true, .stride = 2 * n},
                      .x = {.is_f16 = true, .stride = 2 * n},
                      .out = out.as<std::uint16_t>(),
                      .moved = moved.as<std::uint16_t>(),
                      .pitch = n,
                      .width = static_cast<int>(n),
                      .rows = static_cast<int>(kTokens)};
  const auto launch = [&](int i) {
    args.x.data = x.data() + i * input_bytes;
    args.y.data = y.data() + i * input_bytes;
    return LaunchPackInputs(args, device.stream());
  };
  NIBBLE_TRY(speed,
             Measure(device, fmt::format("tokens={} width={}", kTokens, n), kCopies, launch));
  speed.bytes = static_cast<double>(kTokens * n) * 8.0;
  return speed;
}

Result<KernelSpeed> MeasureAdd(CudaDevice& device, std::int64_t n) {
  NIBBLE_TRY(product, Take(device, n * n * 4));
  NIBBLE_TRY(sums, device.Allocate("bench", static_cast<std::size_t>(n * n) * sizeof(double)));
  NIBBLE_TRY(speed, Measure(device, fmt::format("width={}, upper half", n), 4, [&](int) {
               return LaunchAddToSums(product.as<float>(), sums.as<double>(), n,
                                      /*upper_only=*/true, device.stream());
             }));
  speed.bytes = static_cast<double>(n * n) * 10.0;
  return speed;
}

// All of Y^T Y, without leaving out a half.
Result<KernelSpeed> MeasureProduct(CudaDevice& device, std::int64_t n) {
  NIBBLE_TRY(algebra, DenseAlgebra::Create(device, n));
  NIBBLE_TRY(y, device.Allocate("bench", static_cast<std::size_t>(kTokens * n) * 2));
  NIBBLE_TRY(product, Take(device, n * n * 4));
  NIBBLE_TRY(filled, Take(device, kTokens * n * 2));
  device.NoteError(LaunchPackInputs({.y = {.data = filled.data(), .is_f16 = true, .stride = n},
                                     .out = y.as<std::uint16_t>(),
                                     .pitch = n,
                                     .width = static_cast<int>(n),
                                     .rows = static_cast<int>(kTokens)},
                                    device.stream()),
                   "packing inputs");
  const Matrix<const std::uint16_t> inputs{y.as<std::uint16_t>(), kTokens, n, n};
  NIBBLE_TRY(speed, Measure(device, fmt::format("tokens={} width={}", kTokens, n), 4, [&](int) {
               algebra->TransposedProduct(inputs, inputs, {product.as<float>(), n, n, n});
               return 0;
             }));
  speed.ops = 2.0 * static_cast<double>(kTokens * n * n);
  speed.bytes = static_cast<double>(kTokens * n * 2 + n * n * 4);
  speed.limit = KernelSpeed::Limit::kF16;
  return speed;
}

// Sixteen values at the same distance: what a codebook of 4 bits costs.
CodeTable EvenTable() {
  CodeTable table{};
  for (int rank = 0; rank < CodeTable::kMaxCodes; ++rank) {
    const float value = static_cast<float>(rank) / 7.5F - 1.0F;
    const auto bits = std::bit_cast<std::int32_t>(value + 1.0F / 15.0F);
    table.last_key[rank] =
        rank < 15 ? bits ^ ((bits >> 31) & 0x7fffffff) : std::numeric_limits<std::int32_t>::max();
    table.values[rank] = value;
    table.codes[rank] = static_cast<std::uint8_t>(rank % 16);
  }
  return table;
}

// A matrix of kRows rows and what the sweep needs of it.
struct Sweep {
  DeviceBuffer weights, moved, errors, ratios, order, curvature, curvature_f32, scales, zeros,
      codes, row_errors, table;
};
Result<Sweep> MakeSweep(CudaDevice& device, std::int64_t n) {
  const auto fill = [&](DeviceBuffer& buffer, std::int64_t bytes) -> Result<void> {
    NIBBLE_TRY(taken, Take(device, bytes));
    buffer = std::move(taken);
    return {};
  };
  Sweep sweep;
  const std::int64_t matrix = kRows * n;
  for (DeviceBuffer* buffer : {&sweep.weights, &sweep.moved, &sweep.errors}) {
    NIBBLE_TRY_VOID(fill(*buffer, matrix * 4));
  }
  NIBBLE_TRY_VOID(fill(sweep.ratios, n * n * 4));
  NIBBLE_TRY_VOID(fill(sweep.curvature, n * 8));
  NIBBLE_TRY_VOID(fill(sweep.curvature_f32, n * 4));
  NIBBLE_TRY_VOID(fill(sweep.scales, kRows * n / kGroup * 4));
  NIBBLE_TRY_VOID(fill(sweep.zeros, kRows * n / kGroup * 4));
  NIBBLE_TRY_VOID(fill(sweep.codes, matrix));
  NIBBLE_TRY_VOID(fill(sweep.row_errors, kRows * 8));
  NIBBLE_TRY(order, device.Allocate("bench", static_cast<std::size_t>(n) * 4));
  NIBBLE_TRY(table, device.Allocate("bench", sizeof(CodeTable)));
  {
    const DeviceWrite write = device.Write(order.data(), order.size_bytes());
    for (std::int64_t i = 0; i < n; ++i) {
      const auto column = static_cast<std::int32_t>(i ^ 5);  // inside groups
      std::memcpy(write.data() + i * 4, &column, sizeof(column));
    }
    const CodeTable even = EvenTable();
    const DeviceWrite codes = device.Write(table.data(), sizeof(even));
    std::memcpy(codes.data(), &even, sizeof(even));
  }
  NIBBLE_TRY_VOID(device.FinishWrites());
  sweep.order = std::move(order);
  sweep.table = std::move(table);
  return sweep;
}
GridRules RulesOf(const Sweep& sweep, bool is_codebook) {
  return {.table = is_codebook ? sweep.table.as<CodeTable>() : nullptr, .both_signs = true};
}

// One group of all rows, another one in each launch.
Result<KernelSpeed> MeasureSearch(CudaDevice& device, std::int64_t n, bool is_codebook) {
  NIBBLE_TRY(sweep, MakeSweep(device, n));
  const int groups = static_cast<int>(n / kGroup);
  SearchGridsArgs args{.rules = RulesOf(sweep, is_codebook),
                       .weights = sweep.weights.as<float>(),
                       .n = n,
                       .rows = kRows,
                       .size = kGroup,
                       .groups_per_row = groups,
                       .scales = sweep.scales.as<float>(),
                       .zeros = sweep.zeros.as<float>()};
  const auto launch = [&](int i) {
    const std::int64_t at = std::int64_t{i} * kGroup;
    args.columns = sweep.order.as<std::int32_t>() + at;
    args.moved = sweep.moved.as<float>() + at;
    args.curvature = sweep.curvature_f32.as<float>() + at;
    args.first_group = i;
    return LaunchSearchGrids(args, device.stream());
  };
  NIBBLE_TRY(speed, Measure(device, fmt::format("rows={} width={} group={}", kRows, n, kGroup),
                            groups, launch));
  speed.bytes = static_cast<double>(kRows) * (kGroup * 8.0 + 8.0);
  return speed;
}

Result<KernelSpeed> MeasureRound(CudaDevice& device, std::int64_t n, bool is_codebook) {
  NIBBLE_TRY(sweep, MakeSweep(device, n));
  const int groups = static_cast<int>(n / kGroup);
  RoundBlockArgs args{.rules = RulesOf(sweep, is_codebook),
                      .weights = sweep.weights.as<float>(),
                      .order = sweep.order.as<std::int32_t>(),
                      .moved = sweep.moved.as<float>(),
                      .ratios = sweep.ratios.as<float>(),
                      .curvature = sweep.curvature.as<double>(),
                      .scales = sweep.scales.as<float>(),
                      .zeros = sweep.zeros.as<float>(),
                      .errors = sweep.errors.as<float>(),
                      .codes = sweep.codes.as<std::uint8_t>(),
                      .row_errors = sweep.row_errors.as<double>(),
                      .n = n,
                      .rows = kRows,
                      .count = kSweepBlock,
                      .group_size = kGroup,
                      .groups_per_row = groups};
  const auto launch = [&](int i) {
    args.at = i * kSweepBlock;
    return LaunchRoundBlock(args, device.stream());
  };
  NIBBLE_TRY(speed,
             Measure(device, fmt::format("rows={} width={} columns={}", kRows, n, kSweepBlock),
                     groups, launch));
  speed.bytes = static_cast<double>(kRows) * kSweepBlock * 13.0;
  return speed;
}

// A measurement that fails becomes a row that says why.
template <typename MeasureAt>
KernelInfo Info(std::string name, MeasureAt measure) {
  return {
      .name = std::move(name),
      .family = "gptq",
      .accepts = "Llama-2-7B",
      .bench = [measure](Device& device) {
        std::vector<KernelSpeed> speeds;
        for (const std::int64_t n : kWidths) {
          auto speed = measure(static_cast<CudaDevice&>(device), n);
          speeds.push_back(speed ? std::move(*speed) : KernelSpeed{.shape = speed.error().message});
        }
        return speeds;
      }};
}

}  // namespace

std::vector<KernelInfo> GptqKernelInfos() {
  std::vector<KernelInfo> infos = {Info("cuda.gptq.pack", MeasurePack),
                                   Info("cuda.gptq.product", MeasureProduct),
                                   Info("cuda.gptq.add", MeasureAdd)};
  for (const bool is_codebook : {false, true}) {
    const char* format = is_codebook ? "codebook4" : "w4";
    infos.push_back(Info(fmt::format("cuda.gptq.search.{}", format),
                         [is_codebook](CudaDevice& device, std::int64_t n) {
                           return MeasureSearch(device, n, is_codebook);
                         }));
    infos.push_back(Info(fmt::format("cuda.gptq.round.{}", format),
                         [is_codebook](CudaDevice& device, std::int64_t n) {
                           return MeasureRound(device, n, is_codebook);
                         }));
  }
  return infos;
}

}  // namespace nibble::cuda
