// Speed of attention, norms, SwiGLU and sampling in the shapes of a step, beside limits measured in
// the same run.
//   float_ops_bench [threads] [isa] [MB of cache to stream: 64]
// The shapes are SmolLM2-135M's (576 wide, 9 heads over 3 KV heads of 64, vocabulary 49152) and
// Llama-3.2-1B's attention (32 over 8 of 64). A cache is streamed from as many layers as make 64
// MB, as in a step.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/isa.h"
#include "kernels/limits_probe.h"
#include "kernels/ops.h"
#include "kernels/paged_attention.h"
#include "kernels/sampling.h"

namespace nibble {
namespace {

std::size_t cache_mb = 64;
// With one thread: its own CPU time, which a busy machine disturbs least. Else wall time.
bool cpu_time = false;

double Seconds() {
  timespec now{};
  clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Timing {
  double median = 0.0;
  double best = 0.0;
};

template <typename Once>
Timing Time(Once once) {
  double begin = Seconds();
  once();
  once();
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
  return {.median = times[times.size() / 2], .best = times.front()};
}

void Print(std::string_view name, const std::string& shape, const Timing& time, double bytes,
           double flops, const MachineLimits& limits) {
  const double gb = bytes / time.median / 1e9;
  const double gflop = flops / time.median / 1e9;
  fmt::print("{:28} {:38} {:9.1f} us (best {:9.1f}) {:6.1f} GB/s {:3.0f}% of read", name, shape,
             time.median * 1e6, time.best * 1e6, gb, 100.0 * gb / limits.read_gb_per_s);
  if (flops > 0.0) {
    fmt::print(" {:7.1f} GFLOP/s {:3.0f}% of fp32", gflop, 100.0 * gflop / limits.f32_gop_per_s);
  }
  fmt::print("\n");
  std::fflush(stdout);
}

std::vector<float> Normal(std::size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

struct AttentionShape {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  KvDType dtype;
  int num_sequences;
  int num_rows;  // new tokens of each
  int context;   // tokens before them
};

void BenchAttention(Device& device, const MachineLimits& limits, const AttentionShape& shape) {
  KvCache cache;
  cache.spec = {.num_layers = 1,
                .num_kv_heads = shape.num_kv_heads,
                .head_dim = shape.head_dim,
                .dtype = shape.dtype};
  const std::int64_t length = shape.context + shape.num_rows;
  const std::int64_t blocks_each = (length + 15) / 16;
  cache.num_blocks = blocks_each * shape.num_sequences;
  const std::size_t layer_bytes =
      cache.spec.BlockBytes() * static_cast<std::size_t>(cache.num_blocks);
  cache.spec.num_layers = 1 + static_cast<std::int64_t>((cache_mb << 20) / layer_bytes);
  auto memory =
      device.Allocate("cache", layer_bytes * static_cast<std::size_t>(cache.spec.num_layers));
  cache.data = memory->data();
  // The blocks of growing sequences interleave.
  std::vector<std::vector<BlockId>> tables(static_cast<std::size_t>(shape.num_sequences));
  std::int32_t next_block = 0;
  for (std::int64_t b = 0; b < blocks_each; ++b) {
    for (auto& table : tables) {
      table.push_back(BlockId{next_block++});
    }
  }
  const std::int64_t rows = std::int64_t{shape.num_sequences} * shape.num_rows;
  const std::int64_t wide = shape.num_heads * shape.head_dim;
  const std::int64_t narrow = shape.num_kv_heads * shape.head_dim;
  auto q = Normal(static_cast<std::size_t>(rows * wide));
  const auto k = Normal(static_cast<std::size_t>(rows * narrow));
  std::vector<float> out(q.size());
  std::vector<float> cos_sin(static_cast<std::size_t>(length * shape.head_dim), 0.70710678F);
  std::vector<AttentionSequence> sequences;
  std::vector<AttentionSequence> everything;
  for (int s = 0; s < shape.num_sequences; ++s) {
    const BlockId* table = tables[static_cast<std::size_t>(s)].data();
    sequences.push_back({.first_row = s * shape.num_rows,
                         .num_rows = shape.num_rows,
                         .first_position = shape.context,
                         .block_table = table});
  }
  auto scratch = device.Allocate(
      "scratch",
      AttentionScratchBytes(device, cache.spec, shape.num_heads, rows, shape.num_sequences));
  KernelContext context{
      .device = &device, .scratch = scratch->data(), .scratch_bytes = scratch->size_bytes()};
  const RopeAndCacheArgs rope{
      .q = q.data(),
      .k = k.data(),
      .v = k.data(),
      .q_stride = wide,
      .k_stride = narrow,
      .v_stride = narrow,
      .num_heads = shape.num_heads,
      .rope = {.cos_sin = cos_sin.data(), .max_positions = length, .head_dim = shape.head_dim}};
  // Something at every position of every layer.
  for (std::int64_t layer = 0; layer < cache.spec.num_layers; ++layer) {
    for (std::int64_t p = 0; p < length; p += shape.num_rows) {
      everything = sequences;
      for (AttentionSequence& sequence : everything) {
        sequence.first_position =
            static_cast<std::int32_t>(std::min<std::int64_t>(p, shape.context));
      }
      RopeAndCache(context, cache, layer, rope, everything);
    }
  }
  const std::string text = fmt::format("{}x{} after {}, heads {}/{}x{} {}", shape.num_sequences,
                                       shape.num_rows, shape.context, shape.num_heads,
                                       shape.num_kv_heads, shape.head_dim, Name(shape.dtype));
  std::int64_t layer = 0;
  const Timing write = Time([&] {
    layer = (layer + 1) % cache.spec.num_layers;
    RopeAndCache(context, cache, layer, rope, sequences);
  });
  Print("rope_and_cache", text, write,
        static_cast<double>(rows) * static_cast<double>(2 * wide + 3 * narrow) * 4.0, 0.0, limits);
  const PagedAttentionArgs args{.q = q.data(),
                                .q_stride = wide,
                                .out = out.data(),
                                .out_stride = wide,
                                .num_heads = shape.num_heads,
                                .scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim))};
  const Timing attend = Time([&] {
    layer = (layer + 1) % cache.spec.num_layers;
    PagedAttention(context, cache, layer, args, sequences);
  });
  double pairs = 0.0;  // (query, key)
  for (int t = 0; t < shape.num_rows; ++t) {
    pairs += static_cast<double>(shape.context + t + 1);
  }
  Print("paged_attention", text, attend, static_cast<double>(layer_bytes),
        4.0 * pairs * static_cast<double>(shape.num_sequences * wide), limits);
}

void BenchRows(Device& device, const MachineLimits& limits, std::int64_t tokens) {
  KernelContext context{.device = &device};
  const std::int64_t hidden = 576;
  const std::int64_t width = 1536;
  auto residual = Normal(static_cast<std::size_t>(tokens * hidden));
  const std::vector<float> delta(residual.size(), 1e-3F);
  const std::vector<float> weight(static_cast<std::size_t>(hidden), 1.0F);
  std::vector<float> out(residual.size());
  const auto count = static_cast<double>(tokens);
  Print("add_rms_norm", fmt::format("{}x{}", tokens, hidden), Time([&] {
          AddRmsNorm(context, residual.data(), delta.data(), weight.data(), 1e-5F, out.data(),
                     tokens, hidden);
        }),
        count * 576 * 16, 0.0, limits);
  const auto gate_up = Normal(static_cast<std::size_t>(tokens * width * 2));
  std::vector<float> product(static_cast<std::size_t>(tokens * width));
  Print("swiglu", fmt::format("{}x{}", tokens, width), Time([&] {
          SwiGlu(context, gate_up.data(), 2 * width, gate_up.data() + width, 2 * width,
                 product.data(), width, tokens, width);
        }),
        count * 1536 * 12, 0.0, limits);
}

void BenchSampling(Device& device, const MachineLimits& limits, int num_rows,
                   std::int64_t vocab_size) {
  auto logits = Normal(static_cast<std::size_t>(num_rows * vocab_size));
  for (float& x : logits) {
    x *= 3.0F;
  }
  auto scratch = device.Allocate("scratch", SamplingScratchBytes(device, vocab_size));
  KernelContext context{
      .device = &device, .scratch = scratch->data(), .scratch_bytes = scratch->size_bytes()};
  const std::vector<std::pair<const char*, SampleRow>> kinds = {
      {"sample greedy", {.temperature = 0.0F}},
      {"sample greedy logprobs 5", {.temperature = 0.0F, .num_top_logprobs = 5}},
      {"sample temperature", {.temperature = 0.8F}},
      {"sample top_k 50", {.temperature = 0.8F, .top_k = 50}},
      {"sample top_p 0.95", {.temperature = 0.8F, .top_p = 0.95F}},
      {"sample min_p 0.05", {.temperature = 0.8F, .min_p = 0.05F}}};
  for (const auto& [name, row] : kinds) {
    std::vector<SampleRow> rows;
    for (int i = 0; i < num_rows; ++i) {
      rows.push_back(row);
      rows.back().logits_row = i;
      rows.back().position = static_cast<std::uint64_t>(i);
    }
    std::vector<SampleResult> results(rows.size());
    Print(name, fmt::format("{}x{}", num_rows, vocab_size),
          Time([&] { Sample(context, logits.data(), vocab_size, vocab_size, rows, results); }),
          4.0 * static_cast<double>(logits.size()), 0.0, limits);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  const auto number = [&](int i, std::size_t otherwise) {
    const std::string_view text = argc > i ? argv[i] : "";
    std::from_chars(text.data(), text.data() + text.size(), otherwise);
    return otherwise;
  };
  const int threads = static_cast<int>(number(1, 0));
  cache_mb = number(3, cache_mb);
  const auto device = MakeCpuDevice(threads);
  cpu_time = device->pool().num_workers() == 1;
  if (argc > 2) {
    if (const auto isa = ParseIsa(argv[2]); isa) {
      ForceIsa(*isa);
    }
  }
  const MachineLimits limits = MeasureLimits(device->pool(), CurrentIsa());
  fmt::print("{}; {} threads at {}: read {:.1f} GB/s, fp32 {:.0f} GFLOP/s\n", DescribeCpu(),
             limits.num_threads, Name(CurrentIsa()), limits.read_gb_per_s, limits.f32_gop_per_s);
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8, KvDType::kF32}) {
    BenchAttention(*device, limits, {9, 3, 64, dtype, 1, 512, 0});
    BenchAttention(*device, limits, {9, 3, 64, dtype, 1, 512, 1536});
    BenchAttention(*device, limits, {9, 3, 64, dtype, 32, 1, 255});
    BenchAttention(*device, limits, {9, 3, 64, dtype, 32, 1, 2047});
    BenchAttention(*device, limits, {9, 3, 64, dtype, 1, 1, 255});
    BenchAttention(*device, limits, {9, 3, 64, dtype, 1, 1, 2047});
    BenchAttention(*device, limits, {32, 8, 64, dtype, 1, 512, 0});
    BenchAttention(*device, limits, {32, 8, 64, dtype, 32, 1, 255});
  }
  for (const std::int64_t tokens : {1, 32, 512}) {
    BenchRows(*device, limits, tokens);
  }
  for (const int rows : {1, 32}) {
    BenchSampling(*device, limits, rows, 49152);
  }
  BenchSampling(*device, limits, 1, 151936);
  return 0;
}
