#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

#include "base/result.h"
#include "serve/http.h"

namespace nibble {

/// What a client is told when its request cannot be done. Types are vLLM's where it has one.
struct ApiError {
  int status = 400;
  std::string type = "BadRequestError";
  std::string message;    // ours, short; foreign bytes only through Quote
  std::string param;      // dotted path of the field; empty: null
  int retry_after_s = 0;  // 0: no retry-after header
};

template <typename T>
using ApiResult = tl::expected<T, ApiError>;

/// 400 for a field.
tl::unexpected<ApiError> BadField(std::string param, std::string message);
/// The error type that goes with a status.
const char* ErrorTypeFor(int status);
ApiError MakeApiError(int status, std::string message, std::string param = "");
/// An engine's or parser's Error as the client may see it.
ApiError FromError(const Error& error);

/// {"error":{"message","type","param","code"}}
std::string ErrorBody(const ApiError& error);
HttpResponse ErrorResponse(const ApiError& error);

}  // namespace nibble
