#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "json/value.h"

namespace nibble::json {
namespace {

constexpr std::array<char, 16> kHex = {'0', '1', '2', '3', '4', '5', '6', '7',
                                       '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'};

unsigned char Byte(std::string_view text, std::size_t at) {
  return static_cast<unsigned char>(text[at]);
}

/// Length of the well-formed UTF-8 sequence at `at` (Unicode table 3-7), or the negated length of
/// the part to replace by one U+FFFD.
int Utf8Length(std::string_view text, std::size_t at) {
  const unsigned char lead = Byte(text, at);
  int length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead < 0x80) {
    return 1;
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    low = lead == 0xE0 ? 0xA0 : low;
    high = lead == 0xED ? 0x9F : high;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    low = lead == 0xF0 ? 0x90 : low;
    high = lead == 0xF4 ? 0x8F : high;
  } else {
    return -1;
  }
  for (int i = 1; i < length; ++i) {
    const std::size_t next = at + static_cast<std::size_t>(i);
    if (next >= text.size() || Byte(text, next) < low || Byte(text, next) > high) {
      return -i;
    }
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

void AppendDouble(std::string& out, double d, bool python) {
  if (!std::isfinite(d)) {
    if (!python) {
      out += "null";
    } else {
      out += std::isnan(d) ? "NaN" : (d > 0 ? "Infinity" : "-Infinity");
    }
    return;
  }
  std::array<char, 40> buffer{};
  const double magnitude = std::fabs(d);
  // repr() writes 1e16 and above, and below 1e-4, with an exponent.
  const bool fixed = d == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto end =
      python ? std::to_chars(buffer.data(), buffer.data() + buffer.size(), d,
                             fixed ? std::chars_format::fixed : std::chars_format::scientific)
             : std::to_chars(buffer.data(), buffer.data() + buffer.size(), d);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  out += text;
  // A double stays one when it is read again.
  if (text.find_first_of(".e") == std::string_view::npos) {
    out += ".0";
  }
}

void Indent(std::string& out, const DumpStyle& style, int depth) {
  if (style.indent >= 0) {
    out += '\n';
    out.append(static_cast<std::size_t>(style.indent) * static_cast<std::size_t>(depth), ' ');
  }
}

// Recursion is as deep as the value, which Parse bounds.
void Append(std::string& out, const Value& value, const DumpStyle& style, int depth) {
  if (const std::string* const s = value.AsString()) {
    AppendQuoted(out, *s);
  } else if (const Array* const array = value.AsArray()) {
    out += '[';
    bool first = true;
    for (const Value& element : *array) {
      if (!first) {
        out += style.item_separator;
      }
      first = false;
      Indent(out, style, depth + 1);
      Append(out, element, style, depth + 1);
    }
    if (!first) {
      Indent(out, style, depth);
    }
    out += ']';
  } else if (const Object* const object = value.AsObject()) {
    std::vector<const Object::Member*> members;
    members.reserve(object->size());
    for (const Object::Member& member : *object) {
      members.push_back(&member);
    }
    if (style.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out += '{';
    bool first = true;
    for (const Object::Member* const member : members) {
      if (!first) {
        out += style.item_separator;
      }
      first = false;
      Indent(out, style, depth + 1);
      AppendQuoted(out, member->first);
      out += style.key_separator;
      Append(out, member->second, style, depth + 1);
    }
    if (!first) {
      Indent(out, style, depth);
    }
    out += '}';
  } else if (value.IsNull()) {
    out += "null";
  } else if (const auto b = value.AsBool()) {
    out += *b ? "true" : "false";
  } else if (value.IsDouble()) {
    AppendDouble(out, *value.AsDouble(), style.python_floats);
  } else if (const auto i = value.AsInt()) {
    fmt::format_to(std::back_inserter(out), "{}", *i);
  } else {
    fmt::format_to(std::back_inserter(out), "{}", *value.AsUint());
  }
}

}  // namespace

std::string Dump(const Value& value, const DumpStyle& style) {
  std::string out;
  Append(out, value, style, 0);
  return out;
}

void AppendQuoted(std::string& out, std::string_view text) {
  out += '"';
  std::size_t plain_from = 0;  // bytes since here go out as they are
  std::size_t at = 0;
  const auto flush = [&] { out += text.substr(plain_from, at - plain_from); };
  while (at < text.size()) {
    const unsigned char c = Byte(text, at);
    if (c >= 0x80) {
      const int length = Utf8Length(text, at);
      if (length > 0) {
        at += static_cast<std::size_t>(length);
        continue;
      }
      flush();
      out += "\xEF\xBF\xBD";
      at += static_cast<std::size_t>(-length);
      plain_from = at;
      continue;
    }
    if (c >= 0x20 && c != '"' && c != '\\') {
      ++at;
      continue;
    }
    flush();
    out += '\\';
    switch (c) {
      case '"':
      case '\\':
        out += static_cast<char>(c);
        break;
      case '\b':
        out += 'b';
        break;
      case '\f':
        out += 'f';
        break;
      case '\n':
        out += 'n';
        break;
      case '\r':
        out += 'r';
        break;
      case '\t':
        out += 't';
        break;
      default:
        out += "u00";
        out += kHex[c >> 4];
        out += kHex[c & 15];
    }
    plain_from = ++at;
  }
  flush();
  out += '"';
}

}  // namespace nibble::json
