#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "serve/model_text.h"
#include "tokenizer/tokenizer.h"

namespace nibble::cli {

/// The text side of a loaded model: its tokenizer and its chat template. Immutable; shared by all
/// I/O threads. Control tokens come from the template only: where a message spells one out, it is
/// tokenized as plain text.
class TextOfModel : public ModelText {
 public:
  /// template_file: a .jinja file, or empty for the model's own template. checkpoint and tokenizer
  /// must outlive it.
  static Result<std::unique_ptr<TextOfModel>> Create(const Checkpoint& checkpoint,
                                                     const Tokenizer& tokenizer,
                                                     const std::string& template_file);
};

/// A conversation of one user message.
ChatPrompt UserTurn(const std::string& system, const std::string& user);

}  // namespace nibble::cli
