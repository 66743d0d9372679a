#include "checkpoint/folder_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "checkpoint/awq.h"
#include "checkpoint/bitsandbytes.h"
#include "checkpoint/gptq.h"
#include "checkpoint/nibble_layout.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

std::string ModuleOf(std::string_view weight) {
  return std::string(weight.substr(0, weight.size() - kWeightSuffix.size()));
}

bool IsQuantized(const WeightToWrite& weight) { return weight.spec.kind != CodecKind::kFloat; }

// Matrices that a library may take for a linear it should quantize: all but the embedding.
bool IsLinear(const WeightToWrite& weight) {
  return weight.spec.rows > 1 && weight.name.ends_with(kWeightSuffix) &&
         weight.name != "model.embed_tokens.weight";
}

// Modules that stay floats although a library would take them for linears.
std::vector<std::string> FloatModules(std::span<const WeightToWrite> weights) {
  std::vector<std::string> out;
  for (const WeightToWrite& weight : weights) {
    if (IsLinear(weight) && !IsQuantized(weight)) {
      out.push_back(ModuleOf(weight.name));
    }
  }
  return out;
}

// What of a spec a config says: everything but the shape.
struct Scheme {
  CodecKind kind = CodecKind::kUniform;
  int bits = 0;
  std::int64_t group_size = 0;  // 0: whole rows
  bool symmetric = true;
  Codebook codebook = Codebook::kNone;
  bool has_one_scale = false;
  friend auto operator<=>(const Scheme&, const Scheme&) = default;
};

Scheme SchemeOf(const WeightSpec& spec) {
  return {.kind = spec.kind,
          .bits = spec.bits,
          .group_size = spec.group_size >= spec.cols ? 0 : spec.group_size,
          .symmetric = !spec.has_zero_points,
          .codebook = spec.codebook,
          .has_one_scale = spec.has_one_scale};
}

// The schemes of the quantized weights with their modules; the most frequent one first.
std::vector<std::pair<Scheme, std::vector<std::string>>> SchemesOf(
    std::span<const WeightToWrite> weights) {
  std::set<std::int64_t> groups;  // that are less than a row somewhere
  for (const WeightToWrite& weight : weights) {
    if (IsQuantized(weight) && weight.spec.group_size < weight.spec.cols) {
      groups.insert(weight.spec.group_size);
    }
  }
  std::map<Scheme, std::vector<std::string>> by_scheme;
  for (const WeightToWrite& weight : weights) {
    if (!IsQuantized(weight)) {
      continue;
    }
    Scheme scheme = SchemeOf(weight.spec);
    // A row as wide as the groups of others is one group.
    if (scheme.kind == CodecKind::kUniform && scheme.group_size == 0 && !scheme.has_one_scale &&
        groups.contains(weight.spec.cols)) {
      scheme.group_size = weight.spec.cols;
    }
    by_scheme[scheme].push_back(ModuleOf(weight.name));
  }
  std::vector<std::pair<Scheme, std::vector<std::string>>> out(by_scheme.begin(), by_scheme.end());
  std::ranges::stable_sort(out, std::ranges::greater{},
                           [](const auto& pair) { return pair.second.size(); });
  return out;
}

json::Array ArrayOf(const std::vector<std::string>& names) {
  json::Array out;
  for (const std::string& name : names) {
    out.push_back(name);
  }
  return out;
}

// An expression for exactly one module: names have no special character but the dot.
std::string Exactly(const std::string& module) {
  std::string out = "^";
  for (const char c : module) {
    out += c == '.' ? "\\." : std::string(1, c);
  }
  return out + "$";
}

bool IsNvFp4(const Scheme& scheme) {
  return scheme.codebook == Codebook::kE2M1 && scheme.group_size == 16;
}

std::string_view CompressedTensorsFormat(const Scheme& scheme) {
  return scheme.codebook == Codebook::kNone   ? "pack-quantized"
         : scheme.codebook != Codebook::kE2M1 ? "float-quantized"
         : IsNvFp4(scheme)                    ? "nvfp4-pack-quantized"
                                              : "mxfp4-pack-quantized";
}

