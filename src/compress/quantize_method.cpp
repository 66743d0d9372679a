#include "compress/quantize_method.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "compress/quantize.h"

namespace nibble {

const char* Name(QuantizeMethod method) {
  switch (method) {
    case QuantizeMethod::kAuto:
      return "auto";
    case QuantizeMethod::kRtn:
      return "rtn";
    case QuantizeMethod::kGptq:
      return "gptq";
    case QuantizeMethod::kAwq:
      return "awq";
    case QuantizeMethod::kAwqGptq:
      return "awq+gptq";
    case QuantizeMethod::kLearned:
      return "learned";
    case QuantizeMethod::kSmoothQuant:
      return "smoothquant";
  }
  return "";
}

const std::vector<std::string>& MethodWords() {
  static const std::vector<std::string> words = {"auto",     "rtn",     "gptq",       "awq",
                                                 "awq+gptq", "learned", "smoothquant"};
  return words;
}

std::optional<QuantizeMethod> ParseMethod(std::string_view word) {
  for (const QuantizeMethod method :
       {QuantizeMethod::kAuto, QuantizeMethod::kRtn, QuantizeMethod::kGptq, QuantizeMethod::kAwq,
        QuantizeMethod::kAwqGptq, QuantizeMethod::kLearned, QuantizeMethod::kSmoothQuant}) {
    if (word == Name(method)) {
      return method;
    }
  }
  return std::nullopt;
}

bool FoldsScales(QuantizeMethod method) {
  return method == QuantizeMethod::kAwq || method == QuantizeMethod::kAwqGptq ||
         method == QuantizeMethod::kSmoothQuant;
}

bool SolvesBlocks(QuantizeMethod method) {
  return method == QuantizeMethod::kGptq || method == QuantizeMethod::kAwqGptq ||
         method == QuantizeMethod::kLearned;
}

namespace {

bool AnyRule(const Recipe& recipe, const std::function<bool(const ModulePlan&)>& test) {
  return test(recipe.rest) || std::ranges::any_of(recipe.rules, test, &Recipe::Rule::plan);
}

// What asks for a method that needs calibration data, as the user wrote it.
std::string AskedBy(const QuantizeOptions& options, QuantizeMethod wanted) {
  if (!options.recipe) {
    return fmt::format("--method {}", Name(wanted));
  }
  std::string where = options.recipe->method_where;
  if (where.empty() || options.recipe->method == QuantizeMethod::kAuto ||
      options.recipe->method == QuantizeMethod::kRtn) {
    const auto rule = std::ranges::find(options.recipe->rules, QuantizeMethod::kGptq,
                                        [](const auto& one) { return one.plan.method; });
    where = rule == options.recipe->rules.end() ? where : rule->plan.where;
  }
  return fmt::format("{}: method {}", where, Name(wanted));
}

// What is asked for: solved modules of a recipe make the whole run one that solves.
QuantizeMethod WantedMethod(const QuantizeOptions& options) {
  if (!options.recipe) {
    return options.method;
  }
  const QuantizeMethod method = options.recipe->method.value_or(QuantizeMethod::kAuto);
  if (!AnyRule(*options.recipe,
               [](const auto& plan) { return plan.method == QuantizeMethod::kGptq; })) {
    return method;
  }
  if (method == QuantizeMethod::kLearned) {
    return method;
  }
  return method == QuantizeMethod::kAwq || method == QuantizeMethod::kAwqGptq
             ? QuantizeMethod::kAwqGptq
             : QuantizeMethod::kGptq;
}

}  // namespace

Result<MethodChoice> ChooseMethod(const QuantizeOptions& options) {
  const bool calibrated = options.calibration != nullptr;
  const QuantizeMethod wanted = WantedMethod(options);
  if (options.budget && !calibrated) {
    return Fail(
        ErrorCode::kInvalidArgument,
        "--budget and --max-kl measure what quantizing costs on --calibration FILE: text (or "
        ".jsonl rows) like what the model will read");
  }
  if (options.recipe && options.recipe->method == QuantizeMethod::kSmoothQuant &&
      wanted != QuantizeMethod::kSmoothQuant) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: smoothquant rounds every module: leave gptq out of the rules, or "
                            "give method awq",
                            options.recipe->method_where));
  }
  if (options.budget && wanted != QuantizeMethod::kAuto && wanted != QuantizeMethod::kGptq &&
      wanted != QuantizeMethod::kRtn) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--budget with --method {}: use auto, gptq or rtn", Name(wanted)));
  }
  if (options.budget && wanted == QuantizeMethod::kAuto) {
    return MethodChoice{QuantizeMethod::kGptq, "what the candidates are measured with"};
  }
  if (!calibrated && wanted != QuantizeMethod::kAuto && wanted != QuantizeMethod::kRtn) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{} needs --calibration FILE: text (or .jsonl rows) like what the model "
                    "will read",
                    AskedBy(options, wanted)));
  }
  if (wanted != QuantizeMethod::kAuto) {
    return MethodChoice{wanted, "asked for"};
  }
  if (!calibrated) {
    return MethodChoice{QuantizeMethod::kRtn, "there is no --calibration"};
  }
  const bool narrow =
      options.recipe
          ? AnyRule(*options.recipe, [](const ModulePlan& plan) { return plan.scheme.is_narrow(); })
          : options.scheme.is_narrow();
  if (!narrow) {
    return MethodChoice{QuantizeMethod::kRtn,
                        "at 8 bits rounding costs next to nothing; scales follow the calibration"};
  }
  return MethodChoice{QuantizeMethod::kGptq,
                      "below 8 bits errors are worth passing on to later columns"};
}

Result<void> CheckDevice(const QuantizeOptions& options, QuantizeMethod method,
                         const ModelConfig& config) {
  if (options.device == DeviceKind::kCpu) {
    return {};
  }
  const auto refuse = [](std::string_view what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("--device cuda: {}", what));
  };
  if (options.calibration == nullptr) {
    return refuse(
        "weights are rounded without calibration data on the CPU: use --device cpu, or "
        "give --calibration FILE");
  }
  if (options.budget) {
    return refuse("--budget and --max-kl are measured on the CPU: use --device cpu");
  }
  if (method != QuantizeMethod::kGptq && method != QuantizeMethod::kRtn) {
    return refuse(fmt::format("--method {} runs on the CPU: use --device cpu, or --method gptq",
                              Name(method)));
  }
  if (!options.calibration->rows_folder.empty()) {
    return refuse(
        "--calibration-rows disk is for the CPU: a card keeps activations in its memory; "
        "leave it out");
  }
  if (config.architecture == Architecture::kGemma3) {
    return Fail(ErrorCode::kUnsupported, "--device cuda: gemma3 runs on the CPU: use --device cpu");
  }
  return {};
}

}  // namespace nibble
