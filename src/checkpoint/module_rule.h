#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

/// A regular expression of a config file that is tried at the start of a module's name
/// ("model.layers.0.mlp.up_proj"). Time is bounded: an expression that backtracks too much matches
/// nothing.
class ModuleRule {
 public:
  /// Errors: kCorruptFile with the place of the mistake, or if the expression is too long.
  static Result<ModuleRule> Compile(std::string_view expression);
  ModuleRule(ModuleRule&&) noexcept;
  ModuleRule& operator=(ModuleRule&&) noexcept;
  ~ModuleRule();

  bool Matches(std::string_view module) const;

 private:
  struct Impl;
  explicit ModuleRule(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
