#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

// Codes in words of 32 bits, as GPTQ, AWQ and compressed-tensors keep them: one little-endian
// stream of bits, the first code lowest. At 2, 4 and 8 bits a word holds whole codes; at 3, 5, 6
// and 7 some codes begin in one word and end in the next.

namespace nibble {

/// Words of a stream of `count` codes.
constexpr std::int64_t CodeWords(std::int64_t count, int bits) { return (count * bits + 31) / 32; }

/// Words of `count` codes of which none is torn, the spare bits of each word unused.
constexpr std::int64_t WholeCodeWords(std::int64_t count, int bits) {
  return (count + 32 / bits - 1) / (32 / bits);
}

/// Code `index` of a stream whose word w lies at words + 4 * stride * w.
inline std::uint32_t CodeAt(const std::byte* words, std::int64_t stride, int bits,
                            std::int64_t index) {
  const std::int64_t bit = index * bits;
  const std::byte* at = words + bit / 32 * stride * 4;
  const auto shift = static_cast<unsigned>(bit % 32);
  std::uint32_t word = 0;
  std::memcpy(&word, at, sizeof word);
  std::uint32_t code = word >> shift;
  if (shift + static_cast<unsigned>(bits) > 32) {
    std::memcpy(&word, at + stride * 4, sizeof word);
    code |= word << (32 - shift);
  }
  return code & ((1U << static_cast<unsigned>(bits)) - 1U);
}

/// Adds code `index` to a stream of zeros.
inline void PutCode(std::span<std::uint32_t> words, std::int64_t stride, int bits,
                    std::int64_t index, std::uint32_t code) {
  const std::int64_t bit = index * bits;
  const auto at = static_cast<std::size_t>(bit / 32 * stride);
  const auto shift = static_cast<unsigned>(bit % 32);
  words[at] |= code << shift;
  if (shift + static_cast<unsigned>(bits) > 32) {
    words[at + static_cast<std::size_t>(stride)] |= code >> (32 - shift);
  }
}

/// Rows of `cols` codes, a stream each: the bytes of [rows][CodeWords(cols, bits)] words.
inline std::string RowStreams(std::span<const std::uint8_t> codes, std::int64_t cols, int bits) {
  const auto width = static_cast<std::size_t>(cols);
  std::string bytes;
  std::vector<std::uint32_t> words(static_cast<std::size_t>(CodeWords(cols, bits)));
  for (; !codes.empty(); codes = codes.subspan(width)) {
    std::ranges::fill(words, 0U);
    for (std::int64_t col = 0; col < cols; ++col) {
      PutCode(words, 1, bits, col, codes[static_cast<std::size_t>(col)]);
    }
    bytes.append(reinterpret_cast<const char*>(words.data()), words.size() * sizeof words[0]);
  }
  return bytes;
}

}  // namespace nibble
