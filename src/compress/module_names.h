#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/module_rule.h"

namespace nibble {

/// What a recipe names modules by: a glob over the whole name, where * stands for any characters
/// (dots too) and ? for one, or "re:" and a regular expression that matches from the start.
class ModulePattern {
 public:
  /// Errors: kInvalidArgument for an expression that is none.
  static Result<ModulePattern> Compile(std::string_view text);
  bool Matches(std::string_view module) const;

 private:
  std::string glob_;
  std::optional<ModuleRule> expression_;
};

/// "model.layers.3.mlp.up_proj" of "model.layers.3.mlp.up_proj.weight".
std::string ModuleOfWeight(std::string_view weight);

/// Names with the numbers of blocks replaced by *, each once, in their order.
std::vector<std::string> WithoutNumbers(std::span<const std::string> modules);

/// The `count` names that a pattern, or a misspelt word, is closest to: by insertions, deletions
/// and replacements, what * stands for being free.
std::vector<std::string> NearestNames(std::string_view pattern, std::span<const std::string> names,
                                      std::size_t count);

}  // namespace nibble
