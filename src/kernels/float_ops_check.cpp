// Norms, RoPE, attention, sampling and products of fp32 matrices in the table of `nibble kernels`:
// every level must give the bits of ref (and ref those of the best level here) on odd shapes.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/attention_kernel.h"
#include "kernels/gemm_kernel.h"
#include "kernels/gram_kernel.h"
#include "kernels/grid_kernel.h"
#include "kernels/isa.h"
#include "kernels/kernel_table.h"
#include "kernels/ops_kernel.h"
#include "kernels/sampling_kernel.h"

namespace nibble {
namespace {

struct Level {
  Isa isa;
  const OpsKernels* ops;
  const AttentionKernels* attention;
  const SamplingKernels* sampling;
  const GramKernels* gram;
  const GemmKernels* gemm;
  const GridKernels* grid;
};

constexpr Level kLevels[] = {
    {Isa::kRef, &kRefOps, &kRefAttention, &kRefSampling, &kRefGram, &kRefGemm, &kRefGrid},
    {Isa::kAvx2, &kAvx2Ops, &kAvx2Attention, &kAvx2Sampling, &kAvx2Gram, &kAvx2Gemm, &kAvx2Grid},
    {Isa::kAvx512, &kAvx512Ops, &kAvx512Attention, &kAvx512Sampling, &kAvx512Gram, &kAvx512Gemm,
     &kAvx512Grid}};

const Level& BestLevel() {
  const Isa isa = DetectIsa();
  return kLevels[isa >= Isa::kAvx512 ? 2 : isa >= Isa::kAvx2 ? 1 : 0];
}

// Everything an operator wrote, room around its outputs included.
using Output = std::vector<unsigned char>;

template <typename T>
void Append(Output& out, const T* values, std::size_t count) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values);
  out.insert(out.end(), bytes, bytes + count * sizeof(T));
}

std::vector<float> Normal(PhiloxEngine& random, std::size_t count, float stddev = 1.0F) {
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(count);
  std::ranges::generate(values, [&] { return normal(random); });
  return values;
}

constexpr std::size_t kRoom = 16;  // floats behind every output that must stay as they are

constexpr std::size_t kWidths[] = {1, 15, 16, 17, 64, 576, 1000};

using Produce = std::vector<Output> (*)(const Level& level, std::uint32_t seed);

std::vector<Output> ProduceNorm(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::size_t width : kWidths) {
    auto residual = Normal(random, width + kRoom);
    const auto delta = Normal(random, width);
    const auto weight = Normal(random, width);
    std::vector<float> out(width + kRoom, 1.5F);
    level.ops->add_rms_norm(residual.data(), delta.data(), weight.data(), 1e-5F, out.data(),
                            static_cast<std::int64_t>(width));
    level.ops->add_bias(residual.data(), weight.data(), static_cast<std::int64_t>(width));
    Append(outputs.emplace_back(), out.data(), out.size());
    Append(outputs.back(), residual.data(), residual.size());
  }
  return outputs;
}

std::vector<Output> ProduceGated(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::size_t width : kWidths) {
    const auto gate = Normal(random, width, 30.0F);
    const auto up = Normal(random, width);
    std::vector<float> out(width + kRoom, 1.5F);
    level.ops->swiglu(gate.data(), up.data(), out.data(), static_cast<std::int64_t>(width));
    Append(outputs.emplace_back(), out.data(), out.size());
    level.ops->geglu(gate.data(), up.data(), out.data(), static_cast<std::int64_t>(width));
    Append(outputs.back(), out.data(), out.size());
    level.ops->exp(gate.data(), out.data(), static_cast<std::int64_t>(width));
    Append(outputs.back(), out.data(), out.size());
  }
  return outputs;
}

