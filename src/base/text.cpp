#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <optional>

#include "base/limits.h"

namespace nibble {
namespace {

// Length of the well-formed UTF-8 sequence at the front, or 0.
std::size_t Utf8Length(std::string_view text) {
  const auto at = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto tail = [&](std::size_t i) { return (at(i) & 0xC0U) == 0x80U; };
  const unsigned lead = at(0);
  if (text.empty()) {
    return 0;
  }
  if (lead < 0x80U) {
    return 1;
  }
  if (lead >= 0xC2U && lead <= 0xDFU) {
    return tail(1) ? 2 : 0;
  }
  if (lead >= 0xE0U && lead <= 0xEFU) {
    const bool ok =
        tail(1) && tail(2) && (lead != 0xE0U || at(1) >= 0xA0U) && (lead != 0xEDU || at(1) < 0xA0U);
    return ok ? 3 : 0;
  }
  if (lead >= 0xF0U && lead <= 0xF4U) {
    const bool ok = tail(1) && tail(2) && tail(3) && (lead != 0xF0U || at(1) >= 0x90U) &&
                    (lead != 0xF4U || at(1) < 0x90U);
    return ok ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string Quote(std::string_view foreign) {
  std::string out;
  std::size_t i = 0;
  while (i < foreign.size() && i < limits::kQuotedBytes) {
    const std::size_t length = Utf8Length(foreign.substr(i));
    const auto byte = static_cast<unsigned char>(foreign[i]);
    if (length == 0 || byte < 0x20U || byte == 0x7FU) {
      out += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      out.append(foreign.substr(i, length));
      i += length;
    }
  }
  if (i < foreign.size()) {
    out += "...";
  }
  return out;
}

std::string HumanBytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < kUnits.size()) {
    bytes /= 1000.0;
    ++unit;
  }
  const int digits = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", bytes, digits, kUnits[unit]);
}

std::optional<std::uint64_t> ParseBytes(std::string_view text) {
  constexpr std::string_view kLetters = "kmgt";
  const std::size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string_view number = text.substr(0, digits);
  const std::string_view unit = text.substr(digits);
  double scale = 1.0;
  bool binary = false;
  if (!unit.empty() && unit != "B") {
    const std::string_view rest = unit.substr(1);
    const bool is_lower = unit[0] >= 'a';
    const std::size_t power = kLetters.find(is_lower ? unit[0] : static_cast<char>(unit[0] + 32));
    if (power == std::string_view::npos || (!rest.empty() && rest != "B" && rest != "iB")) {
      return std::nullopt;
    }
    binary = rest == "iB" || (rest.empty() && !is_lower);
    for (std::size_t i = 0; i <= power; ++i) {
      scale *= binary ? 1024.0 : 1000.0;
    }
  }
  if (binary && number.find('.') != std::string_view::npos) {
    return std::nullopt;
  }
  double value = 0.0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (error != std::errc{} || end != number.data() + number.size() || value * scale > 0x1p63) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(value * scale);
}

bool IsUtf8(std::string_view text) { return Utf8Bytes(text) == text.size(); }

std::size_t Utf8Bytes(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const std::size_t length = Utf8Length(text.substr(i));
    if (length == 0) {
      break;
    }
    i += length;
  }
  return i;
}

}  // namespace nibble