json::Object CompressedTensorsGroup(const Scheme& scheme, json::Array targets) {
  const bool fp8 = scheme.codebook == Codebook::kFp8E4M3;
  const bool fp4 = scheme.codebook == Codebook::kE2M1;
  json::Object weights;
  weights.Set("num_bits", scheme.bits);
  weights.Set("type", fp8 || fp4 ? "float" : "int");
  weights.Set("symmetric", scheme.symmetric);
  weights.Set("strategy", scheme.has_one_scale     ? "tensor"
                          : scheme.group_size == 0 ? "channel"
                          : IsNvFp4(scheme)        ? "tensor_group"
                          : fp8                    ? "block"
                                                   : "group");
  weights.Set("group_size",
              scheme.group_size == 0 || fp8 ? json::Value() : json::Value(scheme.group_size));
  if (fp8 && scheme.group_size != 0) {
    weights.Set("block_structure", json::Array{scheme.group_size, scheme.group_size});
  }
  if (fp4) {
    weights.Set("scale_dtype", IsNvFp4(scheme) ? "torch.float8_e4m3fn" : "torch.uint8");
  }
  weights.Set("dynamic", false);
  json::Value activations;
  if (fp8) {  // what consumers have kernels for
    json::Object object;
    object.Set("num_bits", 8);
    object.Set("type", "float");
    object.Set("symmetric", true);
    object.Set("strategy", scheme.group_size == 0 ? "token" : "group");
    object.Set("group_size", scheme.group_size == 0 ? json::Value() : json::Value(128));
    object.Set("dynamic", true);
    activations = std::move(object);
  }
  json::Object group;
  group.Set("targets", std::move(targets));
  group.Set("weights", std::move(weights));
  group.Set("input_activations", std::move(activations));
  group.Set("output_activations", nullptr);
  group.Set("format", nullptr);
  return group;
}

json::Object CompressedTensorsConfigOf(std::span<const WeightToWrite> weights) {
  const auto schemes = SchemesOf(weights);
  std::vector<std::string> ignored = FloatModules(weights);
  json::Object groups;
  std::set<std::string_view> formats;
  int number = 0;
  for (const auto& [scheme, modules] : schemes) {
    // One scheme for all targets the class; what stays floats is ignored by name.
    json::Array targets = schemes.size() == 1 ? json::Array{"Linear"} : ArrayOf(modules);
    const bool table = std::ranges::find(modules, "model.embed_tokens") != modules.end();
    if (table && schemes.size() == 1) {
      targets.push_back("model.embed_tokens");
    }
    groups.Set(fmt::format("group_{}", number++),
               CompressedTensorsGroup(scheme, std::move(targets)));
    formats.insert(CompressedTensorsFormat(scheme));
  }
  for (std::size_t i = 0; formats.size() > 1 && i < schemes.size(); ++i) {
    groups.Find(fmt::format("group_{}", i))
        ->AsObject()
        ->Set("format", CompressedTensorsFormat(schemes[i].first));
  }
  // Tied or not, libraries make a linear of the head.
  if (std::ranges::find(ignored, "lm_head") == ignored.end() &&
      std::ranges::none_of(weights, [](const auto& w) { return w.name == "lm_head.weight"; })) {
    ignored.push_back("lm_head");
  }
  json::Object out;
  out.Set("quant_method", "compressed-tensors");
  out.Set("format", formats.size() > 1 ? "mixed-precision" : *formats.begin());
  out.Set("quantization_status", "compressed");
  out.Set("config_groups", std::move(groups));
  out.Set("ignore", ArrayOf(ignored));
  out.Set("kv_cache_scheme", nullptr);
  out.Set("global_compression_ratio", nullptr);
  return out;
}

json::Object NibbleConfigOf(std::span<const WeightToWrite> weights) {
  std::vector<NibbleGroup> groups;
  for (auto& [scheme, modules] : SchemesOf(weights)) {
    groups.push_back(
        {.codebook = scheme.codebook, .group_size = scheme.group_size, .modules = modules});
  }
  return NibbleConfigObject(groups);
}

json::Object GptqConfigOf(std::span<const WeightToWrite> weights, GptqZeros zeros,
                          std::string_view version) {
  const auto schemes = SchemesOf(weights);
  const auto gptq = [](const Scheme& scheme) {
    return GptqScheme{.bits = scheme.bits,
                      .group_size = scheme.group_size,
                      .symmetric = scheme.symmetric,
                      .desc_act = false};
  };
  const bool head = std::ranges::any_of(weights, [](const WeightToWrite& weight) {
    return weight.name == "lm_head.weight" && IsQuantized(weight);
  });
  json::Object out = GptqConfigObject(gptq(schemes.front().first), zeros, head, version);
  json::Object dynamic;
  for (const std::string& module : FloatModules(weights)) {
    if (module != "lm_head") {  // left out unless lm_head says otherwise
      dynamic.Set("-:" + Exactly(module), json::Object());
    }
  }
  for (std::size_t i = 1; i < schemes.size(); ++i) {
    for (const std::string& module : schemes[i].second) {
      const GptqScheme scheme = gptq(schemes[i].first);
      json::Object rule;
      rule.Set("bits", scheme.bits);
      rule.Set("group_size", scheme.group_size == 0 ? std::int64_t{-1} : scheme.group_size);
      rule.Set("sym", *scheme.symmetric);
      dynamic.Set("+:" + Exactly(module), std::move(rule));
    }
  }
  if (!dynamic.empty()) {
    out.Set("dynamic", std::move(dynamic));
  }
  return out;
}

}  // namespace

