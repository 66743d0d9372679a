#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/weight_layout.h"

struct CUstream_st;

namespace nibble::cuda {

// The linear kernels and their arguments: plain data, shared by host and device code.

constexpr int kMaxParts = 4;

/// One weight of a launch; all parts share x and the layout but for their rows.
struct LinearPart {
  const std::uint8_t* weight = nullptr;
  const float* factor = nullptr;  // [rows rounded up to 16]
  const float* bias = nullptr;    // [rows], or null
  float* y = nullptr;             // [num_tokens, rows], fp32
  std::int64_t y_stride = 0;      // floats
  int rows = 0;
  int num_tiles = 0;
};

enum class Epilogue : std::uint8_t {
  kStore,  // y = x W^T
  kAdd,    // y += x W^T
  kSwiGlu  // product = silu(part 0) * part 1, fp16, times product_scale
};

struct LinearArgs {
  WeightLayout layout;  // rows and num_tiles are of the parts
  int num_parts = 0;
  LinearPart parts[kMaxParts];
  Epilogue epilogue = Epilogue::kStore;
  const std::uint16_t* x = nullptr;  // fp16 [num_tokens, cols]
  std::int64_t x_stride = 0;         // values
  int num_tokens = 0;
  float x_scale = 1.0F;  // a power of two: x holds the activations divided by it
  /// LaunchLinearSmall and LaunchLinearMedium: x is computed from these first, as AddRmsNorm would
  /// have (ops_kernel.h).
  const float* residual = nullptr;  // [num_tokens, cols], fp32
  std::uint16_t* normed = nullptr;  // LaunchLinearMedium: the memory of x, which it fills
  const float* norm_weight = nullptr;
  float norm_eps = 0.0F;
  std::uint16_t* product = nullptr;  // kSwiGlu: [num_tokens, rows]
  std::int64_t product_stride = 0;   // values
  float product_scale = 1.0F;        // a power of two
  /// LaunchLinearLarge, LaunchLinearChain, LaunchLinearMedium with `residual`: memory for sums that
  /// one block leaves to another, and for blocks to meet, LinearSharedBytes of it, zeros before the
  /// first launch; one launch at a time uses it. LaunchLinearLarge, null: every block has whole
  /// tiles.
  std::byte* shared = nullptr;
};

/// Bytes of shared memory that decoding takes (codec.cuh, FillTable).
constexpr int TableBytes(Format format) { return format == Format::kNf4 ? 256 * 32 * 4 : 0; }

// Each gives the same bits, and returns a cudaError_t.

/// Up to 8 tokens, if MemoryOfSmall has stages; sm_90 with its 227 KB of shared memory, and its
/// like.
int LaunchLinearSmall(const LinearArgs& args, int num_sms, CUstream_st* stream);
constexpr int kMaxSmallTokens = 8;
constexpr int kSmallPairs = 6;  // pairs of tiles whose sums a block keeps at a time
constexpr int kPairRows = 2 * kTileRows;
// Floats of a pair and token: of two tiles and all slices; two tokens further are other banks.
constexpr int kSmallSums = 2 * kNumSlices * kTileRows + 4;
constexpr int kSmallSmem = 226 * 1024;  // of 227: it has some bytes of static shared memory

/// Up to kMaxChain of them, one after the other, as one kernel: each may read what those before it
/// wrote. All have the same number of tokens and kind of layout; rows may differ, and widths.
/// `args[0].shared` is needed for more than one.
int LaunchLinearChain(std::span<const LinearArgs> args, int num_sms, CUstream_st* stream);
constexpr int kMaxChain = 4;

/// How a product's pairs of tiles are divided among blocks.
struct SmallSplit {
  int first_pair[kMaxParts + 1] = {};  // of each part; kSwiGlu: pair p is tile p of both parts
  int num_blocks = 0;
  int pairs_per_block = 0;
  int extra_pairs = 0;  // so many blocks have one more
  int x_pitch = 0;      // bytes of a token's x
};
SmallSplit SplitOfSmall(const LinearArgs& args, int num_sms);
/// A block's shared memory, for all products of a chain.
struct SmallMemory {
  int num_stages = 0;  // of the ring; 0: x does not fit
  bool has_wide_table = false;
  bool sums_over_x = false;  // the sums take the place of x, once all of it has been read
  // Where lie, from the ring on, which follows the table of the format: factors of outputs, what
  // they are added to, the sums of the slices, x, the barriers. And all of it, the table included.
  int factors_at = 0;
  int before_at = 0;
  int sums_at = 0;
  int x_at = 0;
  int barriers_at = 0;
  int size_bytes = 0;
};
SmallMemory MemoryOfSmall(std::span<const LinearArgs> chain, int num_sms);
constexpr int kMaxNormWidth = 8192;  // the normed input lies in shared memory

/// Any number of tokens, kMediumTokens at a time; sm_90a only. cols must be a multiple of 8. With
/// `residual` at most kMediumTokens, and cols at most kMaxNormWidth.
int LaunchLinearMedium(const LinearArgs& args, int num_sms, CUstream_st* stream);
constexpr int kMediumTokens = 32;
/// Pairs of its blocks that a card holds at once.
int MediumPairs();

/// Any number of tokens, sm_90a only. cols must be a multiple of 8.
int LaunchLinearLarge(const LinearArgs& args, int num_sms, CUstream_st* stream);

/// How that divides its work: tiles of the result, of 2 x 8 tiles of weights by `tokens` tokens, to
/// pairs of blocks.
struct LargeShape {
  int tokens = 128;  // or 64
  int tiles = 0;
  int pairs = 0;        // of blocks
  bool splits = false;  // pairs have equal shares, in slices; else whole tiles
  double rounds = 0.0;  // of a tile a pair
};
LargeShape ShapeOfLarge(const LinearArgs& args, int num_sms);
/// For each block a flag, then what blocks of a chain meet at, then 128 x 128 floats a block.
std::size_t LinearSharedBytes(int num_sms);
constexpr std::size_t kSharedFlagBytes = 4096;
constexpr std::size_t kSharedMeetingAt = kSharedFlagBytes - 128;
constexpr std::size_t kSharedSumBytes = 128 * 128 * sizeof(float);
constexpr int kLargeTiles = 8;  // of weights, in a block
/// Blocks that a part takes; kSwiGlu: half of a block's tiles are gates, the others their ups.
inline int LargeBlocks(const LinearArgs& args, int part) {
  const int tiles = args.epilogue == Epilogue::kSwiGlu ? kLargeTiles / 2 : kLargeTiles;
  return (args.parts[part].num_tiles + tiles - 1) / tiles;
}

/// Any number of tokens, any card: mma.sync, no asynchronous copies.
int LaunchLinearTile(const LinearArgs& args, CUstream_st* stream);

}  // namespace nibble::cuda
