#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serve/api_error.h"
#include "serve/http.h"

namespace nibble {

/// Who may call a route. There is no default: a route without a policy does not compile.
enum class RoutePolicy { kPublic, kKey };

using RouteHandler = std::function<void(HttpRequest, std::shared_ptr<ResponseWriter>)>;

struct Route {
  Route(RoutePolicy policy_in, std::string_view methods_in, std::string path_in,
        RouteHandler handler_in)
      : policy(policy_in),
        methods(methods_in),
        path(std::move(path_in)),
        handler(std::move(handler_in)) {}

  RoutePolicy policy;
  std::string_view methods;  // "GET" or "GET,POST": a literal
  std::string path;          // "/v1/models", or "/v1/models/*": * is one or more of any character
  RouteHandler handler;
};

struct AccessConfig {
  /// Lower-case hex SHA-256 of each valid key; empty: no keys are asked for.
  std::vector<std::string> key_digests;
  /// Host names a client may use, without port; empty: any. Guards a loopback server against DNS
  /// rebinding.
  std::vector<std::string> allowed_hosts;
  /// Origins a browser page may call from; "*": any. Loopback origins are always allowed.
  std::vector<std::string> allowed_origins;
};

/// The door: who may come in, and where to. Decides everything that does not need the body.
class Router {
 public:
  Router(AccessConfig access, std::vector<Route> routes);

  struct Decision {
    const Route* route = nullptr;         // handle it, or
    std::unique_ptr<HttpResponse> reply;  // answer this at once
    std::string_view pattern = "none";    // for metrics
  };
  /// Host, CORS preflight, key, path, method, content type, in this order.
  Decision Decide(const HttpRequest& request) const;

  /// The headers every answer to this request carries: X-Request-Id, CORS.
  std::vector<HttpHeader> CommonHeaders(const HttpRequest& request) const;

  /// The digest of the key that came with the request, "" without keys: a name for the tenant.
  std::string Tenant(const HttpRequest& request) const;

 private:
  bool OriginAllowed(std::string_view origin) const;
  bool KeyIsValid(const HttpRequest& request) const;

  AccessConfig access_;
  std::vector<Route> routes_;
};

/// Is this a name or address of the machine itself? Without port: "localhost", "127.0.0.1",
/// "[::1]".
bool IsLoopbackHost(std::string_view host);

/// The client's X-Request-Id if it is 1..128 visible ASCII characters without quotes, else "".
std::string UsableRequestId(const HttpRequest& request);

}  // namespace nibble
