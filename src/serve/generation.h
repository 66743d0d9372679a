#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "engine/engine.h"
#include "serve/http.h"
#include "serve/openai_api.h"
#include "serve/sse_stream.h"

namespace nibble {

class Generation;

/// The requests now queued or running, for drain and for limits per tenant. Any thread.
class GenerationRegistry {
 public:
  /// False if the tenant already has max_per_tenant (0: no limit) requests.
  bool Add(const std::shared_ptr<Generation>& generation, const std::string& tenant,
           int max_per_tenant);
  void Remove(Generation* generation, const std::string& tenant);
  std::size_t size() const;
  /// Since when there has been work without a pause; empty: there is none.
  std::optional<Clock::TimePoint> busy_since() const;
  /// Ends everything with an error that says so.
  void ShutdownAll();

 private:
  mutable std::mutex mutex_;
  std::map<Generation*, std::shared_ptr<Generation>> active_;
  std::map<std::string, int> per_tenant_;
  Clock::TimePoint busy_since_{};
};

/// One client request from Submit to the last byte. Engine events come in on the engine thread and
/// are posted to the connection's I/O thread; everything else happens there. It ends when all
/// choices have, when the client leaves (the engine is told at once), or at shutdown.
///
/// A slow reader: while more than limits::kStreamBufferBytes wait to be sent, events are not turned
/// into JSON but joined, one pending event a choice, and go out when the client has caught up. The
/// connection's write-stall timeout ends a client that reads nothing.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  struct Services {
    Engine& engine;
    const ModelText& text;
    GenerationRegistry& registry;
    std::size_t stream_buffer_bytes = limits::kStreamBufferBytes;
    int max_requests_per_tenant = 0;
  };

  /// Submits the request and answers on `writer`, whatever happens. On the writer's I/O thread.
  static void Start(const Services& services, ApiRequest request, std::string tenant,
                    std::shared_ptr<ResponseWriter> writer);

  Generation(const Services& services, ApiRequest request, std::string tenant,
             std::shared_ptr<ResponseWriter> writer);

  void Shutdown();  // any thread

 private:
  class PromptSink;

  std::optional<ApiError> SubmitAll();
  void OnEvent(std::size_t prompt, OutputEvent event);
  void Write(std::size_t prompt, const OutputEvent& event);
  void Hold(std::size_t prompt, OutputEvent event);
  void OnDrained();
  void FinishIfComplete();
  void Fail(const ApiError& error);
  void CancelAll();
  void End();

  Services services_;
  const ApiRequest request_;
  const std::string tenant_;
  std::shared_ptr<ResponseWriter> writer_;
  std::shared_ptr<IoExecutor> executor_;
  SseStream stream_;
  std::vector<RequestId> ids_;
  std::vector<PromptState> prompts_;
  std::map<std::pair<std::size_t, std::int32_t>, OutputEvent> held_;  // by prompt and choice
  std::size_t num_open_ = 0;  // choices that have not finished
  bool ended_ = false;
};

}  // namespace nibble
