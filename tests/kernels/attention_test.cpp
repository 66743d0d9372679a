#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/cuda_start.h"
#include "kernels/isa.h"
#include "kernels/paged_attention.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

using testing::HasSubstr;

struct Shape {
  std::int64_t num_heads = 4;
  std::int64_t num_kv_heads = 2;
  std::int64_t head_dim = 32;
  KvDType dtype = KvDType::kBF16;
  std::int32_t window = 0;
  bool qk_norm = false;
};

std::vector<float> Normal(std::size_t count, std::uint32_t seed, float stddev = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

/// What a model holds: tokens of several sequences, each with its q, k and v, and one cache whose
/// blocks are dealt out in a scrambled order.
class World {
 public:
  World(const Shape& shape, const std::vector<int>& lengths, int num_workers = 2)
      : shape_(shape), device_(MakeCpuDevice(num_workers)) {
    max_length_ = *std::max_element(lengths.begin(), lengths.end());
    std::int64_t num_blocks = 1;  // block 0 belongs to nobody
    std::int32_t rows = 0;
    for (const int length : lengths) {
      first_rows_.push_back(rows);
      rows += length;
      tables_.emplace_back(static_cast<std::size_t>(length + 15) / 16);
      num_blocks += static_cast<std::int64_t>(tables_.back().size());
    }
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_blocks - 1));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i + 1);
    }
    std::shuffle(ids.begin(), ids.end(), std::mt19937(7));
    for (auto& table : tables_) {
      for (BlockId& id : table) {
        id = BlockId{ids.back()};
        ids.pop_back();
      }
    }
    cache_.spec = {.num_layers = 2,
                   .num_kv_heads = shape.num_kv_heads,
                   .head_dim = shape.head_dim,
                   .dtype = shape.dtype};
    cache_.num_blocks = num_blocks;
    bytes_.resize(cache_.spec.BlockBytes() * static_cast<std::size_t>(num_blocks));
    cache_.data = bytes_.data();
    const auto wide = static_cast<std::size_t>(rows * shape.num_heads * shape.head_dim);
    const auto narrow = static_cast<std::size_t>(rows * shape.num_kv_heads * shape.head_dim);
    raw_q_ = Normal(wide, 1, 2.0F);
    k_ = Normal(narrow, 2, 1.5F);
    v_ = Normal(narrow, 3);
    q_norm_ = Normal(static_cast<std::size_t>(shape.head_dim), 4);
    k_norm_ = Normal(static_cast<std::size_t>(shape.head_dim), 5);
    q_ = raw_q_;
    out_.assign(wide, NAN);
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t p = 0; p < max_length_; ++p) {
      for (const bool sine : {false, true}) {
        for (std::int64_t d = 0; d < half; ++d) {
          const double angle =
              static_cast<double>(p) *
              std::pow(10000.0, -static_cast<double>(d) / static_cast<double>(half));
          cos_sin_.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
        }
      }
    }
    scratch_.resize(AttentionScratchBytes(*device_, cache_.spec, shape.num_heads, rows,
                                          static_cast<std::int64_t>(lengths.size())) +
                    64);
    context_.device = device_.get();
    const auto address = reinterpret_cast<std::uintptr_t>(scratch_.data());
    const std::size_t skip = (64 - address % 64) % 64;
    context_.scratch = scratch_.data() + skip;
    context_.scratch_bytes = scratch_.size() - 64;
  }

  /// Tokens [begin, end) of sequence s as one part of a step.
  AttentionSequence Part(int s, int begin, int end) const {
    const auto i = static_cast<std::size_t>(s);
    return {.first_row = first_rows_[i] + begin,
            .num_rows = end - begin,
            .first_position = begin,
            .block_table = tables_[i].data()};
  }

  void Step(const std::vector<AttentionSequence>& parts) {
    const std::int64_t wide = shape_.num_heads * shape_.head_dim;
    const std::int64_t narrow = shape_.num_kv_heads * shape_.head_dim;
    RopeAndCache(context_, cache_, 1,
                 {.q = q_.data(),
                  .k = k_.data(),
                  .v = v_.data(),
                  .q_stride = wide,
                  .k_stride = narrow,
                  .v_stride = narrow,
                  .num_heads = shape_.num_heads,
                  .q_norm = shape_.qk_norm ? q_norm_.data() : nullptr,
                  .k_norm = shape_.qk_norm ? k_norm_.data() : nullptr,
                  .norm_eps = 1e-6F,
                  .rope = {.cos_sin = cos_sin_.data(),
                           .max_positions = max_length_,
                           .head_dim = shape_.head_dim}},
                 parts);
    PagedAttention(context_, cache_, 1,
                   {.q = q_.data(),
                    .q_stride = wide,
                    .out = out_.data(),
                    .out_stride = wide,
                    .num_heads = shape_.num_heads,
                    .scale = Scale(),
                    .sliding_window = shape_.window},
                   parts);
  }

  void StepAll(const std::vector<int>& lengths) {
    std::vector<AttentionSequence> parts;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      parts.push_back(Part(static_cast<int>(s), 0, lengths[s]));
    }
    Step(parts);
  }

  /// Attention in double precision for one token and query head: straight from the inputs (no
  /// block, no split, no rounding of the cache), or from the rotated q and what the cache holds.
  std::vector<double> Truth(int s, int position, std::int64_t head, bool from_cache) const {
    const std::int64_t kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
    const std::int64_t row = first_rows_[static_cast<std::size_t>(s)];
    const std::int64_t q_row = (row + position) * shape_.num_heads + head;
    const float* stored_q = q_.data() + q_row * shape_.head_dim;
    const auto q = from_cache ? std::vector<double>(stored_q, stored_q + shape_.head_dim)
                              : Rotated(raw_q_, q_row, position, q_norm_);
    const int first = shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
    std::vector<double> scores;
    for (int j = first; j <= position; ++j) {
      const auto k = from_cache
                         ? Stored(s, j, kv_head, false)
                         : Rotated(k_, (row + j) * shape_.num_kv_heads + kv_head, j, k_norm_);
      double sum = 0.0;
      for (std::size_t d = 0; d < k.size(); ++d) {
        sum += q[d] * k[d];
      }
      scores.push_back(sum / std::sqrt(static_cast<double>(shape_.head_dim)));
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    std::vector<double> out(static_cast<std::size_t>(shape_.head_dim));
    for (int j = first; j <= position; ++j) {
      const double p = std::exp(scores[static_cast<std::size_t>(j - first)] - max);
      total += p;
      const float* raw_v =
          v_.data() + ((row + j) * shape_.num_kv_heads + kv_head) * shape_.head_dim;
      const auto v = from_cache ? Stored(s, j, kv_head, true)
                                : std::vector<double>(raw_v, raw_v + shape_.head_dim);
      for (std::size_t d = 0; d < out.size(); ++d) {
        out[d] += p * v[d];
      }
    }
    for (double& o : out) {
      o /= total;
    }
    return out;
  }

  const float* Out(int s, int position, std::int64_t head) const {
    const std::int64_t row = first_rows_[static_cast<std::size_t>(s)] + position;
    return out_.data() + (row * shape_.num_heads + head) * shape_.head_dim;
  }

  std::vector<float>& q() { return q_; }
  std::vector<float>& k() { return k_; }
  std::vector<float>& v() { return v_; }
  const std::vector<float>& out() const { return out_; }
  std::vector<std::byte>& bytes() { return bytes_; }
  const KvCache& cache() const { return cache_; }
  const std::vector<BlockId>& table(int s) const { return tables_[static_cast<std::size_t>(s)]; }

 private:
  /// K or V of one token as the bytes of the cache say (docs/formats/kv_block.md).
  std::vector<double> Stored(int s, int position, std::int64_t kv_head, bool is_v) const {
    const std::int64_t head_dim = shape_.head_dim;
    const bool int8 = shape_.dtype == KvDType::kInt8;
    const bool f32 = shape_.dtype == KvDType::kF32;
    const std::int64_t slot = position % 16;
    const std::int64_t block =
        Raw(tables_[static_cast<std::size_t>(s)][static_cast<std::size_t>(position / 16)]);
    const std::int64_t head_bytes = int8  ? 32 * head_dim + 64
                                    : f32 ? 128 * head_dim
                                          : 64 * head_dim;
    const auto* bytes =
        reinterpret_cast<const std::uint8_t*>(bytes_.data()) +
        ((cache_.num_blocks + block) * shape_.num_kv_heads + kv_head) * head_bytes;  // layer 1
    const auto half_at = [&](std::int64_t offset) {
      std::uint16_t value = 0;
      std::memcpy(&value, bytes + offset, 2);
      return value;
    };
    std::vector<double> values;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      if (int8) {
        const double scale =
            static_cast<double>(F16ToFloat(half_at(32 * head_dim + (is_v ? 32 : 0) + 2 * slot)));
        const int code = is_v
                             ? bytes[16 * head_dim + (slot / 4 * head_dim + d) * 4 + slot % 4] - 128
                             : bytes[(d / 4 * 16 + slot) * 4 + d % 4] - 128;
        values.push_back(scale * code);
      } else if (f32) {
        const std::int64_t at =
            is_v ? 64 * head_dim + (slot * head_dim + d) * 4 : (d * 16 + slot) * 4;
        float value = 0.0F;
        std::memcpy(&value, bytes + at, 4);
        values.push_back(static_cast<double>(value));
      } else {
        const std::int64_t at = is_v
                                    ? 32 * head_dim + ((slot / 2 * head_dim + d) * 2 + slot % 2) * 2
                                    : ((d / 2 * 16 + slot) * 2 + d % 2) * 2;
        values.push_back(static_cast<double>(BF16ToFloat(half_at(at))));
      }
    }
    return values;
  }

  float Scale() const { return 1.0F / std::sqrt(static_cast<float>(shape_.head_dim)); }

  std::vector<double> Rotated(const std::vector<float>& all, std::int64_t head_row, int position,
                              const std::vector<float>& norm) const {
    const auto head_dim = static_cast<std::size_t>(shape_.head_dim);
    const float* in = all.data() + head_row * shape_.head_dim;
    std::vector<double> x(in, in + head_dim);
    if (shape_.qk_norm) {
      double squares = 0.0;
      for (const double value : x) {
        squares += value * value;
      }
      const double rms = std::sqrt(squares / static_cast<double>(head_dim) + 1e-6);
      for (std::size_t d = 0; d < head_dim; ++d) {
        x[d] = x[d] / rms * static_cast<double>(norm[d]);
      }
    }
    const std::size_t half = head_dim / 2;
    std::vector<double> out(head_dim);
    for (std::size_t d = 0; d < half; ++d) {
      const double angle =
          position * std::pow(10000.0, -static_cast<double>(d) / static_cast<double>(half));
      out[d] = x[d] * std::cos(angle) - x[d + half] * std::sin(angle);
      out[d + half] = x[d + half] * std::cos(angle) + x[d] * std::sin(angle);
    }
    return out;
  }

  Shape shape_;
  std::unique_ptr<Device> device_;
  KernelContext context_;
  KvCache cache_;
  std::int64_t max_length_ = 0;
  std::vector<std::int32_t> first_rows_;
  std::vector<std::vector<BlockId>> tables_;
  std::vector<std::byte> bytes_;
  std::vector<std::byte> scratch_;
  std::vector<float> raw_q_, q_, k_, v_, q_norm_, k_norm_, out_, cos_sin_;
};

