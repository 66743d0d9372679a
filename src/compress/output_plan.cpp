#include "compress/output_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

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

// What happens to each quantizable weight: a recipe's plans, or the same for every linear.
Result<std::map<std::string, ModulePlan, std::less<>>> PlansOf(const QuantizeOptions& options,
                                                               const ModelConfig& config) {
  const std::vector<ExpectedWeight> weights = ExpectedWeights(config);
  if (options.recipe) {
    return Resolve(*options.recipe, weights);
  }
  std::map<std::string, ModulePlan, std::less<>> plans;
  for (const ExpectedWeight& weight : weights) {
    if (weight.is_linear) {
      plans.emplace(weight.name, ModulePlan{.scheme = options.scheme});
    }
  }
  return plans;
}

// The format that the first quantized weight would have by itself.
ModelFormat FormatOf(const std::map<std::string, ModulePlan, std::less<>>& plans) {
  const auto first = std::ranges::find_if(
      plans, [](const auto& plan) { return !plan.second.scheme.keeps_floats; });
  return first == plans.end() ? ModelFormat::kCompressedTensors : UsualFormat(first->second.scheme);
}

// Whether rounding is all that a linear gets where others are solved.
bool Rounds(const ModulePlan& plan) {
  return plan.method == QuantizeMethod::kRtn ||
         (plan.method == QuantizeMethod::kAuto && !plan.where.empty() && !plan.scheme.is_narrow());
}

// What to ask for, where a format cannot hold the grid.
std::string InsteadOf(const Scheme& scheme, ModelFormat format) {
  if (UsualFormat(scheme) == ModelFormat::kNibble) {
    return fmt::format(": only --format nibble, which is {}'s own, holds it", WordOf(scheme));
  }
  if (scheme.is_fp8() || scheme.codebook == Codebook::kE2M1) {
    return ": FP8, MXFP4 and NVFP4 are written as compressed-tensors";
  }
  if (format == ModelFormat::kNibble) {
    return "; leave out --format";
  }
  if (scheme.codebook != Codebook::kNone) {
    return fmt::format(": use --format bitsandbytes, or --scheme int4 with --format {}",
                       Name(format));
  }
  if (format == ModelFormat::kBitsandbytes) {
    return ": use --scheme nf4, or --scheme int8 --group-size 0";
  }
  if (format == ModelFormat::kBitsandbytesNested) {
    return ": use --scheme nf4";
  }
  if (format == ModelFormat::kCompressedTensors) {  // has all but zero points of a whole matrix
    return ": leave out --no-symmetric, or --group-size tensor";
  }
  const bool says_itself = format == ModelFormat::kGptq && !scheme.symmetric;
  return says_itself ? "" : ": use --format compressed-tensors";
}

// Whether the format holds the weight.
Result<void> CheckFormat(const OutputPlan& plan, const WeightToWrite& weight,
                         const Scheme& scheme) {
  if (plan.format == ModelFormat::kGguf) {
    if (weight.spec.cols % kSmallBlock != 0) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: rows of {} are no multiple of {}, the smallest block of GGUF: "
                              "use another format, as --scheme int4 has",
                              weight.name, weight.spec.cols, kSmallBlock));
    }
    if (GgufTypeOf(weight.spec)) {
      return {};
    }
    WeightSpec in_blocks = weight.spec;
    in_blocks.group_size = kSmallBlock;
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: no block type of GGUF holds {}: use {}--scheme q4_0, q4_1, q5_0, "
                    "q5_1, q8_0, q2_k, q3_k, q4_k, q5_k or q6_k",
                    weight.name, weight.spec.ToString(),
                    GgufTypeOf(in_blocks) ? fmt::format("--group-size {}, or ", kSmallBlock) : ""));
  }
  if (scheme.block_type) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} blocks are GGUF's: leave out --format {}",
                            GgufTypeName(static_cast<std::uint32_t>(*scheme.block_type)),
                            Name(plan.format)));
  }
  const auto folder = FolderFormatOf(plan.format);
  if (!folder) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--format {} holds floats: use nibble convert", Name(plan.format)));
  }
  const auto encoder = MakeWeightEncoder(
      *folder, weight, {.scale_dtype = plan.scale_dtype, .model_dtype = plan.float_dtype});
  return encoder
             ? Result<void>{}
             : Fail(encoder.error().code, encoder.error().message + InsteadOf(scheme, plan.format));
}

WeightWriter::Options WriterOptions(const OutputPlan& plan, std::uint64_t shard_bytes) {
  return {.format = FolderFormatOf(plan.format).value_or(FolderFormat::kCompressedTensors),
          .scale_dtype = plan.scale_dtype,
          .model_dtype = plan.float_dtype,
          .shard_bytes = shard_bytes};
}

}  // namespace

