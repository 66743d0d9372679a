#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "serve/http_server.h"
#include "serve/model_text.h"
#include "serve/openai_api.h"

namespace nibble {

struct ServerConfig {
  HttpServerConfig http;                        // address, threads, limits, timeouts of connections
  std::vector<std::string> served_model_names;  // at least one; the first is the default
  std::string model_root;                       // what /v1/models tells as `root`
  std::string version = "0.1.0";
  std::vector<std::string> api_keys;         // kept as digests only; empty: anyone may ask
  bool insecure_bind = false;                // allow a non-loopback address without keys
  std::vector<std::string> allowed_hosts;    // besides loopback names, on a loopback bind
  std::vector<std::string> allowed_origins;  // of browser pages, besides loopback; "*": any
  bool strict_api = false;                   // refuse unknown request fields
  SamplingDefaults sampling_defaults;        // of the model
  int max_requests_per_key = 256;            // at once; only with keys. 0: no limit
  std::chrono::seconds request_timeout{600};
  std::chrono::seconds queue_timeout{30};  // for a request to begin, else 503. 0: no limit
  std::chrono::milliseconds shutdown_timeout{25'000};  // for running requests to finish
  std::chrono::milliseconds flush_timeout{2'000};      // then for their last bytes
  std::chrono::seconds stall_timeout{60};  // work but no finished step: /health says 503
  bool handle_signals = true;              // SIGTERM and SIGINT drain; the second one aborts
  bool log_requests = true;                // one line each, never their content
  std::function<void(std::uint16_t port)> on_listening;
};

/// The OpenAI-compatible server over one engine. The engine's thread is the caller's: it must be
/// running Engine::RunLoop while Run runs, and may end after it.
class Server {
 public:
  /// Checks the configuration and binds. engine and text must outlive the server. Errors:
  /// kInvalidArgument (no model name; a public address without keys), kUnavailable (address in
  /// use), kIo.
  static Result<std::unique_ptr<Server>> Create(ServerConfig config, Engine& engine,
                                                const ModelText& text);
  virtual ~Server() = default;

  virtual std::uint16_t port() const = 0;
  /// Serves until Stop or a signal, then drains: /ready says 503, listeners close, new work is
  /// refused, running work gets shutdown_timeout, the rest ends with an error, streams are flushed.
  virtual Result<void> Run() = 0;
  /// Begins the drain; the second call cuts it short. Any thread, any number of times.
  virtual void Stop() = 0;
};

}  // namespace nibble