// A cache of one layer and one KV head, filled through rope_and_cache; then one tile of the last
// rows.
template <KvDType kType>
std::vector<Output> ProduceAttention(const Level& level, std::uint32_t seed) {
  struct Shape {
    int head_dim;
    int heads;
    int tokens;
    int window;
  };
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const Shape& shape :
       {Shape{64, 3, 290, 0}, {16, 1, 1, 0}, {80, 7, 40, 9}, {128, 4, 33, 0}, {256, 2, 257, 100}}) {
    const auto head_dim = static_cast<std::size_t>(shape.head_dim);
    const auto heads = static_cast<std::size_t>(shape.heads);
    const std::int64_t head_bytes = KvHeadBytes(kType, shape.head_dim);
    std::vector<std::int32_t> table(static_cast<std::size_t>(shape.tokens + 15) / 16);
    for (std::size_t i = 0; i < table.size(); ++i) {
      table[i] = static_cast<std::int32_t>(table.size() - 1 - i);
    }
    std::vector<unsigned char> cache(static_cast<std::size_t>(head_bytes) * table.size());
    std::vector<float> q;
    for (int t = 0; t < shape.tokens; ++t) {
      auto x = Normal(random, heads * head_dim);
      const auto k = Normal(random, head_dim);
      const auto v = Normal(random, head_dim);
      const auto cos_sin = Normal(random, head_dim);
      const auto norm = Normal(random, head_dim);
      RopeRow row;
      row.q = x.data();
      row.k = k.data();
      row.v = v.data();
      row.q_norm = t % 2 == 0 ? norm.data() : nullptr;
      row.k_norm = row.q_norm;
      row.norm_eps = 1e-6F;
      row.cos_sin = cos_sin.data();
      row.num_heads = shape.heads;
      row.num_kv_heads = 1;
      row.head_dim = shape.head_dim;
      row.dtype = kType;
      row.slot = t % 16;
      row.block = cache.data() + table[static_cast<std::size_t>(t / 16)] * head_bytes;
      row.head_bytes = head_bytes;
      level.attention->rope_and_cache(row);
      q.insert(q.end(), x.begin(), x.end());
    }
    std::vector<float> scratch(static_cast<std::size_t>(AttentionScratchFloats(shape.head_dim)));
    AttentionTile tile;
    tile.num_rows = std::min(kMaxAttentionRows, shape.tokens * shape.heads);
    tile.head_dim = shape.head_dim;
    tile.dtype = kType;
    tile.scale = 0.125F;
    tile.block_table = table.data();
    tile.heads = cache.data();
    tile.block_stride = head_bytes;
    tile.scratch = scratch.data();
    const auto num_rows = static_cast<std::size_t>(tile.num_rows);
    std::vector<float> out(num_rows * head_dim + kRoom, 1.5F);
    const std::size_t skipped = static_cast<std::size_t>(shape.tokens) * heads - num_rows;
    for (std::size_t r = 0; r < num_rows; ++r) {
      const auto token = static_cast<std::int32_t>((skipped + r) / heads);
      tile.q[r] = q.data() + (skipped + r) * head_dim;
      tile.out[r] = out.data() + r * head_dim;
      tile.last_key[r] = token;
      tile.first_key[r] = shape.window > 0 ? std::max(0, token - shape.window + 1) : 0;
    }
    level.attention->attend(tile);
    Append(outputs.emplace_back(), q.data(), q.size());
    Append(outputs.back(), cache.data(), cache.size());
    Append(outputs.back(), out.data(), out.size());
  }
  return outputs;
}

std::vector<Output> ProduceSampling(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::size_t vocab : {1, 16, 63, 64, 65, 1000, 4999}) {
    auto logits = Normal(random, vocab, 4.0F);
    logits[vocab / 2] = NAN;
    const auto count = static_cast<std::int64_t>(vocab);
    const SamplingKernels& kernels = *level.sampling;
    std::vector<float> chunks((vocab + kSampleChunk - 1) / kSampleChunk + kRoom, 1.5F);
    std::vector<float> weights(vocab + kRoom, 1.5F);
    std::vector<Candidate> found(vocab);
    Output& out = outputs.emplace_back();
    std::int64_t numbers[3] = {kernels.arg_max(logits.data(), count)};
    const float max = kernels.chunk_max(logits.data(), count, chunks.data());
    Append(out, &max, 1);
    Append(out, chunks.data(), chunks.size());
    kernels.chunk_weight(logits.data(), count, 20.0F, 1.25F, 1e-7F, chunks.data(), weights.data());
    Append(out, chunks.data(), chunks.size());
    Append(out, weights.data(), weights.size());
    const float sum = kernels.sum_at_least(weights.data(), count, 1e-5F);
    Append(out, &sum, 1);
    numbers[1] = kernels.collect(logits.data(), count, 1.0F, found.data());
    numbers[2] = kernels.count_greater(logits.data(), count, -1.0F);
    Append(out, numbers, 3);
    Append(out, found.data(), static_cast<std::size_t>(numbers[1]));
  }
  return outputs;
}

