#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// Foreign bytes made fit for a message: control characters and invalid UTF-8 escaped as \xNN, cut
/// at 64 bytes.
std::string Quote(std::string_view foreign);

/// "98.4 MB", "1.20 GB": decimal units, three significant digits.
std::string HumanBytes(double bytes);

/// Is this well-formed UTF-8 (no surrogates, no overlong forms)?
bool IsUtf8(std::string_view text);

}  // namespace nibble
