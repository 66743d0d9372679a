#include "serve/http_server.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <ctime>
#include <deque>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/text.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;
using SteadyTime = std::chrono::steady_clock::time_point;

// Bytes a client may send ahead while its request runs; beyond it is no pipelining but a flood.
constexpr std::size_t kMaxPipelinedBytes = 64 * limits::kKiB;
constexpr std::size_t kReadBytes = 64 * limits::kKiB;
constexpr std::chrono::seconds kLingerTimeout{2};
constexpr std::chrono::milliseconds kAcceptRetry{100};

std::string HttpDate() {
  const std::time_t now = UnixSeconds();
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 40> text{};
  const std::size_t length =
      std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text.data(), length};
}

std::string RandomId() { return fmt::format("{:016x}{:016x}", Entropy(), Entropy()); }

// The IoExecutor of one thread. It is shared with whoever posts, so it may outlive the event loop.
class Mailbox final : public IoExecutor, public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(asio::io_context& io) : io_(&io) {}

  void Post(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    if (io_ == nullptr) {
      return;
    }
    tasks_.push_back(std::move(task));
    if (tasks_.size() == 1) {  // the first of a burst wakes the thread for all
      asio::post(*io_, [self = shared_from_this()] { self->Run(); });
    }
  }

  void Close() {
    const std::lock_guard lock(mutex_);
    io_ = nullptr;
  }

 private:
  void Run() {
    std::vector<std::function<void()>> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
    }
    for (const auto& task : tasks) {
      task();
    }
  }

  std::mutex mutex_;
  asio::io_context* io_;
  std::vector<std::function<void()>> tasks_;
};

class Connection;
class HttpServerImpl;

struct IoThread {
  IoThread() : io(1), acceptor(io), tick(io), mailbox(std::make_shared<Mailbox>(io)) {}

  asio::io_context io;
  tcp::acceptor acceptor;
  asio::steady_timer tick;
  std::shared_ptr<Mailbox> mailbox;
  std::list<std::shared_ptr<Connection>> connections;
  std::vector<char> read_buffer = std::vector<char>(kReadBytes);  // shared by its connections
  bool draining = false;
  std::thread thread;
};

// One request's way back over HTTP/1.1.
class Http1Writer final : public ResponseWriter, public std::enable_shared_from_this<Http1Writer> {
 public:
  Http1Writer(std::shared_ptr<Connection> connection, const HttpRequest& request);

  void Respond(HttpResponse response) override;
  void BeginStream(HttpResponse head) override;
  void WriteEvent(std::string_view event) override;
  void Finish(std::string_view last_event) override;
  std::size_t buffered_bytes() const override;
  void OnAbort(std::function<void()> callback) override { on_abort_ = std::move(callback); }
  void OnDrained(std::function<void()> callback) override { on_drained_ = std::move(callback); }
  std::shared_ptr<IoExecutor> executor() override { return mailbox_; }

  void set_common_headers(std::vector<HttpHeader> headers) { common_headers_ = std::move(headers); }
  void set_pattern(std::string_view pattern) { pattern_ = pattern; }
  void Drained() {
    if (on_drained_) {
      on_drained_();
    }
  }
  // The connection is gone: nothing is sent any more. With notify the owner of the request hears
  // it.
  void Detach(bool notify);

 private:
  std::string Head(const HttpResponse& response, std::string_view framing, bool keep_alive) const;
  std::string Framed(std::string_view event) const;
  void Done();
  // Once a request, and before its last byte leaves: a client that has its answer finds it counted.
  void Record(int status);

