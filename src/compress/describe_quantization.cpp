#include "compress/describe_quantization.h"

#include <string>
#include <utility>

#include "compress/output_plan.h"
#include "solve/hessian.h"

namespace nibble {
namespace {

constexpr const char* kVersion = "0.1.0";

void DescribeScheme(const Checkpoint& source, const QuantizeOptions& options,
                    const OutputPlan& plan, json::Object& recipe) {
  const Scheme& scheme = options.scheme;
  if (scheme.block_type) {
    recipe.Set("blocks", GgufTypeName(static_cast<std::uint32_t>(*scheme.block_type)));
    return;
  }
  const bool table = scheme.codebook != Codebook::kNone;
  if (table) {
    recipe.Set("codebook", Name(scheme.codebook));
  }
  recipe.Set("bits", table ? BitsOf(scheme.codebook) : scheme.bits);
  recipe.Set("group_size", scheme.group_size == kWholeTensor ? json::Value("tensor")
                           : scheme.group_size < 0 ? json::Value(DefaultGroupSize(source.config()))
                                                   : json::Value(scheme.group_size));
  if (!table) {
    recipe.Set("symmetric", scheme.symmetric);
  }
  const bool wide = table && scheme.codebook != Codebook::kFp8E4M3 && !scheme.is_log();
  const DType scales = scheme.scale_grid == ScaleGrid::kPowersOfTwo ? DType::kF8E8M0
                       : scheme.scale_grid == ScaleGrid::kE4M3      ? DType::kF8E4M3
                       : wide                                       ? DType::kF32
                                                                    : plan.scale_dtype;
  recipe.Set("scale_dtype", std::string(Name(scales)));
}

}  // namespace

json::Object DescribeQuantization(const Checkpoint& source, const QuantizeOptions& options,
                                  const OutputPlan& plan, QuantizeMethod method) {
  const bool calibrates = options.calibration != nullptr;
  json::Object recipe;
  recipe.Set("method", Name(method));
  if (options.device == DeviceKind::kCuda) {
    recipe.Set("device", "cuda");  // its arithmetic: adr/0007
  }
  recipe.Set("format", std::string(Name(plan.format)));
  if (options.budget) {
    recipe.Set("budget", options.budget->text);
    json::Array candidates;
    for (const Scheme& scheme : options.candidates) {
      candidates.push_back(CandidateName(scheme));
    }
    recipe.Set("candidates", std::move(candidates));
  }
  if (options.recipe) {
    recipe.Set("recipe", options.recipe->ToJson());
  } else {
    DescribeScheme(source, options, plan, recipe);
  }
  if (method == QuantizeMethod::kSmoothQuant) {
    recipe.Set("input_scales", "max|x|^alpha / max|w|^(1 - alpha)");
    recipe.Set("alpha", options.smooth_alpha);
  } else if (FoldsScales(method)) {
    recipe.Set("input_scales", "rms(x)^a, a by the output's error");
  }
  if (SolvesBlocks(method)) {
    recipe.Set("search_scale", options.search_scale ? "sweep curvature" : "none");
    recipe.Set("column_order", Name(ColumnOrder::kGroups));
    recipe.Set("damping", options.damping);
    recipe.Set("correct_inputs", options.correct_inputs);
    if (method == QuantizeMethod::kLearned) {
      recipe.Set("learn_iterations", options.learn_iterations);
      recipe.Set("learn_batch_tokens", options.learn_batch_tokens);
    }
  } else if (calibrates) {
    recipe.Set("search_scale", "mean(x^2)");
  } else if (options.scheme.codebook == Codebook::kNone && !options.scheme.block_type) {
    recipe.Set("search_scale", options.search_scale ? "mean(w^2) + w^2" : "none");
  } else if (options.scheme.is_log() || options.scheme.codebook == Codebook::kE2M1) {
    recipe.Set("search_scale", options.search_scale ? "1" : "none");
  }
  if (calibrates) {
    recipe.Set("calibration", options.calibration->identity);
  }
  recipe.Set("targets", "linears of the decoder blocks");
  recipe.Set("nibble", kVersion);
  return recipe;
}

}  // namespace nibble
