#include "compress/model_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace nibble {
namespace {

constexpr struct {
  ModelFormat format;
  std::string_view name;
  std::optional<FolderFormat> folder;
} kFormats[] = {
    {ModelFormat::kCompressedTensors, "compressed-tensors", FolderFormat::kCompressedTensors},
    {ModelFormat::kGptq, "gptq", FolderFormat::kGptq},
    {ModelFormat::kGptqV2, "gptq_v2", FolderFormat::kGptqV2},
    {ModelFormat::kAwq, "awq", FolderFormat::kAwq},
    {ModelFormat::kBitsandbytes, "bitsandbytes", FolderFormat::kBitsandbytes},
    {ModelFormat::kBitsandbytesNested, "bitsandbytes-nested", FolderFormat::kBitsandbytesNested},
    {ModelFormat::kNibble, "nibble", FolderFormat::kNibble},
    {ModelFormat::kGguf, "gguf", std::nullopt},
    {ModelFormat::kSafetensors, "safetensors", std::nullopt},
};

// What the quantized weights of a model have in common.
struct Traits {
  std::set<int> bits;
  bool zero_points = false;
  bool fp8 = false;
  bool fp4 = false;  // MXFP4 or NVFP4
  bool one_scale = false;
  bool whole_rows = false;
  bool embedding = false;
  std::set<std::int64_t> groups;
  std::size_t num_schemes = 0;
};

Traits TraitsOf(std::span<const WeightToWrite> weights) {
  Traits out;
  std::set<std::string> schemes;
  for (const WeightToWrite& weight : weights) {
    const WeightSpec& spec = weight.spec;
    if (spec.kind == CodecKind::kFloat) {
      continue;
    }
    const bool whole = spec.group_size >= spec.cols;
    out.bits.insert(spec.bits);
    out.embedding = out.embedding || weight.name == "model.embed_tokens.weight";
    out.zero_points = out.zero_points || spec.has_zero_points;
    out.fp8 = out.fp8 || spec.codebook == Codebook::kFp8E4M3;
    out.fp4 = out.fp4 || spec.codebook == Codebook::kE2M1;
    out.one_scale = out.one_scale || spec.has_one_scale;
    out.whole_rows = out.whole_rows || whole;
    if (!whole) {
      out.groups.insert(spec.group_size);
    }
    schemes.insert(fmt::format("{} {} {} {}", spec.bits, whole ? 0 : spec.group_size,
                               spec.has_zero_points, Name(spec.codebook)));
  }
  out.num_schemes = schemes.size();
  return out;
}

bool OnlyBits(const Traits& traits, std::initializer_list<int> allowed) {
  return std::ranges::all_of(
      traits.bits, [&](int bits) { return std::ranges::find(allowed, bits) != allowed.end(); });
}

Consumer Yes(std::string_view name, std::string how) { return {name, true, std::move(how)}; }
Consumer No(std::string_view name, std::string why) { return {name, false, std::move(why)}; }

std::vector<Consumer> OfGptq(const Traits& traits) {
  const bool for_vllm = OnlyBits(traits, {4, 8}) && !traits.zero_points;
  return {for_vllm
              ? Yes("vLLM", "")
              : No("vLLM",
                   "it loads GPTQ of 4 or 8 bits without zero points only: use compressed-tensors "
                   "(zero points at 4 and 8 bits, symmetric at 2 to 8) or awq (zero points at 4)"),
          Yes("transformers", "with gptqmodel installed"),
          OnlyBits(traits, {2, 4, 8})
              ? Yes("llama.cpp",
                    "its convert_hf_to_gguf.py decodes it to floats; --to gguf keeps codes")
              : No("llama.cpp", "its converter does not read 3 bits: use --to gguf"),
          No("onnxruntime", "it reads ONNX; MatMulNBits holds the same codes"),
          No("TensorRT", "it reads graphs of QuantizeLinear pairs")};
}

// transformers 5.23 finds no weight in an embedding that is packed.
Consumer TransformersOf(const Traits& traits) {
  return traits.embedding
             ? No("transformers", "it cannot load a quantized embedding: leave the table as it is")
             : Yes("transformers", "with compressed-tensors installed");
}

std::vector<Consumer> OfCompressedTensors(const Traits& traits) {
  if (traits.fp8) {
    return {Yes("vLLM", "activations become FP8 too"), TransformersOf(traits),
            Yes("llama.cpp", "its convert_hf_to_gguf.py decodes it"),
            No("onnxruntime", "it reads ONNX"),
            No("TensorRT",
               "it reads graphs of QuantizeLinear "
               "pairs")};
  }
  if (traits.fp4) {
    return {Yes("vLLM", "as weights alone; activations stay as they are"),
            traits.embedding
                ? TransformersOf(traits)
                : Yes("transformers", "with compressed-tensors installed, in bfloat16"),
            Yes("llama.cpp", "its convert_hf_to_gguf.py repacks it"),
            No("onnxruntime", "it reads ONNX"),
            No("TensorRT", "it reads graphs of QuantizeLinear pairs")};
  }
  const bool common = OnlyBits(traits, {4, 8});
  // Of its usual kernels.
  const bool usual_groups = std::ranges::all_of(
      traits.groups, [](std::int64_t group) { return group == 32 || group == 64 || group == 128; });
  const Consumer vllm =
      traits.one_scale
          ? No("vLLM", "it takes weights alone with a scale a group or a row: use --group-size 0")
      : common && usual_groups ? Yes("vLLM", "")
      : common && !traits.zero_points
          ? Yes("vLLM", "with the Humming kernels installed, for groups other than 32, 64, 128")
      : common ? No("vLLM", "it takes zero points in groups of 32, 64 and 128 only")
      : traits.zero_points
          ? No("vLLM", "it takes zero points at 4 and 8 bits only")
          : Yes("vLLM", "with the Humming kernels installed, for widths other than 4 and 8 bits");
  const Consumer llama =
      !common ? No("llama.cpp", "its converter misreads 3, 5, 6 and 7 bits: use --to gguf")
      : traits.whole_rows || traits.num_schemes != 1
          ? No("llama.cpp", "its converter takes one scheme with groups: use --to gguf")
          : Yes("llama.cpp",
                "its convert_hf_to_gguf.py decodes it to floats; --to gguf keeps codes");
  return {vllm, TransformersOf(traits), llama,
          No("onnxruntime", "it reads ONNX; MatMulNBits holds the same codes"),
          No("TensorRT", traits.zero_points ? "it takes no zero points"
                                            : "it reads graphs of QuantizeLinear pairs")};
}

}  // namespace

