#pragma once

#include <cstdint>

#include "kernels/cuda/linear_kernel.h"

struct CUstream_st;

namespace nibble::cuda {

// Products of 4-bit weights with activations of 8 bits (e4m3), adr/0010: plain data, shared by host
// and device code. Each launcher returns a cudaError_t.

/// Weights that these products take: W4, symmetric, a scale for each row of a whole unit of 128
/// columns.
constexpr bool TakesE4M3(const WeightLayout& layout) {
  return layout.format == Format::kW4 && layout.grid == Grid::kSymmetric &&
         layout.unit_cols == 128 && layout.sub_cols == 128;
}

/// x as e4m3, one scale a token: scale = amax / 448, out = e4m3(x * (448 / amax)), 0 and 0 for a
/// row of zeros. cols is a multiple of 128. In each 16 columns byte 4 t + i is column
/// 2 t + 8 (i % 2) + i / 2: so a word of W4 codes is a fragment of wgmma as it lies.
struct QuantizeArgs {
  const std::uint16_t* x = nullptr;  // fp16 [num_tokens, cols]
  std::int64_t x_stride = 0;         // values
  std::uint8_t* out = nullptr;       // [num_tokens, cols]
  float* scales = nullptr;           // [num_tokens]
  int cols = 0;
  int num_tokens = 0;
};
int LaunchQuantizeE4M3(const QuantizeArgs& args, CUstream_st* stream);

/// What LaunchQuantizeE4M3 wrote.
struct E4M3Rows {
  const std::uint8_t* x = nullptr;
  const float* scales = nullptr;
};
/// Any number of tokens, the same bits for each; sm_90a only. x and x_stride of args are not read.
/// tile_tokens: of A8Shape, or 0 for what ShapeOfA8 chooses.
/// args comes by itself, not in a struct: GCC 12 with -ftrivial-auto-var-init=zero clears values of
/// a temporary that copies an array of structs, as it does the padding.
int LaunchLinearA8(const LinearArgs& args, const E4M3Rows& rows, int num_sms, CUstream_st* stream,
                   int tile_tokens = 0);

/// How that divides its work: tiles of the result, of 2 x 8 tiles of weights by `tokens` tokens, to
/// pairs of blocks in turn.
struct A8Shape {
  int tokens = 128;  // 16, 32, 64 or 128
  int tiles = 0;
  int pairs = 0;
};
A8Shape ShapeOfA8(const LinearArgs& args, int num_sms, int tile_tokens = 0);

}  // namespace nibble::cuda
