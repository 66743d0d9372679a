#include "compress/output_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_writer.h"
#include "compress/certificate.h"
#include "compress/side_files.h"

namespace nibble {
namespace {

constexpr const char* kVersion = "0.1.0";
constexpr std::int64_t kSmallBlock = 32;

bool IsTable(std::string_view name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

// The block type for a width: K-quants have blocks of 256, and llama.cpp's stand-ins for other
// widths are taken.
GgufType TypeFor(GgufType wanted, std::int64_t cols) {
  const auto block = GgufBlockOf(static_cast<std::uint32_t>(wanted));
  if (cols % block->elements == 0) {
    return wanted;
  }
  switch (wanted) {
    case GgufType::kQ2_K:
    case GgufType::kQ3_K:
      return GgufType::kQ4_0;
    case GgufType::kQ4_K:
      return GgufType::kQ5_0;
    case GgufType::kQ5_K:
      return GgufType::kQ5_1;
    default:
      return GgufType::kQ8_0;
  }
}

WeightSpec Shaped(WeightSpec spec, const ExpectedWeight& weight) {
  spec.rows = weight.rows;
  spec.cols = weight.cols;
  return spec;
}

// What to ask for, where a format cannot hold the grid.
std::string InsteadOf(const QuantizeOptions& options, ModelFormat format) {
  if (options.codebook != Codebook::kNone) {
    return fmt::format(": use --format bitsandbytes, or --scheme int4 with --format {}",
                       Name(format));
  }
  if (format == ModelFormat::kBitsandbytes || format == ModelFormat::kBitsandbytesNested) {
    return ": use --scheme nf4, or --scheme int8 --group-size 0";
  }
  const bool says_itself = format == ModelFormat::kGptq && !options.symmetric;
  return says_itself ? "" : ": use --format compressed-tensors";
}

WeightWriter::Options WriterOptions(const OutputPlan& plan, std::uint64_t shard_bytes) {
  return {.format = FolderFormatOf(plan.format).value_or(FolderFormat::kCompressedTensors),
          .scale_dtype = plan.scale_dtype,
          .model_dtype = plan.float_dtype,
          .shard_bytes = shard_bytes};
}

}  // namespace

Result<OutputPlan> PlanOutput(const Checkpoint& source, const QuantizeOptions& options,
                              std::int64_t group_size) {
  const bool table = options.codebook != Codebook::kNone;
  OutputPlan plan;
  plan.format = options.format.value_or(options.block_type ? ModelFormat::kGguf
                                        : table            ? ModelFormat::kBitsandbytes
                                                           : ModelFormat::kCompressedTensors);
  const bool gguf = plan.format == ModelFormat::kGguf;
  plan.float_dtype = SixteenBitType(source.config());
  // compressed-tensors follows the model; the others have f16 (LLM.int8: f16 numbers as F32).
  plan.scale_dtype =
      plan.format == ModelFormat::kCompressedTensors ? plan.float_dtype : DType::kF16;
  for (const ExpectedWeight& weight : ExpectedWeights(source.config())) {
    WeightSpec spec{.float_dtype = plan.float_dtype};
    if (weight.is_linear && options.block_type) {
      spec = *GgufSpecOf(static_cast<std::uint32_t>(TypeFor(*options.block_type, weight.cols)));
    } else if (weight.is_linear && table) {
      spec = {.kind = CodecKind::kCodebook,
              .bits = BitsOf(options.codebook),
              .group_size = group_size,
              .has_f32_scales = true,
              .codebook = options.codebook};
    } else if (weight.is_linear) {
      spec = {.kind = CodecKind::kUniform,
              .bits = options.bits,
              .group_size = group_size == 0 ? weight.cols : group_size,
              .has_zero_points = !options.symmetric};
    } else if (gguf && IsTable(weight.name) && weight.cols % kSmallBlock == 0) {
      spec = *GgufSpecOf(static_cast<std::uint32_t>(GgufType::kQ8_0));
    }
    plan.weights.push_back({weight.name, Shaped(spec, weight)});
    const WeightToWrite& written = plan.weights.back();
    if (written.spec.kind == CodecKind::kFloat) {
      continue;
    }
    if (gguf) {
      if (!GgufTypeOf(written.spec) || weight.cols % kSmallBlock != 0) {
        return Fail(
            ErrorCode::kInvalidArgument,
            fmt::format(
                "{}: no block type of GGUF holds {} in rows of {}: use --scheme q4_0, q4_1, "
                "q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k or q6_k",
                weight.name, written.spec.ToString(), weight.cols));
      }
      continue;
    }
    if (options.block_type) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} blocks are GGUF's: leave out --format {}",
                              GgufTypeName(static_cast<std::uint32_t>(*options.block_type)),
                              Name(plan.format)));
    }
    const auto folder = FolderFormatOf(plan.format);
    if (!folder) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("--format {} holds floats: use nibble convert", Name(plan.format)));
    }
    const auto encoder = MakeWeightEncoder(
        *folder, written, {.scale_dtype = plan.scale_dtype, .model_dtype = plan.float_dtype});
    if (!encoder) {
      return Fail(encoder.error().code, encoder.error().message + InsteadOf(options, plan.format));
    }
  }
  return plan;
}

