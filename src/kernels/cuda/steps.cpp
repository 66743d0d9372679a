// Steps on a CUDA device: what they need in memory, and their inputs and results, which travel
// through pinned memory, one piece of it a step in flight.

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/step_state.h"

namespace nibble::cuda {
namespace {

InputLayout LayOut(const StepLimits& limits) {
  InputLayout at;
  const auto sequences = limits.max_sequences;
  at.table_width = (limits.max_positions + kKvBlock - 1) / kKvBlock;
  at.max_samples = limits.max_tokens + limits.max_sequences;
  // Of a sequence: its tokens, biased and banned ones, no more than there are; of all, 32 MB.
  at.max_adjustments = std::min<std::int64_t>(
      sequences * std::min(limits.vocab_size, limits.max_positions + 2048), 1 << 21);
  at.max_items = sequences * ((limits.max_positions + kKvUnit - 1) / kKvUnit);
  const auto group = std::max<std::int64_t>(1, limits.num_heads / limits.num_kv_heads);
  at.max_tiles =
      limits.max_tokens / std::max(1, PrefillTokens(static_cast<int>(group))) + sequences;
  const auto take = [&](std::int64_t count, std::size_t size) {
    const std::size_t begin = at.bytes;
    at.bytes = RoundUp(begin + static_cast<std::size_t>(count) * size);
    return begin;
  };
  at.first_row = take(sequences, 4);
  at.num_rows = take(sequences, 4);
  at.first_position = take(sequences, 4);
  at.header = take(1, sizeof(Header));
  at.tokens = take(limits.max_tokens, sizeof(TokenRecord));  // ends the part that is always copied
  at.records = take(at.max_samples, sizeof(SampleRecord));
  at.adjustments = take(at.max_adjustments, sizeof(Adjustment));
  at.items = take(at.max_items, sizeof(DecodeItem));
  at.tiles = take(at.max_tiles, 8);
  at.tables = take(sequences * at.table_width, 4);
  return at;
}

std::size_t PartialBytes(const StepLimits& limits, const InputLayout& at) {
  return static_cast<std::size_t>(at.max_items * limits.num_heads * (limits.head_dim + 2)) *
         sizeof(float);
}
std::size_t ArrivedBytes(const StepLimits& limits) {
  return static_cast<std::size_t>(limits.max_sequences * limits.num_heads) * sizeof(std::int32_t);
}
// The lists of a SampleRow as one entry a token, for tokens of the vocabulary.
void ListAdjustments(const SampleRow& row, std::int64_t vocab_size, std::vector<Adjustment>& out) {
  const bool repetition = row.repetition_penalty != 1.0F;
  const bool counted = row.presence_penalty != 0.0F || row.frequency_penalty != 0.0F;
  out.clear();
  std::unordered_map<std::int32_t, std::size_t> index;
  Adjustment outside;
  const auto entry = [&](TokenId token) -> Adjustment& {
    if (Raw(token) < 0 || Raw(token) >= vocab_size) {
      return outside;
    }
    const auto [found, is_new] = index.try_emplace(Raw(token), out.size());
    if (is_new) {
      out.push_back(Adjustment{.token = Raw(token)});
    }
    return out[found->second];
  };
  for (const auto& [token, bias] : row.logit_bias) {
    entry(token).bias += bias;
  }
  if (repetition) {
    for (const TokenId token : row.prompt) {
      entry(token).seen = 1;
    }
  }
  if (repetition || counted) {
    for (const TokenId token : row.output) {
      Adjustment& adjustment = entry(token);
      adjustment.seen = 1;
      ++adjustment.count;
    }
  }
  for (const TokenId token : row.forbidden) {
    entry(token).banned = 1;
  }
}

SampleRecord RecordOf(const SampleRow& row) {
  SampleRecord record{.temperature = row.temperature,
                      .top_p = row.top_p,
                      .min_p = row.min_p,
                      .repetition_penalty = row.repetition_penalty,
                      .presence_penalty = row.presence_penalty,
                      .frequency_penalty = row.frequency_penalty,
                      .top_k = row.top_k,
                      .num_top = std::min(row.num_top_logprobs, kMaxTop),
                      .target = Raw(row.target),
                      .choice = row.choice};
  record.seed[0] = static_cast<std::uint32_t>(row.seed);
  record.seed[1] = static_cast<std::uint32_t>(row.seed >> 32);
  record.position[0] = static_cast<std::uint32_t>(row.position);
  record.position[1] = static_cast<std::uint32_t>(row.position >> 32);
  return record;
}

}  // namespace

State::~State() {
  for (CUevent_st* event : copied) {
    cudaEventDestroy(event);
  }
}

void CopyInputs(CudaDevice& device, State& state, std::size_t offset, std::size_t bytes) {
  if (bytes > 0) {
    device.NoteError(
        cudaMemcpyAsync(state.inputs.data() + offset, state.staging_of(state.slot) + offset, bytes,
                        cudaMemcpyHostToDevice, device.stream()),
        "copying a step's inputs");
  }
}

Result<void> StreamWeights(Device& device, const StreamedWeights& weights) {
  NIBBLE_TRY(stream, WeightStream::Create(AsCuda(device), weights));
  StateOf(AsCuda(device)).weights = std::move(stream);
  return {};
}

Result<void> PlanSteps(Device& device, const StepLimits& limits) {
  // Rows of a tile of a prompt are queries that share a KV head, of two tokens at least: a launch
  // takes 65,535 tiles.
  constexpr std::int64_t kMostGroup = kPrefillRows / 2;
  if (const std::int64_t group = limits.num_heads / limits.num_kv_heads; group > kMostGroup) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{} heads share a KV head: the CUDA attention kernels take up to {}; "
                            "use --device cpu",
                            group, kMostGroup));
  }
  const InputLayout at = LayOut(limits);
  const auto slots = static_cast<std::size_t>(limits.max_in_flight) + 1;
  MemoryLedger& ledger = device.ledger();
  ledger.Plan("step inputs", at.bytes);
  ledger.Plan("attention", PartialBytes(limits, at) + ArrivedBytes(limits));
  ledger.Plan("products", LinearSharedBytes(AsCuda(device).num_sms()));
  ledger.Plan("sampler", static_cast<std::size_t>(limits.max_sequences) * 4);
  ledger.Plan("step inputs (host)", slots * at.bytes, MemoryPlace::kHost);
  ledger.Plan("sampler (host)", slots * ResultBytes(at), MemoryPlace::kHost);
  return {};
}

