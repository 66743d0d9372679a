#include "tokenizer/byte_level.h"

#include <array>

#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr char32_t kFirstMoved = 0x100;
constexpr unsigned kMoved = 68;

constexpr bool StandsForItself(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

struct Alphabet {
  std::array<char32_t, 256> chars{};
  std::array<unsigned char, kMoved> moved{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  unsigned moved = 0;
  for (unsigned byte = 0; byte < alphabet.chars.size(); ++byte) {
    if (StandsForItself(byte)) {
      alphabet.chars[byte] = byte;
    } else {
      alphabet.chars[byte] = kFirstMoved + moved;
      alphabet.moved[moved] = static_cast<unsigned char>(byte);
      ++moved;
    }
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t ByteToChar(unsigned char byte) { return kAlphabet.chars[byte]; }

std::optional<unsigned char> CharToByte(char32_t c) {
  if (c < kFirstMoved) {
    const auto byte = static_cast<unsigned char>(c);
    return StandsForItself(byte) ? std::optional(byte) : std::nullopt;
  }
  const char32_t moved = c - kFirstMoved;
  return moved < kMoved ? std::optional(kAlphabet.moved[moved]) : std::nullopt;
}

std::string BytesToChars(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char c : bytes) {
    AppendUtf8(out, ByteToChar(static_cast<unsigned char>(c)));
  }
  return out;
}

std::optional<std::string> CharsToBytes(std::string_view utf8) {
  std::string out;
  out.reserve(utf8.size());
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = DecodeAt(utf8, at);
    const auto byte = CharToByte(c.value);
    if (!byte) {
      return std::nullopt;
    }
    out.push_back(static_cast<char>(*byte));
    at += c.size;
  }
  return out;
}

}  // namespace nibble::text
