#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble::jinja {

enum class TokenKind {
  kText,           // text between tags, blanks already trimmed
  kBlockBegin,     // {%
  kBlockEnd,       // %}
  kVariableBegin,  // {{
  kVariableEnd,    // }}
  kName,
  kString,  // text: unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;
};

/// Splits a template into tokens, with Jinja's blank control: `-` and `+` at tags, trim_blocks (a
/// newline after a block goes), lstrip_blocks (blanks before a block on its line go). Comments are
/// dropped. The last token is kEnd.
Result<std::vector<Token>> Tokenize(std::string_view source);

tl::unexpected<Error> SyntaxError(int line, std::string_view what);

}  // namespace nibble::jinja
