#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "json/value.h"

// The first byte picks the limits, the rest is the document. What parses must survive being written
// and read again, in every style.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  if (size == 0) {
    return 0;
  }
  json::ParseLimits limits;
  limits.duplicates =
      (data[0] & 1) != 0 ? json::DuplicateKeys::kKeepLast : json::DuplicateKeys::kReject;
  if ((data[0] & 2) != 0) {
    limits.max_depth = 4;
    limits.max_values = 16;
    limits.max_string_bytes = 16;
    limits.max_bytes = 256;
  }
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  const auto value = json::Parse(text, limits);
  if (!value) {
    return 0;
  }
  const json::DumpStyle styles[] = {
      {},
      {.indent = 2, .key_separator = ": ", .sort_keys = true},
      {.item_separator = ", ", .key_separator = ": ", .python_floats = true}};
  for (const json::DumpStyle& style : styles) {
    const auto again = json::Parse(json::Dump(*value, style));
    if (!again || !(*again == *value)) {
      std::abort();
    }
  }
  return 0;
}
