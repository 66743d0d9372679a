#include "kernels/cuda/backend.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "device/cuda_device.h"
#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/linear_a8.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/ops_kernel.h"
#include "kernels/cuda/sampling_kernel.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/cuda/weight_stream.h"
#include "tensor/float16.h"

namespace nibble::cuda {
namespace {

// What gated activations are stored as: divided by 32, so that products up to two million fit fp16.
constexpr float kGatedScale = 1.0F / 32.0F;
constexpr double kLog2E = 1.4426950408889634;

constexpr std::size_t RoundUp(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

// Where a step's inputs lie: at the same offsets in device memory and in each staging buffer.
struct InputLayout {
  std::size_t first_row = 0, num_rows = 0, first_position = 0;  // [sequences] int32
  std::size_t header = 0;                                       // Header
  std::size_t tokens = 0;                                       // [tokens] TokenRecord
  std::size_t records = 0;                                      // [samples] SampleRecord
  std::size_t adjustments = 0;
  std::size_t items = 0;   // [items] DecodeItem
  std::size_t tiles = 0;   // [tiles][2] int32
  std::size_t tables = 0;  // [sequences][table_width] int32
  std::size_t bytes = 0;
  std::int64_t max_samples = 0, max_adjustments = 0, max_items = 0, max_tiles = 0, table_width = 0;
};

struct Header {
  SampleRecordResult* results = nullptr;
  std::int32_t num_items = 0;
  std::int32_t unused = 0;
};

InputLayout LayOut(const StepLimits& limits) {
  InputLayout at;
  const auto sequences = limits.max_sequences;
  at.table_width = (limits.max_positions + kKvBlock - 1) / kKvBlock;
  at.max_samples = limits.max_tokens + limits.max_sequences;
  at.max_adjustments = std::min<std::int64_t>(sequences * (limits.max_positions + 2048), 1 << 19);
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
std::size_t ResultBytes(const InputLayout& at) {
  return RoundUp(static_cast<std::size_t>(at.max_samples) * sizeof(SampleRecordResult));
}

// A product to launch, the part of the streamed weights that it reads (-1: none), and its
// activations of 8 bits, if it has such.
struct Product {
  LinearArgs args;
  int part = -1;
  E4M3Rows fp8;
};

struct State {
  StepLimits limits;
  InputLayout at;
  DeviceBuffer inputs, partial, arrived, shared, slot_tokens;  // on the device
  DeviceBuffer staging, results;                               // pinned, one piece a slot
  std::vector<cudaEvent_t> copied;                             // by slot
  std::unique_ptr<WeightStream> weights;                       // null: all weights lie on the card
  int slot = -1;
  // Of the step begun last.
  const SampleRow* first_sample = nullptr;
  const std::int32_t* first_logit_row = nullptr;
  std::size_t num_samples = 0;
  int num_tokens = 0;
  int num_decode = 0;  // sequences of one row
  int num_tiles = 0;
  // The operator called last, if its kernel can take in the next one. Everything else flushes it.
  std::optional<NormArgs> norm;
  std::optional<Product> linear;
  std::optional<RopeArgs> rope;
  std::vector<Adjustment> adjustments;                    // of one row, while they are listed
  std::array<std::pair<const void*, float>, 4> scales{};  // of fp16 activations, by address

  ~State() {
    for (cudaEvent_t event : copied) {
      cudaEventDestroy(event);
    }
  }
  int num_slots() const { return static_cast<int>(copied.size()); }
  std::byte* staging_of(int index) const {
    return staging.data() + static_cast<std::size_t>(index) * at.bytes;
  }
  SampleRecordResult* results_of(int index) const {
    return reinterpret_cast<SampleRecordResult*>(results.data() +
                                                 static_cast<std::size_t>(index) * ResultBytes(at));
  }
  template <typename T>
  T* On(std::size_t offset) const {
    return reinterpret_cast<T*>(inputs.data() + offset);
  }
  float ScaleOf(const void* x) const {
    for (const auto& [address, scale] : scales) {
      if (address == x) {
        return scale;
      }
    }
    return 1.0F;
  }
  void NoteScale(const void* x, float scale) {
    for (auto& [address, kept] : scales) {
      if (address == x || address == nullptr) {
        address = x;
        kept = scale;
        return;
      }
    }
    NIBBLE_CHECK(false, "too many scaled activations");
  }
};

CudaDevice& DeviceOf(KernelContext& context) { return static_cast<CudaDevice&>(*context.device); }
CudaDevice& AsCuda(Device& device) { return static_cast<CudaDevice&>(device); }

State& StateOf(CudaDevice& device) {
  NIBBLE_CHECK(device.kernel_state() != nullptr, "PrepareSteps comes first");
  return *static_cast<State*>(device.kernel_state().get());
}

const std::uint16_t* Half(const float* x) { return reinterpret_cast<const std::uint16_t*>(x); }
std::uint16_t* Half(float* x) { return reinterpret_cast<std::uint16_t*>(x); }

WeightLayout MustLayOut(const WeightSpec& spec) {
  const auto layout = LayoutOf(spec);
  NIBBLE_CHECK(layout.has_value(), "a packed weight without a layout");
  return *layout;
}

LinearPart PartOf(const PackedWeight& weight, const WeightLayout& layout) {
  return {.weight = reinterpret_cast<const std::uint8_t*>(weight.data),
          .factor = reinterpret_cast<const float*>(weight.data + layout.factor_offset()),
          .rows = layout.rows,
          .num_tiles = layout.num_tiles};
}

bool SameKind(const WeightLayout& a, const WeightLayout& b) {
  return a.format == b.format && a.grid == b.grid && a.cols == b.cols &&
         a.unit_cols == b.unit_cols && a.sub_cols == b.sub_cols;
}

// The kernels launched so far are done with their part of the streamed weights, if they had one.
void UseWeights(State& state, int part) {
  if (state.weights != nullptr) {
    state.weights->Use(part);
  }
}

void Run(CudaDevice& device, State& state, Product product) {
  UseWeights(state, product.part);
  if (product.fp8.x != nullptr) {
    device.NoteError(LaunchLinearA8(product.args, product.fp8, device.num_sms(), device.stream()),
                     "a linear kernel");
    return;
  }
  product.args.shared = state.shared.data();
  device.NoteError(LaunchLinear(device, product.args), "a linear kernel");
}

// Launches what waits. The operators that wait, and what they become:
//   AddRmsNorm of few rows   + Linear of its output           the product norms its input itself
//   Linear                   + AddBias of an output           a bias in its epilogue
//   Linear of one output     + AddRmsNorm that adds it        it adds to the residual itself
//   Linear of two outputs    + SwiGlu of them                 it gates them itself
//   RopeAndCache (no norms)  + PagedAttention of its layer    attention rotates the queries that it
//                                                             reads; of decodes the new key, too
// Each gives the bits of the operators one by one.
void Flush(CudaDevice& device, State& state) {
  if (state.norm) {
    device.NoteError(LaunchAddRmsNorm(*std::exchange(state.norm, {}), device.stream()), "a norm");
  }
  if (state.linear) {
    Run(device, state, *std::exchange(state.linear, {}));
  }
  if (state.rope) {
    device.NoteError(LaunchRopeAndCache(*std::exchange(state.rope, {}), device.stream()), "RoPE");
  }
}

// x as e4m3 in the context's scratch, for one Linear.
void QuantizeTo(KernelContext& context, CudaDevice& device, Product& product) {
  const LinearArgs& args = product.args;
  const std::size_t bytes = Fp8ScratchBytes(args.num_tokens, args.layout.cols);
  NIBBLE_CHECK(context.scratch_bytes >= bytes, "Linear needs LinearScratchBytes of scratch");
  auto* const x = reinterpret_cast<std::uint8_t*>(context.scratch);
  auto* const scales = reinterpret_cast<float*>(
      context.scratch + RoundUp(static_cast<std::size_t>(args.num_tokens) *
                                static_cast<std::size_t>(args.layout.cols)));
  device.NoteError(LaunchQuantizeE4M3({.x = args.x,
                                       .x_stride = args.x_stride,
                                       .out = x,
                                       .scales = scales,
                                       .cols = args.layout.cols,
                                       .num_tokens = args.num_tokens},
                                      device.stream()),
                   "rounding activations");
  product.fp8 = {.x = x, .scales = scales};
}

KvType TypeOf(KvDType dtype) {
  switch (dtype) {
    case KvDType::kF16:
      return KvType::kF16;
    case KvDType::kFp8:
      return KvType::kFp8;
    case KvDType::kInt8:
      return KvType::kInt8;
    case KvDType::kBF16:
    case KvDType::kF32:  // Validate refuses it
      break;
  }
  return KvType::kBF16;
}

KvView Layer(const KvCache& cache, std::int64_t layer) {
  NIBBLE_CHECK(layer >= 0 && layer < cache.spec.num_layers, "layer beyond the cache");
  const std::int64_t head_bytes = HeadBytes(cache.spec);
  const std::int64_t block_bytes = cache.spec.num_kv_heads * head_bytes;
  return {
      .data = reinterpret_cast<std::uint8_t*>(cache.data) + layer * cache.num_blocks * block_bytes,
      .block_bytes = block_bytes,
      .head_bytes = head_bytes,
      .num_kv_heads = static_cast<int>(cache.spec.num_kv_heads),
      .head_dim = static_cast<int>(cache.spec.head_dim),
      .type = TypeOf(cache.spec.dtype),
      .scales =
          cache.scales == nullptr ? nullptr : cache.scales + layer * 2 * cache.spec.num_kv_heads};
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

void Copy(CudaDevice& device, State& state, std::size_t offset, std::size_t bytes) {
  if (bytes > 0) {
    device.NoteError(
        cudaMemcpyAsync(state.inputs.data() + offset, state.staging_of(state.slot) + offset, bytes,
                        cudaMemcpyHostToDevice, device.stream()),
        "copying a step's inputs");
  }
}

// Index of the first of `rows` among the rows that BeginStep was told of; appends them if they are
// new.
std::size_t RecordsOf(CudaDevice& device, State& state, std::span<const std::int32_t> rows) {
  const auto at = static_cast<std::size_t>(rows.data() - state.first_logit_row);
  if (state.first_logit_row != nullptr && rows.data() >= state.first_logit_row &&
      at + rows.size() <= state.num_samples) {
    return at;
  }
  NIBBLE_CHECK(!device.capturing(), "rows of logits that BeginStep does not know");
  NIBBLE_CHECK(rows.size() <= static_cast<std::size_t>(state.at.max_samples),
               "too many rows of logits");
  device.NoteError(cudaStreamSynchronize(device.stream()), "a step");
  auto* records = reinterpret_cast<SampleRecord*>(state.staging_of(state.slot) + state.at.records);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    records[i] = SampleRecord{.logit_row = rows[i]};
  }
  Copy(device, state, state.at.records, rows.size() * sizeof(SampleRecord));
  return 0;
}

}  // namespace

Result<std::size_t> PackedSizeBytes(const WeightSpec& spec) {
  NIBBLE_TRY(layout, LayoutOf(spec));
  return layout.size_bytes();
}

Result<void> PackRows(Device& device, const QuantizedTensor& rows, std::int64_t row_begin,
                      PackedWeight& weight) {
  NIBBLE_TRY(layout, LayoutOf(weight.spec));
  NIBBLE_TRY_VOID(nibble::Validate(rows));
  const std::int64_t row_end = row_begin + rows.spec.rows;
  if (row_begin < 0 || row_begin % kTileRows != 0 || row_end > layout.rows ||
      (row_end % kTileRows != 0 && row_end != layout.rows) || rows.spec.cols != layout.cols ||
      weight.size_bytes < layout.size_bytes()) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("rows [{}, {}) of {} do not fit a packed {} [{}, {}]", row_begin, row_end,
                    rows.spec.ToString(), weight.spec.ToString(), layout.rows, layout.cols));
  }
  const auto tiles = static_cast<std::size_t>((rows.spec.rows + kTileRows - 1) / kTileRows);
  const std::size_t bytes = tiles * layout.tile_bytes();
  const auto first_tile = static_cast<std::size_t>(row_begin / kTileRows);
  std::vector<float> factors(tiles * kTileRows, 1.0F);
  {
    const DeviceWrite write = device.Write(weight.data + first_tile * layout.tile_bytes(), bytes);
    PackTiles(rows, layout, write.data(), factors.data());
  }
  const DeviceWrite write =
      device.Write(weight.data + layout.factor_offset() + first_tile * kTileRows * sizeof(float),
                   factors.size() * sizeof(float));
  std::memcpy(write.data(), factors.data(), factors.size() * sizeof(float));
  return {};
}

std::size_t Fp8ScratchBytes(std::int64_t max_tokens, std::int64_t max_in_features) {
  return RoundUp(static_cast<std::size_t>(max_tokens * max_in_features)) +
         RoundUp(static_cast<std::size_t>(max_tokens) * sizeof(float));
}

Result<void> ValidateFp8Activations(const Device& device) {
  const int capability = static_cast<const CudaDevice&>(device).compute_capability();
  if (capability != 90) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("fp8 activations need the FP8 tensor cores of Hopper (compute "
                            "capability 9.0); this card has {}.{}",
                            capability / 10, capability % 10));
  }
  return {};
}

