#include "serve/server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <span>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/text.h"
#include "serve/generation.h"
#include "serve/metrics.h"
#include "serve/router.h"

namespace nibble {
namespace {

// Where the signal handler writes; a signal handler can reach nothing else.
std::atomic<int> g_stop_fd{-1};

void OnSignal(int /*signal*/) {
  const int saved = errno;
  const std::uint64_t one = 1;
  const int fd = g_stop_fd.load();
  if (fd >= 0) {
    [[maybe_unused]] const auto ignored = ::write(fd, &one, sizeof(one));
  }
  errno = saved;
}

// SIGTERM and SIGINT go to `fd` while this lives.
class SignalGuard {
 public:
  SignalGuard(bool enabled, int fd) : enabled_(enabled) {
    if (!enabled_) {
      return;
    }
    g_stop_fd = fd;
    struct sigaction action {};
    action.sa_handler = OnSignal;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGTERM, &action, &old_term_);
    ::sigaction(SIGINT, &action, &old_int_);
  }
  ~SignalGuard() {
    if (enabled_) {
      ::sigaction(SIGTERM, &old_term_, nullptr);
      ::sigaction(SIGINT, &old_int_, nullptr);
      g_stop_fd = -1;
    }
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  bool enabled_;
  struct sigaction old_term_ {};
  struct sigaction old_int_ {};
};

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerConfig config, Engine& engine, const ModelText& text)
      : config_(std::move(config)), engine_(engine), text_(text) {
    context_.model_names = config_.served_model_names;
    context_.engine = engine.config();
    context_.text = &text;
    context_.defaults = config_.sampling_defaults;
    context_.strict = config_.strict_api;
  }
  ~ServerImpl() override {
    http_.reset();  // its threads use the rest
    if (stop_fd_ >= 0) {
      ::close(stop_fd_);
    }
  }

  Result<void> Bind();
  std::uint16_t port() const override { return http_->port(); }
  Result<void> Run() override;
  void Stop() override {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(stop_fd_, &one, sizeof(one));
  }

 private:
  using Writer = std::shared_ptr<ResponseWriter>;
  using Parse = ApiResult<ApiRequest> (*)(std::string_view, const ApiContext&);
  using Answer = ApiResult<json::Value> (*)(std::string_view, const ApiContext&);

  std::vector<Route> Routes();
  void Generate(HttpRequest request, const Writer& writer, Parse parse, std::string_view prefix);
  void AnswerJson(const HttpRequest& request, const Writer& writer, Answer answer) const;
  void Health(const Writer& writer) const;
  void Ready(const Writer& writer) const;
  void Models(const Writer& writer) const;
  void Model(const HttpRequest& request, const Writer& writer) const;
  void Metrics(const Writer& writer) const;
  bool EngineAlive() const;
  int WaitForStop(std::chrono::milliseconds timeout) const;
  void OnAccess(const AccessRecord& record);

  ServerConfig config_;
  Engine& engine_;
  const ModelText& text_;
  ApiContext context_;
  std::int64_t created_ = UnixSeconds();
  HttpMetrics http_metrics_;
  GenerationRegistry registry_;
  std::atomic<bool> draining_{false};
  int stop_fd_ = -1;
  std::unique_ptr<Router> router_;  // for Tenant; the HTTP server has its own copy
  std::unique_ptr<HttpServer> http_;
};

Result<void> ServerImpl::Bind() {
  if (config_.served_model_names.empty()) {
    return Fail(ErrorCode::kInvalidArgument, "the server needs a model name to answer to");
  }
  const bool loopback = IsLoopbackHost(config_.http.host);
  if (!loopback && config_.api_keys.empty()) {
    if (!config_.insecure_bind) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} can be reached from other machines and there is no API key: set "
                              "one, or pass --insecure-bind to let anyone in",
                              Quote(config_.http.host)));
    }
    Log(LogLevel::kWarning,
        fmt::format("{} can be reached from other machines and no API key is asked for",
                    Quote(config_.http.host)));
  }
  stop_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_fd_ < 0) {
    return Fail(ErrorCode::kIo, "cannot create an event descriptor");
  }
  AccessConfig access;
  for (std::string& key : config_.api_keys) {
    if (key.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "an API key is empty");
    }
    access.key_digests.push_back(Sha256Hex(std::as_bytes(std::span(key.data(), key.size()))));
    key.clear();
  }
  if (loopback) {
    access.allowed_hosts = config_.allowed_hosts;
    access.allowed_hosts.push_back(config_.http.host);
  }
  access.allowed_origins = config_.allowed_origins;
  router_ = std::make_unique<Router>(access, std::vector<Route>());
  NIBBLE_TRY(http, HttpServer::Create(config_.http, Router(std::move(access), Routes()),
                                      [this](const AccessRecord& record) { OnAccess(record); }));
  http_ = std::move(http);
  return {};
}

