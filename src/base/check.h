#pragma once

namespace nibble {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const char* message);
}  // namespace nibble

/// For our own bugs only: no byte of a file or a client may make one fail.
#define NIBBLE_CHECK(condition, message)                                \
  do {                                                                  \
    if (!(condition)) [[unlikely]] {                                    \
      ::nibble::CheckFailed(__FILE__, __LINE__, #condition, (message)); \
    }                                                                   \
  } while (false)
