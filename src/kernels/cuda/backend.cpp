#include "kernels/cuda/backend.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/step_state.h"
#include "kernels/cuda/weight_layout.h"
#include "tensor/float16.h"

namespace nibble::cuda {
namespace {

// What gated activations are stored as: divided by 32, so that products up to two million fit fp16.
constexpr float kGatedScale = 1.0F / 32.0F;
constexpr double kLog2E = 1.4426950408889634;

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
  return SameUnits(a, b) && a.cols == b.cols;
}

void LaunchChain(CudaDevice& device, State& state) {
  if (!state.chain.empty()) {
    device.NoteError(LaunchLinearChain(state.chain, device.num_sms(), device.stream()),
                     "linear kernels");
    state.chain.clear();
  }
}

void Run(CudaDevice& device, State& state, Product product) {
  UseWeights(state, product.part);
  product.args.shared = state.shared.data();
  // Streamed weights are given back when a launch is done with its part.
  const bool chains =
      product.fp8.x == nullptr && state.weights == nullptr && HasChains(device, product.args);
  if (!state.chain.empty()) {
    state.chain.push_back(product.args);
    if (chains && IsChain(state.chain, device.num_sms())) {
      return;
    }
    state.chain.pop_back();
    LaunchChain(device, state);
  }
  if (chains) {
    state.chain.push_back(product.args);
  } else if (product.fp8.x != nullptr) {
    device.NoteError(LaunchLinearA8(product.args, product.fp8, device.num_sms(), device.stream()),
                     "a linear kernel");
  } else {
    device.NoteError(LaunchLinear(device, product.args), "a linear kernel");
  }
}

void LaunchNorm(CudaDevice& device, State& state, const NormArgs& norm) {
  LaunchChain(device, state);
  device.NoteError(LaunchAddRmsNorm(norm, device.stream()), "a norm");
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
  CopyInputs(device, state, state.at.records, rows.size() * sizeof(SampleRecord));
  return 0;
}

// Operators that wait, for one that may go on with a chain.
void FlushOperators(CudaDevice& device, State& state) {
  if (state.norm) {
    LaunchNorm(device, state, *std::exchange(state.norm, {}));
  }
  if (state.linear) {
    Run(device, state, *std::exchange(state.linear, {}));
  }
  if (state.rope) {
    LaunchChain(device, state);
    device.NoteError(LaunchRopeAndCache(*std::exchange(state.rope, {}), device.stream()), "RoPE");
  }
}

}  // namespace

// The operators that wait, and what they become:
//   AddRmsNorm of few rows   + Linear of its output           the product norms its input first
//   Linear                   + AddBias of an output           a bias in its epilogue
//   Linear of one output     + AddRmsNorm that adds it        it adds to the residual itself
//   Linear of two outputs    + SwiGlu of them                 it gates them itself
//   RopeAndCache (no norms)  + PagedAttention of its layer    attention rotates the queries that it
//                                                             reads; of decodes the new key, too
//   Linear of few rows       + Linear                         one kernel, a chain of products
// Each gives the bits of the operators one by one.
void Flush(CudaDevice& device, State& state) {
  FlushOperators(device, state);
  LaunchChain(device, state);
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
  FlushOperators(device, state);
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
    if (norm && all && !quantizes && NormsInput(device, args)) {
      args.residual = norm->residual;
      args.normed = norm->out;
      args.norm_weight = norm->weight;
      args.norm_eps = norm->eps;
    } else if (norm) {
      LaunchNorm(device, state, *std::exchange(norm, {}));
    }
    if (quantizes) {
      if (quantized.fp8.x == nullptr) {
        quantized = product;
        LaunchChain(device, state);
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
  constexpr int kMostTokens = 65535;  // blocks of a grid, one a token
  for (int first = 0; first < state.num_tokens; first += kMostTokens) {
    device.NoteError(
        LaunchEmbedding({.layout = layout,
                         .table = part.weight,
                         .factor = part.factor,
                         .tokens = state.On<TokenRecord>(state.at.tokens) + first,
                         .slot_tokens = state.slot_tokens.as<std::int32_t>(),
                         .out = out + static_cast<std::int64_t>(first) * layout.cols,
                         .num_tokens = std::min(kMostTokens, state.num_tokens - first)},
                        device.stream()),
        "the embedding");
  }
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
  FlushOperators(device, state);
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
  state.NoteScale(out, 1.0F);
  if (delta == nullptr && num_tokens <= kMediumTokens) {
    state.norm = args;
    return;
  }
  LaunchNorm(device, state, args);
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
  if (spec.block_size_tokens != kKvBlock) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("KV blocks of {} tokens: the CPU's kernels take 16, those of CUDA {}",
                            spec.block_size_tokens, kKvBlock));
  }
  if (!HasAttention(static_cast<int>(spec.head_dim))) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("head_dim {}: the CUDA attention kernels take 16, 32, 64 and 128; use "
                            "--device cpu",
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
  state.NoteScale(args.out, 1.0F);
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

ActivationRows RowsOf(KernelContext& context, const float* x, std::int64_t x_stride,
                      std::int64_t rows, std::int64_t width) {
  CudaDevice& device = DeviceOf(context);
  Flush(device, StateOf(device));
  return {.data = x,
          .dtype = DType::kF16,
          .stride = 2 * x_stride,
          .scale = 1.0F / StateOf(device).ScaleOf(x),
          .num_rows = rows,
          .width = width};
}

void HostActivations(KernelContext& context, const float* x, std::int64_t x_stride,
                     std::int64_t rows, std::int64_t width, std::vector<float>& host) {
  CudaDevice& device = DeviceOf(context);
  const float scale = cuda::RowsOf(context, x, x_stride, rows, width).scale;
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