bool TakesFp8Activations(const WeightSpec& spec) {
  const auto layout = LayoutOf(spec);
  return layout && TakesE4M3(*layout);
}

void Linear(KernelContext& context, const float* x, std::int64_t x_stride, std::int64_t num_tokens,
            std::span<const LinearOutput> outputs) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  std::optional<NormArgs> norm;
  if (state.norm && state.norm->out == Half(x)) {
    norm = std::exchange(state.norm, {});
  }
  Flush(device, state);
  const bool fp8 = context.activations == ActivationMode::kFp8;
  Product quantized;  // the first product whose activations are
  for (std::size_t begin = 0; begin < outputs.size();) {
    Product product{.args = {.layout = MustLayOut(outputs[begin].weight->spec),
                             .x = Half(x),
                             .x_stride = 2 * x_stride,
                             .num_tokens = static_cast<int>(num_tokens),
                             .x_scale = 1.0F / state.ScaleOf(x)},
                    .part = outputs[begin].weight->part};
    LinearArgs& args = product.args;
    std::size_t end = begin;
    while (end < outputs.size() && args.num_parts < kMaxParts) {
      const WeightLayout layout = MustLayOut(outputs[end].weight->spec);
      if (!SameKind(layout, args.layout) || outputs[end].weight->part != product.part) {
        break;
      }
      LinearPart& part = args.parts[args.num_parts++];
      part = PartOf(*outputs[end].weight, layout);
      part.y = outputs[end].y;
      part.y_stride = outputs[end].y_stride;
      ++end;
    }
    const bool all = begin == 0 && end == outputs.size();
    const bool quantizes = fp8 && TakesE4M3(args.layout);
    if (norm && all && !quantizes) {
      args.residual = norm->residual;
      args.norm_weight = norm->weight;
      args.norm_eps = norm->eps;
    } else if (norm) {
      device.NoteError(LaunchAddRmsNorm(*std::exchange(norm, {}), device.stream()), "a norm");
    }
    if (quantizes) {
      if (quantized.fp8.x == nullptr) {
        quantized = product;
        QuantizeTo(context, device, quantized);
      }
      product.fp8 = quantized.fp8;
    }
    if (all) {
      state.linear = product;
    } else {
      Run(device, state, product);
    }
    begin = end;
  }
}