  std::shared_ptr<Connection> connection_;
  std::shared_ptr<Mailbox> mailbox_;
  std::vector<HttpHeader> common_headers_;
  std::function<void()> on_abort_;
  std::function<void()> on_drained_;
  std::string method_, path_, request_id_, remote_address_;
  std::string pattern_ = "none";
  SteadyTime start_ = std::chrono::steady_clock::now();
  std::size_t request_bytes_ = 0;
  std::size_t response_bytes_ = 0;
  int status_ = 0;
  bool keep_alive_;
  bool chunked_;
  bool streaming_ = false;
  bool recorded_ = false;
};

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(HttpServerImpl& server, IoThread& thread, tcp::socket socket, std::string address);

  void Start();
  void Send(std::string bytes);
  void OnAnswered(bool keep_alive);
  void CheckTimeouts(SteadyTime now);
  void CloseIfIdle();
  void Close(bool notify);

  bool busy() const { return writer_ != nullptr || !out_.empty(); }
  std::size_t buffered_bytes() const { return buffered_bytes_; }
  HttpServerImpl& server() { return server_; }
  IoThread& thread() { return thread_; }
  const std::string& address() const { return address_; }
  std::list<std::shared_ptr<Connection>>::iterator self;

 private:
  void WaitReadable();
  void OnReadable();
  void Consume(std::string_view bytes);
  void OnHead();
  void Dispatch();
  void Refuse(int status, std::string message);
  bool CountBody(std::size_t bytes);
  void Flush();
  void Linger();

  HttpServerImpl& server_;
  IoThread& thread_;
  tcp::socket socket_;
  std::string address_;
  Http1Parser parser_;
  bool head_seen_ = false;
  std::size_t counted_body_bytes_ = 0;   // of the unfinished body, in the server's account
  std::shared_ptr<Http1Writer> writer_;  // of the request that runs
  std::string pipelined_;                // came while one ran
  std::deque<std::string> out_;
  std::size_t out_offset_ = 0;  // of out_.front()
  std::size_t buffered_bytes_ = 0;
  bool waiting_writable_ = false;
  bool close_after_flush_ = false;
  bool lingering_ = false;
  bool closed_ = false;
  SteadyTime idle_since_, message_since_, last_progress_;
};

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const HttpServerConfig& config, Router router,
                 std::function<void(const AccessRecord&)> on_access)
      : config_(config), router_(std::move(router)), on_access_(std::move(on_access)) {}
  ~HttpServerImpl() override { Shutdown(std::chrono::milliseconds(0)); }

  Result<void> Bind();
  std::uint16_t port() const override { return port_; }
  void Start() override;
  void StopListening() override;
  void Shutdown(std::chrono::milliseconds flush_timeout) override;
  int num_connections() const override { return num_connections_.load(); }

  // Stop 1 of the golden path: bytes have become a request; find its route and hand it over.
  void Handle(HttpRequest request, const std::shared_ptr<Http1Writer>& writer);
  void Record(const AccessRecord& record) {
    if (on_access_) {
      on_access_(record);
    }
  }
  // An answer that is already known from the head alone, or null: the body is then not read.
  std::unique_ptr<HttpResponse> EarlyRefusal(const HttpRequest& head) const {
    return std::move(router_.Decide(head).reply);
  }
  const HttpServerConfig& config() const { return config_; }
  // Replaces `before` by `now` in the account of unfinished bodies; false if it is overdrawn.
  bool CountBody(std::size_t now, std::size_t before) {
    const std::size_t total = body_bytes_.fetch_add(now - before) + now - before;
    return now <= before || total <= config_.max_buffered_body_bytes;
  }
  void Forget(const std::string& address);

 private:
  void Accept(IoThread& thread);
  void OnAccepted(IoThread& thread, tcp::socket socket);
  bool Admit(const std::string& address);
  void Tick(IoThread& thread);

  HttpServerConfig config_;
  Router router_;
  std::function<void(const AccessRecord&)> on_access_;
  std::vector<std::unique_ptr<IoThread>> threads_;
  std::uint16_t port_ = 0;
  std::atomic<int> num_connections_{0};
  std::atomic<std::size_t> body_bytes_{0};
  std::mutex address_mutex_;
  std::map<std::string, int> per_address_;
  bool started_ = false;
  bool stopped_ = false;
};

// ---------------------------------------------------------------------------------------------
// Http1Writer

Http1Writer::Http1Writer(std::shared_ptr<Connection> connection, const HttpRequest& request)
    : connection_(std::move(connection)),
      mailbox_(connection_->thread().mailbox),
      method_(request.method),
      path_(request.path),
      request_id_(request.request_id),
      remote_address_(request.remote_address),
      request_bytes_(request.body.size()),
      keep_alive_(request.keep_alive),
      chunked_(request.minor_version == 1) {}

