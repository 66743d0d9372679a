#pragma once

#include <cstdint>

#include "kernels/cuda/sampling_kernel.h"
#include "kernels/cuda/weight_layout.h"

struct CUstream_st;

namespace nibble::cuda {

// The small operators: plain data and launchers, each returns a cudaError_t. fp16 is held as
// std::uint16_t, so that host code needs no CUDA header.

/// residual += delta (if any); out = fp16(residual / rms * weight) (if out). docs/kernels/cuda.md.
struct NormArgs {
  float* residual = nullptr;     // [tokens, width]
  const float* delta = nullptr;  // [tokens, width]
  const float* weight = nullptr;
  float eps = 0.0F;
  std::uint16_t* out = nullptr;  // [tokens, width]
  std::int64_t out_stride = 0;   // values
  int width = 0;
  int tokens = 0;
};
int LaunchAddRmsNorm(const NormArgs& args, CUstream_st* stream);

int LaunchAddBias(float* x, std::int64_t stride, const float* bias, int tokens, int width,
                  CUstream_st* stream);

/// out = fp16(silu(gate) * up * scale); strides in values.
struct SwiGluArgs {
  const float* gate = nullptr;
  const float* up = nullptr;
  std::uint16_t* out = nullptr;
  std::int64_t gate_stride = 0, up_stride = 0, out_stride = 0;
  float scale = 1.0F;
  int tokens = 0;
  int width = 0;
};
int LaunchSwiGlu(const SwiGluArgs& args, CUstream_st* stream);

/// One row of a step, in device memory.
struct TokenRecord {
  std::int32_t id = 0;
  std::int32_t from_slot =
      -1;  // >= 0: the token that an earlier step sampled for this slot instead
  std::int32_t position = 0;
  std::int32_t kv_slot = 0;  // block * 64 + place in the block
};

/// out[i, :] = the table's row of tokens[i].
struct EmbeddingArgs {
  WeightLayout layout;
  const std::uint8_t* table = nullptr;
  const float* factor = nullptr;
  const TokenRecord* tokens = nullptr;
  const std::int32_t* slot_tokens = nullptr;
  float* out = nullptr;  // [num_tokens, cols]
  int num_tokens = 0;
};
int LaunchEmbedding(const EmbeddingArgs& args, CUstream_st* stream);

/// Pieces of pinned host memory that a step needs on the card, by one kernel: a copy each would
/// take 5 us of the card's time. Offsets and sizes are multiples of 4 bytes, the same on both
/// sides.
struct StepInputArgs {
  static constexpr int kMaxPieces = 6;
  struct Piece {
    std::uint32_t at = 0;     // words
    std::uint32_t words = 0;  // of a row
    std::uint32_t rows = 1;
    std::uint32_t pitch = 0;  // words between rows
  };
  const std::uint32_t* from = nullptr;
  std::uint32_t* to = nullptr;
  Piece pieces[kMaxPieces];
  int num_pieces = 0;
};
int LaunchStepInputs(const StepInputArgs& args, CUstream_st* stream);

/// An empty kernel that begins when everything before it in the queue is done, waits for other
/// queues included; what is launched next, in whatever way, begins after it.
int LaunchBarrier(CUstream_st* stream);

/// out[i, :] = x[records[i].logit_row, :], fp32.
int LaunchGather(const float* x, std::int64_t x_stride, const SampleRecord* records, float* out,
                 int num_rows, int width, CUstream_st* stream);

}  // namespace nibble::cuda
