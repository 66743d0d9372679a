#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <new>
#include <system_error>

#include "json/value.h"

namespace nibble::json {
namespace {

namespace ondemand = simdjson::ondemand;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

/// Whether `text` is a number as RFC 8259 writes it; `integer` tells whether it has neither
/// fraction nor exponent.
bool MatchesNumber(std::string_view text, bool& integer) {
  std::size_t at = 0;
  const auto peek = [&](char c) { return at < text.size() && text[at] == c; };
  const auto digits = [&] {
    const std::size_t from = at;
    while (at < text.size() && IsDigit(text[at])) {
      ++at;
    }
    return at > from;
  };
  at += peek('-') ? 1 : 0;
  if (peek('0')) {
    ++at;
  } else if (!digits()) {
    return false;
  }
  integer = true;
  if (peek('.')) {
    integer = false;
    ++at;
    if (!digits()) {
      return false;
    }
  }
  if (peek('e') || peek('E')) {
    integer = false;
    ++at;
    at += peek('+') || peek('-') ? 1 : 0;
    if (!digits()) {
      return false;
    }
  }
  return at == text.size();
}

/// One walk over one document. simdjson finds the tokens, checks UTF-8 and unescapes strings; the
/// shape, the limits, duplicate keys and numbers are checked here.
class Builder {
 public:
  Builder(const simdjson::padded_string& text, const ParseLimits& limits)
      : text_(text), limits_(limits) {}

  Result<Value> Build() {
    if (const auto error = parser_.iterate(text_).get(document_)) {
      return Syntax(error);
    }
    bool scalar = false;
    if (const auto error = document_.is_scalar().get(scalar)) {
      return Syntax(error);
    }
    NIBBLE_TRY(value, scalar ? RootScalar() : RootContainer());
    if (!scalar && !AtEnd()) {
      return Corrupt("unexpected bytes after the value");
    }
    return value;
  }

 private:
  struct Frame {
    bool is_array = false;
    bool started = false;
    Array array;
    Object object;
    std::string key;  // the member being read
    ondemand::array_iterator elements;
    ondemand::object_iterator members;
  };

  bool AtEnd() { return document_.current_location().error() == simdjson::OUT_OF_BOUNDS; }

  tl::unexpected<Error> Corrupt(std::string_view what) {
    const char* where = nullptr;
    if (document_.current_location().get(where) == simdjson::SUCCESS && where >= text_.data() &&
        where <= text_.data() + text_.size()) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("JSON: {} near byte {}", what, where - text_.data()));
    }
    return Fail(ErrorCode::kCorruptFile, fmt::format("JSON: {}", what));
  }

  tl::unexpected<Error> Syntax(simdjson::error_code error) {
    switch (error) {
      case simdjson::UTF8_ERROR:
        return Fail(ErrorCode::kCorruptFile, "JSON: the text is not valid UTF-8");
      case simdjson::EMPTY:
        return Fail(ErrorCode::kCorruptFile, "JSON: the text is empty");
      case simdjson::UNCLOSED_STRING:
        return Fail(ErrorCode::kCorruptFile, "JSON: a string is not closed");
      case simdjson::UNESCAPED_CHARS:
        return Fail(ErrorCode::kCorruptFile, "JSON: a control character stands inside a string");
      case simdjson::INCOMPLETE_ARRAY_OR_OBJECT:
        return Fail(ErrorCode::kCorruptFile, "JSON: an array or object is not closed");
      case simdjson::STRING_ERROR:
        return Corrupt("wrong escape in a string");
      case simdjson::MEMALLOC:
        return Fail(ErrorCode::kOutOfMemory, "JSON: no memory for the parser");
      default:
        return Corrupt("syntax error");
    }
  }

