#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "codec/codebook.h"
#include "kernels/cuda/attention_kernel.h"
#include "tests/kernels/cuda/cuda_fixture.h"

namespace nibble::cuda {
namespace {

struct Case {
  int head_dim;
  int num_heads;
  int num_kv_heads;
  int window;
  KvType type;
};

const char* NameOf(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kBF16:
      return "bf16";
    case KvType::kFp8:
      return "fp8";
    case KvType::kInt8:
      return "int8";
  }
  return "";
}

float RoundToFp8(float x) {
  return ValuesOf(Codebook::kFp8E4M3)[NearestCode(Codebook::kFp8E4M3, x)];
}

/// What the cache makes of one head's key or value; `scale` is that of fp8.
std::vector<double> Cached(const float* x, int head_dim, KvType type, bool is_value, float scale) {
  std::vector<double> out;
  float top = 0.0F;
  for (int d = 0; d < head_dim; ++d) {
    top = std::max(top, std::fabs(x[d]));
  }
  const float token_scale = F16ToFloat(FloatToF16(top / 127.0F));
  for (int d = 0; d < head_dim; ++d) {
    float value = 0.0F;
    switch (type) {
      case KvType::kF16:
        value = F16ToFloat(FloatToF16(x[d]));
        break;
      case KvType::kBF16:
        value = BF16ToFloat(FloatToBF16(x[d]));
        break;
      case KvType::kFp8:
        value = RoundToFp8(x[d] * (1.0F / scale)) * scale;
        break;
      case KvType::kInt8:
        value = std::nearbyint(x[d] * (1.0F / token_scale)) * token_scale;
        value = is_value ? F16ToFloat(FloatToF16(value)) : value;
        break;
    }
    out.push_back(static_cast<double>(value));
  }
  return out;
}

class CudaAttention : public CudaTest {};

/// One case a test, so that they can be cut in shards.
class CudaAttentionSweep : public CudaTest, public testing::WithParamInterface<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Caches, CudaAttentionSweep,
    testing::Values(Case{128, 4, 4, 0, KvType::kBF16}, Case{128, 8, 2, 0, KvType::kF16},
                    Case{64, 9, 3, 0, KvType::kBF16}, Case{64, 8, 1, 100, KvType::kF16},
                    Case{32, 12, 1, 0, KvType::kBF16}, Case{16, 2, 2, 300, KvType::kBF16},
                    Case{128, 8, 2, 0, KvType::kFp8}, Case{128, 4, 4, 300, KvType::kInt8},
                    Case{64, 8, 1, 100, KvType::kFp8}, Case{64, 9, 3, 0, KvType::kInt8},
                    Case{32, 12, 1, 0, KvType::kFp8}, Case{32, 4, 2, 100, KvType::kInt8},
                    Case{16, 2, 2, 300, KvType::kFp8}, Case{16, 4, 1, 0, KvType::kInt8},
                    Case{64, 10, 2, 0, KvType::kF16}, Case{16, 72, 1, 0, KvType::kF16}),
    [](const auto& sweep) {
      const Case& c = sweep.param;
      return fmt::format("{}_d{}_h{}_kv{}_w{}", NameOf(c.type), c.head_dim, c.num_heads,
                         c.num_kv_heads, c.window);
    });

