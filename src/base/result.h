#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace nibble {

/// What kind of thing went wrong. The command line maps these to exit codes, the server to HTTP
/// statuses.
enum class ErrorCode {
  kInvalidArgument,  // the caller's value is wrong: flag, request field, shape
  kNotFound,         // a file, tensor, key or model that should exist does not
  kCorruptFile,      // a file breaks its format or its checksum
  kUnsupported,      // well-formed, but nibble cannot do it (yet)
  kLimitExceeded,    // larger than a limit of base/limits.h or than a flag allows
  kIo,               // the operating system refused: open, read, write, fsync
  kOutOfMemory,      // does not fit in the memory plan or in the machine
  kUnavailable,      // device, service or engine not available now
  kCancelled,        // the caller gave up: signal, disconnect
  kInternal,         // our bug, reported instead of hidden
};

const char* ErrorCodeName(ErrorCode code);

/// message: one sentence for the person who can mend it, naming the file, field or tensor.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;

inline tl::unexpected<Error> Fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

/// Passes an Error up with a prefix, e.g. the file it happened in.
inline tl::unexpected<Error> Fail(Error error, const std::string& prefix) {
  return tl::unexpected<Error>(Error{error.code, prefix + error.message});
}

}  // namespace nibble

#define NIBBLE_CONCAT_(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_(a, b)

/// NIBBLE_TRY(value, Expression()) declares `value`, or returns the Error.
#define NIBBLE_TRY(name, ...) NIBBLE_TRY_(NIBBLE_CONCAT(nibble_try_, __LINE__), name, __VA_ARGS__)
#define NIBBLE_TRY_(tmp, name, ...)                                 \
  auto tmp = (__VA_ARGS__);                                         \
  if (!tmp) {                                                       \
    return tl::unexpected<::nibble::Error>(std::move(tmp.error())); \
  }                                                                 \
  auto name = std::move(*tmp)

/// For Result<void>: returns the Error, if any.
#define NIBBLE_TRY_VOID(...) NIBBLE_TRY_VOID_(NIBBLE_CONCAT(nibble_try_, __LINE__), __VA_ARGS__)
#define NIBBLE_TRY_VOID_(tmp, ...)                                    \
  do {                                                                \
    auto tmp = (__VA_ARGS__);                                         \
    if (!tmp) {                                                       \
      return tl::unexpected<::nibble::Error>(std::move(tmp.error())); \
    }                                                                 \
  } while (false)
