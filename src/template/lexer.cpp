#include "template/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "template/pystring.h"

namespace nibble::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsNameByte(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

int HexDigit(char c) {
  if (IsDigit(c)) {
    return c - '0';
  }
  if (c >= 'a' && c <= 'f') {
    return c - 'a' + 10;
  }
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/// \r\n and \r become \n, and one newline at the very end goes (keep_trailing_newline is off).
std::string NormalNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n' ? 1 : 0;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') {
    out.pop_back();
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      NIBBLE_TRY_VOID(TextAndTag());
    }
    Push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return std::string_view(source_).substr(at_); }
  bool Starts(std::string_view what) const { return Rest().substr(0, what.size()) == what; }

  void Push(TokenKind kind, std::string_view text) {
    tokens_.push_back({.kind = kind, .line = line_, .text = std::string(text)});
  }

  /// Moves over `bytes`, counting lines.
  void Skip(std::size_t bytes) {
    const std::string_view skipped = Rest().substr(0, bytes);
    line_ += static_cast<int>(std::count(skipped.begin(), skipped.end(), '\n'));
    at_ += skipped.size();
  }

  void SkipSpace() { Skip(Rest().size() - Strip(Rest(), Side::kLeft).size()); }

  /// Ends a tag whose closing sign (`%}` or `#}`) stands at at_, after its `-` or `+`, if any.
  void CloseTag(char sign, bool trims) {
    Skip(2);
    if (sign == '-') {
      SkipSpace();
    } else if (trims && sign != '+' && Starts("\n")) {
      Skip(1);
    }
    line_starts_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  /// The text before a tag: `-` strips it, and lstrip_blocks takes the blanks of its last line.
  std::string_view BeforeTag(std::string_view text, char sign, bool is_variable) const {
    if (sign == '-') {
      return Strip(text, Side::kRight);
    }
    if (sign == '+' || is_variable) {
      return text;
    }
    const std::size_t line_start = text.rfind('\n') + 1;  // npos + 1 is 0
    if ((line_start > 0 || line_starts_) && Strip(text.substr(line_start), Side::kLeft).empty()) {
      return text.substr(0, line_start);
    }
    return text;
  }

  Result<void> TextAndTag() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        Push(TokenKind::kText, Rest());
        Skip(Rest().size());
        return {};
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') {
        break;
      }
    }
    const char type = source_[tag + 1];
    const char after = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const char sign = after == '-' || after == '+' ? after : '\0';
    const std::string_view text =
        BeforeTag(std::string_view(source_).substr(at_, tag - at_), sign, type == '{');
    if (!text.empty()) {
      Push(TokenKind::kText, text);
    }
    Skip(tag - at_ + (sign != '\0' ? 3 : 2));
    if (type == '#') {
      return Comment();
    }
    if (type == '{') {
      Push(TokenKind::kVariableBegin, "");
      return Inside(/*is_variable=*/true);
    }
    if (const std::size_t raw = RawTag()) {
      return Raw(raw);
    }
    Push(TokenKind::kBlockBegin, "");
    return Inside(/*is_variable=*/false);
  }

  Result<void> Comment() {
    const int line = line_;
    const std::size_t end = source_.find("#}", at_);
    if (end == std::string::npos) {
      return SyntaxError(line, "Missing end of comment tag");
    }
    const char before = end > at_ ? source_[end - 1] : '\0';
    Skip(end - at_);
    CloseTag(before == '-' || before == '+' ? before : '\0', /*trims=*/true);
    return {};
  }

  /// Length of `raw %}` or `raw -%}` at at_; 0 where another tag stands.
  std::size_t RawTag() const {
    std::string_view rest = Strip(Rest(), Side::kLeft);
    if (rest.substr(0, 3) != "raw") {
      return 0;
    }
    rest = Strip(rest.substr(3), Side::kLeft);
    if (rest.substr(0, 3) == "-%}") {
      return Rest().size() - Strip(rest.substr(3), Side::kLeft).size();
    }
    return rest.substr(0, 2) == "%}" ? Rest().size() - rest.size() + 2 : 0;
  }

  Result<void> Raw(std::size_t tag_bytes) {
    const int line = line_;
    Skip(tag_bytes);
    line_starts_ = source_[at_ - 1] == '\n';
    for (std::size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      std::size_t inner = tag + 2;
      char sign = '\0';
      if (inner < source_.size() && (source_[inner] == '-' || source_[inner] == '+')) {
        sign = source_[inner++];
      }
      std::string_view rest = Strip(std::string_view(source_).substr(inner), Side::kLeft);
      if (rest.substr(0, 6) != "endraw") {
        continue;
      }
      rest = Strip(rest.substr(6), Side::kLeft);
      char end_sign = '\0';
      if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) {
        end_sign = rest[0];
        rest.remove_prefix(1);
      }
      if (rest.substr(0, 2) != "%}") {
        continue;
      }
      const std::string_view text =
          BeforeTag(std::string_view(source_).substr(at_, tag - at_), sign, false);
      if (!text.empty()) {
        Push(TokenKind::kText, text);
      }
      Skip(source_.size() - rest.size() - at_);
      CloseTag(end_sign, /*trims=*/true);
      return {};
    }
    return SyntaxError(line, "Missing end of raw directive");
  }

  /// The tokens of a tag, up to its end; inside brackets `}}` and `%}` are operators.
  Result<void> Inside(bool is_variable) {
    const std::string_view close = is_variable ? "}}" : "%}";
    std::string open_brackets;
    while (at_ < source_.size()) {
      if (open_brackets.empty()) {
        const char first = source_[at_];
        const bool has_sign =
            (first == '-' || (first == '+' && !is_variable)) && Rest().substr(1, 2) == close;
        if (has_sign || Starts(close)) {
          Push(is_variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
          Skip(has_sign ? 1 : 0);
          CloseTag(has_sign ? first : '\0', /*trims=*/!is_variable);
          return {};
        }
      }
      NIBBLE_TRY_VOID(One(open_brackets));
    }
    return {};  // the parser meets the end of the template
  }

  Result<void> One(std::string& open_brackets) {
    const char c = source_[at_];
    if (IsSpace(Decode(source_, at_).value)) {
      SkipSpace();
      return {};
    }
    if (IsDigit(c)) {
      return Number();
    }
    if (IsNameByte(c)) {
      std::size_t end = at_;
      while (end < source_.size() && IsNameByte(source_[end])) {
        ++end;
      }
      Push(TokenKind::kName, Rest().substr(0, end - at_));
      at_ = end;
      return {};
    }
    if (c == '\'' || c == '"') {
      return String(c);
    }
    static constexpr std::array<std::string_view, 7> kLong = {
        "//", "**", "==", "!=", ">=", "<=", ""};
    for (const std::string_view op : kLong) {
      if (!op.empty() && Starts(op)) {
        Push(TokenKind::kOperator, op);
        at_ += op.size();
        return {};
      }
    }
    if (std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      return SyntaxError(line_, fmt::format("unexpected char {:?} at {}", c, at_));
    }
    if (c == '(' || c == '[' || c == '{') {
      open_brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (open_brackets.empty()) {
        return SyntaxError(line_, fmt::format("unexpected '{}'", c));
      }
      if (open_brackets.back() != c) {
        return SyntaxError(line_,
                           fmt::format("unexpected '{}', expected '{}'", c, open_brackets.back()));
      }
      open_brackets.pop_back();
    }
    Push(TokenKind::kOperator, Rest().substr(0, 1));
    ++at_;
    return {};
  }

  /// Digits with single underscores between them; the end, or `from` if there is none.
  std::size_t Digits(std::size_t from) const {
    std::size_t at = from;
    while (at < source_.size() &&
           (IsDigit(source_[at]) || (source_[at] == '_' && at > from && at + 1 < source_.size() &&
                                     IsDigit(source_[at + 1]) && IsDigit(source_[at - 1])))) {
      ++at;
    }
    return at;
  }

  Result<void> Number() {
    const auto push = [&](TokenKind kind, std::size_t end) {
      std::string text(Rest().substr(0, end - at_));
      std::erase(text, '_');
      Push(kind, text);
      at_ = end;
      return Result<void>();
    };
    const char second = at_ + 1 < source_.size() ? source_[at_ + 1] : '\0';
    if (source_[at_] == '0' && std::string_view("xXoObB").find(second) != std::string_view::npos &&
        second != '\0') {
      const int base = second == 'x' || second == 'X' ? 16 : second == 'o' || second == 'O' ? 8 : 2;
      std::size_t end = at_ + 2;
      while (end < source_.size() &&
             ((HexDigit(source_[end]) >= 0 && HexDigit(source_[end]) < base) ||
              (source_[end] == '_' && end + 1 < source_.size() && HexDigit(source_[end + 1]) >= 0 &&
               HexDigit(source_[end + 1]) < base))) {
        ++end;
      }
      if (end > at_ + 2) {
        return push(TokenKind::kInteger, end);
      }
    }
    const std::size_t whole = Digits(at_);
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
    std::size_t end = whole;
    if (!after_dot) {
      if (end < source_.size() && source_[end] == '.' && Digits(end + 1) > end + 1) {
        end = Digits(end + 1);
      }
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        std::size_t exponent = end + 1;
        exponent +=
            exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-') ? 1
                                                                                                : 0;
        end = Digits(exponent) > exponent ? Digits(exponent) : end;
      }
    }
    if (end > whole) {
      return push(TokenKind::kFloat, end);
    }
    // 0123 is no number of Python: the zeros are one token, the rest the next.
    if (source_[at_] == '0') {
      end = at_ + 1;
      while (end < whole && (source_[end] == '0' || source_[end] == '_')) {
        ++end;
      }
    }
    return push(TokenKind::kInteger, end);
  }

  Result<void> String(char quote) {
    const int line = line_;
    std::size_t at = at_ + 1;
    std::string text;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] != '\\') {
        text += source_[at++];
        continue;
      }
      if (at + 1 >= source_.size()) {
        break;
      }
      NIBBLE_TRY(length, Escape(text, std::string_view(source_).substr(at)));
      at += length;
    }
    if (at >= source_.size()) {
      return SyntaxError(line, fmt::format("unexpected char {:?} at {}", quote, at_));
    }
    Push(TokenKind::kString, text);
    Skip(at + 1 - at_);
    return {};
  }

  /// Appends what Python's escape at the start of `text` stands for; returns its length.
  Result<std::size_t> Escape(std::string& out, std::string_view text) {
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    const char c = text[1];
    if (const std::size_t simple = kFrom.find(c); simple != std::string_view::npos) {
      out += kTo[simple];
      return 2;
    }
    if (c == '\n') {
      return 2;
    }
    const auto digits = [&](std::size_t from, std::size_t max, int base, std::size_t& count) {
      char32_t value = 0;
      for (count = 0; count < max && from + count < text.size(); ++count) {
        const int digit = HexDigit(text[from + count]);
        if (digit < 0 || digit >= base) {
          break;
        }
        value = value * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
      }
      return value;
    };
    std::size_t count = 0;
    if (c >= '0' && c <= '7') {
      AppendUtf8(out, digits(1, 3, 8, count));
      return 1 + count;
    }
    const std::size_t width = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (width == 0) {
      if (c == 'N') {
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("template line {}: \\N escapes are not supported", line_));
      }
      out += '\\';  // an unknown escape stays as it is
      return 1;
    }
    const char32_t value = digits(2, width, 16, count);
    if (count != width) {
      return SyntaxError(line_, fmt::format("truncated \\{} escape", c));
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      return SyntaxError(line_, fmt::format("\\{} escape is no character", c));
    }
    AppendUtf8(out, value);
    return 2 + width;
  }

  const std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;  // the last tag ended with a newline
  std::vector<Token> tokens_;
};

}  // namespace

tl::unexpected<Error> SyntaxError(int line, std::string_view what) {
  return Fail(ErrorCode::kCorruptFile, fmt::format("template line {}: {}", line, what));
}

Result<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalNewlines(source)).Run();
}

}  // namespace nibble::jinja