void Embedding(KernelContext& context, const PackedWeight& table, std::span<const TokenId> ids,
               float* out) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  Flush(device, state);
  NIBBLE_CHECK(static_cast<int>(ids.size()) == state.num_tokens, "BeginStep knows other tokens");
  const WeightLayout layout = MustLayOut(table.spec);
  NIBBLE_CHECK(table.spec.kind != CodecKind::kCodebook, "no layout stores a table by a codebook");
  const LinearPart part = PartOf(table, layout);
  device.NoteError(LaunchEmbedding({.layout = layout,
                                    .table = part.weight,
                                    .factor = part.factor,
                                    .tokens = state.On<TokenRecord>(state.at.tokens),
                                    .slot_tokens = state.slot_tokens.as<std::int32_t>(),
                                    .out = out,
                                    .num_tokens = state.num_tokens},
                                   device.stream()),
                   "the embedding");
}

void AddRmsNorm(KernelContext& context, float* residual, const float* delta, const float* weight,
                float eps, float* out, std::int64_t num_tokens, std::int64_t width) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  if (state.linear && delta != nullptr && state.linear->args.num_parts == 1 &&
      state.linear->args.parts[0].y == delta && state.linear->args.parts[0].y_stride == width &&
      state.linear->args.parts[0].rows == width && state.linear->args.num_tokens == num_tokens) {
    Product product = *std::exchange(state.linear, {});
    product.args.epilogue = Epilogue::kAdd;
    product.args.parts[0].y = residual;
    Run(device, state, product);
    delta = nullptr;
  }
  Flush(device, state);
  if (delta == nullptr && out == nullptr) {
    return;
  }
  const NormArgs args{.residual = residual,
                      .delta = delta,
                      .weight = weight,
                      .eps = eps,
                      .out = Half(out),
                      .out_stride = 2 * width,
                      .width = static_cast<int>(width),
                      .tokens = static_cast<int>(num_tokens)};
  if (delta == nullptr && num_tokens <= kMaxNormTokens && args.width <= kMaxNormWidth &&
      HasBigBlocks(device)) {
    state.norm = args;
    return;
  }
  device.NoteError(LaunchAddRmsNorm(args, device.stream()), "a norm");
}