class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : ok_(ForceIsa(isa)) {}
  ~ForcedIsa() { ForceIsa(DetectIsa()); }
  bool ok() const { return ok_; }

 private:
  bool ok_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {
      {},
      {.num_heads = 9, .num_kv_heads = 3, .head_dim = 64},
      {.num_heads = 9, .num_kv_heads = 3, .head_dim = 64, .dtype = KvDType::kInt8},
      {.num_heads = 2, .num_kv_heads = 2, .head_dim = 16, .qk_norm = true},
      {.num_heads = 5, .num_kv_heads = 1, .head_dim = 80, .window = 100},
      {.num_heads = 7, .num_kv_heads = 1, .head_dim = 96, .dtype = KvDType::kInt8, .window = 17},
      {.num_heads = 40, .num_kv_heads = 1, .head_dim = 16},
      {.num_heads = 4, .num_kv_heads = 2, .head_dim = 128, .qk_norm = true},
      {.num_heads = 2, .num_kv_heads = 1, .head_dim = 48, .dtype = KvDType::kInt8, .qk_norm = true},
      {.num_heads = 3, .num_kv_heads = 3, .head_dim = 256},
      {.num_heads = 9, .num_kv_heads = 3, .head_dim = 64, .dtype = KvDType::kF32},
      {.num_heads = 5, .num_kv_heads = 1, .head_dim = 80, .dtype = KvDType::kF32, .window = 100},
      {.num_heads = 2, .num_kv_heads = 2, .head_dim = 16, .dtype = KvDType::kF32, .qk_norm = true},
  };
  return shapes;
}