std::vector<Output> ProduceGram(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::int64_t rows : {1, 7, 255, 256, 300, 513}) {
    for (int panels = 1; panels <= kGramMaxPanels; ++panels) {
      const std::int64_t stride = (rows + 1) * kGramPanel;  // panels need not touch
      const auto a = Normal(random, static_cast<std::size_t>(rows * kGramPanel));
      const auto b = Normal(random, static_cast<std::size_t>(panels * stride));
      const std::int64_t c_stride = panels * kGramPanel + 3;
      std::vector<double> c(static_cast<std::size_t>(kGramRows * c_stride), 0.5);
      GramCall call;
      call.a = a.data() + (rows % 2 == 0 ? kGramRows : 0);  // either half of the panel
      call.b = b.data();
      call.b_stride = stride;
      call.num_panels = panels;
      call.rows = rows;
      call.c = c.data();
      call.c_stride = c_stride;
      level.gram->gram(call);
      Append(outputs.emplace_back(), c.data(), c.size());
    }
  }
  return outputs;
}

std::vector<Output> ProduceGramInt16(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::int64_t rows :
       {std::int64_t{1}, std::int64_t{7}, std::int64_t{300}, kGramBlock}) {
    const std::int64_t pairs = (rows + 1) / 2;
    const std::int64_t stride = (pairs + 3) * kGramPanel;  // panels need not touch
    auto x = Normal(random, static_cast<std::size_t>(rows * kGramPanel));
    const auto y = Normal(random, x.size(), 1e-3F);
    for (std::size_t i = 0; i < x.size(); i += kGramPanel) {
      x[i] = 0.0F;
      x[i + 1] *= 1e-20F;
      x[i + 2] *= 1e15F;
      x[i + 3] *= i == 0 ? 3e4F : 1.0F;
    }
    std::vector<std::uint32_t> a(static_cast<std::size_t>((1 + pairs) * kGramPanel));
    std::vector<std::uint32_t> b(static_cast<std::size_t>(kGramMaxPanels * stride));
    GramPackInt16Call pack;
    pack.x = x.data();
    pack.stride = kGramPanel;
    pack.rows = rows;
    pack.panel = a.data();
    level.gram->pack_int16(pack);
    pack.minus = y.data();
    for (int p = 0; p < kGramMaxPanels; ++p) {
      pack.columns = static_cast<int>(kGramPanel) - 5 * p;
      pack.panel = b.data() + p * stride;
      level.gram->pack_int16(pack);
      std::swap(pack.x, pack.minus);
    }
    Append(outputs.emplace_back(), a.data(), a.size());
    Append(outputs.emplace_back(), b.data(), b.size());
    for (int panels = 1; panels <= kGramMaxPanels; ++panels) {
      const std::int64_t c_stride = panels * kGramPanel + 3;
      std::vector<double> c(static_cast<std::size_t>(kGramRows * c_stride), 0.5);
      GramInt16Call call;
      call.a = a.data() + (rows % 2 == 0 ? kGramRows : 0);  // either half of the panel
      call.b = b.data();
      call.b_stride = stride;
      call.num_panels = panels;
      call.pairs = pairs;
      call.c = c.data();
      call.c_stride = c_stride;
      level.gram->gram_int16(call);
      Append(outputs.emplace_back(), c.data(), c.size());
    }
    x[5] = std::numeric_limits<float>::infinity();
    pack = {.x = x.data(), .stride = kGramPanel, .rows = rows, .panel = a.data()};
    level.gram->pack_int16(pack);
    Append(outputs.emplace_back(), a.data(), a.size());
  }
  return outputs;
}

std::vector<Output> ProduceDowndate(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::int64_t rows : {1, 16, 64, 65}) {
    const auto values = Normal(random, static_cast<std::size_t>(2 * rows * kGramPanel));
    const std::vector<double> p(values.begin(), values.end());
    constexpr std::int64_t kStride = kGramPanel + 5;
    std::vector<double> c(static_cast<std::size_t>(kGramRows * kStride), 0.5);
    DowndateCall call;
    call.a = p.data();
    call.b = p.data() + rows * kGramPanel;
    call.rows = rows;
    call.c = c.data();
    call.c_stride = kStride;
    level.gram->downdate(call);
    Append(outputs.emplace_back(), c.data(), c.size());
  }
  return outputs;
}

