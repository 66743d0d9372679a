#include "serve/api_error.h"

#include <fmt/format.h>

#include "json/value.h"

namespace nibble {

const char* ErrorTypeFor(int status) {
  switch (status) {
    case 400:
      return "BadRequestError";
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "NotFoundError";
    case 405:
      return "Method Not Allowed";
    case 408:
    case 504:
      return "timeout_error";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "UnprocessableEntityError";
    case 429:
      return "rate_limit_error";
    case 501:
      return "NotImplementedError";
    case 503:
      return "unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "InternalServerError";
  }
}

ApiError MakeApiError(int status, std::string message, std::string param) {
  return {.status = status,
          .type = ErrorTypeFor(status),
          .message = std::move(message),
          .param = std::move(param),
          .retry_after_s = status == 429 || status == 503 ? 1 : 0};
}

tl::unexpected<ApiError> BadField(std::string param, std::string message) {
  return tl::unexpected<ApiError>(MakeApiError(400, std::move(message), std::move(param)));
}

ApiError FromError(const Error& error) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kCorruptFile:
    case ErrorCode::kUnsupported:
      return MakeApiError(400, error.message);
    case ErrorCode::kLimitExceeded:
      return MakeApiError(429, error.message);
    case ErrorCode::kNotFound:
      return MakeApiError(404, error.message);
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled:
      return MakeApiError(503, error.message);
    case ErrorCode::kIo:
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kInternal:
      break;
  }
  // What went wrong inside is for the log, not for the network.
  return MakeApiError(500, "The server failed to process the request.");
}

std::string ErrorBody(const ApiError& error) {
  json::Object detail;
  detail.Set("message", error.message);
  detail.Set("type", error.type);
  detail.Set("param", error.param.empty() ? json::Value() : json::Value(error.param));
  detail.Set("code", error.status);
  json::Object body;
  body.Set("error", std::move(detail));
  return json::Dump(body);
}

HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = ErrorBody(error)};
  if (error.retry_after_s > 0) {
    response.headers.push_back({"Retry-After", fmt::format("{}", error.retry_after_s)});
  }
  if (error.status == 401) {
    response.headers.push_back({"WWW-Authenticate", "Bearer"});
  }
  return response;
}

}  // namespace nibble
