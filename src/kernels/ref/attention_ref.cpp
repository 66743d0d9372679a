#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/attention_kernel.h"
#include "kernels/ref/lanes.h"
#include "tensor/float16.h"

// The arithmetic of attention, per query row (docs/formats/kv_block.md has the bytes):
//   q' = q * scale;  s[j] = fma over d in order of q'[d] * k[j][d], from 0
//     int8: k = code (0..255), from -128 * sum q' (lane d % 16, tree); then s[j] *= scale of k
//   per split of 256 absolute positions, over the keys that the row sees:
//     m = max s;  p[j] = exp(s[j] - m);  l = sum p, lane j % 16, tree;
//     o[d] = fma over j in order of p[j] * v[j][d], from 0
//       int8: p[j] *= scale of v first; v = code, from -128 * sum p (lane j % 16, tree)
//   splits merged in order: M' = max(M, m), L = L exp(M - M') + l exp(m - M'), O alike;
//   out = O * (1 / L)
namespace nibble {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

float Load32(const unsigned char* p) {
  float value = 0.0F;
  std::memcpy(&value, p, sizeof value);
  return value;
}

std::uint16_t Load16(const unsigned char* p) {
  std::uint16_t value = 0;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// One KV head of one block.
struct BlockView {
  const unsigned char* data;
  std::int64_t head_dim;
  KvDType dtype;

  float K(std::int64_t token, std::int64_t d) const {
    if (dtype == KvDType::kInt8) {
      return static_cast<float>(data[(d / 4 * 16 + token) * 4 + d % 4]);
    }
    if (dtype == KvDType::kF32) {
      return Load32(data + 4 * (d * 16 + token));
    }
    return BF16ToFloat(Load16(data + 2 * ((d / 2 * 16 + token) * 2 + d % 2)));
  }
  float V(std::int64_t token, std::int64_t d) const {
    if (dtype == KvDType::kInt8) {
      const unsigned char* v = data + 16 * head_dim;
      return static_cast<float>(v[(token / 4 * head_dim + d) * 4 + token % 4]);
    }
    if (dtype == KvDType::kF32) {
      return Load32(data + 64 * head_dim + 4 * (token * head_dim + d));
    }
    const unsigned char* v = data + 32 * head_dim;
    return BF16ToFloat(Load16(v + 2 * ((token / 2 * head_dim + d) * 2 + token % 2)));
  }
  float KScale(std::int64_t token) const {
    return F16ToFloat(Load16(data + 32 * head_dim + 2 * token));
  }
  float VScale(std::int64_t token) const {
    return F16ToFloat(Load16(data + 32 * head_dim + 32 + 2 * token));
  }
};

void AttendRow(const AttentionTile& tile, int row) {
  const std::int64_t head_dim = tile.head_dim;
  const bool int8 = tile.dtype == KvDType::kInt8;
  std::array<float, kMaxHeadDim> q{};
  std::array<float, kMaxHeadDim> merged{};
  ref::Lanes q_lanes{};
  for (std::int64_t d = 0; d < head_dim; ++d) {
    const float scaled = tile.q[row][d] * tile.scale;
    q[static_cast<std::size_t>(d)] = scaled;
    q_lanes[static_cast<std::size_t>(d % 16)] += scaled;
  }
  const float score_start = int8 ? -128.0F * ref::Sum(q_lanes) : 0.0F;
  const std::int64_t first = tile.first_key[row];
  const std::int64_t last = tile.last_key[row];
  const auto block_of = [&](std::int64_t position) {
    return BlockView{.data = tile.heads + tile.block_table[position / 16] * tile.block_stride,
                     .head_dim = head_dim,
                     .dtype = tile.dtype};
  };
  float max = 0.0F;
  float sum = 0.0F;
  bool any = false;
  for (std::int64_t split = first / kAttentionSplit; split <= last / kAttentionSplit; ++split) {
    const std::int64_t begin = std::max(first, split * kAttentionSplit);
    const std::int64_t end = std::min(last + 1, (split + 1) * kAttentionSplit);
    std::array<float, kAttentionSplit> p{};
    ref::Lanes lane_max;
    lane_max.fill(kLowest);
    for (std::int64_t j = begin; j < end; ++j) {
      const BlockView block = block_of(j);
      float s = score_start;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        s = std::fma(q[static_cast<std::size_t>(d)], block.K(j % 16, d), s);
      }
      if (int8) {
        s *= block.KScale(j % 16);
      }
      p[static_cast<std::size_t>(j % kAttentionSplit)] = s;
      float& lane = lane_max[static_cast<std::size_t>(j % 16)];
      lane = ref::Max(lane, s);
    }
    const float split_max = ref::Max(lane_max);
    ref::Lanes lane_sum{};
    ref::Lanes lane_scaled{};
    for (std::int64_t j = begin; j < end; ++j) {
      float& weight = p[static_cast<std::size_t>(j % kAttentionSplit)];
      weight = ref::Exp(weight - split_max);
      lane_sum[static_cast<std::size_t>(j % 16)] += weight;
      if (int8) {
        weight *= block_of(j).VScale(j % 16);
        lane_scaled[static_cast<std::size_t>(j % 16)] += weight;
      }
    }
    std::array<float, kMaxHeadDim> out{};
    if (int8) {
      out.fill(-128.0F * ref::Sum(lane_scaled));
    }
    for (std::int64_t j = begin; j < end; ++j) {
      const BlockView block = block_of(j);
      for (std::int64_t d = 0; d < head_dim; ++d) {
        float& o = out[static_cast<std::size_t>(d)];
        o = std::fma(p[static_cast<std::size_t>(j % kAttentionSplit)], block.V(j % 16, d), o);
      }
    }
    const float split_sum = ref::Sum(lane_sum);
    if (!any) {
      max = split_max;
      sum = split_sum;
      merged = out;
      any = true;
      continue;
    }
    const float new_max = ref::Max(max, split_max);
    const float keep = ref::Exp(max - new_max);
    const float add = ref::Exp(split_max - new_max);
    max = new_max;
    sum = std::fma(sum, keep, split_sum * add);
    for (std::size_t d = 0; d < static_cast<std::size_t>(head_dim); ++d) {
      merged[d] = std::fma(merged[d], keep, out[d] * add);
    }
  }
  const float inverse = 1.0F / sum;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    tile.out[row][d] = merged[static_cast<std::size_t>(d)] * inverse;
  }
}