// One sequence of `length` tokens: its keys and values go to the cache through RoPE (of angle
// zero), then every position attends, alone and in tiles.
TEST_P(CudaAttentionSweep, DecodeAndPrefillGiveTheSameBitsAndTheTruth) {
#ifdef NIBBLE_RACECHECK  // a token a sequence and as many keys: the longest one takes it minutes
  constexpr int kLengths[] = {1, 15, 64, 65, 255, 256, 257, 600};
#else
  constexpr int kLengths[] = {1, 15, 64, 65, 255, 256, 257, 600, 1100};
#endif
  const Case& c = GetParam();
  for (const int length : kLengths) {
    const int q_width = c.num_heads * c.head_dim;
    const int kv_width = c.num_kv_heads * c.head_dim;
    const auto rows = static_cast<std::size_t>(length);
    const auto q = Normal(rows * static_cast<std::size_t>(q_width), 1.0F, 1);
    const auto k = Normal(rows * static_cast<std::size_t>(kv_width), 1.0F, 2);
    const auto v = Normal(rows * static_cast<std::size_t>(kv_width), 1.0F, 3);
    const DeviceBuffer q_buffer = Upload(q);
    const DeviceBuffer k_buffer = Upload(k);
    const DeviceBuffer v_buffer = Upload(v);
    std::vector<float> cos_sin(rows * static_cast<std::size_t>(c.head_dim), 0.0F);
    for (std::size_t p = 0; p < rows; ++p) {
      std::fill_n(cos_sin.begin() + static_cast<std::ptrdiff_t>(p) * c.head_dim, c.head_dim / 2,
                  1.0F);
    }
    const DeviceBuffer cos_sin_buffer = Upload(cos_sin);
    const int blocks = (length + kKvBlock - 1) / kKvBlock;
    std::vector<std::int32_t> table(static_cast<std::size_t>(blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    // Of fp8, keys, then values: each head's own; so small that numbers saturate; none, which is
    // 1.
    const bool has_scales = length != 65;
    std::vector<float> scales;
    for (int i = 0; i < 2 * c.num_kv_heads; ++i) {
      const float step = length == 256 ? 0.002F : 0.01F;
      scales.push_back(has_scales ? step * static_cast<float>(1 + i) : 1.0F);
    }
    const DeviceBuffer scale_buffer = Upload(scales);
    const std::int64_t head_bytes = std::int64_t{2} * KvTileBytes(c.type, c.head_dim);
    const DeviceBuffer cache =
        Poisoned<std::uint8_t>(static_cast<std::size_t>(blocks * c.num_kv_heads * head_bytes));
    const KvView view{.data = cache.as<std::uint8_t>(),
                      .block_bytes = c.num_kv_heads * head_bytes,
                      .head_bytes = head_bytes,
                      .num_kv_heads = c.num_kv_heads,
                      .head_dim = c.head_dim,
                      .type = c.type,
                      .scales = has_scales ? scale_buffer.as<float>() : nullptr};
    std::vector<TokenRecord> tokens(rows);
    for (int p = 0; p < length; ++p) {
      tokens[static_cast<std::size_t>(p)] = {
          .position = p,
          .kv_slot = table[static_cast<std::size_t>(p / kKvBlock)] * kKvBlock + p % kKvBlock};
    }
    const DeviceBuffer token_buffer = Upload(tokens);
    ASSERT_EQ(LaunchRopeAndCache({.q = q_buffer.as<float>(),
                                  .k = k_buffer.as<float>(),
                                  .v = v_buffer.as<float>(),
                                  .q_stride = q_width,
                                  .k_stride = kv_width,
                                  .v_stride = kv_width,
                                  .num_heads = c.num_heads,
                                  .cos_sin = cos_sin_buffer.as<float>(),
                                  .tokens = token_buffer.as<TokenRecord>(),
                                  .num_tokens = length,
                                  .cache = view},
                                 stream()),
              0);
    // Prefill: one sequence of all rows. Decode: every row a sequence of its own over the same
    // blocks.
    const int group = c.num_heads / c.num_kv_heads;
    std::vector<std::int32_t> tiles;
    for (int t = 0; t < length; t += PrefillTokens(group)) {
      tiles.insert(tiles.end(), {0, t});
    }
    std::vector<std::int32_t> first_row(rows), ones(rows, 1), tables;
    std::vector<DecodeItem> items;
    for (int p = 0; p < length; ++p) {
      const auto i = static_cast<std::size_t>(p);
      first_row[i] = p;
      const int first_key = c.window > 0 ? std::max(0, p - c.window + 1) : 0;
      const int first_unit = first_key / kKvUnit;
      const int num_units = p / kKvUnit - first_unit + 1;
      const auto first_item = static_cast<std::int32_t>(items.size());
      for (int unit = 0; unit < num_units; ++unit) {
        items.push_back({.sequence = p,
                         .row = p,
                         .length = p + 1,
                         .first_key = first_key,
                         .unit = first_unit + unit,
                         .num_units = num_units,
                         .first_item = first_item});
      }
      tables.insert(tables.end(), table.begin(), table.end());
    }
    const DeviceBuffer tiles_buffer = Upload(tiles);
    const DeviceBuffer table_buffer = Upload(tables);
    const DeviceBuffer whole = Upload(std::vector<std::int32_t>{0, length, 0});
    const DeviceBuffer rows_buffer = Upload(first_row);
    const DeviceBuffer ones_buffer = Upload(ones);
    const DeviceBuffer items_buffer = Upload(items);
    const DeviceBuffer count =
        Upload(std::vector<std::int32_t>{static_cast<std::int32_t>(items.size())});
    const DeviceBuffer partial =
        Poisoned<float>(items.size() * static_cast<std::size_t>(c.num_heads) *
                        static_cast<std::size_t>(c.head_dim + 2));
    const DeviceBuffer arrived =
        Upload(std::vector<std::int32_t>(rows * static_cast<std::size_t>(c.num_heads)));
    const auto out_size = rows * static_cast<std::size_t>(q_width);
    const DeviceBuffer prefill_out = Poisoned<std::uint16_t>(out_size);
    const DeviceBuffer decode_out = Poisoned<std::uint16_t>(out_size);
    const float scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    AttentionArgs args{.q = q_buffer.as<float>(),
                       .q_stride = q_width,
                       .out = prefill_out.as<std::uint16_t>(),
                       .out_stride = q_width,
                       .num_heads = c.num_heads,
                       .scale_log2 = scale * 1.44269504F,
                       .window = c.window,
                       .cache = view,
                       .sequences = {.first_row = whole.as<std::int32_t>(),
                                     .num_rows = whole.as<std::int32_t>() + 1,
                                     .first_position = whole.as<std::int32_t>() + 2,
                                     .block_tables = table_buffer.as<std::int32_t>(),
                                     .table_stride = blocks},
                       .tiles = tiles_buffer.as<std::int32_t>(),
                       .num_tiles = static_cast<int>(tiles.size() / 2)};
    ASSERT_EQ(LaunchPrefillAttention(args, stream()), 0);
    args.out = decode_out.as<std::uint16_t>();
    args.sequences.first_row = rows_buffer.as<std::int32_t>();
    args.sequences.num_rows = ones_buffer.as<std::int32_t>();
    args.sequences.first_position = rows_buffer.as<std::int32_t>();
    args.items = items_buffer.as<DecodeItem>();
    args.num_items = count.as<std::int32_t>();
    args.max_items = static_cast<int>(items.size());
    args.partial = partial.as<float>();
    args.arrived = arrived.as<std::int32_t>();
    ASSERT_EQ(LaunchDecodeAttention(args, device().num_sms(), stream()), 0);
    const auto prefill = Download<std::uint16_t>(prefill_out, out_size);
    const auto decode = Download<std::uint16_t>(decode_out, out_size);
    std::size_t different = 0;
    for (std::size_t i = 0; i < out_size; ++i) {
      different += prefill[i] != decode[i] ? 1 : 0;
    }
    EXPECT_EQ(different, 0U) << "head_dim " << c.head_dim << " heads " << c.num_heads << "/"
                             << c.num_kv_heads << " window " << c.window << " length " << length
                             << " " << NameOf(c.type);
    // Against double precision, on what the cache holds.
    std::vector<std::vector<double>> keys;  // [token][kv head]
    std::vector<std::vector<double>> values;
    for (int i = 0; i < length * c.num_kv_heads; ++i) {
      const std::ptrdiff_t at = std::ptrdiff_t{i} * c.head_dim;
      const auto head = static_cast<std::size_t>(i % c.num_kv_heads);
      keys.push_back(Cached(k.data() + at, c.head_dim, c.type, false, scales[head]));
      values.push_back(Cached(v.data() + at, c.head_dim, c.type, true,
                              scales[static_cast<std::size_t>(c.num_kv_heads) + head]));
    }
    const auto row_of = [&](int token, int head) {
      return static_cast<std::size_t>(token * c.num_kv_heads + head / group);
    };
    double worst = 0.0;
    for (int p = 0; p < length; p += std::max(1, length / 7)) {
      for (int h = 0; h < c.num_heads; ++h) {
        const int first_key = c.window > 0 ? std::max(0, p - c.window + 1) : 0;
        std::vector<double> w;
        double max = -1e30;
        for (int j = first_key; j <= p; ++j) {
          double s = 0.0;
          for (int d = 0; d < c.head_dim; ++d) {
            s += static_cast<double>(F16ToFloat(
                     FloatToF16(q[static_cast<std::size_t>(p * q_width + h * c.head_dim + d)]))) *
                 keys[row_of(j, h)][static_cast<std::size_t>(d)];
          }
          w.push_back(s * static_cast<double>(scale));
          max = std::max(max, w.back());
        }
        double total = 0.0;
        for (double& s : w) {
          s = std::exp(s - max);
          total += s;
        }
        for (int d = 0; d < c.head_dim; ++d) {
          double o = 0.0;
          for (int j = first_key; j <= p; ++j) {
            o += w[static_cast<std::size_t>(j - first_key)] / total *
                 values[row_of(j, h)][static_cast<std::size_t>(d)];
          }
          const double found = static_cast<double>(
              F16ToFloat(prefill[static_cast<std::size_t>(p * q_width + h * c.head_dim + d)]));
          worst = std::isnan(found) ? 1e9 : std::max(worst, std::fabs(found - o));
        }
      }
    }
    EXPECT_LT(worst, 2e-3) << "head_dim " << c.head_dim << " length " << length << " "
                           << NameOf(c.type);
    if (HasFailure()) {
      return;
    }
  }
}

// Many sequences of many lengths take one step: rotated and cached by their own kernel, and by the
// attention that reads them.
TEST_F(CudaAttention, DecodeRotatesAndCachesLikeItsOwnKernel) {
  const std::vector<Case> cases = {{128, 4, 4, 0, KvType::kF16},   {128, 8, 1, 200, KvType::kBF16},
                                   {64, 9, 3, 0, KvType::kBF16},   {16, 4, 2, 0, KvType::kF16},
                                   {128, 8, 1, 200, KvType::kFp8}, {64, 9, 3, 0, KvType::kFp8},
                                   {16, 4, 2, 0, KvType::kFp8},    {128, 4, 4, 0, KvType::kInt8},
                                   {64, 8, 2, 200, KvType::kInt8}, {32, 4, 2, 0, KvType::kInt8}};
  for (const Case& c : cases) {
    std::mt19937 rng(7);
    constexpr int kSequences = 150;
    constexpr int kTable = 18;  // blocks of the longest sequence
    const std::int64_t tile_bytes = KvTileBytes(c.type, c.head_dim);
    const std::int64_t head_bytes = 2 * tile_bytes;
    std::vector<std::int32_t> order(static_cast<std::size_t>(kSequences * kTable));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<TokenRecord> tokens;
    std::vector<DecodeItem> items;
    for (int i = 0; i < kSequences; ++i) {
      const int length = i < 4 ? 63 + i : 1 + static_cast<int>(rng() % (kTable * kKvBlock));
      const int position = length - 1;
      tokens.push_back(
          {.position = position,
           .kv_slot = order[static_cast<std::size_t>(i * kTable + position / kKvBlock)] * kKvBlock +
                      position % kKvBlock});
      const int first_key = c.window > 0 ? std::max(0, position - c.window + 1) : 0;
      const int first_unit = first_key / kKvUnit;
      const int num_units = position / kKvUnit - first_unit + 1;
      const auto first_item = static_cast<std::int32_t>(items.size());
      for (int unit = 0; unit < num_units; ++unit) {
        items.push_back({.sequence = i,
                         .row = i,
                         .length = length,
                         .first_key = first_key,
                         .unit = first_unit + unit,
                         .num_units = num_units,
                         .first_item = first_item});
      }
    }
    // Cached numbers, and a table of angles.
    const auto num_tiles = static_cast<std::size_t>(kSequences * kTable * c.num_kv_heads) * 2;
    const bool is_16_bit = c.type == KvType::kF16 || c.type == KvType::kBF16;
    const auto scale_bytes = static_cast<std::size_t>(KvScaleBytes(c.type));
    std::vector<std::uint8_t> cached(num_tiles * static_cast<std::size_t>(tile_bytes));
    const auto put16 = [&](std::size_t at, std::uint16_t bits) {
      std::memcpy(&cached[at], &bits, sizeof bits);
    };
    for (std::size_t tile = 0; tile < num_tiles; ++tile) {
      const std::size_t begin = tile * static_cast<std::size_t>(tile_bytes);
      const std::size_t end = begin + static_cast<std::size_t>(tile_bytes);
      for (std::size_t at = begin; at < begin + scale_bytes; at += 2) {
        put16(at, FloatToF16(static_cast<float>(rng() % 1000) / 100000.0F));
      }
      if (is_16_bit) {
        for (std::size_t at = begin; at < end; at += 2) {
          const float value = static_cast<float>(rng() % 2001) / 1000.0F - 1.0F;
          put16(at, c.type == KvType::kF16 ? FloatToF16(value) : FloatToBF16(value));
        }
      } else {  // e4m3 of less than 2 in magnitude, any code of int8
        const unsigned mask = c.type == KvType::kFp8 ? 0xbf : 0xff;
        for (std::size_t at = begin + scale_bytes; at < end; ++at) {
          cached[at] = static_cast<std::uint8_t>(rng() & mask);
        }
      }
    }
    // What an earlier sequence left behind the last token must not matter: NaN in every type.
    for (const DecodeItem& item : items) {
      const std::int64_t last = item.length - 1;
      const std::int64_t block = order[static_cast<std::size_t>(item.sequence) * kTable +
                                       static_cast<std::size_t>(last / kKvBlock)];
      for (std::int64_t part = 0; part < 2 * c.num_kv_heads; ++part) {  // keys and values of a head
        const auto begin = cached.begin() + (block * 2 * c.num_kv_heads + part) * tile_bytes;
        const auto scales_end = begin + static_cast<std::ptrdiff_t>(scale_bytes);
        std::fill(scales_end + last % kKvBlock * KvRowBytes(c.type, c.head_dim), begin + tile_bytes,
                  0xff);
        if (scale_bytes > 0) {
          std::fill(begin + 2 * (last % kKvBlock), scales_end, 0xff);
        }
      }
    }
    std::vector<float> cos_sin(static_cast<std::size_t>(kTable * kKvBlock * c.head_dim));
    for (auto& x : cos_sin) {
      x = static_cast<float>(rng() % 2001) / 1000.0F - 1.0F;
    }
    const auto q_width = static_cast<std::size_t>(c.num_heads * c.head_dim);
    const auto kv_width = static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
    const auto q = Normal(kSequences * q_width, 1.0F, 1);
    const DeviceBuffer k = Upload(Normal(kSequences * kv_width, 1.0F, 2));
    const DeviceBuffer v = Upload(Normal(kSequences * kv_width, 1.0F, 3));
    const DeviceBuffer angles = Upload(cos_sin);
    std::vector<float> head_scales;
    for (int i = 0; i < 2 * c.num_kv_heads; ++i) {
      head_scales.push_back(0.37F + 0.11F * static_cast<float>(i));
    }
    const DeviceBuffer scales = Upload(head_scales);
    const DeviceBuffer ones = Upload(std::vector<float>(head_scales.size(), 1.0F));
    const DeviceBuffer token_buffer = Upload(tokens);
    const DeviceBuffer items_buffer = Upload(items);
    const DeviceBuffer table = Upload(order);
    const DeviceBuffer count =
        Upload(std::vector<std::int32_t>{static_cast<std::int32_t>(items.size())});
    const DeviceBuffer arrived =
        Upload(std::vector<std::int32_t>(static_cast<std::size_t>(kSequences * c.num_heads)));
    const auto run = [&](bool fused, const float* fp8_scales) {
      const DeviceBuffer q_buffer = Upload(q);
      const DeviceBuffer cache = Upload(cached);
      const DeviceBuffer out = Poisoned<std::uint16_t>(kSequences * q_width);
      const DeviceBuffer partial =
          Poisoned<float>(items.size() * static_cast<std::size_t>(c.num_heads * (c.head_dim + 2)));
      const KvView view{.data = cache.as<std::uint8_t>(),
                        .block_bytes = c.num_kv_heads * head_bytes,
                        .head_bytes = head_bytes,
                        .num_kv_heads = c.num_kv_heads,
                        .head_dim = c.head_dim,
                        .type = c.type,
                        .scales = fp8_scales};
      AttentionArgs args{
          .q = q_buffer.as<float>(),
          .q_stride = static_cast<std::int64_t>(q_width),
          .out = out.as<std::uint16_t>(),
          .out_stride = static_cast<std::int64_t>(q_width),
          .num_heads = c.num_heads,
          .scale_log2 = 0.3F,
          .window = c.window,
          .cache = view,
          .sequences = {.block_tables = table.as<std::int32_t>(), .table_stride = kTable},
          .items = items_buffer.as<DecodeItem>(),
          .num_items = count.as<std::int32_t>(),
          .max_items = static_cast<int>(items.size()),
          .partial = partial.as<float>(),
          .arrived = arrived.as<std::int32_t>()};
      if (fused) {
        args.k = k.as<float>();
        args.v = v.as<float>();
        args.k_stride = args.v_stride = static_cast<std::int64_t>(kv_width);
        args.cos_sin = angles.as<float>();
      } else {
        EXPECT_EQ(LaunchRopeAndCache({.q = q_buffer.as<float>(),
                                      .k = k.as<float>(),
                                      .v = v.as<float>(),
                                      .q_stride = static_cast<std::int64_t>(q_width),
                                      .k_stride = static_cast<std::int64_t>(kv_width),
                                      .v_stride = static_cast<std::int64_t>(kv_width),
                                      .num_heads = c.num_heads,
                                      .cos_sin = angles.as<float>(),
                                      .tokens = token_buffer.as<TokenRecord>(),
                                      .num_tokens = kSequences,
                                      .cache = view},
                                     stream()),
                  0);
      }
      EXPECT_EQ(LaunchDecodeAttention(args, device().num_sms(), stream()), 0);
      return std::pair(Download<std::uint16_t>(out, kSequences * q_width),
                       Download<std::uint8_t>(cache, cached.size()));
    };
    const auto [out, cache] = run(false, scales.as<float>());
    const auto [fused_out, fused_cache] = run(true, scales.as<float>());
    EXPECT_TRUE(out == fused_out) << "head_dim " << c.head_dim << " " << NameOf(c.type);
    EXPECT_TRUE(cache == fused_cache) << "head_dim " << c.head_dim << " " << NameOf(c.type);
    EXPECT_FALSE(cache == cached);
    for (const std::uint16_t bits : out) {
      ASSERT_NE(bits & 0x7c00, 0x7c00) << "NaN or infinity, head_dim " << c.head_dim;
    }
    if (c.type == KvType::kFp8) {
      const auto none = run(true, nullptr);
      EXPECT_TRUE(none == run(true, ones.as<float>())) << "head_dim " << c.head_dim;
      EXPECT_FALSE(none.first == out) << "scales change nothing, head_dim " << c.head_dim;
    }
  }
}

// A step of decodes and chunks of prompts: queries rotated by RoPE's own kernel, and by the
// attention that reads them, while RoPE's kernel takes keys and values alone.
TEST_F(CudaAttention, AMixedStepRotatesQueriesLikeRopesKernel) {
  struct Sequence {
    int first_position;
    int num_rows;
  };
  const std::vector<Sequence> sequences = {{0, 1},    {0, 2},   {130, 1}, {0, 256}, {64, 64},
                                           {700, 65}, {37, 50}, {900, 1}, {5, 7},   {512, 130}};
  const std::vector<Case> cases = {{128, 4, 4, 0, KvType::kF16}, {128, 8, 1, 200, KvType::kBF16},
                                   {64, 9, 3, 0, KvType::kF16},  {64, 10, 2, 0, KvType::kBF16},
                                   {32, 12, 1, 0, KvType::kF16}, {16, 4, 2, 300, KvType::kF16},
                                   {128, 4, 4, 0, KvType::kFp8}, {64, 9, 1, 100, KvType::kInt8}};
  constexpr int kTable = 16;  // blocks of the longest sequence
  for (const Case& c : cases) {
    std::mt19937 rng(11);
    const auto num_sequences = sequences.size();
    std::vector<std::int32_t> order(num_sequences * kTable);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<TokenRecord> tokens;
    std::vector<TokenRecord> old_tokens;  // of earlier steps
    std::vector<DecodeItem> items;
    std::vector<std::int32_t> first_row, num_rows, first_position, tiles;
    const int tile_tokens = PrefillTokens(c.num_heads / c.num_kv_heads);
    for (std::size_t s = 0; s < num_sequences; ++s) {
      const auto [begin, rows] = sequences[s];
      const auto record = [&](int position) {
        const auto block = static_cast<std::size_t>(position / kKvBlock);
        return TokenRecord{.position = position,
                           .kv_slot = order[s * kTable + block] * kKvBlock + position % kKvBlock};
      };
      first_row.push_back(static_cast<std::int32_t>(tokens.size()));
      num_rows.push_back(rows);
      first_position.push_back(begin);
      if (rows == 1) {
        const int first_key = c.window > 0 ? std::max(0, begin - c.window + 1) : 0;
        const int first_unit = first_key / kKvUnit;
        const int num_units = begin / kKvUnit - first_unit + 1;
        const auto first_item = static_cast<std::int32_t>(items.size());
        for (int unit = 0; unit < num_units; ++unit) {
          items.push_back({.sequence = static_cast<std::int32_t>(s),
                           .row = first_row.back(),
                           .length = begin + 1,
                           .first_key = first_key,
                           .unit = first_unit + unit,
                           .num_units = num_units,
                           .first_item = first_item});
        }
      } else {
        for (int t = 0; t < rows; t += tile_tokens) {
          tiles.insert(tiles.end(), {static_cast<std::int32_t>(s), t});
        }
      }
      for (int p = 0; p < begin; ++p) {
        old_tokens.push_back(record(p));
      }
      for (int i = 0; i < rows; ++i) {
        tokens.push_back(record(begin + i));
      }
    }
    const std::size_t rows = tokens.size();
    const std::int64_t head_bytes = std::int64_t{2} * KvTileBytes(c.type, c.head_dim);
    const std::size_t cache_bytes =
        order.size() * static_cast<std::size_t>(c.num_kv_heads * head_bytes);
    const auto q_width = static_cast<std::size_t>(c.num_heads * c.head_dim);
    const auto kv_width = static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
    const auto q = Normal(rows * q_width, 1.0F, 1);
    const DeviceBuffer k = Upload(Normal(rows * kv_width, 1.0F, 2));
    const DeviceBuffer v = Upload(Normal(rows * kv_width, 1.0F, 3));
    const DeviceBuffer old_k = Upload(Normal(old_tokens.size() * kv_width, 1.0F, 4));
    const DeviceBuffer old_v = Upload(Normal(old_tokens.size() * kv_width, 1.0F, 5));
    std::vector<float> cos_sin(static_cast<std::size_t>(kTable * kKvBlock * c.head_dim));
    for (auto& x : cos_sin) {
      x = static_cast<float>(rng() % 2001) / 1000.0F - 1.0F;
    }
    const DeviceBuffer angles = Upload(cos_sin);
    const DeviceBuffer token_buffer = Upload(tokens);
    const DeviceBuffer old_token_buffer = Upload(old_tokens);
    const DeviceBuffer items_buffer = Upload(items);
    const DeviceBuffer tiles_buffer = Upload(tiles);
    const DeviceBuffer table = Upload(order);
    const DeviceBuffer first_row_buffer = Upload(first_row);
    const DeviceBuffer num_rows_buffer = Upload(num_rows);
    const DeviceBuffer first_position_buffer = Upload(first_position);
    const DeviceBuffer count =
        Upload(std::vector<std::int32_t>{static_cast<std::int32_t>(items.size())});
    const DeviceBuffer arrived =
        Upload(std::vector<std::int32_t>(num_sequences * static_cast<std::size_t>(c.num_heads)));
    const auto run = [&](bool fused, bool beside) {
      const DeviceBuffer q_buffer = Upload(q);
      // NaN in every type where no token was written.
      const DeviceBuffer cache = Upload(std::vector<std::uint8_t>(cache_bytes, 0xff));
      const DeviceBuffer out = Poisoned<std::uint16_t>(rows * q_width);
      const DeviceBuffer partial =
          Poisoned<float>(items.size() * static_cast<std::size_t>(c.num_heads * (c.head_dim + 2)));
      const KvView view{.data = cache.as<std::uint8_t>(),
                        .block_bytes = c.num_kv_heads * head_bytes,
                        .head_bytes = head_bytes,
                        .num_kv_heads = c.num_kv_heads,
                        .head_dim = c.head_dim,
                        .type = c.type};
      RopeArgs rope{.k = old_k.as<float>(),
                    .v = old_v.as<float>(),
                    .k_stride = static_cast<std::int64_t>(kv_width),
                    .v_stride = static_cast<std::int64_t>(kv_width),
                    .cos_sin = angles.as<float>(),
                    .tokens = old_token_buffer.as<TokenRecord>(),
                    .num_tokens = static_cast<int>(old_tokens.size()),
                    .cache = view};
      EXPECT_EQ(LaunchRopeAndCache(rope, stream()), 0);
      static_cast<void>(Download<std::uint8_t>(cache, 1));  // older tokens are of older steps
      rope.k = k.as<float>();
      rope.v = v.as<float>();
      rope.tokens = token_buffer.as<TokenRecord>();
      rope.num_tokens = static_cast<int>(rows);
      if (!fused) {
        rope.q = q_buffer.as<float>();
        rope.q_stride = static_cast<std::int64_t>(q_width);
        rope.num_heads = c.num_heads;
      }
      EXPECT_EQ(LaunchRopeAndCache(rope, stream()), 0);
      const AttentionArgs args{
          .q = q_buffer.as<float>(),
          .q_stride = static_cast<std::int64_t>(q_width),
          .out = out.as<std::uint16_t>(),
          .out_stride = static_cast<std::int64_t>(q_width),
          .num_heads = c.num_heads,
          .scale_log2 = 0.3F,
          .window = c.window,
          .cache = view,
          .sequences = {.first_row = first_row_buffer.as<std::int32_t>(),
                        .num_rows = num_rows_buffer.as<std::int32_t>(),
                        .first_position = first_position_buffer.as<std::int32_t>(),
                        .block_tables = table.as<std::int32_t>(),
                        .table_stride = kTable},
          .cos_sin = fused ? angles.as<float>() : nullptr,
          .items = items_buffer.as<DecodeItem>(),
          .num_items = count.as<std::int32_t>(),
          .max_items = static_cast<int>(items.size()),
          .partial = partial.as<float>(),
          .arrived = arrived.as<std::int32_t>(),
          .tiles = tiles_buffer.as<std::int32_t>(),
          .num_tiles = static_cast<int>(tiles.size() / 2),
          .beside = beside};
      EXPECT_EQ(LaunchPrefillAttention(args, stream()), 0);
      EXPECT_EQ(LaunchDecodeAttention(args, device().num_sms(), stream()), 0);
      if (fused) {
        EXPECT_TRUE(q == Download<float>(q_buffer, q.size())) << "queries are only read";
      }
      return std::pair(Download<std::uint16_t>(out, rows * q_width),
                       Download<std::uint8_t>(cache, cache_bytes));
    };
    const auto expected = run(false, false);
    for (const std::uint16_t bits : expected.first) {
      ASSERT_NE(bits & 0x7c00, 0x7c00) << "NaN or infinity, head_dim " << c.head_dim;
    }
    for (const bool beside : {false, true}) {
      const auto found = run(true, beside);
      EXPECT_TRUE(expected.first == found.first)
          << "head_dim " << c.head_dim << " " << NameOf(c.type) << (beside ? ", side by side" : "");
      EXPECT_TRUE(expected.second == found.second)
          << "the cache, head_dim " << c.head_dim << " " << NameOf(c.type);
    }
  }
}

/// Byte of dimension `d` of a key or value of fp8 in its tile (docs/formats/kv_block.md).
std::size_t Fp8Byte(int head_dim, int token, int d, bool is_value) {
  const int chunk = d / 16;
  const int lines = std::max(1, 128 / head_dim);  // rows that share 128 bytes
  const int place = chunk ^ (token / lines % std::min(8, head_dim / 16));
  const int low = d % 8;
  const int high = d / 8 % 2;
  const int byte = is_value ? 2 * low + high : low / 2 * 4 + high * 2 + low % 2;
  return static_cast<std::size_t>(token * head_dim + place * 16 + byte);
}

// Every number of the cache against scalar code: rotated, over the scale of its layer's head and
// kind, to the nearest e4m3 or 448.
TEST_F(CudaAttention, Fp8IsWrittenWithTheScaleOfItsHead) {
  for (const int head_dim : {16, 32, 64, 128}) {
    constexpr int kTokens = 70;  // a block and a part of one
    constexpr int kHeads = 3;
    const auto width = static_cast<std::size_t>(kHeads * head_dim);
    const auto k = Normal(kTokens * width, 1.0F, 2, 50.0F);
    const auto v = Normal(kTokens * width, 1.0F, 3, 50.0F);
    std::mt19937 rng(4);
    std::vector<float> cos_sin(static_cast<std::size_t>(kTokens * head_dim));
    for (auto& x : cos_sin) {
      x = static_cast<float>(rng() % 2001) / 1000.0F - 1.0F;
    }
    const std::vector<float> scales = {0.5F, 0.011F, 3.0F, 0.003F, 1.0F, 0.07F};
    std::vector<TokenRecord> tokens;
    for (int p = 0; p < kTokens; ++p) {
      tokens.push_back({.position = p, .kv_slot = (1 - p / kKvBlock) * kKvBlock + p % kKvBlock});
    }
    const auto tile_bytes = static_cast<std::size_t>(KvTileBytes(KvType::kFp8, head_dim));
    const std::size_t cache_bytes = 2 * kHeads * 2 * tile_bytes;
    const DeviceBuffer q_buffer = Upload(k);
    const DeviceBuffer k_buffer = Upload(k);
    const DeviceBuffer v_buffer = Upload(v);
    const DeviceBuffer angles = Upload(cos_sin);
    const DeviceBuffer scale_buffer = Upload(scales);
    const DeviceBuffer token_buffer = Upload(tokens);
    const DeviceBuffer cache_buffer = Poisoned<std::uint8_t>(cache_bytes);
    ASSERT_EQ(LaunchRopeAndCache(
                  {.q = q_buffer.as<float>(),
                   .k = k_buffer.as<float>(),
                   .v = v_buffer.as<float>(),
                   .q_stride = static_cast<std::int64_t>(width),
                   .k_stride = static_cast<std::int64_t>(width),
                   .v_stride = static_cast<std::int64_t>(width),
                   .num_heads = kHeads,
                   .cos_sin = angles.as<float>(),
                   .tokens = token_buffer.as<TokenRecord>(),
                   .num_tokens = kTokens,
                   .cache = {.data = cache_buffer.as<std::uint8_t>(),
                             .block_bytes = static_cast<std::int64_t>(kHeads * 2 * tile_bytes),
                             .head_bytes = static_cast<std::int64_t>(2 * tile_bytes),
                             .num_kv_heads = kHeads,
                             .head_dim = head_dim,
                             .type = KvType::kFp8,
                             .scales = scale_buffer.as<float>()}},
                  stream()),
              0);
    const auto cache = Download<std::uint8_t>(cache_buffer, cache_bytes);
    std::size_t wrong = 0;
    std::size_t saturated = 0;
    for (int p = 0; p < kTokens; ++p) {
      for (int head = 0; head < kHeads; ++head) {
        const std::size_t at =
            static_cast<std::size_t>(p) * width + static_cast<std::size_t>(head * head_dim);
        for (int d = 0; d < head_dim; ++d) {
          const int half = head_dim / 2;
          const auto low = static_cast<std::size_t>(d % half);
          const auto high = low + static_cast<std::size_t>(half);
          const float* angle = &cos_sin[static_cast<std::size_t>(p * head_dim)];
          const float rotated = d < half ? k[at + low] * angle[low] - k[at + high] * angle[high]
                                         : k[at + high] * angle[low] + k[at + low] * angle[high];
          for (const bool is_value : {false, true}) {
            const float x = is_value ? v[at + static_cast<std::size_t>(d)] : rotated;
            const float scale = scales[static_cast<std::size_t>((is_value ? kHeads : 0) + head)];
            const std::uint8_t expected = NearestCode(Codebook::kFp8E4M3, x * (1.0F / scale));
            const std::size_t tile =
                (static_cast<std::size_t>((1 - p / kKvBlock) * kHeads + head) * 2 +
                 (is_value ? 1 : 0)) *
                tile_bytes;
            const std::uint8_t found = cache[tile + Fp8Byte(head_dim, p % kKvBlock, d, is_value)];
            // Zeros may differ in their sign.
            wrong += (found & 0x7f) != 0 || (expected & 0x7f) != 0 ? found != expected : 0;
            saturated += (found & 0x7f) == 0x7e ? 1 : 0;
          }
        }
      }
    }
    EXPECT_EQ(wrong, 0U) << "head_dim " << head_dim;
    EXPECT_GT(saturated, 0U);
  }
}

}  // namespace
}  // namespace nibble::cuda
