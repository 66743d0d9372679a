#pragma once

#include <string_view>

namespace nibble {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Lines on standard error, one call one line. Nothing from a client or a file is written
/// unescaped: callers pass foreign text through Quote (base/text.h).
void Log(LogLevel level, std::string_view message);
void SetLogLevel(LogLevel level);

}  // namespace nibble
