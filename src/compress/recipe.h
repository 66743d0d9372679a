#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/quantize_method.h"
#include "compress/scheme.h"
#include "json/value.h"

namespace nibble {

/// In a folder that was quantized by one.
inline constexpr const char* kRecipeFile = "recipe.yaml";

/// What happens to one module.
struct ModulePlan {
  Scheme scheme;
  QuantizeMethod method{};  // kAuto, kRtn or kGptq where a recipe gives it; else that of the run
  std::string where;        // "recipe.yaml:12", for messages; empty: the command line
};

/// Which modules get which scheme and method: a YAML file (docs/formats/recipe.md).
///   method: gptq                                  # of all, as --method; may be left out
///   scheme: int4                                  # of what no rule below matches; as --scheme
///   group_size: 64                                # and so on: what a rule may say
///   modules:
///     - match: "model.layers.*.self_attn.*"       # a glob, "re:" and an expression, or a list
///       scheme: int4
///     - match: "re:.*\\.mlp\\.(gate|up|down)_proj"
///       skip: true
/// The first rule that matches a module counts. A rule says only what differs from the top.
struct Recipe {
  struct Pattern {
    std::string text;
    int line = 0;
  };
  struct Rule {
    std::vector<Pattern> match;
    ModulePlan plan;
  };
  std::string source;                    // the file, for messages
  std::string text;                      // what it holds
  std::optional<QuantizeMethod> method;  // of the run
  std::string method_where;              // where it is given
  ModulePlan rest;                       // of linears that no rule matches
  std::vector<Rule> rules;

  /// For certificates and fingerprints.
  json::Value ToJson() const;
};

/// Errors: kInvalidArgument with the line, what is wrong there and what would be right.
Result<Recipe> ParseRecipe(std::string_view text, const std::string& source);

/// The plan of every linear, and of tables (embedding, head) that a rule names exactly, by the
/// weight's name. Errors: kInvalidArgument for a pattern that matches nothing, with its line and
/// the names that are closest, or nothing that an earlier rule has left.
Result<std::map<std::string, ModulePlan, std::less<>>> Resolve(
    const Recipe& recipe, std::span<const ExpectedWeight> weights);

}  // namespace nibble
