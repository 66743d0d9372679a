#include "tokenizer/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <array>
#include <vector>

namespace nibble::text {
namespace {

std::uint8_t Compute(char32_t c) {
  const auto code = static_cast<UChar32>(c);
  const auto mask = static_cast<std::uint32_t>(U_GET_GC_MASK(code));
  std::uint8_t bits = 0;
  if ((mask & U_GC_L_MASK) != 0) {
    bits |= kLetter | kWord;
  }
  if ((mask & U_GC_M_MASK) != 0) {
    bits |= kMark | kWord;
  }
  if ((mask & U_GC_N_MASK) != 0) {
    bits |= kNumber;
  }
  if ((mask & (U_GC_ND_MASK | U_GC_PC_MASK)) != 0) {
    bits |= kWord;
  }
  if ((mask & U_GC_P_MASK) != 0) {
    bits |= kPunct;
  }
  if (u_isUWhiteSpace(code) != 0) {
    bits |= kSpace;
  }
  if (u_isUAlphabetic(code) != 0 || u_hasBinaryProperty(code, UCHAR_JOIN_CONTROL) != 0) {
    bits |= kWord;
  }
  if (c == '\r' || c == '\n') {
    bits |= kNewline;
  }
  if ((c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
      (c >= '{' && c <= '~')) {
    bits |= kAsciiPunct;
  }
  return bits;
}

std::array<std::uint8_t, kClassTableSize> MakeTable() {
  std::array<std::uint8_t, kClassTableSize> table{};
  for (char32_t c = 0; c < kClassTableSize; ++c) {
    table[c] = Compute(c);
  }
  return table;
}

const std::array<std::uint8_t, kClassTableSize> kTable = MakeTable();

const icu::Normalizer2* Instance(NormalForm form) {
  UErrorCode status = U_ZERO_ERROR;
  switch (form) {
    case NormalForm::kNfc:
      return icu::Normalizer2::getNFCInstance(status);
    case NormalForm::kNfd:
      return icu::Normalizer2::getNFDInstance(status);
    case NormalForm::kNfkc:
      return icu::Normalizer2::getNFKCInstance(status);
    case NormalForm::kNfkd:
      return icu::Normalizer2::getNFKDInstance(status);
  }
  return nullptr;
}

// ICU inserts each mark of a run where it belongs, walking back over the run: quadratic in its
// length.
constexpr std::size_t kLongRun = 64;

/// `utf8` with every long run of marks in canonical order, which changes no normal form.
std::string OrderLongRuns(std::string_view utf8) {
  struct Mark {
    std::uint8_t order;
    std::string_view bytes;
  };
  std::string out;
  out.reserve(utf8.size());
  std::vector<Mark> run;
  const auto flush = [&] {
    if (run.size() > kLongRun) {
      std::stable_sort(run.begin(), run.end(),
                       [](const Mark& a, const Mark& b) { return a.order < b.order; });
    }
    for (const Mark& mark : run) {
      out += mark.bytes;
    }
    run.clear();
  };
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = DecodeAt(utf8, at);
    const std::uint8_t order =
        c.size == 1 ? std::uint8_t{0} : u_getCombiningClass(static_cast<UChar32>(c.value));
    if (order == 0) {
      flush();
      out += utf8.substr(at, c.size);
    } else {
      run.push_back({order, utf8.substr(at, c.size)});
    }
    at += c.size;
  }
  flush();
  return out;
}

bool HasLongRun(std::string_view utf8) {
  std::size_t run = 0;
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = DecodeAt(utf8, at);
    const bool mark = c.size > 1 && u_getCombiningClass(static_cast<UChar32>(c.value)) != 0;
    run = mark ? run + 1 : 0;
    if (run > kLongRun) {
      return true;
    }
    at += c.size;
  }
  return false;
}

}  // namespace

const std::uint8_t* const class_table = kTable.data();

std::uint8_t ClassOfSlow(char32_t c) { return Compute(c); }

