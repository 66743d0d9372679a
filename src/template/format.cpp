#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "template/interpreter.h"
#include "template/pystring.h"

// Python's two ways to format: "%s" % x, and "{}".format(x).
namespace nibble::jinja {
namespace {

constexpr int kMaxWidth = 100'000;
constexpr int kMaxPrecision = 500;

/// One conversion, whichever of the two notations asked for it.
struct Spec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =; 0: by type
  char sign = '-';    // + - or blank
  bool alternate = false;
  int width = 0;
  char group = '\0';  // , or _
  int precision = -1;
  char type = '\0';
};

std::string Grouped(const std::string& digits, char separator, std::size_t every) {
  std::string out;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % every == 0) {
      out += separator;
    }
    out += digits[i];
  }
  return out;
}

/// Fills `body` up to the width; `sign` goes before zeros that fill.
std::string Padded(const std::string& sign, const std::string& body, const Spec& spec,
                   char default_align) {
  const char align = spec.align != '\0' ? spec.align : default_align;
  const std::size_t length = Length(sign) + Length(body);
  const auto width = static_cast<std::size_t>(std::max(0, spec.width));
  const std::size_t missing = width > length ? width - length : 0;
  const auto fill = [&](std::size_t count) {
    std::string out;
    for (std::size_t i = 0; i < count; ++i) {
      out += spec.fill;
    }
    return out;
  };
  switch (align) {
    case '<':
      return sign + body + fill(missing);
    case '^':
      return fill(missing / 2) + sign + body + fill(missing - missing / 2);
    case '=':
      return sign + fill(missing) + body;
    default:
      return fill(missing) + sign + body;
  }
}

std::string SignOf(bool negative, const Spec& spec) {
  if (negative) {
    return "-";
  }
  return spec.sign == '+' ? "+" : spec.sign == ' ' ? " " : "";
}

Result<std::string> FormatInt(Int value, const Spec& spec) {
  const bool negative = value < 0;
  unsigned __int128 magnitude = static_cast<unsigned __int128>(value);
  magnitude = negative ? ~magnitude + 1 : magnitude;
  unsigned base = 10;
  std::string prefix;
  switch (spec.type) {
    case 'x':
    case 'X':
      base = 16;
      prefix = spec.type == 'x' ? "0x" : "0X";
      break;
    case 'o':
      base = 8;
      prefix = "0o";
      break;
    case 'b':
      base = 2;
      prefix = "0b";
      break;
    default:
      break;
  }
  std::string digits;
  do {
    const auto digit = static_cast<unsigned>(magnitude % base);
    digits += digit < 10 ? static_cast<char>('0' + digit)
                         : static_cast<char>((spec.type == 'X' ? 'A' : 'a') + (digit - 10));
    magnitude /= base;
  } while (magnitude > 0);
  while (spec.precision > static_cast<int>(digits.size())) {
    digits += '0';  // "%.3d"
  }
  std::reverse(digits.begin(), digits.end());
  if (spec.group != '\0') {
    digits = Grouped(digits, spec.group, base == 10 ? 3 : 4);
  }
  return Padded(SignOf(negative, spec) + (spec.alternate ? prefix : ""), digits, spec, '>');
}

Result<std::string> FormatDouble(double value, const Spec& spec) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  const double magnitude = std::fabs(value);
  std::string body;
  if (!std::isfinite(value)) {
    body = std::isnan(value) ? "nan" : "inf";
  } else if (spec.type == '\0' && spec.precision < 0) {
    body = FloatRepr(magnitude);
  } else {
    const int precision = spec.precision < 0 ? 6 : spec.precision;
    const char type = spec.type == '\0' || spec.type == 'n' ? 'g'
                      : spec.type == '%'                    ? 'f'
                                                            : spec.type;
    const std::string format = fmt::format("%{}.*{}", spec.alternate ? "#" : "", type);
    std::array<char, 1024> buffer{};
    const double shown = spec.type == '%' ? magnitude * 100 : magnitude;
    const int length =
        std::snprintf(buffer.data(), buffer.size(), format.c_str(), precision, shown);
    if (length < 0 || length >= static_cast<int>(buffer.size())) {
      return TooLarge("a number of more than 1,000 digits");
    }
    body.assign(buffer.data(), static_cast<std::size_t>(length));
    if (spec.type == '\0' && body.find_first_of(".e") == std::string::npos) {
      body += ".0";
    }
  }
  if (spec.group != '\0') {
    const std::size_t whole = std::min(body.find_first_of(".e"), body.size());
    body = Grouped(body.substr(0, whole), spec.group, 3) + body.substr(whole);
  }
  if (spec.type == '%') {
    body += '%';
  }
  return Padded(SignOf(negative, spec), body, spec, '>');
}