Result<OutputPlan> PlanOutput(const Checkpoint& source, const QuantizeOptions& options) {
  const ModelConfig& config = source.config();
  NIBBLE_TRY(plans, PlansOf(options, config));
  OutputPlan plan;
  plan.format = options.format.value_or(FormatOf(plans));
  plan.float_dtype = SixteenBitType(config);
  // compressed-tensors follows the model; the others have f16 (LLM.int8: f16 numbers as F32).
  plan.scale_dtype =
      plan.format == ModelFormat::kCompressedTensors ? plan.float_dtype : DType::kF16;
  for (const ExpectedWeight& weight : ExpectedWeights(config)) {
    ModulePlan module{.scheme = {.keeps_floats = true}};
    if (const auto found = plans.find(weight.name); found != plans.end()) {
      module = found->second;
    } else if (plan.format == ModelFormat::kGguf && IsTable(weight.name) &&
               weight.cols % kSmallBlock == 0) {
      module.scheme = *ParseScheme("q8_0");
    }
    auto spec = SpecOf(module.scheme, weight, config, plan.float_dtype);
    const std::string where = module.where.empty() ? "" : module.where + ": ";
    if (!spec) {
      return Fail(spec.error(), where);
    }
    plan.weights.push_back({weight.name, *spec});
    if (spec->kind == CodecKind::kFloat) {
      continue;
    }
    if (Rounds(module)) {
      plan.rounded.insert(weight.name);
    }
    if (const auto fits = CheckFormat(plan, plan.weights.back(), module.scheme); !fits) {
      if (options.recipe) {
        return Fail(fits.error().code,
                    fmt::format("{}{} (all modules of a recipe go to one format, here {})", where,
                                fits.error().message, Name(plan.format)));
      }
      return tl::unexpected<Error>(fits.error());
    }
  }
  if (std::ranges::all_of(plan.weights, [](const WeightToWrite& weight) {
        return weight.spec.kind == CodecKind::kFloat;
      })) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} no weight would be quantized: {}",
                            options.recipe ? options.recipe->rest.where + ":" : "--scheme float:",
                            options.recipe ? "let the recipe skip fewer modules"
                                           : "choose another scheme"));
  }
  if (const auto folder = FolderFormatOf(plan.format)) {  // what it has no place for is said now
    NIBBLE_TRY_VOID(QuantizationConfigOf(*folder, plan.weights, plan.float_dtype, kVersion));
  }
  return plan;
}

Result<std::uint64_t> HeaderBytes(const OutputPlan& plan, const Checkpoint& source,
                                  const Tokenizer& tokenizer) {
  if (plan.format != ModelFormat::kGguf) {
    return std::uint64_t{0};
  }
  NIBBLE_TRY(facts, GgufFactsOf(source, tokenizer));
  return GgufHeaderBytes(plan.weights, facts);
}

std::uint64_t SizeBytes(const OutputPlan& plan, std::uint64_t shard_bytes) {
  return plan.format == ModelFormat::kGguf
             ? GgufSizeBytes(plan.weights) + plan.header_bytes
             : WeightWriter::SizeBytes(plan.weights, WriterOptions(plan, shard_bytes));
}

std::uint64_t StoredBits(const OutputPlan& plan, const WeightSpec& spec) {
  const auto elements = static_cast<std::uint64_t>(spec.rows * spec.cols);
  if (spec.kind == CodecKind::kFloat) {
    return elements * SizeBytes(spec.float_dtype) * 8U;
  }
  if (plan.format == ModelFormat::kGguf) {
    const auto block = GgufBlockOf(static_cast<std::uint32_t>(*GgufTypeOf(spec)));
    return elements / static_cast<std::uint64_t>(block->elements) *
           static_cast<std::uint64_t>(block->bytes) * 8U;
  }
  const auto groups = static_cast<std::uint64_t>(spec.rows * spec.num_groups());
  const auto bits = static_cast<std::uint64_t>(spec.bits);
  if (spec.scale_grid != ScaleGrid::kAny) {
    return elements * bits + groups * 8 + (spec.scale_grid == ScaleGrid::kE4M3 ? 32 : 0);
  }
  if (spec.has_one_scale && plan.format == ModelFormat::kCompressedTensors) {
    return elements * bits + 16;
  }
  std::uint64_t scale_bits = spec.has_f32_scales ? 32 : 16;
  if (plan.format == ModelFormat::kBitsandbytesNested) {
    scale_bits = 8;  // and one F32 for 256 of them
  }
  const bool stores_zeros = spec.has_zero_points || plan.format == ModelFormat::kAwq ||
                            plan.format == ModelFormat::kGptq ||
                            plan.format == ModelFormat::kGptqV2;
  return elements * bits + groups * (scale_bits + (stores_zeros ? bits : 0));
}

std::uint64_t BitsOfLinears(const OutputPlan& plan) {
  std::uint64_t bits = 0;
  for (const WeightToWrite& weight : plan.weights) {
    bits += BlockOfWeight(weight.name) && weight.spec.rows > 1 ? StoredBits(plan, weight.spec) : 0;
  }
  return bits;
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