std::string Http1Writer::Head(const HttpResponse& response, std::string_view framing,
                              bool keep_alive) const {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nServer: nibble\r\n",
                                 response.status, ReasonPhrase(response.status), HttpDate());
  if (!response.content_type.empty()) {
    head += fmt::format("Content-Type: {}\r\n", response.content_type);
  }
  for (const auto* headers : {&common_headers_, &response.headers}) {
    for (const HttpHeader& header : *headers) {
      head += fmt::format("{}: {}\r\n", header.name, header.value);
    }
  }
  head += framing;
  head += keep_alive ? "\r\n" : "Connection: close\r\n\r\n";
  return head;
}

std::string Http1Writer::Framed(std::string_view event) const {
  if (event.empty()) {
    return {};
  }
  return chunked_ ? fmt::format("{:x}\r\n{}\r\n", event.size(), event) : std::string(event);
}

void Http1Writer::Respond(HttpResponse response) {
  if (connection_ == nullptr || streaming_) {
    return;
  }
  const bool keep_alive = keep_alive_ && !connection_->thread().draining;
  keep_alive_ = keep_alive;
  const std::string framing =
      response.status == 204 ? "" : fmt::format("Content-Length: {}\r\n", response.body.size());
  std::string bytes = Head(response, framing, keep_alive);
  if (method_ != "HEAD") {
    bytes += response.body;
  }
  response_bytes_ = bytes.size();
  status_ = response.status;
  Record(status_);
  const auto connection = connection_;
  connection->Send(std::move(bytes));
  Done();
}

void Http1Writer::BeginStream(HttpResponse head) {
  if (connection_ == nullptr || streaming_) {
    return;
  }
  streaming_ = true;
  // Without chunks (HTTP/1.0) only the connection's end can end the body.
  keep_alive_ = keep_alive_ && chunked_ && !connection_->thread().draining;
  status_ = head.status;
  const auto connection = connection_;
  std::string bytes = Head(head, chunked_ ? "Transfer-Encoding: chunked\r\n" : "", keep_alive_);
  response_bytes_ += bytes.size();
  connection->Send(std::move(bytes));
}

void Http1Writer::WriteEvent(std::string_view event) {
  if (connection_ == nullptr || !streaming_ || event.empty()) {
    return;
  }
  const auto connection = connection_;
  std::string bytes = Framed(event);
  response_bytes_ += bytes.size();
  connection->Send(std::move(bytes));
}

void Http1Writer::Finish(std::string_view last_event) {
  if (connection_ == nullptr || !streaming_) {
    return;
  }
  const auto connection = connection_;
  std::string bytes = Framed(last_event);
  bytes += chunked_ ? "0\r\n\r\n" : "";
  response_bytes_ += bytes.size();
  Record(status_);
  if (!bytes.empty()) {
    connection->Send(std::move(bytes));
  }
  Done();
}

std::size_t Http1Writer::buffered_bytes() const {
  return connection_ == nullptr ? 0 : connection_->buffered_bytes();
}

void Http1Writer::Record(int status) {
  if (std::exchange(recorded_, true)) {
    return;  // the last send found the client gone
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
  connection_->server().Record({.method = method_,
                                .path = path_,
                                .handler = pattern_,
                                .request_id = request_id_,
                                .remote_address = remote_address_,
                                .status = status,
                                .request_bytes = request_bytes_,
                                .response_bytes = response_bytes_,
                                .seconds = seconds.count()});
}

void Http1Writer::Done() {
  if (connection_ == nullptr) {  // the last send found the client gone
    return;
  }
  const auto connection = std::exchange(connection_, nullptr);
  on_abort_ = nullptr;
  on_drained_ = nullptr;
  connection->OnAnswered(keep_alive_);
}

void Http1Writer::Detach(bool notify) {
  if (connection_ == nullptr) {
    return;
  }
  Record(499);
  connection_ = nullptr;
  on_drained_ = nullptr;
  if (notify && on_abort_) {
    // Posted, not called: whoever is writing just now need not expect its own callback.
    mailbox_->Post(std::move(on_abort_));
  }
  on_abort_ = nullptr;
}

// ---------------------------------------------------------------------------------------------
// Connection

Connection::Connection(HttpServerImpl& server, IoThread& thread, tcp::socket socket,
                       std::string address)
    : server_(server),
      thread_(thread),
      socket_(std::move(socket)),
      address_(std::move(address)),
      parser_(server.config().http1),
      idle_since_(std::chrono::steady_clock::now()),
      message_since_(idle_since_),
      last_progress_(idle_since_) {}

void Connection::Start() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.set_option(tcp::socket::send_buffer_size(server_.config().send_buffer_bytes), ignored);
  WaitReadable();
}

