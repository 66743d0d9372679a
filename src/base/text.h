#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// Foreign bytes made fit for a message: control characters and invalid UTF-8 escaped as \xNN, cut
/// at 64 bytes.
std::string Quote(std::string_view foreign);

/// "98.4 MB", "1.20 GB": decimal units, three significant digits.
std::string HumanBytes(double bytes);

/// A number of bytes as people write it: "1073741824", "1.5g" or "1.5GB" (1000 a step), "4G" or
/// "4GiB" (1024 a step; whole numbers only). The single letters are vLLM's. Nothing for other text
/// and for more than 2^63.
std::optional<std::uint64_t> ParseBytes(std::string_view text);

/// Is this well-formed UTF-8 (no surrogates, no overlong forms)?
bool IsUtf8(std::string_view text);
/// Bytes before the first that is none, or all.
std::size_t Utf8Bytes(std::string_view text);

}  // namespace nibble