std::vector<Output> ProduceGemm(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::int64_t depth : {std::int64_t{1}, std::int64_t{7}, kGemmChain}) {
    for (const bool add : {false, true}) {
      const auto a = Normal(random, static_cast<std::size_t>(depth * kGemmRows));
      const auto b = Normal(random, static_cast<std::size_t>(depth * kGemmCols));
      constexpr std::int64_t kStride = kGemmCols + 5;
      std::vector<float> c(static_cast<std::size_t>(kGemmRows * kStride), 0.5F);
      GemmCall call;
      call.a = a.data();
      call.b = b.data();
      call.depth = depth;
      call.c = c.data();
      call.c_stride = kStride;
      call.add = add;
      level.gemm->tile(call);
      Append(outputs.emplace_back(), c.data(), c.size());
    }
  }
  return outputs;
}

std::vector<Output> ProduceGridError(const Level& level, std::uint32_t seed) {
  PhiloxEngine random(seed);
  std::vector<Output> outputs;
  for (const std::size_t count : {1, 3, 32, 128}) {
    const auto values = Normal(random, 16 * count);
    auto weights = Normal(random, count);
    std::ranges::transform(weights, weights.begin(), [](float w) { return w * w; });
    auto scale = Normal(random, 16, 0.1F);
    scale[3] = 0.0F;  // of a group of zeros
    std::vector<float> inverse(16), zero(16), ends(15), cells(16);
    for (std::size_t l = 0; l < 16; ++l) {
      inverse[l] = scale[l] == 0.0F ? 0.0F : 1.0F / scale[l];
      zero[l] = static_cast<float>(l);
      cells[l] = static_cast<float>(l) * 0.25F - 2.0F;
      if (l < 15) {
        ends[l] = l < 12 ? cells[l] + 0.1F : std::numeric_limits<float>::infinity();
      }
    }
    for (const bool codebook : {false, true}) {
      std::vector<float> error(16 + kRoom, 0.5F);
      GridErrorCall call;
      call.values = values.data();
      call.weights = weights.data();
      call.count = static_cast<std::int64_t>(count);
      call.scale = scale.data();
      call.inverse = inverse.data();
      call.zero = zero.data();
      call.top = 15.0F;
      call.ends = codebook ? ends.data() : nullptr;
      call.cells = cells.data();
      call.error = error.data();
      level.grid->error(call);
      Append(outputs.emplace_back(), error.data(), error.size());
    }
  }
  return outputs;
}

KernelReport Check(Produce produce, const Level& level, std::uint32_t seed) {
  KernelReport report;
  if (level.isa > DetectIsa()) {
    report.detail = fmt::format("this machine has no {}", Name(level.isa));
    return report;
  }
  const Level& other = level.isa == Isa::kRef ? BestLevel() : kLevels[0];
  const auto got = produce(level, seed);
  const auto expected = produce(other, seed);
  report.num_cases = static_cast<std::int64_t>(got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] != expected[i]) {
      const auto at = std::ranges::mismatch(got[i], expected[i]).in1 - got[i].begin();
      report.ok = false;
      report.detail =
          fmt::format("case {} differs from {} at byte {} of its outputs", i, Name(other.isa), at);
      break;
    }
  }
  return report;
}

// Rows of 2048 from 64 MB and more: judged by memory.
std::vector<KernelSpeed> BenchRows(Device& device, const Level& level, bool swiglu) {
  constexpr std::int64_t kRows = 4096;
  constexpr std::int64_t kWidth = 2048;
  std::vector<float> a(static_cast<std::size_t>(kRows * kWidth), 0.25F);
  std::vector<float> b(a.size(), 1e-6F);
  const std::vector<float> weight(kWidth, 1.0F);
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kRows, 16, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t m = begin; m < end; ++m) {
        float* x = a.data() + m * kWidth;
        float* y = b.data() + m * kWidth;
        if (swiglu) {
          level.ops->swiglu(x, y, y, kWidth);
        } else {
          level.ops->add_rms_norm(x, nullptr, weight.data(), 1e-5F, y, kWidth);
        }
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("{}x{}", kRows, kWidth);
  speed.bytes = static_cast<double>(kRows * kWidth) * (swiglu ? 12.0 : 8.0);
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  return {speed};
}