void AddBias(KernelContext& context, float* x, std::int64_t stride, const float* bias,
             std::int64_t num_tokens, std::int64_t width) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  if (state.linear) {
    for (LinearPart& part : std::span(state.linear->args.parts)) {
      if (part.y == x && part.rows == width && part.y_stride == stride && part.bias == nullptr) {
        part.bias = bias;
        return;
      }
    }
  }
  Flush(device, state);
  device.NoteError(LaunchAddBias(x, stride, bias, static_cast<int>(num_tokens),
                                 static_cast<int>(width), device.stream()),
                   "a bias");
}

void SwiGlu(KernelContext& context, const float* gate, std::int64_t gate_stride, const float* up,
            std::int64_t up_stride, float* out, std::int64_t out_stride, std::int64_t num_tokens,
            std::int64_t width) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  state.NoteScale(out, kGatedScale);
  if (state.linear && state.linear->args.num_parts == 2 && state.linear->args.parts[0].y == gate &&
      state.linear->args.parts[1].y == up && state.linear->args.parts[0].rows == width &&
      state.linear->args.parts[1].rows == width) {
    Product product = *std::exchange(state.linear, {});
    product.args.epilogue = Epilogue::kSwiGlu;
    product.args.product = Half(out);
    product.args.product_stride = 2 * out_stride;
    product.args.product_scale = kGatedScale;
    Run(device, state, product);
    return;
  }
  Flush(device, state);
  device.NoteError(LaunchSwiGlu({.gate = gate,
                                 .up = up,
                                 .out = Half(out),
                                 .gate_stride = gate_stride,
                                 .up_stride = up_stride,
                                 .out_stride = 2 * out_stride,
                                 .scale = kGatedScale,
                                 .tokens = static_cast<int>(num_tokens),
                                 .width = static_cast<int>(width)},
                                device.stream()),
                   "a gate");
}