std::string_view Name(ModelFormat format) {
  return std::ranges::find(kFormats, format, [](const auto& row) { return row.format; })->name;
}

std::optional<ModelFormat> ParseModelFormat(std::string_view name) {
  const auto* found = std::ranges::find(kFormats, name, [](const auto& row) { return row.name; });
  return found == std::end(kFormats) ? std::nullopt : std::optional(found->format);
}

std::optional<FolderFormat> FolderFormatOf(ModelFormat format) {
  return std::ranges::find(kFormats, format, [](const auto& row) { return row.format; })->folder;
}

std::vector<Consumer> ConsumersOf(ModelFormat format, std::span<const WeightToWrite> weights) {
  const Traits traits = TraitsOf(weights);
  switch (format) {
    case ModelFormat::kCompressedTensors:
      return OfCompressedTensors(traits);
    case ModelFormat::kGptq:
    case ModelFormat::kGptqV2:
      return OfGptq(traits);
    case ModelFormat::kAwq:
      return {Yes("vLLM", ""), Yes("transformers", "with gptqmodel installed"),
              No("llama.cpp", "its converter does not read AWQ: use --to gguf"),
              No("onnxruntime", "it reads ONNX; MatMulNBits holds the same codes"),
              No("TensorRT", "it takes no zero points")};
    case ModelFormat::kBitsandbytes:
    case ModelFormat::kBitsandbytesNested:
      return {Yes("vLLM", "with vllm-bnb-plugin installed"),
              Yes("transformers", "with bitsandbytes installed"),
              No("llama.cpp", "its converter does not read bitsandbytes"),
              No("onnxruntime", "it reads ONNX; MatMulBnb4 holds the same codes"),
              No("TensorRT", "it has no such data type")};
    case ModelFormat::kNibble: {
      std::vector<Consumer> out;
      for (const char* name : {"vLLM", "transformers", "llama.cpp", "onnxruntime", "TensorRT"}) {
        out.push_back(No(name, "only nibble loads its own layout"));
      }
      return out;
    }
    case ModelFormat::kGguf:
      return {Yes("vLLM", "with its GGUF plugin installed"),
              Yes("transformers", "it decodes to floats"), Yes("llama.cpp", ""),
              No("onnxruntime", "it reads ONNX"), No("TensorRT", "it reads ONNX")};
    case ModelFormat::kSafetensors:
      break;
  }
  return {Yes("vLLM", ""), Yes("transformers", ""),
          Yes("llama.cpp", "through its convert_hf_to_gguf.py"), No("onnxruntime", "it reads ONNX"),
          No("TensorRT", "it reads ONNX")};
}

}  // namespace nibble