std::vector<Route> ServerImpl::Routes() {
  const auto route = [](RoutePolicy policy, std::string_view methods, std::string path,
                        auto handler) {
    return Route(policy, methods, std::move(path), std::move(handler));
  };
  const auto generate = [this](Parse parse, std::string_view prefix) {
    return [this, parse, prefix](HttpRequest request, const Writer& writer) {
      Generate(std::move(request), writer, parse, prefix);
    };
  };
  const auto answer = [this](Answer function) {
    return [this, function](const HttpRequest& request, const Writer& writer) {
      AnswerJson(request, writer, function);
    };
  };
  const auto show = [this](void (ServerImpl::*method)(const Writer&) const) {
    return [this, method](const HttpRequest&, const Writer& writer) { (this->*method)(writer); };
  };
  constexpr auto kKey = RoutePolicy::kKey;
  constexpr auto kPublic = RoutePolicy::kPublic;
  std::vector<Route> routes;
  routes.push_back(
      route(kKey, "POST", "/v1/chat/completions", generate(ParseChatCompletion, "chatcmpl-")));
  routes.push_back(route(kKey, "POST", "/v1/completions", generate(ParseCompletion, "cmpl-")));
  routes.push_back(route(kKey, "GET", "/v1/models", show(&ServerImpl::Models)));
  routes.push_back(
      route(kKey, "GET", "/v1/models/*",
            [this](const HttpRequest& request, const Writer& writer) { Model(request, writer); }));
  routes.push_back(route(kPublic, "POST", "/tokenize", answer(Tokenize)));
  routes.push_back(route(kPublic, "POST", "/detokenize", answer(Detokenize)));
  routes.push_back(route(kPublic, "GET", "/health", show(&ServerImpl::Health)));
  routes.push_back(route(kPublic, "GET,POST", "/ping", show(&ServerImpl::Health)));
  routes.push_back(route(kPublic, "GET", "/ready", show(&ServerImpl::Ready)));
  routes.push_back(route(kPublic, "GET", "/live", [](const HttpRequest&, const Writer& writer) {
    writer->Respond({.content_type = ""});
  }));
  routes.push_back(
      route(kPublic, "GET", "/version", [this](const HttpRequest&, const Writer& writer) {
        json::Object body;
        body.Set("version", config_.version);
        writer->Respond({.body = json::Dump(body)});
      }));
  routes.push_back(route(kPublic, "GET", "/metrics", show(&ServerImpl::Metrics)));
  return routes;
}

void ServerImpl::Generate(HttpRequest request, const Writer& writer, Parse parse,
                          std::string_view prefix) {
  if (draining_) {
    writer->Respond(ErrorResponse(MakeApiError(503, "The server is shutting down.")));
    return;
  }
  auto parsed = parse(request.body, context_);
  if (!parsed) {
    writer->Respond(ErrorResponse(parsed.error()));
    return;
  }
  // The header names the request before the body's request_id does; without both it is ours.
  if (parsed->id.empty() || !UsableRequestId(request).empty()) {
    parsed->id = request.request_id;
  }
  parsed->id.insert(0, prefix);
  parsed->created = UnixSeconds();
  std::string tenant = router_->Tenant(request);
  const Clock::TimePoint now = SystemClock().Now();
  for (GenerationRequest& generation : parsed->requests) {
    generation.external_id = request.request_id;
    generation.deadline = now + config_.request_timeout;
    if (config_.queue_timeout.count() > 0) {
      generation.queue_deadline = now + config_.queue_timeout;
    }
    // The prefix cache is the tenant's own: others cannot find out what it holds.
    generation.cache_salt =
        tenant.empty() ? generation.cache_salt : tenant + ":" + generation.cache_salt;
  }
  request.body = {};
  const int per_tenant = tenant.empty() ? 0 : config_.max_requests_per_key;
  Generation::Start({.engine = engine_,
                     .text = text_,
                     .registry = registry_,
                     .max_requests_per_tenant = per_tenant},
                    std::move(*parsed), std::move(tenant), writer);
}

void ServerImpl::AnswerJson(const HttpRequest& request, const Writer& writer, Answer answer) const {
  const auto value = answer(request.body, context_);
  writer->Respond(value ? HttpResponse{.body = json::Dump(*value)} : ErrorResponse(value.error()));
}