void Connection::WaitReadable() {
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
    if (!error && !self->closed_) {
      self->OnReadable();
    }
  });
}

void Connection::OnReadable() {
  error_code error;
  const std::size_t count = socket_.read_some(
      asio::buffer(thread_.read_buffer.data(), thread_.read_buffer.size()), error);
  if (error == asio::error::would_block || error == asio::error::try_again) {
    return WaitReadable();
  }
  if (error || count == 0) {  // the peer closed, or its end of the stream: it has left
    return Close(/*notify=*/true);
  }
  if (lingering_) {
    return WaitReadable();  // whatever it still sends is dropped
  }
  const std::string_view bytes(thread_.read_buffer.data(), count);
  if (writer_ != nullptr) {
    if (pipelined_.size() + bytes.size() > kMaxPipelinedBytes) {
      return Close(/*notify=*/true);
    }
    pipelined_.append(bytes);
  } else {
    Consume(bytes);
  }
  if (!closed_) {
    WaitReadable();
  }
}

void Connection::Consume(std::string_view bytes) {
  while (!bytes.empty() && writer_ == nullptr && !closed_ && !close_after_flush_) {
    if (!parser_.started()) {
      message_since_ = std::chrono::steady_clock::now();
    }
    bytes.remove_prefix(parser_.Feed(bytes));
    if (parser_.state() == Http1Parser::State::kFailed) {
      return Refuse(parser_.error_status(), parser_.error_message());
    }
    if (!CountBody(parser_.body_bytes())) {
      return Refuse(503, "Too many request bodies are on their way: try again later.");
    }
    if (parser_.state() == Http1Parser::State::kBody && !head_seen_) {
      head_seen_ = true;
      OnHead();
    } else if (parser_.state() == Http1Parser::State::kDone) {
      Dispatch();
    }
  }
  if (!closed_ && !close_after_flush_ && !bytes.empty()) {
    pipelined_.assign(bytes);
  }
}

// Many clients, each within its limit, may not fill the memory together.
bool Connection::CountBody(std::size_t bytes) {
  const bool fits = server_.CountBody(bytes, counted_body_bytes_);
  counted_body_bytes_ = bytes;
  return fits;
}

// A body is still to come. A request that its head alone condemns is answered now: a client with a
// wrong key need not send 16 MiB first.
void Connection::OnHead() {
  const bool refused = server_.EarlyRefusal(parser_.head()) != nullptr;
  if (refused) {
    Dispatch();  // Handle refuses it by the same rules
    return;
  }
  if (parser_.head().expects_continue) {
    Send("HTTP/1.1 100 Continue\r\n\r\n");
  }
}

void Connection::Dispatch() {
  const bool whole = parser_.state() == Http1Parser::State::kDone;
  HttpRequest request = parser_.TakeRequest();
  CountBody(0);
  head_seen_ = false;
  request.remote_address = address_;
  request.request_id = UsableRequestId(request);
  if (request.request_id.empty()) {
    request.request_id = RandomId();
  }
  if (!whole) {
    request.keep_alive = false;  // the rest of the body is not read
  }
  const auto writer = std::make_shared<Http1Writer>(shared_from_this(), request);
  writer_ = writer;
  server_.Handle(std::move(request), writer);
}

