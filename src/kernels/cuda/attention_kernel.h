#pragma once

#include <cstdint>

#include "kernels/cuda/ops_kernel.h"

struct CUstream_st;

namespace nibble::cuda {

// Attention over the paged cache: plain data and launchers, each returns a cudaError_t.
// Bytes: docs/formats/kv_block.md; arithmetic: attention.cuh.

constexpr int kKvBlock = 64;   // tokens of a block
constexpr int kKvSplit = 128;  // keys of a split, by absolute position
constexpr int kKvUnit = 512;   // keys of a unit: four splits, one work item of decoding
constexpr int kMaxGroup = 8;   // query heads of a KV head that one product takes

enum class KvType : std::uint8_t { kF16, kBF16, kFp8, kInt8 };

/// Bytes of one token's key or value of one head.
constexpr int KvRowBytes(KvType type, int head_dim) {
  return type == KvType::kFp8 || type == KvType::kInt8 ? head_dim : 2 * head_dim;
}
/// Bytes before the rows of a tile: an fp16 scale a token.
constexpr int KvScaleBytes(KvType type) { return type == KvType::kInt8 ? 2 * kKvBlock : 0; }
/// The keys of one head of a block, or its values; a head is one of each.
constexpr int KvTileBytes(KvType type, int head_dim) {
  return KvScaleBytes(type) + kKvBlock * KvRowBytes(type, head_dim);
}

/// One layer of the cache.
struct KvView {
  std::uint8_t* data = nullptr;  // block 0, head 0
  std::int64_t block_bytes = 0;
  std::int64_t head_bytes = 0;  // keys, then values
  int num_kv_heads = 0;
  int head_dim = 0;
  KvType type = KvType::kBF16;
  const float* scales = nullptr;  // kFp8: [2][num_kv_heads], of keys and of values; null: all 1
};

/// Sequences of a step, in device memory.
struct SequenceView {
  const std::int32_t* first_row = nullptr;  // [sequences]
  const std::int32_t* num_rows = nullptr;
  const std::int32_t* first_position = nullptr;
  const std::int32_t* block_tables = nullptr;  // [sequences][table_stride]
  int table_stride = 0;
};

/// Rotates q in place, rotates k, and writes k and v of every row to its slot. Without heads of q
/// (num_heads 0) k and v alone: attention rotates q as it reads it.
struct RopeArgs {
  float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  int num_heads = 0;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;
  const TokenRecord* tokens = nullptr;
  int num_tokens = 0;
  KvView cache;
};
int LaunchRopeAndCache(const RopeArgs& args, CUstream_st* stream);

/// A unit of a sequence with one query, in device memory.
struct DecodeItem {
  std::int32_t sequence = 0;
  std::int32_t row = 0;
  std::int32_t length = 0;      // keys in the cache, the query's own included
  std::int32_t first_key = 0;   // that the query sees
  std::int32_t unit = 0;        // by absolute position
  std::int32_t num_units = 0;   // of the sequence
  std::int32_t first_item = 0;  // of the sequence
  std::int32_t unused = 0;
};

struct AttentionArgs {
  const float* q = nullptr;  // [tokens, num_heads * head_dim]
  std::int64_t q_stride = 0;
  std::uint16_t* out = nullptr;  // fp16
  std::int64_t out_stride = 0;   // values
  int num_heads = 0;
  float scale_log2 = 0.0F;  // scale * log2(e)
  int window = 0;           // keys that a query sees; 0: all
  KvView cache;
  SequenceView sequences;
  // If given, q is rotated as it is read.
  const float* cos_sin = nullptr;
  // Decode, with cos_sin: if k is given, the one new key and value of every sequence are rotated
  // and written to the cache here (no norms; up to kMaxGroup heads a KV head). What earlier kernels
  // of the stream wrote to the cache must be older than the one before this.
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t k_stride = 0, v_stride = 0;
  // Decode: the units of a sequence in order beside each other.
  const DecodeItem* items = nullptr;        // [max_items]
  const std::int32_t* num_items = nullptr;  // in device memory: a recorded step serves any context
  int max_items = 0;
  float* partial = nullptr;         // [max_items][num_heads][head_dim + 2]
  std::int32_t* arrived = nullptr;  // [sequences][num_kv_heads * groups], zero between steps
  // Prefill: tiles (sequence, first row of the tile in tokens).
  const std::int32_t* tiles = nullptr;  // [num_tiles][2]
  int num_tiles = 0;
  // A step with both: decode is launched right behind prefill and runs beside it. Prefill lets it
  // begin once the kernels before both are done; decode waits for prefill only at its end.
  bool beside = false;
};
/// Sequences of one row.
int LaunchDecodeAttention(const AttentionArgs& args, int num_sms, CUstream_st* stream);
/// Sequences of many rows, by tiles of PrefillTokens.
int LaunchPrefillAttention(const AttentionArgs& args, CUstream_st* stream);
constexpr int kPrefillRows = 128;  // of a tile: (token, query head) pairs that share a KV head
/// Tokens of a tile, for `group` query heads a KV head.
constexpr int PrefillTokens(int group) { return kPrefillRows / group; }

bool HasAttention(int head_dim);

}  // namespace nibble::cuda