std::string Describe(const Shape& shape) {
  return std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads) + " heads of " +
         std::to_string(shape.head_dim) + " " + Name(shape.dtype) + " window " +
         std::to_string(shape.window);
}

/// Largest and root mean square error of a sample of outputs.
std::pair<double, double> Errors(const World& world, const Shape& shape,
                                 const std::vector<int>& lengths, bool from_cache) {
  double worst = 0.0;
  double squares = 0.0;
  double count = 0.0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (int p = 0; p < lengths[s]; p += 1 + p / 3) {
      for (std::int64_t head = 0; head < shape.num_heads; head += 3) {
        const auto truth = world.Truth(static_cast<int>(s), p, head, from_cache);
        const float* out = world.Out(static_cast<int>(s), p, head);
        for (std::size_t d = 0; d < truth.size(); ++d) {
          const double error = std::abs(static_cast<double>(out[d]) - truth[d]);
          worst = std::max(worst, error);
          squares += error * error;
          count += 1.0;
        }
      }
    }
  }
  return {worst, std::sqrt(squares / count)};
}

TEST(PagedAttention, EqualsDoublePrecisionOnWhatTheCacheHolds) {
  // fp32 sums of 256 terms and merges of splits: errors of some 1e-6 for values of size 1.
  const std::vector<int> lengths = {1, 17, 530, 64};
  for (const Shape& shape : Shapes()) {
    World world(shape, lengths);
    world.StepAll(lengths);
    EXPECT_LT(Errors(world, shape, lengths, true).first, 2e-5) << Describe(shape);
  }
}