// The bytes cannot be a request, or came too slowly.
void Connection::Refuse(int status, std::string message) {
  parser_ = Http1Parser(server_.config().http1);  // gives back what came of the body
  CountBody(0);
  HttpRequest request;
  request.method = "-";
  request.path = "-";
  request.keep_alive = false;
  request.remote_address = address_;
  request.request_id = RandomId();
  const auto writer = std::make_shared<Http1Writer>(shared_from_this(), request);
  writer->set_common_headers({{"X-Request-Id", request.request_id}});
  writer_ = writer;
  writer->Respond(ErrorResponse(MakeApiError(status, std::move(message))));
}

void Connection::OnAnswered(bool keep_alive) {
  writer_ = nullptr;
  idle_since_ = std::chrono::steady_clock::now();
  if (!keep_alive) {
    close_after_flush_ = true;
    if (out_.empty()) {
      Linger();
    }
    return;
  }
  if (!pipelined_.empty()) {
    // From the event loop, so that a burst of small requests cannot nest.
    asio::post(thread_.io, [self = shared_from_this()] {
      if (self->closed_ || self->writer_ != nullptr) {
        return;
      }
      const std::string bytes = std::exchange(self->pipelined_, {});
      self->Consume(bytes);
    });
  }
}

void Connection::Send(std::string bytes) {
  if (closed_) {
    return;
  }
  if (out_.empty()) {
    last_progress_ = std::chrono::steady_clock::now();
  }
  buffered_bytes_ += bytes.size();
  out_.push_back(std::move(bytes));
  if (!waiting_writable_) {
    Flush();
  }
}

void Connection::Flush() {
  while (!out_.empty()) {
    const std::string& front = out_.front();
    error_code error;
    const std::size_t sent = socket_.write_some(
        asio::buffer(front.data() + out_offset_, front.size() - out_offset_), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      waiting_writable_ = true;
      socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code failed) {
        self->waiting_writable_ = false;
        if (failed || self->closed_) {
          return;
        }
        self->Flush();
        if (!self->closed_ && self->out_.empty() && self->writer_ != nullptr) {
          const auto writer = self->writer_;
          writer->Drained();
        }
      });
      return;
    }
    if (error) {
      return Close(/*notify=*/true);
    }
    last_progress_ = std::chrono::steady_clock::now();
    buffered_bytes_ -= sent;
    out_offset_ += sent;
    if (out_offset_ == front.size()) {
      out_.pop_front();
      out_offset_ = 0;
    }
  }
  if (close_after_flush_) {
    Linger();
  }
}

