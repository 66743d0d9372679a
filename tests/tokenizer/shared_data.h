#pragma once

#include <zlib.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

namespace nibble {

/// The folder of the evaluation data, which lies beside a checkout or where NIBBLE_SHARED_DATA
/// says.
inline std::string SharedData() {
  const char* const variable = std::getenv("NIBBLE_SHARED_DATA");
  return variable != nullptr ? variable : std::string(NIBBLE_SOURCE_DIR) + "/../shared/data";
}

/// A file's bytes; gzip is undone. Empty if there is no such file.
inline std::string ReadMaybeGzip(const std::string& path) {
  std::string out;
  const gzFile file = gzopen(path.c_str(), "rb");  // reads plain files as they are
  if (file == nullptr) {
    return out;
  }
  std::array<char, 1 << 16> buffer{};
  int size = 0;
  while ((size = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0) {
    out.append(buffer.data(), static_cast<std::size_t>(size));
  }
  gzclose(file);
  return out;
}

}  // namespace nibble
