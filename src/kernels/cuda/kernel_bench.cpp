// The kernels of one layer of Llama-2-7B beside the card's limits. Weights and caches are
// pseudo-random and lie in so many copies that no cache serves them twice.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/gptq_bench.h"
#include "kernels/cuda/launch_timer.h"
#include "kernels/cuda/limits_kernel.h"
#include "kernels/cuda/linear_a8.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/kernel_table.h"

namespace nibble {
namespace {

using cuda::LinearArgs;

constexpr std::int64_t kHidden = 4096;
constexpr std::int64_t kInner = 11008;
constexpr int kHeads = 32;
constexpr int kHeadDim = 128;
constexpr std::int64_t kColdBytes = std::int64_t{256} << 20;  // five times the L2 of a large card
constexpr int kLeastLaunches = 20;                            // of one measurement

// Device memory of one measurement, filled.
Result<DeviceBuffer> Take(CudaDevice& device, std::int64_t bytes) {
  const std::int64_t rounded = (bytes + 255) / 256 * 256;
  NIBBLE_TRY(buffer, device.Allocate("bench", static_cast<std::size_t>(rounded)));
  device.NoteError(cuda::LaunchFill(buffer.data(), rounded, device.stream()), "filling memory");
  return buffer;
}

template <typename T>
Result<DeviceBuffer> Upload(CudaDevice& device, const std::vector<T>& values) {
  NIBBLE_TRY(buffer, device.Allocate("bench", values.size() * sizeof(T)));
  {
    const DeviceWrite write = device.Write(buffer.data(), values.size() * sizeof(T));
    std::memcpy(write.data(), values.data(), values.size() * sizeof(T));
  }
  NIBBLE_TRY_VOID(device.FinishWrites());
  return buffer;
}

struct Matrix {
  const char* name;
  std::int64_t rows;  // of all parts
  std::int64_t cols;
  int num_parts;
  cuda::Epilogue epilogue;
};
constexpr Matrix kMatrices[] = {
    {"qkv", 3 * kHidden, kHidden, 3, cuda::Epilogue::kStore},
    {"o", kHidden, kHidden, 1, cuda::Epilogue::kAdd},
    {"gate_up", 2 * kInner, kHidden, 2, cuda::Epilogue::kSwiGlu},
    {"down", kHidden, kInner, 1, cuda::Epilogue::kAdd},
};
constexpr int kTokens[] = {1, 8, 32, 256, 2048};

struct LinearFormatBench {
  const char* name;
  WeightSpec spec;  // but for rows and columns; group_size 0: whole rows
  bool fp8_activations = false;
};
const LinearFormatBench kFormats[] = {
    {"w4.g128", {.kind = CodecKind::kUniform, .bits = 4, .group_size = 128}},
    {"w4a8.g128", {.kind = CodecKind::kUniform, .bits = 4, .group_size = 128}, true},
    {"nf4.g64",
     {.kind = CodecKind::kCodebook, .bits = 4, .group_size = 64, .codebook = Codebook::kNf4}},
    {"fp8.row", {.kind = CodecKind::kCodebook, .bits = 8, .codebook = Codebook::kFp8E4M3}},
};

Result<KernelSpeed> MeasureLinear(CudaDevice& device, const LinearFormatBench& format,
                                  const Matrix& matrix, int tokens) {
  WeightSpec spec = format.spec;
  const std::int64_t part_rows = matrix.rows / matrix.num_parts;
  spec.rows = part_rows;
  spec.cols = matrix.cols;
  spec.group_size = spec.group_size == 0 ? matrix.cols : spec.group_size;
  NIBBLE_TRY(layout, cuda::LayoutOf(spec));
  const auto part_bytes = static_cast<std::int64_t>((layout.size_bytes() + 255) / 256 * 256);
  const std::int64_t weight_bytes = part_bytes * matrix.num_parts;
  const std::int64_t copies = std::max<std::int64_t>(2, (kColdBytes - 1) / weight_bytes + 1);
  const int launches =
      tokens > 256 ? static_cast<int>(copies) : std::max(kLeastLaunches, static_cast<int>(copies));
  NIBBLE_TRY(weights, Take(device, weight_bytes * copies));
  NIBBLE_TRY(x, Take(device, 2 * tokens * matrix.cols));
  NIBBLE_TRY(y, Take(device, 4 * tokens * matrix.rows));
  NIBBLE_TRY(shared, device.Allocate("bench", cuda::LinearSharedBytes(device.num_sms())));
  LinearArgs args{.layout = layout,
                  .num_parts = matrix.num_parts,
                  .epilogue = matrix.epilogue,
                  .x = x.as<std::uint16_t>(),
                  .x_stride = matrix.cols,
                  .num_tokens = tokens,
                  .product = y.as<std::uint16_t>(),
                  .product_stride = part_rows,
                  .shared = shared.data()};
  NIBBLE_TRY(scales, Take(device, 4 * tokens));
  const cuda::E4M3Rows rows{.x = x.as<std::uint8_t>(), .scales = scales.as<float>()};
  const auto run = [&] {
    int error = 0;
    for (int i = 0; i < launches && error == 0; ++i) {
      for (int p = 0; p < matrix.num_parts; ++p) {
        const std::byte* weight = weights.data() + (i % copies * matrix.num_parts + p) * part_bytes;
        args.parts[p] = {.weight = reinterpret_cast<const std::uint8_t*>(weight),
                         .factor = reinterpret_cast<const float*>(weight + layout.factor_offset()),
                         .y = y.as<float>() + p * part_rows,
                         .y_stride = matrix.rows,
                         .rows = layout.rows,
                         .num_tiles = layout.num_tiles};
      }
      error = format.fp8_activations
                  ? cuda::LaunchLinearA8(args, rows, device.num_sms(), device.stream())
                  : cuda::LaunchLinear(device, args);
    }
    return error;
  };
  NIBBLE_TRY(timing, cuda::TimeLaunches(device, run));
  const std::int64_t out_bytes = matrix.epilogue == cuda::Epilogue::kSwiGlu ? 2 * part_rows
                                 : matrix.epilogue == cuda::Epilogue::kAdd  ? 8 * matrix.rows
                                                                            : 4 * matrix.rows;
  KernelSpeed speed;
  speed.shape = fmt::format(
      "{} out={} in={} rows={} {}", matrix.name, matrix.rows, matrix.cols, tokens,
      format.fp8_activations ? fmt::format("tiles of {}", ShapeOfA8(args, device.num_sms()).tokens)
                             : Name(cuda::ChooseLinear(device, args)));
  speed.bytes =
      static_cast<double>(static_cast<std::int64_t>(layout.size_bytes()) * matrix.num_parts +
                          tokens * ((format.fp8_activations ? 1 : 2) * matrix.cols + out_bytes));
  speed.ops = 2.0 * static_cast<double>(matrix.rows * matrix.cols * tokens);
  speed.seconds = timing.seconds / launches;
  speed.num_runs = timing.num_runs;
  if (tokens > 64) {
    speed.limit = format.fp8_activations ? KernelSpeed::Limit::kFp8 : KernelSpeed::Limit::kF16;
  }
  return speed;
}

// Rounding activations of 8 bits.
Result<KernelSpeed> MeasureQuantize(CudaDevice& device, int tokens, std::int64_t cols) {
  const std::int64_t values = tokens * cols;
  const auto copies = static_cast<int>(std::max<std::int64_t>(2, kColdBytes / (3 * values) + 1));
  const int launches = std::max(kLeastLaunches, copies);
  NIBBLE_TRY(x, Take(device, 2 * values * copies));
  NIBBLE_TRY(out, Take(device, values * copies));
  NIBBLE_TRY(scales, Take(device, 4 * tokens));
  const auto run = [&] {
    int error = 0;
    for (int i = 0; i < launches && error == 0; ++i) {
      error = cuda::LaunchQuantizeE4M3({.x = x.as<std::uint16_t>() + i % copies * values,
                                        .x_stride = cols,
                                        .out = out.as<std::uint8_t>() + i % copies * values,
                                        .scales = scales.as<float>(),
                                        .cols = static_cast<int>(cols),
                                        .num_tokens = tokens},
                                       device.stream());
    }
    return error;
  };
  NIBBLE_TRY(timing, cuda::TimeLaunches(device, run));
  KernelSpeed speed;
  speed.shape = fmt::format("in={} rows={}", cols, tokens);
  speed.bytes = 3.0 * static_cast<double>(values);
  speed.seconds = timing.seconds / launches;
  speed.num_runs = timing.num_runs;
  return speed;
}

// Attention of `batch` sequences: decode of one token after `context` - 1 others, or prefill of all
// `context` tokens.
Result<KernelSpeed> MeasureAttention(CudaDevice& device, cuda::KvType type, bool decode, int batch,
                                     int context) {
  using namespace cuda;  // NOLINT(google-build-using-namespace): plain data of one family
  constexpr std::int64_t kWidth = std::int64_t{kHeads} * kHeadDim;
  const std::int64_t head_bytes = std::int64_t{2} * KvTileBytes(type, kHeadDim);
  const std::int64_t block_bytes = kHeads * head_bytes;
  const int blocks = (context + kKvBlock - 1) / kKvBlock;
  const int rows = decode ? batch : batch * context;
  const std::int64_t layer_bytes = block_bytes * blocks * batch;
  const auto layers = static_cast<int>((kColdBytes - 1) / layer_bytes + 1);
  const int launches = std::max(decode ? kLeastLaunches : 2, layers);
  NIBBLE_TRY(cache, Take(device, layer_bytes * layers));
  NIBBLE_TRY(q, Take(device, 4 * rows * kWidth));
  NIBBLE_TRY(out, Take(device, 2 * rows * kWidth));

  // Blocks of all sequences in a scattered order: a stride that meets each once.
  const int all_blocks = blocks * batch;
  std::vector<std::int32_t> table(static_cast<std::size_t>(all_blocks));
  int stride = std::max(1, all_blocks * 5 / 8);
  while (std::gcd(stride, all_blocks) != 1) {
    ++stride;
  }
  for (std::int64_t i = 0; i < all_blocks; ++i) {
    table[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * stride % all_blocks);
  }
  std::vector<std::int32_t> first_row, num_rows, first_position, tiles;
  std::vector<DecodeItem> items;
  for (int s = 0; s < batch; ++s) {
    first_row.push_back(decode ? s : s * context);
    num_rows.push_back(decode ? 1 : context);
    first_position.push_back(decode ? context - 1 : 0);
    const int units = (context - 1) / kKvUnit + 1;
    const auto first_item = static_cast<std::int32_t>(items.size());
    for (int unit = 0; unit < units; ++unit) {
      items.push_back({.sequence = s,
                       .row = s,
                       .length = context,
                       .unit = unit,
                       .num_units = units,
                       .first_item = first_item});
    }
    for (int t = 0; t < context; t += PrefillTokens(1)) {
      tiles.insert(tiles.end(), {s, t});
    }
  }
  NIBBLE_TRY(table_buffer, Upload(device, table));
  NIBBLE_TRY(first_row_buffer, Upload(device, first_row));
  NIBBLE_TRY(num_rows_buffer, Upload(device, num_rows));
  NIBBLE_TRY(first_position_buffer, Upload(device, first_position));
  NIBBLE_TRY(tiles_buffer, Upload(device, tiles));
  NIBBLE_TRY(items_buffer, Upload(device, items));
  NIBBLE_TRY(count, Upload(device, std::vector<std::int32_t>{static_cast<int>(items.size())}));
  NIBBLE_TRY(partial, device.Allocate("bench", items.size() * kHeads * (kHeadDim + 2) * 4));
  NIBBLE_TRY(arrived, device.Allocate("bench", static_cast<std::size_t>(batch) * kHeads * 4));
  AttentionArgs args{.q = q.as<float>(),
                     .q_stride = kWidth,
                     .out = out.as<std::uint16_t>(),
                     .out_stride = kWidth,
                     .num_heads = kHeads,
                     .scale_log2 = 1.44269504F / std::sqrt(static_cast<float>(kHeadDim)),
                     .cache = {.block_bytes = block_bytes,
                               .head_bytes = head_bytes,
                               .num_kv_heads = kHeads,
                               .head_dim = kHeadDim,
                               .type = type},
                     .sequences = {.first_row = first_row_buffer.as<std::int32_t>(),
                                   .num_rows = num_rows_buffer.as<std::int32_t>(),
                                   .first_position = first_position_buffer.as<std::int32_t>(),
                                   .block_tables = table_buffer.as<std::int32_t>(),
                                   .table_stride = blocks},
                     .items = items_buffer.as<DecodeItem>(),
                     .num_items = count.as<std::int32_t>(),
                     .max_items = static_cast<int>(items.size()),
                     .partial = partial.as<float>(),
                     .arrived = arrived.as<std::int32_t>(),
                     .tiles = tiles_buffer.as<std::int32_t>(),
                     .num_tiles = static_cast<int>(tiles.size() / 2)};
  const auto run = [&] {
    int error = 0;
    for (int i = 0; i < launches && error == 0; ++i) {
      args.cache.data = cache.as<std::uint8_t>() + i % layers * layer_bytes;
      error = decode ? LaunchDecodeAttention(args, device.num_sms(), device.stream())
                     : LaunchPrefillAttention(args, device.stream());
    }
    return error;
  };
  NIBBLE_TRY(timing, TimeLaunches(device, run));
  const double kv_bytes =
      static_cast<double>(block_bytes) / kKvBlock * static_cast<double>(context) * batch;
  // Each query meets the keys up to itself: half of them on average where all are queries.
  const double pairs =
      decode ? static_cast<double>(context) * batch : 0.5 * context * (context + 1.0) * batch;
  KernelSpeed speed;
  speed.shape =
      fmt::format("{} heads of {}, batch={} context={}", kHeads, kHeadDim, batch, context);
  speed.bytes = kv_bytes + 6.0 * static_cast<double>(rows * kWidth);
  speed.ops = 4.0 * pairs * static_cast<double>(kWidth);
  speed.seconds = timing.seconds / launches;
  speed.num_runs = timing.num_runs;
  speed.limit = decode ? KernelSpeed::Limit::kRead : KernelSpeed::Limit::kF16;
  return speed;
}

// RoPE of `tokens` rows and their writes to the cache, with the queries or without.
Result<KernelSpeed> MeasureRope(CudaDevice& device, cuda::KvType type, int tokens, bool queries) {
  using namespace cuda;  // NOLINT(google-build-using-namespace): plain data of one family
  constexpr std::int64_t kWidth = std::int64_t{kHeads} * kHeadDim;
  const std::int64_t head_bytes = std::int64_t{2} * KvTileBytes(type, kHeadDim);
  const int blocks = (tokens + kKvBlock - 1) / kKvBlock;
  const std::int64_t layer_bytes = kHeads * head_bytes * blocks;
  const auto layers = static_cast<int>((kColdBytes - 1) / layer_bytes + 1);
  const int launches = std::max(kLeastLaunches, layers);
  NIBBLE_TRY(cache, Take(device, layer_bytes * layers));
  const std::int64_t step_values = 3 * tokens * kWidth;  // q, k and v, cold as the cache is
  NIBBLE_TRY(qkv, Take(device, 4 * step_values * layers));
  NIBBLE_TRY(angles, Take(device, std::int64_t{4} * tokens * kHeadDim));
  std::vector<TokenRecord> records;
  for (int p = 0; p < tokens; ++p) {
    records.push_back({.position = p, .kv_slot = p});
  }
  NIBBLE_TRY(record_buffer, Upload(device, records));
  RopeArgs args{.q_stride = 3 * kWidth,
                .k_stride = 3 * kWidth,
                .v_stride = 3 * kWidth,
                .num_heads = queries ? kHeads : 0,
                .cos_sin = angles.as<float>(),
                .tokens = record_buffer.as<TokenRecord>(),
                .num_tokens = tokens,
                .cache = {.block_bytes = kHeads * head_bytes,
                          .head_bytes = head_bytes,
                          .num_kv_heads = kHeads,
                          .head_dim = kHeadDim,
                          .type = type}};
  const auto run = [&] {
    int error = 0;
    for (int i = 0; i < launches && error == 0; ++i) {
      args.cache.data = cache.as<std::uint8_t>() + i % layers * layer_bytes;
      args.q = qkv.as<float>() + i % layers * step_values;
      args.k = args.q + kWidth;
      args.v = args.q + 2 * kWidth;
      error = LaunchRopeAndCache(args, device.stream());
    }
    return error;
  };
  NIBBLE_TRY(timing, TimeLaunches(device, run));
  KernelSpeed speed;
  speed.shape = fmt::format("{} heads of {}, tokens={}{}", kHeads, kHeadDim, tokens,
                            queries ? "" : " without queries");
  speed.bytes = static_cast<double>(tokens * kWidth) *
                (8.0 + (queries ? 8.0 : 0.0) + 2.0 * KvRowBytes(type, kHeadDim) / kHeadDim);
  speed.seconds = timing.seconds / launches;
  speed.num_runs = timing.num_runs;
  speed.limit = KernelSpeed::Limit::kRead;
  return speed;
}

// A measurement that fails becomes a row that says why.
void Add(std::vector<KernelSpeed>& speeds, Result<KernelSpeed> speed) {
  if (speed) {
    speeds.push_back(std::move(*speed));
  } else {
    KernelSpeed failed;
    failed.shape = speed.error().message;
    speeds.push_back(std::move(failed));
  }
}

}  // namespace

std::vector<KernelInfo> CudaKernelInfos() {
  std::vector<KernelInfo> infos;
  for (const LinearFormatBench& format : kFormats) {
    for (const int tokens : kTokens) {
      infos.push_back(
          {.name = fmt::format("cuda.linear.{}.rows{}", format.name, tokens),
           .family = "linear",
           .accepts = "Llama-2-7B",
           .bench = [format, tokens](Device& device) {
             std::vector<KernelSpeed> speeds;
             for (const Matrix& matrix : kMatrices) {
               Add(speeds, MeasureLinear(static_cast<CudaDevice&>(device), format, matrix, tokens));
             }
             return speeds;
           }});
    }
  }
  infos.push_back({.name = "cuda.quantize.w4a8",
                   .family = "linear",
                   .accepts = "Llama-2-7B",
                   .bench = [](Device& device) {
                     std::vector<KernelSpeed> speeds;
                     for (const int tokens : {1, 256, 2048}) {
                       for (const std::int64_t cols : {kHidden, kInner}) {
                         Add(speeds,
                             MeasureQuantize(static_cast<CudaDevice&>(device), tokens, cols));
                       }
                     }
                     return speeds;
                   }});
  struct Cache {
    const char* name;
    cuda::KvType type;
  };
  for (const Cache cache : {Cache{"f16", cuda::KvType::kF16}, Cache{"fp8", cuda::KvType::kFp8},
                            Cache{"int8", cuda::KvType::kInt8}}) {
    infos.push_back({.name = fmt::format("cuda.attention.decode.{}", cache.name),
                     .family = "attention",
                     .accepts = "Llama-2-7B",
                     .bench = [type = cache.type](Device& device) {
                       std::vector<KernelSpeed> speeds;
                       for (const int context : {128, 2048}) {
                         Add(speeds, MeasureAttention(static_cast<CudaDevice&>(device), type, true,
                                                      32, context));
                       }
                       return speeds;
                     }});
    infos.push_back({.name = fmt::format("cuda.attention.prefill.{}", cache.name),
                     .family = "attention",
                     .accepts = "Llama-2-7B",
                     .bench = [type = cache.type](Device& device) {
                       std::vector<KernelSpeed> speeds;
                       for (const int context : {256, 512, 1024, 2048}) {
                         Add(speeds, MeasureAttention(static_cast<CudaDevice&>(device), type, false,
                                                      1, context));
                       }
                       return speeds;
                     }});
    infos.push_back(
        {.name = fmt::format("cuda.rope.{}", cache.name),
         .family = "rope",
         .accepts = "Llama-2-7B",
         .bench = [type = cache.type](Device& device) {
           std::vector<KernelSpeed> speeds;
           for (const int tokens : {256, 2048}) {
             for (const bool queries : {true, false}) {
               Add(speeds, MeasureRope(static_cast<CudaDevice&>(device), type, tokens, queries));
             }
           }
           return speeds;
         }});
  }
  for (KernelInfo& info : cuda::GptqKernelInfos()) {
    infos.push_back(std::move(info));
  }
  return infos;
}

}  // namespace nibble
