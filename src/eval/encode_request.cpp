#include "eval/encode_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "template/pystring.h"

namespace nibble {
namespace {

// Keeps the last `limit` tokens.
void Truncate(std::int64_t limit, EncodedRequest& request) {
  const std::int64_t excess = std::ssize(request.tokens) - limit;
  if (excess > 0) {
    request.tokens.erase(request.tokens.begin(), request.tokens.begin() + excess);
    request.first_scored -= static_cast<std::int32_t>(excess);
    request.is_truncated = true;
  }
}

// Context and continuation of a continuation that stands alone.
Result<EncodedRequest> EncodeAlone(std::string_view text, const Tokenizer& tokenizer) {
  EncodedRequest out{.tokens = tokenizer.Encode(text, {.parse_special = true}), .first_scored = 1};
  const auto start = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
  if (!start) {
    return Fail(ErrorCode::kInvalidArgument,
                "a text without context needs a bos or eos token before it, and the tokenizer has "
                "neither");
  }
  if (out.tokens.empty() || out.tokens.front() != *start) {
    out.tokens.insert(out.tokens.begin(), *start);
  }
  return out;
}

}  // namespace

Result<EncodedRequest> EncodeLogLikelihood(const TaskRequest& request, const Tokenizer& tokenizer,
                                           const EncodeRules& rules) {
  const EncodeOptions options{.add_special_tokens = rules.add_bos, .parse_special = true};
  const std::string whole = request.context + request.continuation;
  EncodedRequest out;
  if (request.context.empty()) {
    NIBBLE_TRY(alone, EncodeAlone(whole, tokenizer));
    out = std::move(alone);
  } else {
    const std::string_view context = jinja::Strip(request.context, jinja::Side::kRight);
    out.tokens = tokenizer.Encode(whole, options);
    out.first_scored = static_cast<std::int32_t>(tokenizer.Encode(context, options).size());
  }
  if (out.first_scored >= std::ssize(out.tokens) || out.first_scored < 1) {
    return Fail(ErrorCode::kInvalidArgument,
                "context or continuation has no token of its own: there is nothing to score");
  }
  Truncate(rules.max_positions, out);
  if (out.first_scored < 1) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("the continuation has {} tokens, and only {} positions are there: give "
                            "a larger --max-model-len",
                            std::ssize(out.tokens) - out.first_scored, rules.max_positions));
  }
  return out;
}

Result<EncodedRequest> EncodePrompt(const TaskRequest& request, const Tokenizer& tokenizer,
                                    const EncodeRules& rules) {
  EncodedRequest out;
  if (rules.encode_chat) {
    NIBBLE_TRY(tokens, rules.encode_chat(request.context));
    out.tokens = std::move(tokens);
  } else {
    out.tokens = tokenizer.Encode(request.context,
                                  {.add_special_tokens = rules.add_bos, .parse_special = true});
  }
  if (out.tokens.empty()) {
    return Fail(ErrorCode::kInvalidArgument, "the prompt has no token");
  }
  if (request.max_tokens >= rules.max_positions) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} tokens are to be generated, and only {} positions are there: give "
                            "a larger --max-model-len",
                            request.max_tokens, rules.max_positions));
  }
  Truncate(rules.max_positions - request.max_tokens, out);
  return out;
}

}  // namespace nibble
