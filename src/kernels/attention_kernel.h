#pragma once

#include <cstdint>

#include "kernels/kv_dtype.h"

namespace nibble {

// The layout of a block and the arithmetic: docs/formats/kv_block.md and
// kernels/ref/attention_ref.cpp.
constexpr int kKvBlockTokens = 16;     // tokens a block: the lanes of a vector of floats
constexpr int kAttentionSplit = 256;   // keys a split, by absolute position
constexpr int kMaxAttentionRows = 32;  // query rows a tile
constexpr int kMaxHeadDim = 256;       // and a multiple of 16

/// Query rows that see the same K and V: tokens of one sequence times query heads of one KV head.
struct AttentionTile {
  int num_rows = 0;
  int head_dim = 0;
  KvDType dtype = KvDType::kBF16;
  float scale = 1.0F;
  const float* q[kMaxAttentionRows];          // [head_dim] each
  float* out[kMaxAttentionRows];              // [head_dim] each
  std::int32_t first_key[kMaxAttentionRows];  // a row sees keys first_key..last_key, never
  std::int32_t last_key[kMaxAttentionRows];   // decreasing from row to row
  const std::int32_t* block_table = nullptr;
  const unsigned char* heads = nullptr;  // block b of this layer and head: heads + b * block_stride
  std::int64_t block_stride = 0;
  // kAttentionScratchFloats(head_dim) floats, aligned to 64 bytes.
  float* scratch = nullptr;
};

/// Bytes of K and V of one KV head in a block.
constexpr std::int64_t KvHeadBytes(KvDType dtype, std::int64_t head_dim) {
  constexpr std::int64_t kValuesOfD = 2 * std::int64_t{kKvBlockTokens};  // K and V of all tokens
  const std::int64_t values = kValuesOfD * head_dim;
  return dtype == KvDType::kInt8  ? values + 2 * kValuesOfD  // an fp16 scale each
         : dtype == KvDType::kF32 ? 4 * values
                                  : 2 * values;
}

/// Scaled queries, merged and split outputs, scores.
constexpr std::int64_t AttentionScratchFloats(std::int64_t head_dim) {
  return kMaxAttentionRows * (3 * head_dim + kAttentionSplit);
}

/// One token of the batch: q rotated in place, k and v written to slot `slot` of its block.
struct RopeRow {
  float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* q_norm = nullptr;  // may be null
  const float* k_norm = nullptr;
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;  // [head_dim / 2] cosines, [head_dim / 2] sines
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  KvDType dtype = KvDType::kBF16;
  int slot = 0;                    // 0..15
  unsigned char* block = nullptr;  // head 0 of this layer in the token's block
  std::int64_t head_bytes = 0;
};

struct AttentionKernels {
  const char* name;
  void (*attend)(const AttentionTile& tile);
  void (*rope_and_cache)(const RopeRow& row);
};

extern const AttentionKernels kRefAttention;
extern const AttentionKernels kAvx2Attention;
extern const AttentionKernels kAvx512Attention;

}  // namespace nibble
