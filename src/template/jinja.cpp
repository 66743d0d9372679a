#include "template/jinja.h"

#include <fmt/format.h>

#include <charconv>
#include <ctime>
#include <new>

#include "base/clock.h"
#include "base/text.h"
#include "template/ast.h"
#include "template/interpreter.h"

namespace nibble::jinja {
namespace {

/// "2025-01-15T10:30:00" with its day of the week and of the year.
Result<std::tm> ParseTime(std::string_view text) {
  std::tm time = {};
  const auto number = [&](std::size_t from, std::size_t length, int& value) {
    const char* const begin = text.data() + from;
    const auto read = std::from_chars(begin, begin + length, value);
    return read.ec == std::errc() && read.ptr == begin + length && value >= 0;
  };
  const bool shaped = text.size() == 19 && text[4] == '-' && text[7] == '-' &&
                      (text[10] == 'T' || text[10] == ' ') && text[13] == ':' && text[16] == ':';
  const bool valid = shaped && number(0, 4, time.tm_year) && number(5, 2, time.tm_mon) &&
                     number(8, 2, time.tm_mday) && number(11, 2, time.tm_hour) &&
                     number(14, 2, time.tm_min) && number(17, 2, time.tm_sec);
  if (valid) {
    time.tm_year -= 1900;
    time.tm_mon -= 1;
    const std::tm given = time;
    // timegm fills in the day of the week, and mends what is no date: then it was none.
    if (::timegm(&time) != -1 && time.tm_mday == given.tm_mday && time.tm_mon == given.tm_mon &&
        time.tm_hour == given.tm_hour && time.tm_min == given.tm_min &&
        time.tm_sec == given.tm_sec) {
      return time;
    }
  }
  return Fail(ErrorCode::kInvalidArgument,
              fmt::format("{} is no time; write it as 2025-01-15T10:30:00", Quote(text)));
}

Result<std::tm> TimeOf(const RenderOptions& options) {
  if (options.now) {
    return ParseTime(*options.now);
  }
  const std::time_t now = UnixSeconds();
  std::tm local = {};
  if (::localtime_r(&now, &local) == nullptr) {
    return Fail(ErrorCode::kInternal, "the machine's clock shows no date");
  }
  return local;
}

}  // namespace

Result<Template> Template::Parse(std::string_view source) {
  try {
    NIBBLE_TRY(ast, ParseTemplate(source));
    return Template(std::make_shared<const Ast>(std::move(ast)));
  } catch (const std::bad_alloc&) {
    return Fail(ErrorCode::kOutOfMemory, "no memory for the template");
  }
}

Result<std::string> Template::Render(const json::Object& variables,
                                     const RenderOptions& options) const {
  NIBBLE_TRY(now, TimeOf(options));
  try {
    Interpreter interpreter(*ast_, options, now);
    auto text = interpreter.Run(variables);
    if (!text && text.error().code != ErrorCode::kInvalidArgument) {
      return Fail(std::move(text.error()), fmt::format("template line {}: ", interpreter.line()));
    }
    return text;
  } catch (const std::bad_alloc&) {
    return Fail(ErrorCode::kOutOfMemory, "no memory to render the template");
  }
}

}  // namespace nibble::jinja