  Result<Value> Literal(std::string_view token) {
    while (!token.empty() && (token.back() == ' ' || token.back() == '\n' || token.back() == '\r' ||
                              token.back() == '\t')) {
      token.remove_suffix(1);
    }
    if (token == "true") {
      return Value(true);
    }
    if (token == "false") {
      return Value(false);
    }
    if (token == "null") {
      return Value();
    }
    bool integer = false;
    if (!MatchesNumber(token, integer)) {
      return Corrupt("neither a number nor true, false or null");
    }
    const char* const begin = token.data();
    const char* const end = begin + token.size();
    if (integer) {
      std::int64_t i = 0;
      if (std::from_chars(begin, end, i).ec == std::errc()) {
        return Value(i);
      }
      std::uint64_t u = 0;
      if (token[0] != '-' && std::from_chars(begin, end, u).ec == std::errc()) {
        return Value(u);
      }
    }
    double d = 0;
    if (std::from_chars(begin, end, d).ec == std::errc()) {
      return Value(d);
    }
    // Too small for a double is (signed) zero; from_chars tells it from too large by nothing, but a
    // longer type does.
    long double wide = 0;
    if (std::from_chars(begin, end, wide).ec == std::errc() && std::fabs(wide) < 1.0L) {
      return Value(static_cast<double>(wide));
    }
    return Corrupt("number beyond the range of a double");
  }

  Result<Value> String(std::string_view text) {
    if (text.size() > limits_.max_string_bytes) {
      return Fail(ErrorCode::kLimitExceeded, fmt::format("JSON: a string of {} bytes; at most {}",
                                                         text.size(), limits_.max_string_bytes));
    }
    return Value(text);
  }

  Result<Value> RootScalar() {
    ondemand::json_type type{};
    if (const auto error = document_.type().get(type)) {
      return Syntax(error);
    }
    if (type == ondemand::json_type::string) {
      std::string_view text;
      if (const auto error = document_.get_string().get(text)) {
        return Syntax(error);
      }
      if (!AtEnd()) {
        return Corrupt("unexpected bytes after the value");
      }
      return String(text);
    }
    std::string_view token;
    if (const auto error = document_.raw_json_token().get(token)) {
      return Syntax(error);
    }
    NIBBLE_TRY(value, Literal(token));
    // raw_json_token does not move on, and its token may be followed by others.
    if (token.data() + token.size() != text_.data() + text_.size()) {
      return Corrupt("unexpected bytes after the value");
    }
    return value;
  }