Result<void> PrepareSteps(Device& device, const StepLimits& limits) {
  auto state = std::make_shared<State>();
  state->limits = limits;
  state->at = LayOut(limits);
  const auto slots = static_cast<std::size_t>(limits.max_in_flight) + 1;
  NIBBLE_TRY(inputs, device.Allocate("step inputs", state->at.bytes));
  NIBBLE_TRY(partial, device.Allocate("attention", PartialBytes(limits, state->at)));
  NIBBLE_TRY(arrived, device.Allocate("attention", ArrivedBytes(limits)));
  NIBBLE_TRY(shared, device.Allocate("products", LinearSharedBytes(AsCuda(device).num_sms())));
  NIBBLE_TRY(tokens,
             device.Allocate("sampler", static_cast<std::size_t>(limits.max_sequences) * 4));
  NIBBLE_TRY(staging, device.AllocateHost("step inputs (host)", slots * state->at.bytes));
  NIBBLE_TRY(results, device.AllocateHost("sampler (host)", slots * ResultBytes(state->at)));
  state->inputs = std::move(inputs);
  state->partial = std::move(partial);
  state->arrived = std::move(arrived);
  state->shared = std::move(shared);
  state->slot_tokens = std::move(tokens);
  state->staging = std::move(staging);
  state->results = std::move(results);
  for (std::size_t i = 0; i < slots; ++i) {
    cudaEvent_t event = nullptr;
    if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) {
      return Fail(ErrorCode::kUnavailable, "CUDA gives no events");
    }
    state->copied.push_back(event);
  }
  AsCuda(device).kernel_state() = std::move(state);
  return {};
}