std::int64_t HeadBytes(const KvCacheSpec& spec) {
  return std::int64_t{2} * KvTileBytes(TypeOf(spec.dtype), static_cast<int>(spec.head_dim));
}

Result<void> Validate(const KvCacheSpec& spec) {
  if (!HasAttention(static_cast<int>(spec.head_dim))) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("head_dim {}: the CUDA attention kernels take 16, 32, 64 and 128",
                            spec.head_dim));
  }
  if (spec.dtype == KvDType::kF32) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("the KV cache of CUDA holds float16, bfloat16, fp8 or int8, not {}",
                            Name(spec.dtype)));
  }
  return {};
}

void RopeAndCache(KernelContext& context, const KvCache& cache, std::int64_t layer,
                  const RopeAndCacheArgs& args, std::span<const AttentionSequence>) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  Flush(device, state);
  const RopeArgs launch{.q = args.q,
                        .k = args.k,
                        .v = args.v,
                        .q_stride = args.q_stride,
                        .k_stride = args.k_stride,
                        .v_stride = args.v_stride,
                        .num_heads = static_cast<int>(args.num_heads),
                        .q_norm = args.q_norm,
                        .k_norm = args.k_norm,
                        .norm_eps = args.norm_eps,
                        .cos_sin = args.rope.cos_sin,
                        .tokens = state.On<TokenRecord>(state.at.tokens),
                        .num_tokens = state.num_tokens,
                        .cache = Layer(cache, layer)};
  if (args.q_norm == nullptr) {
    state.rope = launch;
    return;
  }
  device.NoteError(LaunchRopeAndCache(launch, device.stream()), "RoPE");
}