  Result<void> Push(ondemand::value value, ondemand::json_type type) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("JSON: nested deeper than {}", limits_.max_depth));
    }
    Frame frame;
    frame.is_array = type == ondemand::json_type::array;
    if (frame.is_array) {
      ondemand::array array;
      if (const auto error = value.get_array().get(array)) {
        return Syntax(error);
      }
      if (const auto error = array.begin().get(frame.elements)) {
        return Syntax(error);
      }
    } else {
      ondemand::object object;
      if (const auto error = value.get_object().get(object)) {
        return Syntax(error);
      }
      if (const auto error = object.begin().get(frame.members)) {
        return Syntax(error);
      }
    }
    stack_.push_back(std::move(frame));
    return {};
  }

  Result<Value> RootContainer() {
    ondemand::value root;
    if (const auto error = document_.get_value().get(root)) {
      return Syntax(error);
    }
    ondemand::json_type root_type{};
    if (const auto error = root.type().get(root_type)) {
      return Syntax(error);
    }
    NIBBLE_TRY_VOID(Push(root, root_type));
    for (;;) {
      Frame& frame = stack_.back();
      if (!Advance(frame)) {
        Value done =
            frame.is_array ? Value(std::move(frame.array)) : Value(std::move(frame.object));
        stack_.pop_back();
        if (stack_.empty()) {
          return done;
        }
        Deliver(std::move(done));
        continue;
      }
      if (++num_values_ > limits_.max_values) {
        return Fail(ErrorCode::kLimitExceeded,
                    fmt::format("JSON: more than {} members and elements", limits_.max_values));
      }
      NIBBLE_TRY(child, Child(frame));
      ondemand::json_type type{};
      if (const auto error = child.type().get(type)) {
        return Syntax(error);
      }
      if (type == ondemand::json_type::array || type == ondemand::json_type::object) {
        NIBBLE_TRY_VOID(Push(child, type));
      } else if (type == ondemand::json_type::string) {
        std::string_view text;
        if (const auto error = child.get_string().get(text)) {
          return Syntax(error);
        }
        NIBBLE_TRY(value, String(text));
        Deliver(std::move(value));
      } else {
        NIBBLE_TRY(value, Literal(child.raw_json_token()));
        Deliver(std::move(value));
      }
    }
  }

  /// Moves to the next element or member; false at the end of the container.
  static bool Advance(Frame& frame) {
    if (frame.is_array) {
      if (frame.started) {
        ++frame.elements;
      }
      frame.started = true;
      return frame.elements != frame.elements;
    }
    if (frame.started) {
      ++frame.members;
    }
    frame.started = true;
    return frame.members != frame.members;
  }

  Result<ondemand::value> Child(Frame& frame) {
    ondemand::value child;
    if (frame.is_array) {
      if (const auto error = (*frame.elements).get(child)) {
        return Syntax(error);
      }
      return child;
    }
    // Asked through the result: there every simdjson from 3.0 on has unescaped_key() without
    // arguments.
    simdjson::simdjson_result<ondemand::field> field = *frame.members;
    std::string_view key;
    if (const auto error = field.unescaped_key().get(key)) {
      return Syntax(error);
    }
    if (key.size() > limits_.max_string_bytes) {
      return Fail(ErrorCode::kLimitExceeded, fmt::format("JSON: a key of {} bytes; at most {}",
                                                         key.size(), limits_.max_string_bytes));
    }
    if (limits_.duplicates == DuplicateKeys::kReject && frame.object.Find(key) != nullptr) {
      std::string quoted;
      AppendQuoted(quoted, key.substr(0, limits::kQuotedBytes));
      return Corrupt(fmt::format("the key {} stands twice in one object", quoted));
    }
    frame.key = key;
    if (const auto error = field.value().get(child)) {
      return Syntax(error);
    }
    return child;
  }

  void Deliver(Value value) {
    Frame& frame = stack_.back();
    if (frame.is_array) {
      frame.array.push_back(std::move(value));
    } else {
      frame.object.Set(frame.key, std::move(value));
    }
  }

  const simdjson::padded_string& text_;
  const ParseLimits& limits_;
  ondemand::parser parser_;
  ondemand::document document_;
  std::vector<Frame> stack_;  // the containers that are open: no recursion on foreign structure
  std::size_t num_values_ = 0;
};

}  // namespace

Result<Value> Parse(std::string_view text, const ParseLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("JSON: {} bytes; at most {}", text.size(), limits.max_bytes));
  }
  try {
    const simdjson::padded_string padded(text);
    return Builder(padded, limits).Build();
  } catch (const std::bad_alloc&) {
    return Fail(ErrorCode::kOutOfMemory, "JSON: no memory for the parsed text");
  } catch (const std::exception& e) {
    return Fail(ErrorCode::kInternal, fmt::format("JSON: {}", e.what()));
  }
}

Result<Value> ParseFile(const std::string& path, const ParseLimits& limits) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    const int error = errno;
    return Fail(error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo,
                fmt::format("{}: {}", path, std::generic_category().message(error)));
  }
  const auto read_all = [&]() -> Result<std::string> {
    struct stat info = {};
    if (::fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
      return Fail(ErrorCode::kIo, "not a regular file");
    }
    const auto size = static_cast<std::size_t>(info.st_size);
    if (size > limits.max_bytes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{} bytes; at most {}", size, limits.max_bytes));
    }
    std::string text(size, '\0');
    std::size_t done = 0;
    while (done < size) {
      const ssize_t got = ::read(file, text.data() + done, size - done);
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got < 0) {
        return Fail(ErrorCode::kIo, std::generic_category().message(errno));
      }
      if (got == 0) {
        break;
      }
      done += static_cast<std::size_t>(got);
    }
    text.resize(done);
    return text;
  };
  auto text = read_all();
  ::close(file);
  if (!text) {
    return Fail(std::move(text.error()), path + ": ");
  }
  auto value = Parse(*text, limits);
  if (!value) {
    return Fail(std::move(value.error()), path + ": ");
  }
  return value;
}

}  // namespace nibble::json
