#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble::text {

/// GPT-2's printable alphabet for bytes: 33-126, 161-172 and 174-255 stand for themselves, the
/// other 68 bytes for U+0100 onwards ("Ġ", U+0120, is the space).
char32_t ByteToChar(unsigned char byte);
/// The byte that a character of the alphabet stands for, or nullopt.
std::optional<unsigned char> CharToByte(char32_t c);

/// Any bytes -> text in the alphabet.
std::string BytesToChars(std::string_view bytes);
/// Valid UTF-8 -> bytes; nullopt if a character is not of the alphabet.
std::optional<std::string> CharsToBytes(std::string_view utf8);

}  // namespace nibble::text
