#include "serve/router.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include "base/sha256.h"
#include "base/text.h"

namespace nibble {
namespace {

std::string ToLower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

// "name:80" -> "name", "[::1]:80" -> "[::1]".
std::string_view WithoutPort(std::string_view host) {
  const std::size_t bracket = host.find(']');
  const std::size_t colon = host.find(':', bracket == std::string_view::npos ? 0 : bracket);
  return host.substr(0, std::min(colon, host.size()));
}

bool Matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with('*')) {
    return pattern == path;
  }
  pattern.remove_suffix(1);
  return path.size() > pattern.size() && path.starts_with(pattern);
}

bool Allows(std::string_view methods, std::string_view method) {
  while (!methods.empty()) {
    const std::size_t comma = std::min(methods.find(','), methods.size());
    if (methods.substr(0, comma) == method) {
      return true;
    }
    methods.remove_prefix(std::min(comma + 1, methods.size()));
  }
  return false;
}

bool GuardedPrefix(std::string_view path) { return path == "/v1" || path.starts_with("/v1/"); }

std::string_view PresentedKey(const HttpRequest& request) {
  const std::string* header = request.Find("authorization");
  if (header == nullptr || header->size() < 7 || ToLower(header->substr(0, 7)) != "bearer ") {
    return {};
  }
  std::string_view key = std::string_view(*header).substr(7);
  while (!key.empty() && key.front() == ' ') {
    key.remove_prefix(1);
  }
  return key;
}

std::string Digest(std::string_view key) {
  return Sha256Hex(std::as_bytes(std::span(key.data(), key.size())));
}

bool JsonContentType(const HttpRequest& request) {
  const std::string* header = request.Find("content-type");
  if (header == nullptr) {
    return true;
  }
  std::string type = ToLower(std::string_view(*header).substr(0, header->find(';')));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) {
    type.pop_back();
  }
  return type.empty() || type == "application/json" ||
         (type.starts_with("application/") && type.ends_with("+json"));
}

bool PlainContentEncoding(const HttpRequest& request) {
  const std::string* header = request.Find("content-encoding");
  return header == nullptr || header->empty() || ToLower(*header) == "identity";
}

}  // namespace

bool IsLoopbackHost(std::string_view host) {
  const std::string name = ToLower(host);
  if (name == "localhost" || name.ends_with(".localhost") || name == "[::1]" || name == "::1") {
    return true;
  }
  // Only the address itself: 127.0.0.1.example.com is somebody else's name.
  return name.starts_with("127.") && std::count(name.begin(), name.end(), '.') == 3 &&
         name.find_first_not_of("0123456789.") == std::string::npos;
}

std::string UsableRequestId(const HttpRequest& request) {
  const std::string* id = request.Find("x-request-id");
  const auto fit = [](char c) { return c > 0x20 && c < 0x7F && c != '"' && c != '\\'; };
  if (id == nullptr || id->empty() || id->size() > 128 ||
      !std::all_of(id->begin(), id->end(), fit)) {
    return {};
  }
  return *id;
}

Router::Router(AccessConfig access, std::vector<Route> routes)
    : access_(std::move(access)), routes_(std::move(routes)) {}

bool Router::KeyIsValid(const HttpRequest& request) const {
  const std::string presented = Digest(PresentedKey(request));
  // Every entry and every character is visited, so time tells nothing about the keys.
  bool valid = false;
  for (const std::string& digest : access_.key_digests) {
    unsigned difference = digest.size() == presented.size() ? 0U : 1U;
    for (std::size_t i = 0; i < std::min(digest.size(), presented.size()); ++i) {
      difference |= static_cast<unsigned>(static_cast<unsigned char>(digest[i]) ^
                                          static_cast<unsigned char>(presented[i]));
    }
    valid = valid || difference == 0U;
  }
  return valid;
}

std::string Router::Tenant(const HttpRequest& request) const {
  return access_.key_digests.empty() ? std::string() : Digest(PresentedKey(request));
}

bool Router::OriginAllowed(std::string_view origin) const {
  for (const std::string& allowed : access_.allowed_origins) {
    if (allowed == "*" || allowed == origin) {
      return true;
    }
  }
  const std::size_t scheme = origin.find("://");
  return scheme != std::string_view::npos && IsLoopbackHost(WithoutPort(origin.substr(scheme + 3)));
}

std::vector<HttpHeader> Router::CommonHeaders(const HttpRequest& request) const {
  std::vector<HttpHeader> headers{{"X-Request-Id", request.request_id}};
  const std::string* origin = request.Find("origin");
  if (origin != nullptr && OriginAllowed(*origin)) {
    headers.push_back({"Access-Control-Allow-Origin", *origin});
    headers.push_back({"Access-Control-Expose-Headers", "X-Request-Id"});
    headers.push_back({"Vary", "Origin"});
  }
  return headers;
}

Router::Decision Router::Decide(const HttpRequest& request) const {
  Decision decision;
  const auto refuse = [&](int status, std::string message) {
    decision.route = nullptr;
    decision.reply =
        std::make_unique<HttpResponse>(ErrorResponse(MakeApiError(status, std::move(message))));
  };

  const std::string* host = request.Find("host");
  if (host != nullptr && !access_.allowed_hosts.empty()) {
    const std::string name = ToLower(WithoutPort(*host));
    const bool known = std::find(access_.allowed_hosts.begin(), access_.allowed_hosts.end(),
                                 name) != access_.allowed_hosts.end();
    if (!known && !IsLoopbackHost(name)) {
      refuse(403, "This server answers only to its own host names.");
      return decision;
    }
  }

  if (request.method == "OPTIONS") {  // a browser's preflight; never guarded by a key
    decision.reply =
        std::make_unique<HttpResponse>(HttpResponse{.status = 204, .content_type = ""});
    const std::string* asked = request.Find("access-control-request-headers");
    decision.reply->headers = {
        {"Allow", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Headers",
         asked != nullptr && asked->size() <= 1024 ? *asked : "Authorization, Content-Type"},
        {"Access-Control-Max-Age", "600"}};
    return decision;
  }

  const bool keys = !access_.key_digests.empty();
  if (keys && GuardedPrefix(request.path) && !KeyIsValid(request)) {
    refuse(401, "The API key is missing or wrong: send it as \"Authorization: Bearer KEY\".");
    return decision;
  }

  std::string allowed;
  for (const Route& route : routes_) {
    if (!Matches(route.path, request.path)) {
      continue;
    }
    decision.pattern = route.path;
    const bool get_of_head = request.method == "HEAD" && Allows(route.methods, "GET");
    if (!Allows(route.methods, request.method) && !get_of_head) {
      allowed += allowed.empty() ? "" : ", ";
      allowed += route.methods;
      continue;
    }
    if (keys && route.policy == RoutePolicy::kKey && !KeyIsValid(request)) {
      refuse(401, "The API key is missing or wrong: send it as \"Authorization: Bearer KEY\".");
      return decision;
    }
    if (request.method == "POST" && !JsonContentType(request)) {
      refuse(415, "The content type must be application/json.");
      return decision;
    }
    if (!PlainContentEncoding(request)) {
      refuse(415, "Compressed request bodies are not accepted.");
      return decision;
    }
    decision.route = &route;
    return decision;
  }
  if (!allowed.empty()) {
    refuse(405, "Method Not Allowed");
    decision.reply->headers.push_back({"Allow", allowed});
    return decision;
  }
  refuse(404, "Not Found: there is no " + Quote(request.path) + " here.");
  decision.reply->headers.clear();
  return decision;
}

}  // namespace nibble