void PagedAttention(KernelContext& context, const KvCache& cache, std::int64_t layer,
                    const PagedAttentionArgs& args, std::span<const AttentionSequence>) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  const InputLayout& at = state.at;
  std::optional<RopeArgs> rope;
  if (state.rope && state.rope->q == args.q && state.rope->cache.data == Layer(cache, layer).data) {
    rope = std::exchange(state.rope, {});
  }
  Flush(device, state);
  AttentionArgs launch{.q = args.q,
                       .q_stride = args.q_stride,
                       .out = Half(args.out),
                       .out_stride = 2 * args.out_stride,
                       .num_heads = static_cast<int>(args.num_heads),
                       .scale_log2 = static_cast<float>(static_cast<double>(args.scale) * kLog2E),
                       .window = args.sliding_window,
                       .cache = Layer(cache, layer),
                       .sequences = {.first_row = state.On<std::int32_t>(at.first_row),
                                     .num_rows = state.On<std::int32_t>(at.num_rows),
                                     .first_position = state.On<std::int32_t>(at.first_position),
                                     .block_tables = state.On<std::int32_t>(at.tables),
                                     .table_stride = static_cast<int>(at.table_width)},
                       .items = state.On<DecodeItem>(at.items),
                       .num_items = &state.On<Header>(at.header)->num_items,
                       .max_items = static_cast<int>(at.max_items),
                       .partial = state.partial.as<float>(),
                       .arrived = state.arrived.as<std::int32_t>(),
                       .tiles = state.On<std::int32_t>(at.tiles),
                       .num_tiles = state.num_tiles};
  if (rope) {
    launch.cos_sin = rope->cos_sin;
    // A new key is written by whoever reads it where that is one work item. What several read, as
    // the tiles of a prompt do, is written before.
    if (state.num_tiles == 0 && args.num_heads <= kMaxGroup * cache.spec.num_kv_heads) {
      launch.k = rope->k;
      launch.v = rope->v;
      launch.k_stride = rope->k_stride;
      launch.v_stride = rope->v_stride;
    } else {
      rope->num_heads = 0;
      device.NoteError(LaunchRopeAndCache(*rope, device.stream()), "RoPE");
    }
  }
  launch.beside = state.num_decode > 0 && state.num_tiles > 0;
  if (state.num_tiles > 0) {
    device.NoteError(LaunchPrefillAttention(launch, device.stream()), "prefill attention");
  }
  if (state.num_decode > 0) {
    device.NoteError(LaunchDecodeAttention(launch, device.num_sms(), device.stream()),
                     "decode attention");
  }
}