Result<void> BeginStep(KernelContext& context, const KvCache& cache, const StepInputs& inputs) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  const InputLayout& at = state.at;
  const auto num_sequences = inputs.sequences.size();
  NIBBLE_CHECK(static_cast<std::int64_t>(inputs.token_ids.size()) <= state.limits.max_tokens &&
                   static_cast<std::int64_t>(num_sequences) <= state.limits.max_sequences &&
                   static_cast<std::int64_t>(inputs.samples.size()) <= at.max_samples,
               "a step larger than its buffers");
  UseWeights(state, -1);  // a step that asked for no logits ends with the last block's weights
  state.slot = (state.slot + 1) % state.num_slots();
  device.NoteError(cudaEventSynchronize(state.copied[static_cast<std::size_t>(state.slot)]),
                   "an earlier step");
  std::byte* staging = state.staging_of(state.slot);
  const auto array = [&](std::size_t offset) {
    return reinterpret_cast<std::int32_t*>(staging + offset);
  };
  auto* tokens = reinterpret_cast<TokenRecord*>(staging + at.tokens);
  auto* items = reinterpret_cast<DecodeItem*>(staging + at.items);
  std::int32_t num_items = 0;
  std::size_t table_blocks = 0;
  state.num_decode = 0;
  state.num_tiles = 0;
  const auto group = state.limits.num_heads / state.limits.num_kv_heads;
  const std::int32_t tile_tokens = PrefillTokens(static_cast<int>(group));
  for (std::size_t s = 0; s < num_sequences; ++s) {
    const AttentionSequence& sequence = inputs.sequences[s];
    array(at.first_row)[s] = sequence.first_row;
    array(at.num_rows)[s] = sequence.num_rows;
    array(at.first_position)[s] = sequence.first_position;
    const std::int32_t end = sequence.first_position + sequence.num_rows;
    const auto blocks = static_cast<std::size_t>((end + kKvBlock - 1) / kKvBlock);
    table_blocks = std::max(table_blocks, blocks);
    std::int32_t* table = array(at.tables) + s * static_cast<std::size_t>(at.table_width);
    for (std::size_t b = 0; b < blocks; ++b) {
      table[b] = Raw(sequence.block_table[b]);
      NIBBLE_CHECK(table[b] >= 0 && table[b] < cache.num_blocks, "block beyond the cache");
    }
    for (std::int32_t i = 0; i < sequence.num_rows; ++i) {
      const auto row = static_cast<std::size_t>(sequence.first_row + i);
      const std::int32_t position = sequence.first_position + i;
      tokens[row] = {.id = Raw(inputs.token_ids[row]),
                     .from_slot = inputs.token_slots.empty() ? -1 : inputs.token_slots[row],
                     .position = position,
                     .kv_slot = table[position / kKvBlock] * kKvBlock + position % kKvBlock};
    }
    if (sequence.num_rows == 1) {
      ++state.num_decode;
      const std::int32_t window = state.limits.sliding_window;
      const std::int32_t first_key =
          window > 0 ? std::max(0, sequence.first_position - window + 1) : 0;
      const std::int32_t first_unit = first_key / kKvUnit;
      const std::int32_t num_units = sequence.first_position / kKvUnit - first_unit + 1;
      const std::int32_t first_item = num_items;
      for (std::int32_t unit = 0; unit < num_units; ++unit) {
        items[num_items++] = {.sequence = static_cast<std::int32_t>(s),
                              .row = sequence.first_row,
                              .length = sequence.first_position + 1,
                              .first_key = first_key,
                              .unit = first_unit + unit,
                              .num_units = num_units,
                              .first_item = first_item};
      }
    } else {
      for (std::int32_t token = 0; token < sequence.num_rows; token += tile_tokens) {
        array(at.tiles)[2 * state.num_tiles] = static_cast<std::int32_t>(s);
        array(at.tiles)[2 * state.num_tiles + 1] = token;
        ++state.num_tiles;
      }
    }
  }
  auto* records = reinterpret_cast<SampleRecord*>(staging + at.records);
  auto* adjustments = reinterpret_cast<Adjustment*>(staging + at.adjustments);
  std::int64_t num_adjustments = 0;
  for (std::size_t i = 0; i < inputs.samples.size(); ++i) {
    const SampleRow& row = inputs.samples[i];
    records[i] = RecordOf(row);
    records[i].logit_row = inputs.logit_rows[i];
    records[i].slot = inputs.sample_slots.empty() ? -1 : inputs.sample_slots[i];
    records[i].first_adjustment = static_cast<std::int32_t>(num_adjustments);
    if (!row.logit_bias.empty() || !row.forbidden.empty() || !row.output.empty() ||
        !row.prompt.empty()) {
      ListAdjustments(row, state.limits.vocab_size, state.adjustments);
      const auto added = static_cast<std::int64_t>(state.adjustments.size());
      if (num_adjustments + added > at.max_adjustments) {
        return Fail(
            ErrorCode::kLimitExceeded,
            fmt::format("a step may bias or penalize {} tokens in all", at.max_adjustments));
      }
      std::ranges::copy(state.adjustments, adjustments + num_adjustments);
      records[i].num_adjustments = static_cast<std::int32_t>(added);
      num_adjustments += added;
    }
  }
  auto* header = reinterpret_cast<Header*>(staging + at.header);
  header->results = state.results_of(state.slot);
  header->num_items = num_items;
  state.first_sample = inputs.samples.data();
  state.first_logit_row = inputs.logit_rows.data();
  state.num_samples = inputs.samples.size();
  state.num_tokens = static_cast<int>(inputs.token_ids.size());

  StepInputArgs copies{.from = reinterpret_cast<const std::uint32_t*>(staging),
                       .to = state.On<std::uint32_t>(0)};
  const auto copy = [&](std::size_t offset, std::size_t bytes, std::size_t rows = 1,
                        std::size_t pitch = 0) {
    if (bytes * rows > 0) {
      copies.pieces[copies.num_pieces++] = {.at = static_cast<std::uint32_t>(offset / 4),
                                            .words = static_cast<std::uint32_t>(bytes / 4),
                                            .rows = static_cast<std::uint32_t>(rows),
                                            .pitch = static_cast<std::uint32_t>(pitch / 4)};
    }
  };
  copy(0, at.tokens + inputs.token_ids.size() * sizeof(TokenRecord));
  copy(at.records, inputs.samples.size() * sizeof(SampleRecord));
  copy(at.adjustments, static_cast<std::size_t>(num_adjustments) * sizeof(Adjustment));
  copy(at.items, static_cast<std::size_t>(num_items) * sizeof(DecodeItem));
  copy(at.tiles, static_cast<std::size_t>(state.num_tiles) * 8);
  copy(at.tables, table_blocks * 4, num_sequences, static_cast<std::size_t>(at.table_width) * 4);
  device.NoteError(LaunchStepInputs(copies, device.stream()), "copying a step's inputs");
  device.NoteError(
      cudaEventRecord(state.copied[static_cast<std::size_t>(state.slot)], device.stream()),
      "copying a step's inputs");
  return {};
}

StepSlot EndStep(KernelContext& context) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  Flush(device, state);
  UseWeights(state, -1);
  return StepSlot{state.slot};
}

void CollectSamples(KernelContext& context, StepSlot slot, std::span<SampleResult> results) {
  const State& state = StateOf(DeviceOf(context));
  const SampleRecordResult* found = state.results_of(static_cast<int>(slot));
  for (std::size_t i = 0; i < results.size(); ++i) {
    SampleResult& result = results[i];
    result.token = TokenId{found[i].token};
    result.logprob = found[i].logprob;
    result.rank = found[i].rank;
    result.top.clear();
    for (int k = 0; k < found[i].num_top; ++k) {
      result.top.push_back(
          {.token = TokenId{found[i].top_tokens[k]}, .logprob = found[i].top_logprobs[k]});
    }
  }
}

}  // namespace nibble::cuda
