#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/limits.h"
#include "base/result.h"
#include "serve/http.h"
#include "serve/http1_parser.h"
#include "serve/router.h"

namespace nibble {

struct HttpServerConfig {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  // 0: any free one
  int num_io_threads = 2;
  int max_connections = limits::kConnections;
  int max_connections_per_address = limits::kConnectionsPerAddress;
  std::size_t max_buffered_body_bytes = 16 * limits::kBodyBytes;  // unfinished, of all connections
  // The kernel's part of a stream's buffer: left to itself it grows to megabytes for a slow reader.
  int send_buffer_bytes = static_cast<int>(limits::kStreamBufferBytes);
  Http1Limits http1;
  // What one connection may take its time for.
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_grace{10'000};  // then at least min_body_bytes_per_s
  std::size_t min_body_bytes_per_s = 1024;
  std::chrono::milliseconds idle_timeout{75'000};
  std::chrono::milliseconds write_stall_timeout{30'000};
};

/// HTTP/1.1 over TCP on num_io_threads threads, each with its own event loop and its own listener
/// (SO_REUSEPORT). A connection never changes thread, so nothing of it is locked. All waiting is
/// bounded by the timeouts above; a client that goes away is noticed at once, also while its
/// request is queued or runs.
class HttpServer {
 public:
  /// Binds. Errors: kInvalidArgument, kUnavailable (in use), kIo; the message names the address.
  static Result<std::unique_ptr<HttpServer>> Create(
      const HttpServerConfig& config, Router router,
      std::function<void(const AccessRecord&)> on_access);
  virtual ~HttpServer() = default;

  virtual std::uint16_t port() const = 0;
  /// Starts the I/O threads and accepts.
  virtual void Start() = 0;
  /// Closes the listeners and idle connections; every later answer closes its connection.
  virtual void StopListening() = 0;
  /// Waits until all answers are sent, up to flush_timeout, then cuts what is left and joins the
  /// threads. The destructor does the same with no wait.
  virtual void Shutdown(std::chrono::milliseconds flush_timeout) = 0;
  virtual int num_connections() const = 0;
};

}  // namespace nibble