void AppendUtf8(std::string& out, char32_t c) {
  const auto push = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | (c >> 6));
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | (c >> 12));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | (c >> 18));
    push(0x80 | ((c >> 12) & 0x3F));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

Utf8Prefix ReadUtf8(std::string_view bytes) {
  using Kind = Utf8Prefix::Kind;
  if (bytes.empty()) {
    return {Kind::kIncomplete, 0};
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) {
    return {Kind::kComplete, 1};
  }
  unsigned size = 0;
  unsigned char low = 0x80;  // of the second byte: excludes overlong forms and surrogates
  unsigned char high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    size = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    size = 3;
    low = first == 0xE0 ? 0xA0 : 0x80;
    high = first == 0xED ? 0x9F : 0xBF;
  } else if (first >= 0xF0 && first <= 0xF4) {
    size = 4;
    low = first == 0xF0 ? 0x90 : 0x80;
    high = first == 0xF4 ? 0x8F : 0xBF;
  } else {
    return {Kind::kInvalid, 1};
  }
  for (unsigned i = 1; i < size; ++i) {
    if (i == bytes.size()) {
      return {Kind::kIncomplete, i};
    }
    if (byte(i) < low || byte(i) > high) {
      return {Kind::kInvalid, i};
    }
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::kComplete, size};
}

bool IsValidUtf8(std::string_view bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    if (static_cast<unsigned char>(bytes[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Prefix prefix = ReadUtf8(bytes.substr(at));
    if (prefix.kind != Utf8Prefix::Kind::kComplete) {
      return false;
    }
    at += prefix.size;
  }
  return true;
}

std::string SanitizeUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Prefix prefix = ReadUtf8(bytes);
    out += prefix.kind == Utf8Prefix::Kind::kComplete ? bytes.substr(0, prefix.size) : kReplacement;
    bytes.remove_prefix(prefix.size);
  }
  return out;
}

std::string Normalize(std::string_view utf8, NormalForm form) {
  const bool ascii = std::none_of(utf8.begin(), utf8.end(),
                                  [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
  const icu::Normalizer2* normalizer = ascii ? nullptr : Instance(form);
  if (normalizer == nullptr) {
    return std::string(utf8);
  }
  std::string ordered;
  if (HasLongRun(utf8)) {
    ordered = OrderLongRuns(utf8);
    utf8 = ordered;
  }
  std::string out;
  out.reserve(utf8.size() + utf8.size() / 8);
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode status = U_ZERO_ERROR;
  // ICU counts in int32; pieces are cut at a line feed, across which nothing composes.
  constexpr std::size_t kChunk = std::size_t{1} << 30;
  while (!utf8.empty() && U_SUCCESS(status)) {
    std::size_t size = utf8.size();
    if (size > kChunk) {
      const std::size_t newline = utf8.rfind('\n', kChunk);
      size = newline == std::string_view::npos ? kChunk : newline + 1;
    }
    normalizer->normalizeUTF8(0, icu::StringPiece(utf8.data(), static_cast<std::int32_t>(size)),
                              sink, nullptr, status);
    utf8.remove_prefix(size);
  }
  return out;
}

std::string Lowercase(std::string_view utf8) {
  std::string out;
  out.reserve(utf8.size());
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = DecodeAt(utf8, at);
    at += c.size;
    if (c.value == 0x130) {  // the one letter whose lower case is two code points
      out += "i\xCC\x87";
    } else {
      AppendUtf8(out, static_cast<char32_t>(u_tolower(static_cast<UChar32>(c.value))));
    }
  }
  return out;
}

std::string WithoutAccents(std::string_view utf8) {
  std::string out;
  out.reserve(utf8.size());
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = DecodeAt(utf8, at);
    if ((ClassOf(c.value) & kMark) == 0) {
      out += utf8.substr(at, c.size);
    }
    at += c.size;
  }
  return out;
}

}  // namespace nibble::text
