#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/ids.h"
#include "base/result.h"
#include "kernels/context.h"
#include "kernels/kv_dtype.h"

namespace nibble {

/// "bfloat16", "int8", "float16", "float32", "fp8": the values of --kv-cache-dtype.
const char* Name(KvDType dtype);

/// Shape of the paged cache of one model on one device. The layout inside a block is the backend's
/// business (CPU: docs/formats/kv_block.md); the scheduler only learns block_size_tokens.
struct KvCacheSpec {
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  KvDType dtype = KvDType::kBF16;
  std::int64_t block_size_tokens = 16;  // CPU 16, CUDA 64

  /// Bytes of one block over all layers and heads, K and V and scales.
  std::size_t BlockBytes() const;
};

/// Errors: kUnsupported for a shape that no kernel runs; the message says which are.
Result<void> Validate(const KvCacheSpec& spec);

/// The pool: num_blocks blocks at a fixed address, one layer after the other, so that a layer's
/// blocks are neighbours. Every byte must hold zeros or what RopeAndCache wrote.
struct KvCache {
  KvCacheSpec spec;
  std::int64_t num_blocks = 0;
  std::byte* data = nullptr;  // num_blocks * spec.BlockBytes()
  /// kFp8: what stored numbers are multiplied by, [num_layers][2][num_kv_heads] (keys, values), at
  /// a fixed address of the device's memory. null: all 1.
  const float* scales = nullptr;
};

enum class BlockCopyDirection : std::uint8_t { kToHost, kFromHost };

/// Copies a whole block between the pool and spec.BlockBytes() bytes of host memory (AllocateHost),
/// where its layers follow one another, on the queue of the steps.
void CopyBlock(Device& device, const KvCache& cache, BlockId block, std::byte* host,
               BlockCopyDirection direction);

/// Physical block size of a device.
std::int64_t BlockSizeTokens(const Device& device);

/// One sequence's share of a step, in rows of the flat batch.
struct AttentionSequence {
  std::int32_t first_row = 0;  // first query row of this sequence
  std::int32_t num_rows = 0;   // query tokens in this step
  std::int32_t first_position =
      0;  // position of the first query token = tokens already in the cache
  const BlockId* block_table = nullptr;  // covers positions [0, first_position + num_rows)
};

/// cos and sin of all positions, half-split pairing. Built once at load.
struct RopeTable {
  const float* cos_sin =
      nullptr;  // [max_positions][head_dim]: head_dim/2 cosines, then head_dim/2 sines
  std::int64_t max_positions = 0;
  std::int64_t head_dim = 0;
};

struct RopeAndCacheArgs {
  float* q = nullptr;        // [rows, num_heads * head_dim], row stride q_stride; rotated in place
  const float* k = nullptr;  // [rows, num_kv_heads * head_dim], row stride k_stride
  const float* v = nullptr;
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  std::int64_t num_heads = 0;
  const float* q_norm = nullptr;  // [head_dim] RMSNorm weight applied before RoPE (Qwen3), or null
  const float* k_norm = nullptr;
  float norm_eps = 1e-6F;
  RopeTable rope;
};

/// Rotates q in place; rotates k and writes k and v of every row to its slot (position p of a
/// sequence lives in block_table[p / block_size] at p % block_size).
void RopeAndCache(KernelContext& context, const KvCache& cache, std::int64_t layer,
                  const RopeAndCacheArgs& args, std::span<const AttentionSequence> sequences);

struct PagedAttentionArgs {
  const float* q = nullptr;  // [rows, num_heads * head_dim], row stride q_stride
  std::int64_t q_stride = 0;
  float* out = nullptr;  // [rows, num_heads * head_dim], row stride out_stride
  std::int64_t out_stride = 0;
  std::int64_t num_heads = 0;
  float scale = 1.0F;               // 1 / sqrt(head_dim)
  std::int32_t sliding_window = 0;  // keys a query sees, itself included; 0: all
};

/// Causal attention of every query row over the cache (the row's own k and v are already in it).
/// Keys are taken in splits of 256 by position, merged in order; scores, softmax and sums in fp32
/// with a fixed order, so a row's bits depend neither on the batch, nor on chunking, nor on threads
/// or ISA.
void PagedAttention(KernelContext& context, const KvCache& cache, std::int64_t layer,
                    const PagedAttentionArgs& args, std::span<const AttentionSequence> sequences);

/// Scratch that PagedAttention needs, aligned to 64 bytes, for up to max_sequences sequences.
std::size_t AttentionScratchBytes(const Device& device, const KvCacheSpec& spec,
                                  std::int64_t num_heads, std::int64_t max_rows,
                                  std::int64_t max_sequences);

}  // namespace nibble
