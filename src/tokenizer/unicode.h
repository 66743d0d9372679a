#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// What the tokenizer asks of Unicode: UTF-8, general categories (ICU's version) and normal forms.
namespace nibble::text {

// Bits of a code point's class.
inline constexpr std::uint8_t kLetter = 1;    // L*
inline constexpr std::uint8_t kMark = 2;      // M*
inline constexpr std::uint8_t kNumber = 4;    // N*
inline constexpr std::uint8_t kSpace = 8;     // White_Space, which is what \s means in tokenizers
inline constexpr std::uint8_t kNewline = 16;  // CR or LF
inline constexpr std::uint8_t kPunct = 32;    // P*
inline constexpr std::uint8_t kAsciiPunct = 64;  // !-/ :-@ [-` {-~
inline constexpr std::uint8_t kWord = 128;       // \w: Alphabetic, M, Nd, Pc, Join_Control

std::uint8_t ClassOfSlow(char32_t c);
extern const std::uint8_t* const class_table;  // of the code points below kClassTableSize
inline constexpr char32_t kClassTableSize = 0x800;

inline std::uint8_t ClassOf(char32_t c) {
  return c < kClassTableSize ? class_table[c] : ClassOfSlow(c);
}

/// One code point of valid UTF-8.
struct CodePoint {
  char32_t value = 0;
  unsigned size = 0;  // bytes, 1 to 4
};

/// The code point at `at`, which must start one in valid UTF-8.
inline CodePoint DecodeAt(std::string_view utf8, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(utf8[at + i]));
  };
  const char32_t first = byte(0);
  if (first < 0x80) {
    return {first, 1};
  }
  if (first < 0xE0) {
    return {((first & 0x1F) << 6) | (byte(1) & 0x3F), 2};
  }
  if (first < 0xF0) {
    return {((first & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F), 3};
  }
  return {((first & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) |
              (byte(3) & 0x3F),
          4};
}

/// Start of the code point that ends before `at` (at > 0).
inline std::size_t PreviousStart(std::string_view utf8, std::size_t at) {
  do {
    --at;
  } while (at > 0 && (static_cast<unsigned char>(utf8[at]) & 0xC0) == 0x80);
  return at;
}

void AppendUtf8(std::string& out, char32_t c);

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// How the bytes at the start of `bytes` read as UTF-8.
struct Utf8Prefix {
  enum class Kind { kComplete, kInvalid, kIncomplete };
  Kind kind = Kind::kInvalid;
  unsigned size = 0;  // of the code point, of the maximal invalid subpart, or of what there is
};
Utf8Prefix ReadUtf8(std::string_view bytes);

bool IsValidUtf8(std::string_view bytes);
/// Every maximal invalid subpart becomes one U+FFFD (what the Unicode standard recommends).
std::string SanitizeUtf8(std::string_view bytes);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
/// `utf8` must be valid.
std::string Normalize(std::string_view utf8, NormalForm form);
/// Code point by code point (no final sigma), as the reference library does.
std::string Lowercase(std::string_view utf8);
/// Without marks (M*).
std::string WithoutAccents(std::string_view utf8);

}  // namespace nibble::text