std::string FormatText(std::string_view text, const Spec& spec) {
  std::string cut;
  if (spec.precision >= 0) {
    std::size_t at = 0;
    for (int i = 0; i < spec.precision && at < text.size(); ++i) {
      at += Decode(text, at).length;
    }
    text = text.substr(0, at);
  }
  return Padded("", std::string(text), spec, '<');
}

/// Reads digits at `at`; -1 if there are none.
Result<int> TakeNumber(std::string_view text, std::size_t& at, int max) {
  int number = -1;
  const char* const begin = text.data() + at;
  const char* const end = text.data() + text.size();
  if (begin == end || *begin < '0' || *begin > '9') {
    return number;
  }
  const auto read = std::from_chars(begin, end, number);
  if (read.ec != std::errc() || number > max) {
    return TooLarge(fmt::format("a width or precision beyond {}", max));
  }
  at += static_cast<std::size_t>(read.ptr - begin);
  return number;
}

Result<Spec> ParseSpec(std::string_view text) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const std::size_t first = text.empty() ? 0 : Decode(text, 0).length;
  if (first > 0 && first < text.size() && is_align(text[first])) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[0];
    at = 1;
  }
  const auto take = [&](std::string_view any) {
    const bool is = at < text.size() && any.find(text[at]) != std::string_view::npos;
    return is ? text[at++] : '\0';
  };
  if (const char sign = take("+- ")) {
    spec.sign = sign;
  }
  spec.alternate = take("#") != '\0';
  if (take("0") != '\0' && spec.align == '\0') {
    spec.fill = "0";
    spec.align = '=';
  }
  NIBBLE_TRY(width, TakeNumber(text, at, kMaxWidth));
  spec.width = std::max(0, width);
  spec.group = take(",_");
  if (take(".") != '\0') {
    NIBBLE_TRY(precision, TakeNumber(text, at, kMaxPrecision));
    if (precision < 0) {
      return ValueError("Format specifier missing precision");
    }
    spec.precision = precision;
  }
  spec.type = take("sdbcoxXnefgEFG%");
  if (at < text.size()) {
    return ValueError("Invalid format specifier");
  }
  return spec;
}

Result<std::string> FormatValue(const Value& value, const Spec& spec) {
  const auto unknown = [&] {
    return ValueError(fmt::format("Unknown format code '{}' for object of type '{}'", spec.type,
                                  value.TypeName()));
  };
  if (value.IsString()) {
    return spec.type == '\0' || spec.type == 's'
               ? Result<std::string>(FormatText(value.Text(), spec))
               : unknown();
  }
  const bool is_float_type =
      std::string_view("efgEFG%").find(spec.type) != std::string_view::npos && spec.type != '\0';
  if (value.IsInt() || (value.IsBool() && spec.type != '\0')) {
    if (spec.type == 's') {
      return unknown();
    }
    if (spec.type == 'c') {
      const Int point = *value.AsIndex();
      if (point < 0 || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) {
        return ValueError("%c arg not in range(0x110000)");
      }
      std::string character;
      AppendUtf8(character, static_cast<char32_t>(point));
      return FormatText(character, spec);
    }
    return is_float_type ? FormatDouble(*value.AsDouble(), spec)
                         : FormatInt(*value.AsIndex(), spec);
  }
  if (value.IsFloat()) {
    return is_float_type || spec.type == '\0' || spec.type == 'n'
               ? FormatDouble(*value.AsDouble(), spec)
               : Result<std::string>(unknown());
  }
  return TypeError(
      fmt::format("unsupported format string passed to {}.__format__", value.TypeName()));
}

}  // namespace

