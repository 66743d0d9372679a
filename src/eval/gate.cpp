#include "eval/gate.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/text.h"

namespace nibble {
namespace {

std::string_view WithoutBlanks(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(' ');
  return begin == std::string_view::npos
             ? std::string_view()
             : text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

bool IsName(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.';
  });
}

}  // namespace

bool Gate::Holds(double value) const {
  if (is_upper) {
    return is_strict ? value < bound : value <= bound;
  }
  return is_strict ? value > bound : value >= bound;
}

Result<Gate> ParseGate(std::string_view text) {
  const auto wrong = [&] {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--gate {}: expected a number's name, one of <= < >= >, and the bound, "
                            "such as 'kl<=0.2' or 'arc_easy.acc>=0.5'",
                            Quote(text)));
  };
  const std::size_t sign = text.find_first_of("<>");
  if (sign == std::string_view::npos) {
    return wrong();
  }
  const bool or_equal = sign + 1 < text.size() && text[sign + 1] == '=';
  const std::string_view name = WithoutBlanks(text.substr(0, sign));
  const std::string_view bound = WithoutBlanks(text.substr(sign + (or_equal ? 2 : 1)));
  Gate gate{.text = std::string(text),
            .name = std::string(name),
            .is_upper = text[sign] == '<',
            .is_strict = !or_equal};
  const auto [end, error] = std::from_chars(bound.data(), bound.data() + bound.size(), gate.bound);
  if (!IsName(name) || error != std::errc{} || end != bound.data() + bound.size() ||
      !std::isfinite(gate.bound)) {
    return wrong();
  }
  return gate;
}

}  // namespace nibble