TEST(PagedAttention, RoundingOfTheCacheCostsLittle) {
  // Scores have a spread of 3 here, so they move by about 3 * 2^-9 in bf16 and the softmax with
  // them; v is rounded alike. The worst of thousands of values is about ten times the mean.
  const std::vector<int> lengths = {1, 17, 300};
  for (const Shape& shape : Shapes()) {
    World world(shape, lengths);
    world.StepAll(lengths);
    const auto [worst, rms] = Errors(world, shape, lengths, false);
    if (shape.dtype == KvDType::kF32) {  // what is left are the sums of the test above, and RoPE
      EXPECT_LT(worst, 1e-4) << Describe(shape);
      continue;
    }
    const bool int8 = shape.dtype == KvDType::kInt8;
    EXPECT_LT(rms, int8 ? 1e-2 : 3e-3) << Describe(shape);
    EXPECT_LT(worst, int8 ? 1e-1 : 3e-2) << Describe(shape);
  }
}

TEST(PagedAttention, EveryIsaAndThreadCountGivesTheSameBits) {
  const std::vector<int> lengths = {5, 270, 18};
  for (const Shape& shape : Shapes()) {
    std::vector<float> expected_q;
    std::vector<float> expected_out;
    std::vector<std::byte> expected_cache;
    for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      const ForcedIsa forced(isa);
      if (!forced.ok()) {
        GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
        continue;
      }
      for (const int workers : {1, 2, 5}) {
        if (isa == Isa::kRef && workers != 2) {
          continue;  // slow, and who runs an item cannot matter to scalar code alone
        }
        World world(shape, lengths, workers);
        // What lies before the part that is compared comes from the best level: ref is slow.
        ForceIsa(DetectIsa());
        world.Step({world.Part(1, 0, 250)});
        ForceIsa(isa);
        world.Step({world.Part(0, 0, 5), world.Part(1, 250, 270), world.Part(2, 0, 18)});
        if (expected_out.empty()) {
          expected_q = world.q();
          expected_out = world.out();
          expected_cache = world.bytes();
        }
        EXPECT_TRUE(SameBits(world.q(), expected_q)) << Describe(shape) << " " << Name(isa);
        EXPECT_TRUE(SameBits(world.out(), expected_out)) << Describe(shape) << " " << Name(isa);
        EXPECT_EQ(world.bytes(), expected_cache) << Describe(shape) << " " << Name(isa);
      }
    }
  }
}