void Attend(const AttentionTile& tile) {
  for (int row = 0; row < tile.num_rows; ++row) {
    AttendRow(tile, row);
  }
}

void NormAndRotate(float* x, const float* norm, float eps, const float* cos_sin,
                   std::int64_t head_dim) {
  if (norm != nullptr) {
    ref::Lanes squares{};
    for (std::int64_t d = 0; d < head_dim; ++d) {
      float& lane = squares[static_cast<std::size_t>(d % 16)];
      lane = std::fma(x[d], x[d], lane);
    }
    const float inverse = 1.0F / std::sqrt(ref::Sum(squares) / static_cast<float>(head_dim) + eps);
    for (std::int64_t d = 0; d < head_dim; ++d) {
      x[d] = x[d] * inverse * norm[d];
    }
  }
  const std::int64_t half = head_dim / 2;
  for (std::int64_t d = 0; d < half; ++d) {
    const float a = x[d];
    const float b = x[d + half];
    const float c = cos_sin[d];
    const float s = cos_sin[half + d];
    x[d] = std::fma(-b, s, a * c);
    x[d + half] = std::fma(a, s, b * c);
  }
}

// Symmetric absmax / 127 with the scale rounded to fp16 first, so codes fit the stored scale.
std::uint16_t Quantize(const float* x, std::int64_t head_dim, unsigned char* codes) {
  ref::Lanes lanes{};
  for (std::int64_t d = 0; d < head_dim; ++d) {
    float& lane = lanes[static_cast<std::size_t>(d % 16)];
    lane = ref::Max(std::fabs(x[d]), lane);
  }
  const std::uint16_t half = FloatToF16(ref::Min(ref::Max(lanes) / 127.0F, 65504.0F));
  const float scale = F16ToFloat(half);
  const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    const float code = ref::Min(ref::Max(x[d] * inverse, -127.0F), 127.0F);
    codes[d] = static_cast<unsigned char>(std::lrint(code) + 128);
  }
  return half;
}

void RopeAndCacheRow(const RopeRow& row) {
  const std::int64_t head_dim = row.head_dim;
  const std::int64_t slot = row.slot;
  for (int head = 0; head < row.num_heads; ++head) {
    NormAndRotate(row.q + head * head_dim, row.q_norm, row.norm_eps, row.cos_sin, head_dim);
  }
  for (int head = 0; head < row.num_kv_heads; ++head) {
    std::array<float, kMaxHeadDim> k{};
    std::copy_n(row.k + head * head_dim, head_dim, k.begin());
    NormAndRotate(k.data(), row.k_norm, row.norm_eps, row.cos_sin, head_dim);
    const float* v = row.v + head * head_dim;
    unsigned char* block = row.block + head * row.head_bytes;
    if (row.dtype == KvDType::kF32) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        std::memcpy(block + 4 * (d * 16 + slot), &k[static_cast<std::size_t>(d)], sizeof(float));
      }
      std::memcpy(block + 64 * head_dim + 4 * slot * head_dim, v,
                  static_cast<std::size_t>(head_dim) * sizeof(float));
      continue;
    }
    if (row.dtype == KvDType::kInt8) {
      std::array<unsigned char, kMaxHeadDim> codes{};
      const std::uint16_t k_scale = Quantize(k.data(), head_dim, codes.data());
      for (std::int64_t d = 0; d < head_dim; ++d) {
        block[(d / 4 * 16 + slot) * 4 + d % 4] = codes[static_cast<std::size_t>(d)];
      }
      const std::uint16_t v_scale = Quantize(v, head_dim, codes.data());
      for (std::int64_t d = 0; d < head_dim; ++d) {
        block[16 * head_dim + (slot / 4 * head_dim + d) * 4 + slot % 4] =
            codes[static_cast<std::size_t>(d)];
      }
      std::memcpy(block + 32 * head_dim + 2 * slot, &k_scale, sizeof k_scale);
      std::memcpy(block + 32 * head_dim + 32 + 2 * slot, &v_scale, sizeof v_scale);
      continue;
    }
    for (std::int64_t d = 0; d < head_dim; ++d) {
      const std::uint16_t kd = FloatToBF16(k[static_cast<std::size_t>(d)]);
      const std::uint16_t vd = FloatToBF16(v[d]);
      std::memcpy(block + 2 * ((d / 2 * 16 + slot) * 2 + d % 2), &kd, sizeof kd);
      std::memcpy(block + 32 * head_dim + 2 * ((slot / 2 * head_dim + d) * 2 + slot % 2), &vd,
                  sizeof vd);
    }
  }
}

}  // namespace

const AttentionKernels kRefAttention = {
    .name = "ref", .attend = Attend, .rope_and_cache = RopeAndCacheRow};

}  // namespace nibble