// Closing with unread bytes would send a reset, which may overtake the answer: end our side, and
// read on until the client ends its own.
void Connection::Linger() {
  if (closed_ || lingering_) {
    return;
  }
  lingering_ = true;
  idle_since_ = std::chrono::steady_clock::now();
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void Connection::CheckTimeouts(SteadyTime now) {
  const HttpServerConfig& config = server_.config();
  if (!out_.empty()) {
    if (now - last_progress_ > config.write_stall_timeout) {
      Close(/*notify=*/true);
    }
    return;
  }
  if (lingering_) {
    if (now - idle_since_ > kLingerTimeout) {
      Close(/*notify=*/false);
    }
    return;
  }
  if (writer_ != nullptr || close_after_flush_) {
    return;
  }
  if (parser_.state() == Http1Parser::State::kBody) {
    const auto late = now - message_since_ - config.body_grace;
    const double seconds = std::chrono::duration<double>(late).count();
    if (seconds > 0.0 && static_cast<double>(parser_.body_bytes()) <
                             seconds * static_cast<double>(config.min_body_bytes_per_s)) {
      Refuse(408, "The request body came too slowly.");
    }
  } else if (parser_.started()) {
    if (now - message_since_ > config.header_timeout) {
      Refuse(408, "The request head came too slowly.");
    }
  } else if (now - idle_since_ > config.idle_timeout) {
    Close(/*notify=*/false);
  }
}

void Connection::CloseIfIdle() {
  if (!busy() && !parser_.started() && pipelined_.empty() && !lingering_) {
    Close(/*notify=*/false);
  }
}

void Connection::Close(bool notify) {
  if (closed_) {
    return;
  }
  closed_ = true;
  const auto keep = shared_from_this();
  if (const auto writer = std::exchange(writer_, nullptr)) {
    writer->Detach(notify);
  }
  out_.clear();
  buffered_bytes_ = 0;
  CountBody(0);
  error_code ignored;
  socket_.close(ignored);
  thread_.connections.erase(self);
  server_.Forget(address_);
}

// ---------------------------------------------------------------------------------------------
// HttpServerImpl

Result<void> HttpServerImpl::Bind() {
  const std::string where = fmt::format("{}:{}", Quote(config_.host), config_.port);
  asio::io_context io;
  error_code error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(config_.host, fmt::format("{}", config_.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("cannot listen on {}: {}", where, error.message()));
  }
  tcp::endpoint endpoint = found.begin()->endpoint();
  const int reuse = 1;
  for (int i = 0; i < config_.num_io_threads; ++i) {
    auto thread = std::make_unique<IoThread>();
    tcp::acceptor& acceptor = thread->acceptor;
    const auto failed = [&] {
      return Fail(error == asio::error::address_in_use ? ErrorCode::kUnavailable : ErrorCode::kIo,
                  fmt::format("cannot listen on {}: {}", where, error.message()));
    };
    const auto share = [&] {
      if (::setsockopt(acceptor.native_handle(), SOL_SOCKET, SO_REUSEPORT, &reuse, sizeof(reuse)) !=
          0) {
        error = error_code(errno, boost::system::system_category());
      }
    };
    acceptor.open(endpoint.protocol(), error);
    if (error) {
      return failed();
    }
    acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    // The first listener binds alone, so that an address in use is an error; only then is it opened
    // to the listeners of our other threads.
    if (i > 0) {
      share();
    }
    if (!error) {
      acceptor.bind(endpoint, error);
    }
    if (!error && i == 0) {
      share();
    }
    if (!error) {
      acceptor.listen(4096, error);
    }
    if (error) {
      return failed();
    }
    acceptor.non_blocking(true, error);
    endpoint = acceptor.local_endpoint(error);
    port_ = endpoint.port();
    threads_.push_back(std::move(thread));
  }
  return {};
}

void HttpServerImpl::Start() {
  // One descriptor a connection: ask for as many as we are allowed to have.
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  started_ = true;
  for (auto& thread : threads_) {
    Accept(*thread);
    Tick(*thread);
    thread->thread = std::thread([&io = thread->io] { io.run(); });
  }
}

void HttpServerImpl::Accept(IoThread& thread) {
  thread.acceptor.async_accept([this, &thread](error_code error, tcp::socket socket) {
    if (!thread.acceptor.is_open()) {
      return;
    }
    if (!error) {
      OnAccepted(thread, std::move(socket));
      return Accept(thread);
    }
    if (error == asio::error::operation_aborted) {
      return;
    }
    if (error != asio::error::no_descriptors && error.value() != ENFILE) {
      return Accept(thread);
    }
    // Out of descriptors: wait for connections to end instead of spinning.
    auto timer = std::make_shared<asio::steady_timer>(thread.io, kAcceptRetry);
    timer->async_wait([this, &thread, timer](error_code) {
      if (thread.acceptor.is_open()) {
        Accept(thread);
      }
    });
  });
}

void HttpServerImpl::OnAccepted(IoThread& thread, tcp::socket socket) {
  error_code error;
  const auto remote = socket.remote_endpoint(error);
  if (error) {
    return;  // gone already
  }
  std::string address = remote.address().to_string();
  if (!Admit(address)) {
    static constexpr std::string_view kBusy =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
        "Connection: close\r\n\r\n";
    socket.non_blocking(true, error);
    socket.write_some(asio::buffer(kBusy.data(), kBusy.size()), error);
    return;
  }
  const auto connection =
      std::make_shared<Connection>(*this, thread, std::move(socket), std::move(address));
  thread.connections.push_front(connection);
  connection->self = thread.connections.begin();
  connection->Start();
}

bool HttpServerImpl::Admit(const std::string& address) {
  const std::lock_guard lock(address_mutex_);
  if (num_connections_.load() >= config_.max_connections) {
    return false;
  }
  int& count = per_address_[address];
  if (count >= config_.max_connections_per_address) {
    return false;
  }
  ++count;
  ++num_connections_;
  return true;
}

void HttpServerImpl::Forget(const std::string& address) {
  const std::lock_guard lock(address_mutex_);
  --num_connections_;
  const auto found = per_address_.find(address);
  if (found != per_address_.end() && --found->second == 0) {
    per_address_.erase(found);
  }
}

void HttpServerImpl::Tick(IoThread& thread) {
  const auto shortest = std::min({config_.header_timeout, config_.body_grace, config_.idle_timeout,
                                  config_.write_stall_timeout});
  thread.tick.expires_after(
      std::clamp(shortest / 4, std::chrono::milliseconds(5), std::chrono::milliseconds(500)));
  thread.tick.async_wait([this, &thread](error_code error) {
    if (error) {
      return;
    }
    const auto now = std::chrono::steady_clock::now();
    for (auto it = thread.connections.begin(); it != thread.connections.end();) {
      const auto connection = *it++;  // it may leave the list now
      connection->CheckTimeouts(now);
    }
    Tick(thread);
  });
}

void HttpServerImpl::Handle(HttpRequest request, const std::shared_ptr<Http1Writer>& writer) {
  Router::Decision decision = router_.Decide(request);
  writer->set_common_headers(router_.CommonHeaders(request));
  writer->set_pattern(decision.pattern);
  if (decision.reply != nullptr) {
    writer->Respond(std::move(*decision.reply));
    return;
  }
  decision.route->handler(std::move(request), writer);
}

void HttpServerImpl::StopListening() {
  for (auto& thread : threads_) {
    thread->mailbox->Post([&thread = *thread] {
      thread.draining = true;
      error_code ignored;
      thread.acceptor.close(ignored);
      for (auto it = thread.connections.begin(); it != thread.connections.end();) {
        const auto connection = *it++;
        connection->CloseIfIdle();
      }
    });
  }
}

void HttpServerImpl::Shutdown(std::chrono::milliseconds flush_timeout) {
  if (std::exchange(stopped_, true)) {
    return;
  }
  if (!started_) {
    for (auto& thread : threads_) {
      thread->mailbox->Close();
    }
    return;
  }
  StopListening();
  const auto deadline = std::chrono::steady_clock::now() + flush_timeout;
  while (std::chrono::steady_clock::now() < deadline) {
    std::size_t busy = 0;
    for (auto& thread : threads_) {
      std::promise<std::size_t> count;
      auto counted = count.get_future();
      thread->mailbox->Post([&thread = *thread, &count] {
        count.set_value(static_cast<std::size_t>(
            std::count_if(thread.connections.begin(), thread.connections.end(),
                          [](const auto& connection) { return connection->busy(); })));
      });
      busy += counted.get();
    }
    if (busy == 0) {
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (auto& thread : threads_) {
    thread->mailbox->Post([&thread = *thread] {
      while (!thread.connections.empty()) {
        const auto connection = thread.connections.front();
        connection->Close(/*notify=*/true);
      }
      thread.tick.cancel();
      // After the aborts that the closes have just posted.
      thread.mailbox->Post([&thread] { thread.io.stop(); });
    });
  }
  for (auto& thread : threads_) {
    thread->thread.join();
    thread->mailbox->Close();
  }
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Create(
    const HttpServerConfig& config, Router router,
    std::function<void(const AccessRecord&)> on_access) {
  if (config.num_io_threads < 1 || config.num_io_threads > 64) {
    return Fail(ErrorCode::kInvalidArgument, "the number of I/O threads must be 1 to 64");
  }
  auto server = std::make_unique<HttpServerImpl>(config, std::move(router), std::move(on_access));
  NIBBLE_TRY_VOID(server->Bind());
  return server;
}

}  // namespace nibble
