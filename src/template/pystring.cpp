#include "template/pystring.h"

#include <fmt/format.h>
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <cstring>

namespace nibble::jinja {
namespace {

UChar32 Icu(char32_t point) { return static_cast<UChar32>(point); }

/// Where the code point that ends before byte `end` starts.
std::size_t Previous(std::string_view text, std::size_t end) {
  --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {
    --end;
  }
  return end;
}

bool IsLineEnd(char32_t point) {
  return (point >= 0x0A && point <= 0x0D) || (point >= 0x1C && point <= 0x1E) || point == 0x85 ||
         point == 0x2028 || point == 0x2029;
}

std::string FromUnicode(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

icu::UnicodeString ToUnicode(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())));
}

bool IsAscii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) {
      return false;
    }
  }
  return true;
}

char AsciiUpper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char AsciiLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

}  // namespace

CodePoint Decode(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) -> char32_t {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0x80;
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) {
    return {lead, 1};
  }
  if (lead < 0xE0) {
    return {((lead & 0x1F) << 6) | (byte(1) & 0x3F), 2};
  }
  if (lead < 0xF0) {
    return {((lead & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F), 3};
  }
  return {
      ((lead & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) | (byte(3) & 0x3F),
      4};
}

void AppendUtf8(std::string& out, char32_t point) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xC0 | (point >> 6));
    put(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    put(0xE0 | (point >> 12));
    put(0x80 | ((point >> 6) & 0x3F));
    put(0x80 | (point & 0x3F));
  } else {
    put(0xF0 | (point >> 18));
    put(0x80 | ((point >> 12) & 0x3F));
    put(0x80 | ((point >> 6) & 0x3F));
    put(0x80 | (point & 0x3F));
  }
}

std::size_t Length(std::string_view text) {
  std::size_t count = 0;
  for (const char c : text) {
    count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  }
  return count;
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> characters;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = Decode(text, at).length;
    characters.push_back(text.substr(at, length));
    at += length;
  }
  return characters;
}

bool IsSpace(char32_t point) {
  if (point < 0x80) {
    return (point >= 0x09 && point <= 0x0D) || (point >= 0x1C && point <= 0x20);
  }
  return point == 0x85 || point == 0xA0 || point == 0x1680 ||
         (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 ||
         point == 0x202F || point == 0x205F || point == 0x3000;
}

bool IsPrintable(char32_t point) {
  if (point == ' ') {
    return true;
  }
  constexpr std::uint32_t kNot = U_GC_C_MASK | U_GC_Z_MASK;
  return (U_GET_GC_MASK(Icu(point)) & kNot) == 0;
}

bool IsAlpha(char32_t point) { return (U_GET_GC_MASK(Icu(point)) & U_GC_L_MASK) != 0; }
bool IsDecimal(char32_t point) { return u_charType(Icu(point)) == U_DECIMAL_DIGIT_NUMBER; }
bool IsDigitPoint(char32_t point) {
  const int type = u_getIntPropertyValue(Icu(point), UCHAR_NUMERIC_TYPE);
  return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}
bool IsNumeric(char32_t point) {
  return u_getIntPropertyValue(Icu(point), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}
bool IsUpperPoint(char32_t point) { return u_isUUppercase(Icu(point)) != 0; }
bool IsLowerPoint(char32_t point) { return u_isULowercase(Icu(point)) != 0; }
bool IsCased(char32_t point) {
  return IsUpperPoint(point) || IsLowerPoint(point) || u_istitle(Icu(point)) != 0;
}

std::size_t FindText(std::string_view text, std::string_view part, std::size_t from) {
  if (from > text.size()) {
    return std::string_view::npos;
  }
  const void* const found =
      ::memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found != nullptr ? static_cast<std::size_t>(static_cast<const char*>(found) - text.data())
                          : std::string_view::npos;
}

std::string_view Strip(std::string_view text, Side side, std::optional<std::string_view> chars) {
  const auto strips = [&](std::size_t at) {
    const CodePoint point = Decode(text, at);
    return chars ? chars->find(text.substr(at, point.length)) != std::string_view::npos
                 : IsSpace(point.value);
  };
  if (side != Side::kRight) {
    while (!text.empty() && strips(0)) {
      text.remove_prefix(Decode(text, 0).length);
    }
  }
  if (side != Side::kLeft) {
    while (!text.empty()) {
      const std::size_t last = Previous(text, text.size());
      if (!strips(last)) {
        break;
      }
      text = text.substr(0, last);
    }
  }
  return text;
}

std::string Upper(std::string_view text) {
  if (IsAscii(text)) {
    std::string out(text);
    for (char& c : out) {
      c = AsciiUpper(c);
    }
    return out;
  }
  return FromUnicode(ToUnicode(text).toUpper(icu::Locale::getRoot()));
}

std::string Lower(std::string_view text) {
  if (IsAscii(text)) {
    std::string out(text);
    for (char& c : out) {
      c = AsciiLower(c);
    }
    return out;
  }
  return FromUnicode(ToUnicode(text).toLower(icu::Locale::getRoot()));
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) {
    return {};
  }
  const CodePoint first = Decode(text, 0);
  std::string out;
  AppendUtf8(out, static_cast<char32_t>(u_totitle(Icu(first.value))));
  return out + Lower(text.substr(first.length));
}

std::string Title(std::string_view text, bool filter) {
  std::string out;
  bool in_word = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    at += point.length;
    const UChar32 c = Icu(in_word ? static_cast<char32_t>(u_tolower(Icu(point.value)))
                                  : static_cast<char32_t>(filter ? u_toupper(Icu(point.value))
                                                                 : u_totitle(Icu(point.value))));
    AppendUtf8(out, static_cast<char32_t>(c));
    if (filter) {
      in_word = !(IsSpace(point.value) || point.value == '-' || point.value == '(' ||
                  point.value == '[' || point.value == '{' || point.value == '<');
    } else {
      in_word = IsCased(point.value);
    }
  }
  return out;
}