Result<Value> Interpreter::PercentFormat(const Value& format, const Arguments& arguments) {
  const std::string_view text = format.Text();
  const std::vector<Value>& values = arguments.positional;
  // One dict serves "%(name)s".
  const DictData* dict = values.size() == 1 ? values[0].AsDict() : nullptr;
  std::string out;
  std::size_t used = 0;
  bool used_dict = false;
  const auto next = [&]() -> Result<Value> {
    if (used >= values.size()) {
      return TypeError("not enough arguments for format string");
    }
    return values[used++];
  };
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] != '%') {
      const std::size_t end = std::min(text.find('%', at), text.size());
      out += text.substr(at, end - at);
      at = end;
      continue;
    }
    ++at;
    Spec spec;
    Value value;
    bool has_value = false;
    if (at < text.size() && text[at] == '(') {
      const std::size_t close = text.find(')', at);
      if (close == std::string_view::npos) {
        return ValueError("incomplete format key");
      }
      if (dict == nullptr) {
        return TypeError("format requires a mapping");
      }
      const std::string_view key = text.substr(at + 1, close - at - 1);
      const Value* const member = dict->Find(key);
      if (member == nullptr) {
        return Fail(ErrorCode::kCorruptFile, fmt::format("KeyError: '{}'", key));
      }
      value = *member;
      has_value = used_dict = true;
      at = close + 1;
    }
    bool zero = false;
    for (; at < text.size(); ++at) {
      const char flag = text[at];
      if (flag == '-') {
        spec.align = '<';
      } else if (flag == '+' || (flag == ' ' && spec.sign != '+')) {
        spec.sign = flag;
      } else if (flag == '0') {
        zero = true;
      } else if (flag == '#') {
        spec.alternate = true;
      } else if (flag != ' ') {
        break;
      }
    }
    NIBBLE_TRY(width, TakeNumber(text, at, kMaxWidth));
    spec.width = std::max(0, width);
    if (at < text.size() && text[at] == '.') {
      ++at;
      NIBBLE_TRY(precision, TakeNumber(text, at, kMaxPrecision));
      spec.precision = std::max(0, precision);
    }
    while (at < text.size() && (text[at] == 'l' || text[at] == 'h' || text[at] == 'L')) {
      ++at;
    }
    if (at >= text.size()) {
      return ValueError("incomplete format");
    }
    const char type = text[at++];
    if (type == '%') {
      out += '%';
      continue;
    }
    if (!has_value) {
      NIBBLE_TRY(taken, next());
      value = std::move(taken);
    }
    if (type == 's' || type == 'r' || type == 'a') {
      NIBBLE_TRY(shown, type == 's' ? Str(value) : Repr(value, max_text()));
      spec.align = spec.align != '\0' ? spec.align : '>';
      out += FormatText(format.IsMarkup() && !value.IsMarkup() ? EscapeHtml(shown) : shown, spec);
    } else if (type == 'c') {
      spec.type = 'c';
      spec.align = spec.align != '\0' ? spec.align : '>';
      NIBBLE_TRY(shown, value.IsString() ? Result<std::string>(FormatText(value.Text(), spec))
                                         : FormatValue(value, spec));
      out += shown;
    } else if (std::string_view("diuxXoeEfFgG").find(type) != std::string_view::npos) {
      if (value.IsUndefined()) {
        return value.Unusable();
      }
      if (!value.IsNumber()) {
        return TypeError(
            fmt::format("%{} format: a real number is required, not {}", type, value.TypeName()));
      }
      if (zero && spec.align == '\0') {
        spec.fill = "0";
        spec.align = '=';
      }
      const bool whole = type == 'd' || type == 'i' || type == 'u';
      spec.type = whole ? 'd' : type;
      if (std::string_view("eEfFgG").find(type) != std::string_view::npos) {
        NIBBLE_TRY(shown, FormatDouble(*value.AsDouble(), spec));
        out += shown;
      } else {
        const auto index = value.AsIndex();
        if (!index && !whole) {
          return TypeError(fmt::format("%{} format: an integer is required, not float", type));
        }
        const double d = *value.AsDouble();
        if (!index && !(std::fabs(d) < 0x1p126)) {
          return ValueError("cannot convert float to integer");
        }
        NIBBLE_TRY(shown, FormatInt(index ? *index : static_cast<Int>(d), spec));
        out += shown;
      }
    } else {
      return ValueError(fmt::format("unsupported format character '{}'", type));
    }
    if (out.size() > max_text()) {
      break;  // MakeString says so
    }
  }
  // Python takes a single list or Undefined for a mapping, too, and a mapping need not be used up.
  const bool is_mapping = values.size() == 1 &&
                          (dict != nullptr || values[0].IsUndefined() ||
                           values[0].Is(SequenceKind::kList) || values[0].Is(SequenceKind::kRange));
  if (!used_dict && used < values.size() && !is_mapping) {
    return TypeError("not all arguments converted during string formatting");
  }
  return MakeString(std::move(out), format.IsMarkup());
}