TEST(PagedAttention, ChunksAndCompanyDoNotChangeBits) {
  const std::vector<int> lengths = {40, 600, 18};
  for (const Shape& shape : Shapes()) {
    World whole(shape, lengths);
    whole.StepAll(lengths);
    World parts(shape, lengths);
    // One sequence token by token, one in odd chunks, the third alone at the end.
    int first = 0;
    int second = 0;
    const int chunks[] = {1, 255, 2, 31, 100, 1, 1, 209};
    for (int i = 0; first < lengths[0]; ++i) {
      std::vector<AttentionSequence> step = {parts.Part(0, first, first + 1)};
      ++first;
      if (i % 5 == 0) {
        const int n = chunks[i / 5];
        step.insert(step.begin(), parts.Part(1, second, second + n));
        second += n;
      }
      parts.Step(step);
    }
    ASSERT_EQ(second, lengths[1]);
    parts.Step({parts.Part(2, 0, lengths[2])});
    EXPECT_TRUE(SameBits(whole.out(), parts.out())) << Describe(shape);
    EXPECT_EQ(whole.bytes(), parts.bytes()) << Describe(shape);
  }
}

TEST(PagedAttention, SlotsBeyondTheQueryAreNeverRead) {
  for (const Shape& shape : Shapes()) {
    for (const int length : {1, 2, 3, 15, 17, 21}) {
      World clean(shape, {length});
      clean.StepAll({length});
      World dirty(shape, {length});
      if (shape.dtype != KvDType::kInt8) {
        std::fill(dirty.bytes().begin(), dirty.bytes().end(), std::byte{0xff});  // NaN everywhere
      } else {
        // Codes of any value; scales are always finite, as every token's were.
        for (std::size_t i = 0; i < dirty.bytes().size(); ++i) {
          dirty.bytes()[i] = std::byte{0x55};
        }
      }
      dirty.StepAll({length});
      EXPECT_TRUE(SameBits(clean.out(), dirty.out())) << Describe(shape) << " length " << length;
    }
  }
}

TEST(PagedAttention, OneKeyReturnsItsValue) {
  World world({.num_heads = 2, .num_kv_heads = 1, .head_dim = 16}, {1});
  world.StepAll({1});
  for (std::size_t d = 0; d < 16; ++d) {
    EXPECT_EQ(world.Out(0, 0, 1)[d], BF16ToFloat(FloatToBF16(world.v()[d])));
  }
}

