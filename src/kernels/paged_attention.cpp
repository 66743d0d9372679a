#include "kernels/paged_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kernels/attention_kernel.h"
#include "kernels/cuda/backend.h"
#include "kernels/isa.h"

namespace nibble {
namespace {

const AttentionKernels& Kernels() {
  return ForCurrentIsa(kRefAttention, kAvx2Attention, kAvx512Attention);
}

// docs/formats/kv_block.md
// The CPU's blocks hold 16 tokens, those of CUDA 64: the size tells whose layout it is. Any other
// is cuda::Validate's to refuse.
bool IsCuda(const KvCacheSpec& spec) { return spec.block_size_tokens != kKvBlockTokens; }

std::int64_t HeadBytes(const KvCacheSpec& spec) {
  if (IsCuda(spec)) {
    return cuda::HeadBytes(spec);
  }
  return KvHeadBytes(spec.dtype, spec.head_dim);
}

// Where KV head 0 of block 0 of a layer lies, and how far apart blocks are.
struct LayerView {
  unsigned char* heads;
  std::int64_t head_bytes;
  std::int64_t block_stride;
};

LayerView Layer(const KvCache& cache, std::int64_t layer) {
  NIBBLE_CHECK(layer >= 0 && layer < cache.spec.num_layers, "layer beyond the cache");
  const std::int64_t head_bytes = HeadBytes(cache.spec);
  const std::int64_t block_stride = cache.spec.num_kv_heads * head_bytes;
  return {.heads = reinterpret_cast<unsigned char*>(cache.data) +
                   layer * cache.num_blocks * block_stride,
          .head_bytes = head_bytes,
          .block_stride = block_stride};
}

std::size_t RoundUp(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t TileScratchBytes(std::int64_t head_dim) {
  return static_cast<std::size_t>(AttentionScratchFloats(head_dim)) * sizeof(float);
}

}  // namespace

const char* Name(KvDType dtype) {
  switch (dtype) {
    case KvDType::kBF16:
      return "bfloat16";
    case KvDType::kInt8:
      return "int8";
    case KvDType::kF16:
      return "float16";
    case KvDType::kF32:
      return "float32";
    case KvDType::kFp8:
      return "fp8";
  }
  return "";
}

std::size_t KvCacheSpec::BlockBytes() const {
  return static_cast<std::size_t>(num_layers * num_kv_heads * HeadBytes(*this));
}

Result<void> Validate(const KvCacheSpec& spec) {
  const auto fail = [](std::string message) {
    return Fail(ErrorCode::kUnsupported, std::move(message));
  };
  if (spec.num_layers < 1 || spec.num_kv_heads < 1) {
    return fail(fmt::format("KV cache of {} layers and {} KV heads: both must be at least 1",
                            spec.num_layers, spec.num_kv_heads));
  }
  if (IsCuda(spec)) {
    return cuda::Validate(spec);
  }
  if (spec.dtype == KvDType::kF16 || spec.dtype == KvDType::kFp8) {
    return fail(fmt::format("the CPU's KV cache holds bfloat16, int8 or float32, not {}",
                            Name(spec.dtype)));
  }
  if (spec.head_dim < 16 || spec.head_dim > kMaxHeadDim || spec.head_dim % 16 != 0) {
    return fail(fmt::format("head_dim {}: the attention kernels take multiples of 16 up to {}",
                            spec.head_dim, kMaxHeadDim));
  }
  return {};
}

void CopyBlock(Device& device, const KvCache& cache, BlockId block, std::byte* host,
               BlockCopyDirection direction) {
  NIBBLE_CHECK(Raw(block) >= 0 && Raw(block) < cache.num_blocks, "block beyond the cache");
  for (std::int64_t layer = 0; layer < cache.spec.num_layers; ++layer) {
    const LayerView view = Layer(cache, layer);
    auto* pool = reinterpret_cast<std::byte*>(view.heads + Raw(block) * view.block_stride);
    const auto bytes = static_cast<std::size_t>(view.block_stride);
    if (direction == BlockCopyDirection::kToHost) {
      device.Copy(host, pool, bytes);
    } else {
      device.Copy(pool, host, bytes);
    }
    host += bytes;
  }
}

std::int64_t BlockSizeTokens(const Device& device) {
  return device.kind() == DeviceKind::kCpu ? kKvBlockTokens : 64;
}

void RopeAndCache(KernelContext& context, const KvCache& cache, std::int64_t layer,
                  const RopeAndCacheArgs& args, std::span<const AttentionSequence> sequences) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::RopeAndCache(context, cache, layer, args, sequences);
    return;
  }
  const auto run = Kernels().rope_and_cache;
  const LayerView view = Layer(cache, layer);
  const std::int64_t head_dim = cache.spec.head_dim;
  NIBBLE_CHECK(args.rope.head_dim == head_dim, "RoPE table of another head_dim");
  std::int64_t num_rows = 0;
  for (const AttentionSequence& sequence : sequences) {
    NIBBLE_CHECK(sequence.first_position + sequence.num_rows <= args.rope.max_positions,
                 "position beyond the RoPE table");
    num_rows += sequence.num_rows;
  }
  const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
    std::size_t s = 0;
    std::int64_t before = 0;  // rows of the sequences before s
    for (std::int64_t i = begin; i < end; ++i) {
      while (i - before >= sequences[s].num_rows) {
        before += sequences[s].num_rows;
        ++s;
      }
      const AttentionSequence& sequence = sequences[s];
      const std::int64_t position = sequence.first_position + (i - before);
      const std::int64_t row = sequence.first_row + (i - before);
      const std::int64_t block = Raw(sequence.block_table[position / kKvBlockTokens]);
      NIBBLE_CHECK(block >= 0 && block < cache.num_blocks, "block beyond the cache");
      run({.q = args.q + row * args.q_stride,
           .k = args.k + row * args.k_stride,
           .v = args.v + row * args.v_stride,
           .q_norm = args.q_norm,
           .k_norm = args.k_norm,
           .norm_eps = args.norm_eps,
           .cos_sin = args.rope.cos_sin + position * head_dim,
           .num_heads = static_cast<int>(args.num_heads),
           .num_kv_heads = static_cast<int>(cache.spec.num_kv_heads),
           .head_dim = static_cast<int>(head_dim),
           .dtype = cache.spec.dtype,
           .slot = static_cast<int>(position % kKvBlockTokens),
           .block = view.heads + block * view.block_stride,
           .head_bytes = view.head_bytes});
    }
  };
  if (num_rows <= 4) {
    if (num_rows > 0) {
      rows(0, num_rows, 0);
    }
    return;
  }
  // 16 rows of a long prompt are a block of the cache, so workers rarely meet in one.
  const std::int64_t grain = num_rows >= 128 ? kKvBlockTokens : 4;
  context.device->pool().For(num_rows, grain, rows);
}