// Tiles of 32 rows over 1024 keys of one head of 64, as in prefill: judged by fp32 arithmetic.
std::vector<KernelSpeed> BenchAttention(Device& device, const Level& level, KvDType dtype) {
  constexpr int kHeadDim = 64;
  constexpr int kKeys = 1024;
  constexpr std::int64_t kTiles = 16;
  const std::int64_t head_bytes = KvHeadBytes(dtype, kHeadDim);
  std::vector<std::int32_t> table(kKeys / 16);
  for (std::size_t i = 0; i < table.size(); ++i) {
    table[i] = static_cast<std::int32_t>(i);
  }
  const std::vector<unsigned char> cache(static_cast<std::size_t>(head_bytes) * table.size(), 0x3c);
  const std::vector<float> q(kHeadDim, 0.01F);
  const auto workers = static_cast<std::size_t>(device.pool().num_workers());
  const auto scratch_floats = static_cast<std::size_t>(AttentionScratchFloats(kHeadDim));
  std::vector<float> scratch(scratch_floats * workers);
  std::vector<float> out(kHeadDim * kMaxAttentionRows * workers);
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kTiles, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      const auto w = static_cast<std::size_t>(worker);
      AttentionTile tile;
      tile.num_rows = kMaxAttentionRows;
      tile.head_dim = kHeadDim;
      tile.dtype = dtype;
      tile.scale = 0.125F;
      tile.block_table = table.data();
      tile.heads = cache.data();
      tile.block_stride = head_bytes;
      tile.scratch = scratch.data() + w * scratch_floats;
      for (std::size_t r = 0; r < kMaxAttentionRows; ++r) {
        tile.q[r] = q.data();
        tile.out[r] = out.data() + (w * kMaxAttentionRows + r) * kHeadDim;
        tile.first_key[r] = 0;
        tile.last_key[r] = kKeys - 1;
      }
      for (std::int64_t i = begin; i < end; ++i) {
        level.attention->attend(tile);
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("{} rows, {} keys of {}", kMaxAttentionRows, kKeys, kHeadDim);
  speed.bytes = static_cast<double>(cache.size()) * static_cast<double>(kTiles);
  speed.ops = 4.0 * kKeys * kHeadDim * kMaxAttentionRows * static_cast<double>(kTiles);
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  speed.limit = KernelSpeed::Limit::kF32;
  return {speed};
}

// A tile as AddGram makes it, 64 x 192 over 1024 rows in L2, on every worker: judged by fp32
// arithmetic.
std::vector<KernelSpeed> BenchGram(Device& device, const Level& level) {
  constexpr std::int64_t kRows = 1024;
  constexpr std::int64_t kPanelsA = 4;
  constexpr std::int64_t kPanelsB = 12;
  constexpr std::int64_t kTiles = 16;
  const std::vector<float> x(static_cast<std::size_t>(kPanelsB * kRows * kGramPanel), 0.25F);
  const auto workers = static_cast<std::size_t>(device.pool().num_workers());
  constexpr std::int64_t kWidth = kPanelsB * kGramPanel;
  constexpr std::size_t kTile = kPanelsA * kGramPanel * kWidth;
  std::vector<double> c(kTile * workers);
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kTiles, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      double* tile = c.data() + static_cast<std::size_t>(worker) * kTile;
      for (std::int64_t i = begin * kPanelsA * 2; i < end * kPanelsA * 2; ++i) {
        for (std::int64_t row = 0; row < kRows; row += kGramChain) {
          for (int p = 0; p < kPanelsB; p += kGramMaxPanels) {
            const std::int64_t half = i % (kPanelsA * 2);
            GramCall call;
            call.a = x.data() + (half / 2 * kRows + row) * kGramPanel + half % 2 * kGramRows;
            call.b = x.data() + (p * kRows + row) * kGramPanel;
            call.b_stride = kRows * kGramPanel;
            call.num_panels = kGramMaxPanels;
            call.rows = kGramChain;
            call.c = tile + half * kGramRows * kWidth + p * kGramPanel;
            call.c_stride = kWidth;
            level.gram->gram(call);
          }
        }
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("{}x{}, {} rows", kPanelsA * kGramPanel, kWidth, kRows);
  speed.bytes = 4.0 * static_cast<double>(x.size());
  speed.ops = 2.0 * static_cast<double>(kTile) * kRows * kTiles;
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  speed.limit = KernelSpeed::Limit::kF32;
  return {speed};
}

// The same as AddInt16Gram makes it.
std::vector<KernelSpeed> BenchGramInt16(Device& device, const Level& level) {
  constexpr std::int64_t kPairs = kGramBlock / 2, kBlocks = 4;
  constexpr std::int64_t kStride = kBlocks * (1 + kPairs) * kGramPanel;
  constexpr std::int64_t kPanelsA = 4, kPanelsB = 12, kTiles = 16;
  constexpr std::int64_t kWidth = kPanelsB * kGramPanel;
  constexpr std::size_t kTile = kPanelsA * kGramPanel * kWidth;
  const std::vector<std::uint32_t> x(static_cast<std::size_t>(kPanelsB * kStride));
  std::vector<double> c(kTile * static_cast<std::size_t>(device.pool().num_workers()));
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kTiles, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      double* tile = c.data() + static_cast<std::size_t>(worker) * kTile;
      for (std::int64_t block = 0; block < kBlocks * (end - begin); ++block) {
        for (std::int64_t half = 0; half < kPanelsA * 2; ++half) {
          for (int p = 0; p < kPanelsB; p += kGramMaxPanels) {
            const std::int64_t at = block % kBlocks * (1 + kPairs) * kGramPanel;
            GramInt16Call call;
            call.a = x.data() + half / 2 * kStride + at + half % 2 * kGramRows;
            call.b = x.data() + p * kStride + at;
            call.b_stride = kStride;
            call.num_panels = kGramMaxPanels;
            call.pairs = kPairs;
            call.c = tile + half * kGramRows * kWidth + p * kGramPanel;
            call.c_stride = kWidth;
            level.gram->gram_int16(call);
          }
        }
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("{}x{}, {} rows", kPanelsA * kGramPanel, kWidth, kBlocks * kGramBlock);
  speed.bytes = 4.0 * static_cast<double>(x.size());
  speed.ops = 2.0 * static_cast<double>(kTile) * kBlocks * kGramBlock * kTiles;
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  speed.limit = KernelSpeed::Limit::kInt16;
  return {speed};
}

// Panels of one chain against one another, as a part of a large product has them.
std::vector<KernelSpeed> BenchGemm(Device& device, const Level& level) {
  constexpr std::int64_t kPanelsA = 8, kPanelsB = 6, kParts = 64;
  const std::vector<float> a(static_cast<std::size_t>(kPanelsA * kGemmChain * kGemmRows), 0.25F);
  const std::vector<float> b(static_cast<std::size_t>(kPanelsB * kGemmChain * kGemmCols), 0.25F);
  constexpr std::int64_t kWidth = kPanelsB * kGemmCols;
  constexpr std::int64_t kPart = kPanelsA * kGemmRows * kWidth;
  std::vector<float> c(static_cast<std::size_t>(kPart * device.pool().num_workers()));
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kParts, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      for (std::int64_t i = begin * kPanelsA * kPanelsB; i < end * kPanelsA * kPanelsB; ++i) {
        const std::int64_t row = i % kPanelsA, col = i / kPanelsA % kPanelsB;
        GemmCall call;
        call.a = a.data() + row * kGemmChain * kGemmRows;
        call.b = b.data() + col * kGemmChain * kGemmCols;
        call.depth = kGemmChain;
        call.c = c.data() + worker * kPart + row * kGemmRows * kWidth + col * kGemmCols;
        call.c_stride = kWidth;
        level.gemm->tile(call);
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("{}x{}, depth {}", kPanelsA * kGemmRows, kWidth, kGemmChain);
  speed.bytes = 4.0 * static_cast<double>(a.size() + b.size());
  speed.ops = 2.0 * static_cast<double>(kPart) * kGemmChain * kParts;
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  speed.limit = KernelSpeed::Limit::kF32;
  return {speed};
}

// Groups of 64 in sixteen rows, which stay in the first level of cache: judged by operations, ten a
// value of a uniform grid, of which none is fused, and 37 of a codebook.
std::vector<KernelSpeed> BenchGridError(Device& device, const Level& level) {
  constexpr std::int64_t kGroup = 64, kParts = 64, kTimes = 200;
  const std::vector<float> values(static_cast<std::size_t>(16 * kGroup), 0.3F);
  const std::vector<float> weights(static_cast<std::size_t>(kGroup), 1.0F);
  const std::vector<float> lane(16, 0.5F);
  const std::vector<float> zero(16, 8.0F);
  std::vector<KernelSpeed> speeds;
  for (const bool codebook : {false, true}) {
    const Timing timing = MedianTime(0.1, [&] {
      device.pool().For(kParts, 1, [&](std::int64_t begin, std::int64_t end, int) {
        float error[16];
        GridErrorCall call;
        call.values = values.data();
        call.weights = weights.data();
        call.count = kGroup;
        call.scale = call.inverse = lane.data();
        call.zero = zero.data();
        call.top = 15.0F;
        call.ends = codebook ? lane.data() : nullptr;
        call.cells = lane.data();
        call.error = error;
        for (std::int64_t i = begin * kTimes; i < end * kTimes; ++i) {
          level.grid->error(call);
        }
      });
    });
    KernelSpeed speed;
    speed.shape = fmt::format("16x{}, {}", kGroup, codebook ? "codebook" : "uniform");
    speed.ops = (codebook ? 37.0 : 10.0) * 16.0 * static_cast<double>(kGroup * kParts * kTimes);
    speed.seconds = timing.seconds;
    speed.num_runs = timing.num_runs;
    speed.limit = KernelSpeed::Limit::kF32;
    speeds.push_back(speed);
  }
  return speeds;
}

std::vector<KernelSpeed> BenchSampling(Device& device, const Level& level) {
  constexpr std::int64_t kRows = 256;
  constexpr std::int64_t kVocab = 49152;
  const std::vector<float> logits(static_cast<std::size_t>(kRows * kVocab), 0.5F);
  std::vector<std::int64_t> best(kRows);
  const Timing timing = MedianTime(0.2, [&] {
    device.pool().For(kRows, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t m = begin; m < end; ++m) {
        best[static_cast<std::size_t>(m)] =
            level.sampling->arg_max(logits.data() + m * kVocab, kVocab);
      }
    });
  });
  KernelSpeed speed;
  speed.shape = fmt::format("argmax {}x{}", kRows, kVocab);
  speed.bytes = 4.0 * static_cast<double>(logits.size());
  speed.seconds = timing.seconds;
  speed.num_runs = timing.num_runs;
  return {speed};
}

}  // namespace

std::vector<KernelInfo> FloatKernelInfos() {
  using Bench = std::vector<KernelSpeed> (*)(Device&, const Level&);
  struct Operator {
    const char* name;
    const char* family;
    const char* accepts;
    Produce produce;
    Bench bench;
  };
  static constexpr Operator kOperators[] = {
      {"norm.add_rms", "norm", "any width", ProduceNorm,
       [](Device& device, const Level& level) { return BenchRows(device, level, false); }},
      {"swiglu", "norm", "any width", ProduceGated,
       [](Device& device, const Level& level) { return BenchRows(device, level, true); }},
      {"attention.bf16", "attention", "head_dim 16 n <= 256", ProduceAttention<KvDType::kBF16>,
       [](Device& device, const Level& level) {
         return BenchAttention(device, level, KvDType::kBF16);
       }},
      {"attention.int8", "attention", "head_dim 16 n <= 256", ProduceAttention<KvDType::kInt8>,
       [](Device& device, const Level& level) {
         return BenchAttention(device, level, KvDType::kInt8);
       }},
      {"attention.f32", "attention", "head_dim 16 n <= 256", ProduceAttention<KvDType::kF32>,
       [](Device& device, const Level& level) {
         return BenchAttention(device, level, KvDType::kF32);
       }},
      {"sampling", "sampling", "any vocabulary", ProduceSampling, BenchSampling},
      {"gram", "gram", "panels of 16", ProduceGram, BenchGram},
      {"gram.int16", "gram", "panels of 16", ProduceGramInt16, BenchGramInt16},
      {"gram.downdate", "gram", "panels of 16", ProduceDowndate, nullptr},
      {"gemm", "gemm", "panels of 12 and 32", ProduceGemm, BenchGemm},
      {"grid", "grid", "sixteen rows", ProduceGridError, BenchGridError}};
  std::vector<KernelInfo> infos;
  for (const Operator& op : kOperators) {
    for (const Level& level : kLevels) {
      KernelInfo info;
      info.name = fmt::format("{}.{}", op.name, Name(level.isa));
      info.family = op.family;
      info.isa = level.isa;
      info.accepts = op.accepts;
      info.check = [&op, &level](std::uint32_t seed) { return Check(op.produce, level, seed); };
      if (level.isa != Isa::kRef && op.bench != nullptr) {
        info.bench = [&op, &level](Device& device) { return op.bench(device, level); };
      }
      infos.push_back(std::move(info));
    }
  }
  return infos;
}

}  // namespace nibble