std::string_view Name(FolderFormat format) {
  switch (format) {
    case FolderFormat::kCompressedTensors:
      return "compressed-tensors";
    case FolderFormat::kGptq:
      return "gptq";
    case FolderFormat::kGptqV2:
      return "gptq_v2";
    case FolderFormat::kAwq:
      return "awq";
    case FolderFormat::kBitsandbytes:
      return "bitsandbytes";
    case FolderFormat::kBitsandbytesNested:
      return "bitsandbytes-nested";
    case FolderFormat::kNibble:
      return "nibble";
  }
  return "";
}

Result<std::unique_ptr<WeightEncoder>> MakeWeightEncoder(FolderFormat format,
                                                         const WeightToWrite& weight,
                                                         const EncoderOptions& options) {
  switch (format) {
    case FolderFormat::kCompressedTensors:
      return MakeCompressedTensorsEncoder(weight, options);
    case FolderFormat::kGptq:
      return MakeGptqEncoder(weight, false, options);
    case FolderFormat::kGptqV2:
      return MakeGptqEncoder(weight, true, options);
    case FolderFormat::kAwq:
      return MakeAwqEncoder(weight, options);
    case FolderFormat::kBitsandbytes:
      return MakeBitsandbytesEncoder(weight, false, options);
    case FolderFormat::kBitsandbytesNested:
      return MakeBitsandbytesEncoder(weight, true, options);
    case FolderFormat::kNibble:
      return MakeNibbleEncoder(weight, options);
  }
  return Fail(ErrorCode::kInternal, "a folder format without an encoder");
}

Result<json::Object> QuantizationConfigOf(FolderFormat format,
                                          std::span<const WeightToWrite> weights, DType model_dtype,
                                          std::string_view nibble_version) {
  const auto schemes = SchemesOf(weights);
  if (schemes.empty()) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("no weight is quantized: there is nothing for {} to hold", Name(format)));
  }
  const bool one_scheme = format == FolderFormat::kAwq || format == FolderFormat::kBitsandbytes ||
                          format == FolderFormat::kBitsandbytesNested;
  // AWQ holds symmetric weights as zero points of 8, so these two are one.
  const auto same = [&](const Scheme& scheme) {
    const Scheme& first = schemes.front().first;
    return format == FolderFormat::kAwq ? scheme.group_size == first.group_size
                                        : scheme.codebook == first.codebook;
  };
  for (const auto& [scheme, modules] : schemes) {
    if (one_scheme && !same(scheme)) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} has one scheme for all modules, but {} differs from {}: {}",
                              Name(format), modules.front(), schemes.front().second.front(),
                              format == FolderFormat::kAwq
                                  ? "use compressed-tensors or gptq_v2, which name modules"
                                  : "give both the same"));
    }
  }
  switch (format) {
    case FolderFormat::kCompressedTensors:
      return CompressedTensorsConfigOf(weights);
    case FolderFormat::kGptq:
      return GptqConfigOf(weights, GptqZeros::kMinusOne, nibble_version);
    case FolderFormat::kGptqV2:
      return GptqConfigOf(weights, GptqZeros::kAsTheyAre, nibble_version);
    case FolderFormat::kAwq: {
      std::vector<std::string> floats = FloatModules(weights);
      std::erase(floats, "lm_head");  // never converted
      return AwqConfigObject(schemes.front().first.group_size, floats);
    }
    case FolderFormat::kNibble:
      return NibbleConfigOf(weights);
    case FolderFormat::kBitsandbytes:
    case FolderFormat::kBitsandbytesNested:
      break;
  }
  json::Object out = BitsandbytesConfig({.codebook = schemes.front().first.codebook,
                                         .nested = format == FolderFormat::kBitsandbytesNested},
                                        model_dtype);
  std::vector<std::string> floats = FloatModules(weights);
  if (floats.size() > 1 || (floats.size() == 1 && floats.front() != "lm_head")) {
    if (std::ranges::find(floats, "lm_head") == floats.end()) {
      floats.push_back("lm_head");  // a list replaces the default, which is the head
    }
    out.Set("llm_int8_skip_modules", ArrayOf(floats));
  }
  return out;
}

void AppendFloats(std::span<const float> values, DType dtype, std::string& out) {
  const std::size_t width = SizeBytes(dtype);
  const std::size_t at = out.size();
  out.resize(at + values.size() * width);
  char* to = out.data() + at;
  for (const float value : values) {
    if (dtype == DType::kF32) {
      std::memcpy(to, &value, width);
    } else {
      const std::uint16_t half = dtype == DType::kF16 ? FloatToF16(value) : FloatToBF16(value);
      std::memcpy(to, &half, width);
    }
    to += width;
  }
}

}  // namespace nibble