std::string SwapCase(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    const std::string_view one = text.substr(at, point.length);
    out += IsUpperPoint(point.value)   ? Lower(one)
           : IsLowerPoint(point.value) ? Upper(one)
                                       : std::string(one);
    at += point.length;
  }
  return out;
}

std::vector<std::string_view> Split(std::string_view text,
                                    std::optional<std::string_view> separator, long max_split) {
  std::vector<std::string_view> parts;
  if (separator) {
    std::size_t from = 0;
    while (max_split != 0) {
      const std::size_t found = FindText(text, *separator, from);
      if (found == std::string_view::npos) {
        break;
      }
      parts.push_back(text.substr(from, found - from));
      from = found + separator->size();
      --max_split;
    }
    parts.push_back(text.substr(from));
    return parts;
  }
  for (text = Strip(text, Side::kLeft); !text.empty(); text = Strip(text, Side::kLeft)) {
    if (max_split == 0) {
      parts.push_back(text);
      return parts;
    }
    std::size_t end = 0;
    while (end < text.size() && !IsSpace(Decode(text, end).value)) {
      end += Decode(text, end).length;
    }
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
    --max_split;
  }
  return parts;
}

std::vector<std::string_view> RightSplit(std::string_view text,
                                         std::optional<std::string_view> separator,
                                         long max_split) {
  std::vector<std::string_view> parts;
  if (separator) {
    while (max_split != 0) {
      const std::size_t found = text.rfind(*separator);
      if (found == std::string_view::npos) {
        break;
      }
      parts.push_back(text.substr(found + separator->size()));
      text = text.substr(0, found);
      --max_split;
    }
    parts.push_back(text);
  } else {
    for (text = Strip(text, Side::kRight); !text.empty(); text = Strip(text, Side::kRight)) {
      if (max_split == 0) {
        parts.push_back(text);
        break;
      }
      std::size_t start = text.size();
      while (start > 0 && !IsSpace(Decode(text, Previous(text, start)).value)) {
        start = Previous(text, start);
      }
      parts.push_back(text.substr(start));
      text = text.substr(0, start);
      --max_split;
    }
  }
  return {parts.rbegin(), parts.rend()};
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  std::size_t from = 0;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    std::size_t next = at + point.length;
    if (IsLineEnd(point.value)) {
      if (point.value == '\r' && next < text.size() && text[next] == '\n') {
        ++next;
      }
      lines.push_back(text.substr(from, (keep_ends ? next : at) - from));
      from = next;
    }
    at = next;
  }
  if (from < text.size()) {
    lines.push_back(text.substr(from));
  }
  return lines;
}

std::string Replace(std::string_view text, std::string_view from, std::string_view to, long count) {
  std::string out;
  if (from.empty()) {  // between all code points, and at both ends
    for (const std::string_view character : Characters(text)) {
      if (count != 0) {
        out += to;
        --count;
      }
      out += character;
    }
    return count != 0 ? out.append(to) : out;
  }
  while (count != 0) {
    const std::size_t found = FindText(text, from);
    if (found == std::string_view::npos) {
      break;
    }
    out += text.substr(0, found);
    out += to;
    text.remove_prefix(found + from.size());
    --count;
  }
  out += text;
  return out;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

void AppendRepr(std::string& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out += quote;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = Decode(text, at);
    const auto value = static_cast<unsigned>(point.value);
    if (point.value == static_cast<char32_t>(quote) || point.value == '\\') {
      out += '\\';
      out += static_cast<char>(point.value);
    } else if (point.value == '\n') {
      out += "\\n";
    } else if (point.value == '\r') {
      out += "\\r";
    } else if (point.value == '\t') {
      out += "\\t";
    } else if (IsPrintable(point.value)) {
      out += text.substr(at, point.length);
    } else if (value < 0x100) {
      out += fmt::format("\\x{:02x}", value);
    } else if (value < 0x10000) {
      out += fmt::format("\\u{:04x}", value);
    } else {
      out += fmt::format("\\U{:08x}", value);
    }
    at += point.length;
  }
  out += quote;
}

}  // namespace nibble::jinja
