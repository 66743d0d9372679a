#include "checkpoint/kv_scales.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "io/file.h"

namespace nibble {
namespace {

// Below "model.layers.N.self_attn.": the usual name, ModelOpt, older compressed-tensors, fused
// projections, and one scale for both kinds.
constexpr const char* kKeyNames[] = {"k_scale",          "k_proj.k_scale", "k_proj.output_scale",
                                     "qkv_proj.k_scale", "k_cache.scale",  "kv_scale"};
constexpr const char* kValueNames[] = {"v_scale",          "v_proj.v_scale", "v_proj.output_scale",
                                       "qkv_proj.v_scale", "v_cache.scale",  "kv_scale"};
// Of queries and probabilities in fp8, which nibble keeps in fp16.
constexpr const char* kUnusedNames[] = {"q_scale", "q_proj.q_scale", "q_proj.output_scale",
                                        "qkv_proj.q_scale", "prob_scale"};

// Why the scales of a scheme are not for an fp8 cache; empty if they are.
std::string OtherCache(const json::Value* scheme) {
  if (scheme == nullptr || scheme->AsObject() == nullptr) {
    return {};
  }
  const json::Value* type = scheme->Find("type");
  const json::Value* bits = scheme->Find("num_bits");
  const json::Value* symmetric = scheme->Find("symmetric");
  if ((type != nullptr && !(*type == json::Value("float"))) ||
      (bits != nullptr && bits->AsInt().value_or(0) != 8)) {
    return fmt::format("of {} bits and type {}", bits == nullptr ? "?" : json::Dump(*bits),
                       type == nullptr ? "?" : json::Dump(*type));
  }
  return symmetric == nullptr || symmetric->AsBool().value_or(true) ? "" : "with zero points";
}

// One number for the layer, or one for each KV head, as one for each.
Result<std::vector<float>> ScalesOf(const TensorView& view, std::int64_t num_kv_heads,
                                    const std::string& where) {
  const std::int64_t count = view.shape.num_elements();
  if (count != 1 && count != num_kv_heads) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: shape {}, expected one number or one for each of {} KV heads",
                            where, view.shape.ToString(), num_kv_heads));
  }
  std::vector<float> scales;
  NIBBLE_TRY_VOID(GuardMappedReads(where, [&]() -> Result<void> {
    auto values = WidenFloats(view.dtype, view.bytes);
    if (!values) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: {}, expected F32, F16 or BF16", where, Name(view.dtype)));
    }
    scales = std::move(*values);
    return {};
  }));
  for (const float scale : scales) {
    if (!(scale > 0.0F) || !std::isfinite(scale) || !std::isfinite(1.0F / scale)) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("{}: {} is no scale: keys and values are divided by it", where, scale));
    }
  }
  scales.resize(static_cast<std::size_t>(num_kv_heads), scales.front());
  return scales;
}

}  // namespace

Result<std::vector<float>> ReadKvScales(const ModelConfig& model, const json::Value* scheme,
                                        const FindTensor& find, const std::string& path,
                                        std::vector<std::string>& warnings) {
  std::vector<float> out;
  std::int64_t missing = 0;
  bool any = false;
  for (std::int64_t layer = 0; layer < model.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
    for (const char* name : kUnusedNames) {
      static_cast<void>(find(prefix + name));
    }
    for (const std::span<const char* const> names :
         {std::span(kKeyNames), std::span(kValueNames)}) {
      std::vector<float> found;
      std::string found_as;
      for (const char* name : names) {
        const auto view = find(prefix + name);
        if (!view) {
          continue;
        }
        NIBBLE_TRY(scales, ScalesOf(*view, model.num_kv_heads,
                                    fmt::format("{}: tensor {}{}", path, prefix, name)));
        if (!found.empty() && found != scales) {
          return Fail(ErrorCode::kCorruptFile,
                      fmt::format("{}: tensors {}{} and {}{} name one scale and differ", path,
                                  prefix, found_as, prefix, name));
        }
        found = std::move(scales);
        found_as = name;
      }
      any = any || !found.empty();
      missing += found.empty() ? 1 : 0;
      found.resize(static_cast<std::size_t>(model.num_kv_heads), 1.0F);
      out.insert(out.end(), found.begin(), found.end());
    }
  }
  if (!any) {
    return std::vector<float>();
  }
  if (const std::string other = OtherCache(scheme); !other.empty()) {
    warnings.push_back(fmt::format(
        "{}: its KV scales are for a cache {}, which nibble does not have; they are not used", path,
        Quote(other)));
    return std::vector<float>();
  }
  if (missing > 0) {
    warnings.push_back(fmt::format("{}: {} of {} KV scales are missing; 1 is taken there", path,
                                   missing, 2 * model.num_layers));
  }
  return out;
}

}  // namespace nibble