TEST(RopeAndCache, LaysBlocksOutAsDocumented) {
  // docs/formats/kv_block.md, read independently of the kernels. Position 0 is not rotated.
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8}) {
    const std::int64_t head_dim = 32;
    World world({.num_heads = 2, .num_kv_heads = 2, .head_dim = head_dim, .dtype = dtype}, {19});
    world.StepAll({19});
    const KvCache& cache = world.cache();
    const bool int8 = dtype == KvDType::kInt8;
    const std::int64_t head_bytes = int8 ? 32 * head_dim + 64 : 64 * head_dim;
    ASSERT_EQ(cache.spec.BlockBytes(), static_cast<std::size_t>(2 * 2 * head_bytes));
    for (const int position : {0, 18}) {
      const std::int64_t slot = position % 16;
      const std::int64_t block = Raw(world.table(0)[static_cast<std::size_t>(position / 16)]);
      for (std::int64_t head = 0; head < 2; ++head) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(cache.data) +
                            ((cache.num_blocks + block) * 2 + head) * head_bytes;  // layer 1
        const float* k = world.k().data() + (position * 2 + head) * head_dim;
        const float* v = world.v().data() + (position * 2 + head) * head_dim;
        const auto half_at = [&](std::int64_t offset) {
          std::uint16_t value = 0;
          std::memcpy(&value, bytes + offset, 2);
          return value;
        };
        for (std::int64_t d = 0; d < head_dim; ++d) {
          if (int8) {
            const float k_scale = F16ToFloat(half_at(32 * head_dim + 2 * slot));
            const float v_scale = F16ToFloat(half_at(32 * head_dim + 32 + 2 * slot));
            const int k_code = bytes[(d / 4 * 16 + slot) * 4 + d % 4] - 128;
            const int v_code =
                bytes[16 * head_dim + (slot / 4 * head_dim + d) * 4 + slot % 4] - 128;
            EXPECT_NEAR(static_cast<float>(v_code) * v_scale, v[d], 0.52F * v_scale);
            if (position == 0) {
              EXPECT_NEAR(static_cast<float>(k_code) * k_scale, k[d], 0.52F * k_scale);
            }
          } else {
            EXPECT_EQ(half_at(32 * head_dim + ((slot / 2 * head_dim + d) * 2 + slot % 2) * 2),
                      FloatToBF16(v[d]));
            if (position == 0) {
              EXPECT_EQ(half_at(((d / 2 * 16 + slot) * 2 + d % 2) * 2), FloatToBF16(k[d]));
            }
          }
        }
      }
    }
  }
}

TEST(RopeAndCache, AnF32BlockHoldsWhatItIsGiven) {
  const std::int64_t head_dim = 32;
  World world({.num_heads = 2, .num_kv_heads = 2, .head_dim = head_dim, .dtype = KvDType::kF32},
              {19});
  world.StepAll({19});
  const KvCache& cache = world.cache();
  ASSERT_EQ(cache.spec.BlockBytes(), static_cast<std::size_t>(2 * 2 * 128 * head_dim));
  for (const int position : {0, 18}) {
    const std::int64_t slot = position % 16;
    const std::int64_t block = Raw(world.table(0)[static_cast<std::size_t>(position / 16)]);
    for (std::int64_t head = 0; head < 2; ++head) {
      std::vector<float> values(static_cast<std::size_t>(32 * head_dim));
      std::memcpy(values.data(),
                  cache.data + ((cache.num_blocks + block) * 2 + head) * 128 * head_dim,  // layer 1
                  values.size() * sizeof(float));
      for (std::int64_t d = 0; d < head_dim; ++d) {
        const auto at = static_cast<std::size_t>((position * 2 + head) * head_dim + d);
        EXPECT_EQ(values[static_cast<std::size_t>((16 + slot) * head_dim + d)], world.v()[at]);
        if (position == 0) {
          EXPECT_EQ(values[static_cast<std::size_t>(d * 16 + slot)], world.k()[at]);
        }
      }
    }
  }
}

TEST(CopyBlock, MovesEveryLayerOfOneBlockAndNothingElse) {
  const auto device = MakeCpuDevice(1);
  KvCache cache{.spec = {.num_layers = 3, .num_kv_heads = 2, .head_dim = 16}, .num_blocks = 5};
  const std::size_t block_bytes = cache.spec.BlockBytes();
  std::vector<std::byte> pool(5 * block_bytes);
  for (std::size_t i = 0; i < pool.size(); ++i) {
    pool[i] = static_cast<std::byte>(i * 31 % 251);
  }
  const std::vector<std::byte> before = pool;
  cache.data = pool.data();
  std::vector<std::byte> host(block_bytes);
  CopyBlock(*device, cache, BlockId{3}, host.data(), BlockCopyDirection::kToHost);
  EXPECT_EQ(pool, before);
  CopyBlock(*device, cache, BlockId{1}, host.data(), BlockCopyDirection::kFromHost);
  const std::size_t part = block_bytes / 3;  // of one layer
  std::vector<std::byte> expected = before;
  for (std::size_t layer = 0; layer < 3; ++layer) {
    const auto at = [&](std::size_t block) {
      return static_cast<std::ptrdiff_t>((layer * 5 + block) * part);
    };
    std::copy_n(before.begin() + at(3), part, expected.begin() + at(1));
  }
  EXPECT_EQ(pool, expected);
}