Result<Value> Interpreter::StrFormat(std::string_view format, const Arguments& arguments) {
  std::string out;
  std::size_t automatic = 0;
  bool is_automatic = false;
  bool is_numbered = false;
  for (std::size_t at = 0; at < format.size() && out.size() <= max_text();) {
    const char c = format[at];
    if (c != '{' && c != '}') {
      const std::size_t end = std::min(format.find_first_of("{}", at), format.size());
      out += format.substr(at, end - at);
      at = end;
      continue;
    }
    if (at + 1 < format.size() && format[at + 1] == c) {
      out += c;
      at += 2;
      continue;
    }
    if (c == '}') {
      return ValueError("Single '}' encountered in format string");
    }
    const std::size_t close = format.find('}', at);
    if (close == std::string_view::npos) {
      return ValueError("expected '}' before end of string");
    }
    const std::string_view field = format.substr(at + 1, close - at - 1);
    at = close + 1;
    if (field.find('{') != std::string_view::npos) {
      return Fail(ErrorCode::kUnsupported, "nested fields in str.format are not supported");
    }
    const std::size_t name_end = std::min(field.find_first_of("!:"), field.size());
    std::string_view path = field.substr(0, name_end);
    std::string_view rest = field.substr(name_end);
    char conversion = '\0';
    if (rest.size() >= 2 && rest[0] == '!') {
      conversion = rest[1];
      rest.remove_prefix(2);
    }
    if (!rest.empty() && rest[0] != ':') {
      return ValueError("expected ':' after conversion specifier");
    }
    const std::size_t first_end = std::min(path.find_first_of(".["), path.size());
    const std::string_view first = path.substr(0, first_end);
    path.remove_prefix(first_end);
    Value value;
    std::size_t index = 0;
    const bool digits = !first.empty() && std::all_of(first.begin(), first.end(),
                                                      [](char d) { return d >= '0' && d <= '9'; });
    if (first.empty() || digits) {
      (first.empty() ? is_automatic : is_numbered) = true;
      if (is_automatic && is_numbered) {
        return ValueError("cannot mix automatic field numbering and manual specification");
      }
      index = automatic++;
      if (digits &&
          std::from_chars(first.data(), first.data() + first.size(), index).ec != std::errc()) {
        return ValueError("Too many decimal digits in format string");
      }
      if (index >= arguments.positional.size()) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("IndexError: Replacement index {} out of range for positional "
                                "args tuple",
                                index));
      }
      value = arguments.positional[index];
    } else {
      NIBBLE_TRY_VOID(Charge(std::ssize(arguments.named) / 16));
      const auto named =
          std::find_if(arguments.named.begin(), arguments.named.end(),
                       [&](const auto& argument) { return argument.first == first; });
      if (named == arguments.named.end()) {
        return Fail(ErrorCode::kCorruptFile, fmt::format("KeyError: '{}'", first));
      }
      value = named->second;
    }
    while (!path.empty()) {
      NIBBLE_TRY_VOID(Charge(1));
      if (path[0] == '.') {
        const std::size_t end = std::min(path.find_first_of(".[", 1), path.size());
        NIBBLE_TRY(member, Attribute(value, std::string(path.substr(1, end - 1))));
        value = std::move(member);
        path.remove_prefix(end);
        continue;
      }
      const std::size_t end = path.find(']');
      if (end == std::string_view::npos) {
        return ValueError("Missing ']' in format string");
      }
      const std::string_view key = path.substr(1, end - 1);
      std::int64_t number = 0;
      const bool is_number = !key.empty() && key[0] != '-' &&
                             std::from_chars(key.data(), key.data() + key.size(), number).ptr ==
                                 key.data() + key.size();
      NIBBLE_TRY(item,
                 Item(value, is_number ? Value::Integer(number) : Value::String(std::string(key))));
      value = std::move(item);
      path.remove_prefix(end + 1);
      if (!path.empty() && path[0] != '.' && path[0] != '[') {
        return ValueError("Only '.' or '[' may follow ']' in format field specifier");
      }
    }
    if (conversion != '\0') {
      NIBBLE_TRY(shown, conversion == 's' ? Str(value) : Repr(value, max_text()));
      value = Value::String(std::move(shown));
    }
    const std::string_view spec_text = rest.empty() ? rest : rest.substr(1);
    if (spec_text.empty()) {
      NIBBLE_TRY(shown, Str(value));
      out += shown;
      continue;
    }
    NIBBLE_TRY(spec, ParseSpec(spec_text));
    NIBBLE_TRY(shown, FormatValue(value, spec));
    out += shown;
  }
  return MakeString(std::move(out));
}

}  // namespace nibble::jinja