bool ServerImpl::EngineAlive() const {
  const auto busy_since = registry_.busy_since();
  if (!busy_since) {
    return true;
  }
  const auto mark = std::max(*busy_since, engine_.Stats().last_step);
  return SystemClock().Now() - mark < config_.stall_timeout;
}

void ServerImpl::Health(const Writer& writer) const {
  if (!engine_.Stats().device_failure.empty()) {
    writer->Respond(ErrorResponse(MakeApiError(503, "The device is lost: restart the server.")));
    return;
  }
  writer->Respond(EngineAlive()
                      ? HttpResponse{.content_type = ""}
                      : ErrorResponse(MakeApiError(503, "The engine does not make progress.")));
}

void ServerImpl::Ready(const Writer& writer) const {
  if (draining_) {
    writer->Respond(ErrorResponse(MakeApiError(503, "The server is shutting down.")));
    return;
  }
  Health(writer);
}

void ServerImpl::Models(const Writer& writer) const {
  json::Array list;
  for (const std::string& name : context_.model_names) {
    list.push_back(ModelJson(name, config_.model_root, created_, context_));
  }
  json::Object body;
  body.Set("object", "list");
  body.Set("data", std::move(list));
  writer->Respond({.body = json::Dump(body)});
}

void ServerImpl::Model(const HttpRequest& request, const Writer& writer) const {
  const std::string name = request.path.substr(std::string_view("/v1/models/").size());
  for (const std::string& known : context_.model_names) {
    if (known == name) {
      writer->Respond(
          {.body = json::Dump(ModelJson(name, config_.model_root, created_, context_))});
      return;
    }
  }
  writer->Respond(ErrorResponse(UnknownModel(name)));
}

void ServerImpl::Metrics(const Writer& writer) const {
  std::string text =
      RenderEngineMetrics(engine_.Stats(), engine_.config(), context_.model_names.front());
  http_metrics_.Render(text);
  text += RenderProcessMetrics();
  writer->Respond(
      {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = std::move(text)});
}

void ServerImpl::OnAccess(const AccessRecord& record) {
  http_metrics_.Count(record);
  if (config_.log_requests) {
    Log(LogLevel::kInfo,
        fmt::format("{} {} {} {} {} bytes {:.3f} s id={}", record.remote_address,
                    Quote(record.method), Quote(record.path), record.status, record.response_bytes,
                    record.seconds, Quote(record.request_id)));
  }
}

// How often Stop was asked for within the timeout; 0 when it ran out.
int ServerImpl::WaitForStop(std::chrono::milliseconds timeout) const {
  pollfd entry{.fd = stop_fd_, .events = POLLIN, .revents = 0};
  if (::poll(&entry, 1, static_cast<int>(timeout.count())) <= 0) {
    return 0;
  }
  std::uint64_t count = 0;
  return ::read(stop_fd_, &count, sizeof(count)) == sizeof(count) ? static_cast<int>(count) : 0;
}

Result<void> ServerImpl::Run() {
  const SignalGuard signals(config_.handle_signals, stop_fd_);
  http_->Start();
  Log(LogLevel::kInfo, fmt::format("listening on http://{}:{}", config_.http.host, port()));
  if (config_.on_listening) {
    config_.on_listening(port());
  }
  int asked = 0;
  while (asked == 0) {
    asked = WaitForStop(std::chrono::seconds(3600));
  }

  Log(LogLevel::kInfo, fmt::format("draining: {} requests in flight", registry_.size()));
  draining_ = true;
  engine_.StartDraining();
  http_->StopListening();
  const auto deadline = SystemClock().Now() + config_.shutdown_timeout;
  while (asked < 2 && registry_.size() > 0 && SystemClock().Now() < deadline) {
    asked += WaitForStop(std::chrono::milliseconds(5));
  }
  if (registry_.size() > 0) {
    Log(LogLevel::kWarning, fmt::format("ending {} requests unfinished", registry_.size()));
    registry_.ShutdownAll();
  }
  http_->Shutdown(config_.flush_timeout);
  Log(LogLevel::kInfo, "stopped");
  return {};
}

}  // namespace

Result<std::unique_ptr<Server>> Server::Create(ServerConfig config, Engine& engine,
                                               const ModelText& text) {
  auto server = std::make_unique<ServerImpl>(std::move(config), engine, text);
  NIBBLE_TRY_VOID(server->Bind());
  return server;
}

}  // namespace nibble
