#pragma once

#include <cstdint>

#include "kernels/cuda/weight_layout.h"

struct CUstream_st;

namespace nibble::cuda {

// The linear kernels and their arguments: plain data, shared by host and device code.

constexpr int kMaxParts = 4;

/// One weight of a launch; all parts share x and the layout but for their rows.
struct LinearPart {
  const std::uint8_t* weight = nullptr;
  const float* factor = nullptr;  // [rows rounded up to 16]
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
  float x_scale = 1.0F;              // a power of two: x holds the activations divided by it
  std::uint16_t* product = nullptr;  // kSwiGlu: [num_tokens, rows]
  std::int64_t product_stride = 0;   // values
  float product_scale = 1.0F;        // a power of two
};

/// Up to 8 tokens, sm_90 and newer. Returns a cudaError_t.
int LaunchLinearSmall(const LinearArgs& args, int num_sms, CUstream_st* stream);
constexpr int kMaxSmallTokens = 8;

/// Any number of tokens, sm_90a only. The layout's cols must be a multiple of 8.
int LaunchLinearLarge(const LinearArgs& args, int num_sms, CUstream_st* stream);

/// Any number of tokens, any card: mma.sync, no asynchronous copies.
int LaunchLinearTile(const LinearArgs& args, CUstream_st* stream);

}  // namespace nibble::cuda
