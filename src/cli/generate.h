#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace nibble::cli {

struct Generated {
  std::string text;
  std::vector<TokenId> tokens;
  FinishReason finish = FinishReason::kStop;
  int num_prompt_tokens = 0;
  double seconds_to_first = 0.0;
  double seconds = 0.0;
};

/// Runs one request on this thread until it ends; `on_text` gets each new piece. Stops early when
/// the user interrupts.
Result<Generated> GenerateHere(Engine& engine, GenerationRequest request,
                               const std::function<void(std::string_view)>& on_text);

}  // namespace nibble::cli