TEST(RopeAndCache, OddValuesAreStoredAlikeOnEveryIsa) {
  const float odd[] = {0.0F,  -0.0F,       1e-45F,   -1e-40F, 3.4e38F, -3.4e38F,
                       1e-8F, 1.00390625F, INFINITY, 6e4F,    NAN,     -INFINITY};
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8, KvDType::kF32}) {
    std::vector<std::byte> expected;
    for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      const ForcedIsa forced(isa);
      if (!forced.ok()) {
        continue;
      }
      World world({.num_heads = 1, .num_kv_heads = 1, .head_dim = 16, .dtype = dtype}, {12});
      std::fill(world.v().begin(), world.v().end(), 0.25F);
      std::fill(world.k().begin(), world.k().end(), 0.0F);
      for (std::size_t i = 0; i < 12; ++i) {
        world.v()[i * 16 + i] = odd[i];
      }
      world.StepAll({12});
      if (expected.empty()) {
        expected = world.bytes();
      }
      EXPECT_EQ(world.bytes(), expected) << Name(isa);
    }
  }
}

TEST(KvCacheSpec, RefusesShapesThatNoKernelRuns) {
  const KvCacheSpec good{.num_layers = 1, .num_kv_heads = 1, .head_dim = 64};
  EXPECT_TRUE(Validate(good));
  for (const std::int64_t head_dim : {0, 8, 20, 100, 272}) {
    KvCacheSpec bad = good;
    bad.head_dim = head_dim;
    const auto result = Validate(bad);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr("head_dim " + std::to_string(head_dim)));
  }
  for (const std::int64_t tokens : {0, 8, 32, 48, 128}) {
    KvCacheSpec bad = good;
    bad.block_size_tokens = tokens;
    const auto result = Validate(bad);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(result.error().message, HasSubstr("blocks of " + std::to_string(tokens)));
  }
  KvCacheSpec bad = good;
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8, KvDType::kF32}) {
    bad = good;
    bad.dtype = dtype;
    EXPECT_TRUE(Validate(bad)) << Name(dtype);
  }
  for (const KvDType dtype : {KvDType::kF16, KvDType::kFp8}) {
    bad.dtype = dtype;
    const auto result = Validate(bad);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr(std::string("not ") + Name(dtype)));
  }
}

// Needs no card, only the build that has its kernels.
TEST(KvCacheSpec, TheBlocksOfACardNeedItsKernels) {
  const KvCacheSpec good{
      .num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .block_size_tokens = 64};
  const auto valid = Validate(good);
  if (!BuiltWithCuda()) {
    ASSERT_FALSE(valid);
    EXPECT_EQ(valid.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(valid.error().message, HasSubstr("the CPU's kernels take 16"));
    return;
  }
  EXPECT_TRUE(valid);
  for (const std::int64_t head_dim : {0, 48, 80, 256}) {
    KvCacheSpec bad = good;
    bad.head_dim = head_dim;
    const auto result = Validate(bad);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr("head_dim " + std::to_string(head_dim)));
  }
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kF16, KvDType::kFp8, KvDType::kInt8}) {
    KvCacheSpec other = good;
    other.dtype = dtype;
    EXPECT_TRUE(Validate(other)) << Name(dtype);
  }
  KvCacheSpec bad = good;
  bad.dtype = KvDType::kF32;
  const auto result = Validate(bad);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("not float32"));
}

}  // namespace
}  // namespace nibble