void PagedAttention(KernelContext& context, const KvCache& cache, std::int64_t layer,
                    const PagedAttentionArgs& args, std::span<const AttentionSequence> sequences) {
  if (context.device->kind() == DeviceKind::kCuda) {
    cuda::PagedAttention(context, cache, layer, args, sequences);
    return;
  }
  const auto run = Kernels().attend;
  const LayerView view = Layer(cache, layer);
  const std::int64_t head_dim = cache.spec.head_dim;
  const std::int64_t num_kv_heads = cache.spec.num_kv_heads;
  const std::int64_t group = args.num_heads / num_kv_heads;  // query heads of one KV head
  NIBBLE_CHECK(group * num_kv_heads == args.num_heads, "num_heads is no multiple of num_kv_heads");
  ThreadPool& pool = context.device->pool();
  const std::size_t tile_bytes = TileScratchBytes(head_dim);
  const std::size_t starts_bytes = RoundUp((sequences.size() + 1) * sizeof(std::int64_t));
  NIBBLE_CHECK(context.scratch_bytes >=
                   starts_bytes + tile_bytes * static_cast<std::size_t>(pool.num_workers()),
               "attention scratch is too small");

  // Work items: (sequence, KV head, tile of query rows), rows being tokens times heads of a group.
  const auto tiles_of = [&](const AttentionSequence& sequence) {
    return (sequence.num_rows * group + kMaxAttentionRows - 1) / kMaxAttentionRows;
  };
  auto* starts = reinterpret_cast<std::int64_t*>(context.scratch);  // first item of a sequence
  std::int64_t num_items = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    starts[s] = num_items;
    num_items += tiles_of(sequences[s]) * num_kv_heads;
  }
  starts[sequences.size()] = num_items;

  pool.For(num_items, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    AttentionTile tile;
    tile.head_dim = static_cast<int>(head_dim);
    tile.dtype = cache.spec.dtype;
    tile.scale = args.scale;
    tile.block_stride = view.block_stride;
    tile.scratch = reinterpret_cast<float*>(context.scratch + starts_bytes +
                                            tile_bytes * static_cast<std::size_t>(worker));
    for (std::int64_t i = begin; i < end; ++i) {
      // From the back: the last rows of a prompt see the most keys, and long items go first.
      const std::int64_t item = num_items - 1 - i;
      const auto s = static_cast<std::size_t>(
          std::upper_bound(starts, starts + sequences.size() + 1, item) - starts - 1);
      const AttentionSequence& sequence = sequences[s];
      const std::int64_t head = (item - starts[s]) % num_kv_heads;
      const std::int64_t first = (item - starts[s]) / num_kv_heads * kMaxAttentionRows;
      tile.num_rows = static_cast<int>(
          std::min<std::int64_t>(kMaxAttentionRows, sequence.num_rows * group - first));
      for (int r = 0; r < tile.num_rows; ++r) {
        const std::int64_t token = (first + r) / group;
        const std::int64_t column = (head * group + (first + r) % group) * head_dim;
        const std::int64_t row = sequence.first_row + token;
        const std::int64_t position = sequence.first_position + token;
        tile.q[r] = args.q + row * args.q_stride + column;
        tile.out[r] = args.out + row * args.out_stride + column;
        tile.last_key[r] = static_cast<std::int32_t>(position);
        tile.first_key[r] = args.sliding_window > 0
                                ? static_cast<std::int32_t>(
                                      std::max<std::int64_t>(0, position - args.sliding_window + 1))
                                : 0;
      }
      tile.block_table = reinterpret_cast<const std::int32_t*>(sequence.block_table);
      tile.heads = view.heads + head * view.head_bytes;
      run(tile);
    }
  });
}

std::size_t AttentionScratchBytes(const Device& device, const KvCacheSpec& spec,
                                  std::int64_t /*num_heads*/, std::int64_t /*max_rows*/,
                                  std::int64_t max_sequences) {
  if (device.kind() == DeviceKind::kCuda) {
    return 0;  // part of the step's buffers
  }
  // pool() is not const, as running work on it changes it; its size never changes.
  const int num_workers = const_cast<Device&>(device).pool().num_workers();
  return RoundUp((static_cast<std::size_t>(max_sequences) + 1) * sizeof(std::int64_t)) +
         TileScratchBytes(spec.head_dim) * static_cast<std::size_t>(num_workers);
}

}  // namespace nibble
