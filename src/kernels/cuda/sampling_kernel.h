#pragma once

#include <cstdint>

struct CUstream_st;

namespace nibble::cuda {

// Sampling on the device: plain data and the launcher.

constexpr int kMaxTop = 20;  // limits::kTopLogprobs

/// What bias, penalties and bans do to one logit, in this order: + bias; if seen, the repetition
/// penalty; if count > 0, frequency * count and presence; if banned, -inf.
struct Adjustment {
  std::int32_t token = 0;
  float bias = 0.0F;
  std::int32_t count = 0;  // in the output
  std::uint8_t seen = 0;   // in prompt or output
  std::uint8_t banned = 0;
  std::uint16_t unused = 0;
};

/// A SampleRow without its lists.
struct SampleRecord {
  float temperature = 0.0F;
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  std::int32_t top_k = 0;
  std::int32_t num_top = -1;  // logprobs: -1 none
  std::int32_t target = -1;   // >= 0: score this token
  std::int32_t slot = -1;     // of slot_tokens that gets the token
  std::int32_t first_adjustment = 0;
  std::int32_t num_adjustments = 0;
  std::uint32_t seed[2] = {0, 0};
  std::uint32_t choice = 0;
  std::uint32_t position[2] = {0, 0};
  std::int32_t logit_row = 0;  // of the step's rows
};

struct SampleRecordResult {
  std::int32_t token = 0;
  float logprob = 0.0F;
  std::int32_t rank = 0;
  std::int32_t num_top = 0;
  std::int32_t top_tokens[kMaxTop] = {};
  float top_logprobs[kMaxTop] = {};
};

struct SampleArgs {
  float* logits = nullptr;  // [rows, vocab], fp32; changed by the adjustments
  std::int64_t logits_stride = 0;
  int vocab = 0;
  int rows = 0;
  const SampleRecord* records = nullptr;  // of these rows
  const Adjustment* adjustments = nullptr;
  SampleRecordResult* const* results = nullptr;  // where the step's results go: host memory
  int first_result = 0;
  std::int32_t* slot_tokens = nullptr;
};
int LaunchSample(const SampleArgs& args, CUstream_st* stream);

}  // namespace nibble::cuda
