#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "eval/task.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

struct EncodeRules {
  std::int64_t max_positions = 0;  // of a sequence, output included
  bool add_bos = false;            // what the tokenizer puts before a text
  /// Of EncodePrompt, where it is set: a prompt as a user's message, in the model's chat template.
  std::function<Result<std::vector<TokenId>>(const std::string& prompt)> encode_chat{};
};

/// A request as the engine takes it.
struct EncodedRequest {
  std::vector<TokenId> tokens;
  std::int32_t first_scored = 0;  // kLogLikelihood: the continuation begins here, at 1 or later
  bool is_truncated = false;
};

/// Where a context ends and its continuation begins, by the rule of lm-evaluation-harness
/// (api/model.py, _encode_pair): blanks at the context's end go to the continuation; the whole text
/// is tokenized, and its first tokens, as many as the context alone has, are the context. An empty
/// context is the bos token, or eos if there is none. What is longer than max_positions loses its
/// beginning. Errors: kInvalidArgument if the continuation has no token, or does not fit.
Result<EncodedRequest> EncodeLogLikelihood(const TaskRequest& request, const Tokenizer& tokenizer,
                                           const EncodeRules& rules);

/// A prompt to go on from. What leaves no room for max_tokens loses its beginning. Errors:
/// kInvalidArgument if max_tokens alone does not fit.
Result<EncodedRequest> EncodePrompt(const TaskRequest& request, const Tokenizer& tokenizer,
                                    const EncodeRules& rules);

}  // namespace nibble