std::uint64_t SizeBytes(const OutputPlan& plan, std::uint64_t shard_bytes) {
  return plan.format == ModelFormat::kGguf
             ? GgufSizeBytes(plan.weights)
             : WeightWriter::SizeBytes(plan.weights, WriterOptions(plan, shard_bytes));
}

std::uint64_t StoredBits(const OutputPlan& plan, const WeightSpec& spec) {
  const auto elements = static_cast<std::uint64_t>(spec.rows * spec.cols);
  if (plan.format == ModelFormat::kGguf) {
    const auto block = GgufBlockOf(static_cast<std::uint32_t>(*GgufTypeOf(spec)));
    return elements / static_cast<std::uint64_t>(block->elements) *
           static_cast<std::uint64_t>(block->bytes) * 8U;
  }
  const auto groups = static_cast<std::uint64_t>(spec.rows * spec.num_groups());
  const auto bits = static_cast<std::uint64_t>(spec.bits);
  std::uint64_t scale_bits = spec.has_f32_scales ? 32 : 16;
  if (plan.format == ModelFormat::kBitsandbytesNested) {
    scale_bits = 8;  // and one F32 for 256 of them
  }
  const bool stores_zeros = spec.has_zero_points || plan.format == ModelFormat::kAwq ||
                            plan.format == ModelFormat::kGptq ||
                            plan.format == ModelFormat::kGptqV2;
  return elements * bits + groups * (scale_bits + (stores_zeros ? bits : 0));
}

Result<std::unique_ptr<WeightWriter>> CreateWriter(const OutputPlan& plan, const Checkpoint& source,
                                                   const Tokenizer& tokenizer,
                                                   std::uint64_t shard_bytes, AtomicWriter& out) {
  if (plan.format == ModelFormat::kGguf) {
    NIBBLE_TRY(facts, GgufFactsOf(source, tokenizer));
    return CreateGgufWriter(out, kGgufFileName, plan.weights, facts);
  }
  return WeightWriter::Create(out, plan.weights, WriterOptions(plan, shard_bytes));
}

Result<void> WriteOutputFiles(const OutputPlan& plan, const Checkpoint& source,
                              const Tokenizer& tokenizer, AtomicWriter& out) {
  const auto folder = FolderFormatOf(plan.format);
  if (!folder) {
    return {};
  }
  ModelConfig config = source.config();
  config.dtype = plan.float_dtype;
  json::Object config_json = ToHuggingFaceConfig(config);
  NIBBLE_TRY(quantization, QuantizationConfigOf(*folder, plan.weights, plan.float_dtype, kVersion));
  if (plan.format == ModelFormat::kGptq || plan.format == ModelFormat::kGptqV2) {
    // Older readers look for a file of its own.
    NIBBLE_TRY_VOID(
        out.WriteWhole("quantize_config.json",
                       json::Dump(quantization, {.indent = 2, .key_separator = ": "}) + "\n"));
  }
  config_json.Set("quantization_config", std::move(quantization));
  config_json.Set(kCertificateKey, kCertificateFile);
  return WriteSideFiles(source, tokenizer, config_json, out);
}

}  // namespace nibble
