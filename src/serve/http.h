#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct HttpHeader {
  std::string name;  // of a request: lower case
  std::string value;
};

/// One request as it came off the wire, whatever the protocol version.
struct HttpRequest {
  std::string method;
  std::string path;   // percent-decoded, without the query
  std::string query;  // after '?', as sent
  int minor_version = 1;
  std::vector<HttpHeader> headers;
  std::string body;
  bool keep_alive = true;
  bool expects_continue = false;
  std::string remote_address;
  std::string request_id;  // the client's X-Request-Id if it is fit to be echoed, else ours

  /// The value of the first header of that (lower-case) name, or nullptr.
  const std::string* Find(std::string_view lower_name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";  // empty: no such header
  std::string body{};
  std::vector<HttpHeader> headers{};
};

/// "Bad Request" for 400, and so on.
const char* ReasonPhrase(int status);

/// Runs functions on one I/O thread, in the order in which they were posted. Posting is cheap and
/// coalesced: many posts of one engine step wake the thread once.
class IoExecutor {
 public:
  virtual ~IoExecutor() = default;
  virtual void Post(std::function<void()> task) = 0;
};

/// The way back to one client, for one request: HTTP/1.1 now; HTTP/2 and gRPC fit behind the same
/// calls. Use it on its I/O thread only
/// (executor()). Calls after Respond, Finish or an abort do
/// nothing.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  /// The whole answer.
  virtual void Respond(HttpResponse response) = 0;
  /// Or a stream: the head at once (body ignored), then events, then the end.
  virtual void BeginStream(HttpResponse head) = 0;
  /// Exactly one send to the network per event, unless the client's window is full.
  virtual void WriteEvent(std::string_view event) = 0;
  /// The last event and the end of the body, in the same send.
  virtual void Finish(std::string_view last_event) = 0;
  /// Bytes handed over and not yet taken by the client.
  virtual std::size_t buffered_bytes() const = 0;
  /// Called once if the client leaves before the end; not after Respond or Finish.
  virtual void OnAbort(std::function<void()> callback) = 0;
  /// Called whenever everything buffered has been taken by the client.
  virtual void OnDrained(std::function<void()> callback) = 0;
  /// May outlive the server: tasks posted after its end are dropped.
  virtual std::shared_ptr<IoExecutor> executor() = 0;
};

/// For logs and metrics, once a request.
struct AccessRecord {
  std::string_view method;
  std::string_view path;     // as the client sent it: quote it
  std::string_view handler;  // the route's pattern, "none" without a route: a closed set
  std::string_view request_id;
  std::string_view remote_address;
  int status = 0;  // 499: the client left before the answer
  std::size_t request_bytes = 0;
  std::size_t response_bytes = 0;
  double seconds = 0.0;
};

}  // namespace nibble