void Sample(KernelContext& context, float* logits, std::int64_t logits_stride,
            std::int64_t vocab_size, std::span<const SampleRow> rows) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  Flush(device, state);
  const auto first = static_cast<std::size_t>(rows.data() - state.first_sample);
  NIBBLE_CHECK(state.first_sample != nullptr && first + rows.size() <= state.num_samples,
               "rows to sample that BeginStep does not know");
  device.NoteError(LaunchSample({.logits = logits,
                                 .logits_stride = logits_stride,
                                 .vocab = static_cast<int>(vocab_size),
                                 .rows = static_cast<int>(rows.size()),
                                 .records = state.On<SampleRecord>(state.at.records) + first,
                                 .adjustments = state.On<Adjustment>(state.at.adjustments),
                                 .results = &state.On<Header>(state.at.header)->results,
                                 .first_result = static_cast<int>(first),
                                 .slot_tokens = state.slot_tokens.as<std::int32_t>()},
                                device.stream()),
                   "sampling");
}

Result<void> StreamWeights(Device& device, const StreamedWeights& weights) {
  NIBBLE_TRY(stream, WeightStream::Create(AsCuda(device), weights));
  StateOf(AsCuda(device)).weights = std::move(stream);
  return {};
}

void PlanSteps(Device& device, const StepLimits& limits) {
  const InputLayout at = LayOut(limits);
  const auto slots = static_cast<std::size_t>(limits.max_in_flight) + 1;
  MemoryLedger& ledger = device.ledger();
  ledger.Plan("step inputs", at.bytes);
  ledger.Plan("attention", PartialBytes(limits, at) + ArrivedBytes(limits));
  ledger.Plan("products", LinearSharedBytes(AsCuda(device).num_sms()));
  ledger.Plan("sampler", static_cast<std::size_t>(limits.max_sequences) * 4);
  ledger.Plan("step inputs (host)", slots * at.bytes, MemoryPlace::kHost);
  ledger.Plan("sampler (host)", slots * ResultBytes(at), MemoryPlace::kHost);
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

  Copy(device, state, 0, at.tokens + inputs.token_ids.size() * sizeof(TokenRecord));
  Copy(device, state, at.records, inputs.samples.size() * sizeof(SampleRecord));
  Copy(device, state, at.adjustments,
       static_cast<std::size_t>(num_adjustments) * sizeof(Adjustment));
  Copy(device, state, at.items, static_cast<std::size_t>(num_items) * sizeof(DecodeItem));
  Copy(device, state, at.tiles, static_cast<std::size_t>(state.num_tiles) * 8);
  const auto pitch = static_cast<std::size_t>(at.table_width) * sizeof(std::int32_t);
  device.NoteError(cudaMemcpy2DAsync(state.inputs.data() + at.tables, pitch, staging + at.tables,
                                     pitch, table_blocks * sizeof(std::int32_t), num_sequences,
                                     cudaMemcpyHostToDevice, device.stream()),
                   "copying a step's inputs");
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

void GatherRows(KernelContext& context, const float* x, std::int64_t x_stride,
                std::span<const std::int32_t> rows, float* out, std::int64_t width) {
  CudaDevice& device = DeviceOf(context);
  State& state = StateOf(device);
  Flush(device, state);
  const std::size_t first = RecordsOf(device, state, rows);
  device.NoteError(
      LaunchGather(x, x_stride, state.On<SampleRecord>(state.at.records) + first, out,
                   static_cast<int>(rows.size()), static_cast<int>(width), device.stream()),
      "gathering rows");
}

void HostActivations(KernelContext& context, const float* x, std::int64_t x_stride,
                     std::int64_t rows, std::int64_t width, std::vector<float>& host) {
  CudaDevice& device = DeviceOf(context);
  Flush(device, StateOf(device));
  const float scale = 1.0F / StateOf(device).ScaleOf(x);
  std::vector<std::uint16_t> raw(static_cast<std::size_t>(rows * x_stride * 2));
  static_cast<void>(device.Read(reinterpret_cast<std::byte*>(raw.data()),
                                reinterpret_cast<const std::byte*>(x), raw.size() * 2));
  host.resize(static_cast<std::size_t>(rows * x_stride));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < width; ++i) {
      host[static_cast<std::size_t>(r * x_stride + i)] =
          F16ToFloat(raw[static_cast<std::size_t>(r * x_stride * 2 + i)]) * scale;
    }
  }
}

}  // namespace nibble::cuda
