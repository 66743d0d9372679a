#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

/// A bound that a measured number must keep: "kl<=0.2", "arc_easy.acc>=0.5".
struct Gate {
  std::string text;  // as given
  std::string name;
  bool is_upper = false;  // <= or <, else >= or >
  bool is_strict = false;
  double bound = 0.0;

  /// Is `value` within the bound? NaN never is.
  bool Holds(double value) const;
};

/// Errors: kInvalidArgument that shows what a gate looks like.
Result<Gate> ParseGate(std::string_view text);

}  // namespace nibble
