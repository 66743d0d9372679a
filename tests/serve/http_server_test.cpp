#include "serve/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "tests/serve/client.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using testing::Client;
using testing::ClientResponse;
using ::testing::HasSubstr;

class HttpServerTest : public ::testing::Test {
 protected:
  void Start(HttpServerConfig config = {}) {
    config.port = 0;
    std::vector<Route> routes;
    routes.emplace_back(RoutePolicy::kPublic, "GET,POST", "/echo",
                        [](HttpRequest request, const std::shared_ptr<ResponseWriter>& writer) {
                          writer->Respond({.body = request.body});
                        });
    routes.emplace_back(RoutePolicy::kPublic, "GET", "/never",
                        [this](const HttpRequest&, const std::shared_ptr<ResponseWriter>& writer) {
                          writer->OnAbort([this] { ++num_aborts_; });
                          const std::lock_guard lock(mutex_);
                          held_.push_back(writer);
                        });
    routes.emplace_back(RoutePolicy::kPublic, "GET", "/flood",
                        [this](const HttpRequest&, const std::shared_ptr<ResponseWriter>& writer) {
                          writer->OnAbort([this] { ++num_aborts_; });
                          writer->BeginStream({});
                          writer->WriteEvent(std::string(32 << 20, 'x'));
                          const std::lock_guard lock(mutex_);
                          held_.push_back(writer);
                        });
    routes.emplace_back(RoutePolicy::kPublic, "GET", "/stream",
                        [](const HttpRequest&, const std::shared_ptr<ResponseWriter>& writer) {
                          writer->BeginStream({});
                          writer->WriteEvent("one");
                          writer->Finish("two");
                          writer->WriteEvent("too late");
                        });
    auto server = HttpServer::Create(config, Router({}, std::move(routes)),
                                     [this](const AccessRecord& record) {
                                       std::this_thread::sleep_for(record_delay_);
                                       const std::lock_guard lock(mutex_);
                                       statuses_.push_back(record.status);
                                     });
    ASSERT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
    server_->Start();
  }
  std::uint16_t port() const { return server_->port(); }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 5000; ++i) {
      if (condition()) {
        return true;
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
    return false;
  }

  std::mutex mutex_;
  std::vector<std::shared_ptr<ResponseWriter>> held_;
  std::vector<int> statuses_;
  milliseconds record_delay_{0};
  std::atomic<int> num_aborts_{0};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, TakesABodyInAnyPieces) {
  Start();
  Client client(port());
  const std::string body(100'000, 'b');
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
  for (std::size_t at = 0; at < body.size(); at += 30'000) {
    client.Send(body.substr(at, 30'000));
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(client.Read().body, body);
  client.Send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  client.Send("0\r\n\r\n");
  EXPECT_EQ(client.Read().body, "abc");
}

TEST_F(HttpServerTest, EndsAStreamWithTheLastEvent) {
  Start();
  Client client(port());
  ClientResponse response = client.Get("/stream");
  EXPECT_EQ(response.chunks, (std::vector<std::string>{"one", "two"}));
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(client.Get("/stream").status, 200);  // and the connection is still good
  Client old(port());
  old.Send("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(old.WaitFor("\r\n\r\nonetwo"));  // no chunks in 1.0
  EXPECT_TRUE(old.AtEnd());
}

TEST_F(HttpServerTest, CountsARequestBeforeItsClientHasTheAnswer) {
  record_delay_ = milliseconds(100);  // time enough to read the answer, had it been sent
  Start();
  const auto statuses = [this] {
    const std::lock_guard lock(mutex_);
    return statuses_;
  };
  Client client(port());
  EXPECT_EQ(client.Get("/echo").status, 200);
  EXPECT_EQ(statuses(), (std::vector<int>{200}));
  EXPECT_TRUE(client.Get("/stream").complete);
  EXPECT_EQ(statuses(), (std::vector<int>{200, 200}));
}

TEST_F(HttpServerTest, SaysContinueOnlyToWhatItWillTake) {
  Start();
  Client client(port());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  ASSERT_TRUE(client.WaitFor("100 Continue\r\n\r\n"));
  client.Send("ok");
  EXPECT_EQ(client.Read().body, "ok");
  Client refused(port());
  refused.Send(
      "POST /nowhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  const ClientResponse response = refused.Read();
  EXPECT_EQ(response.status, 404);
  EXPECT_THAT(response.head, HasSubstr("Connection: close"));
  EXPECT_TRUE(refused.AtEnd());
}

TEST_F(HttpServerTest, RefusesAndClosesOnAmbiguousBytes) {
  Start();
  Client client(port());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
      "0\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
  const ClientResponse response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_THAT(response.body, HasSubstr("more than one length"));
  EXPECT_FALSE(client.WaitFor("HTTP/1.1"));  // the smuggled request is not answered
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  Start();
  Client client(port());
  client.Send("HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
  ASSERT_TRUE(client.WaitFor("Content-Length: 0\r\n"));
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, CutsASlowHeadAndASlowBody) {
  HttpServerConfig config;
  config.header_timeout = milliseconds(40);
  config.body_grace = milliseconds(40);
  config.min_body_bytes_per_s = 1'000'000;
  Start(config);
  Client head(port());
  head.Send("GET /echo HT");
  EXPECT_EQ(head.Read().status, 408);
  EXPECT_TRUE(head.AtEnd());
  Client body(port());
  body.Send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab");
  EXPECT_EQ(body.Read().status, 408);
  EXPECT_TRUE(body.AtEnd());
}

TEST_F(HttpServerTest, ClosesIdleConnectionsButNotWaitingOnes) {
  HttpServerConfig config;
  config.idle_timeout = milliseconds(60);
  Start(config);
  Client idle(port());
  Client waiting(port());
  waiting.Send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(idle.AtEnd());
  EXPECT_FALSE(waiting.Receive(80));
  EXPECT_EQ(num_aborts_, 0);
  EXPECT_EQ(server_->num_connections(), 1);
}

TEST_F(HttpServerTest, AbortsWhenTheClientStopsReading) {
  HttpServerConfig config;
  config.write_stall_timeout = milliseconds(60);
  Start(config);
  Client client(port(), /*receive_buffer_bytes=*/4096);
  client.Send("GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(Eventually([&] { return num_aborts_ == 1; }));
  const std::lock_guard lock(mutex_);
  EXPECT_EQ(statuses_, (std::vector<int>{499}));
}

TEST_F(HttpServerTest, AbortsOnceWhenTheClientLeaves) {
  Start();
  for (int i = 1; i <= 3; ++i) {
    Client client(port());
    client.Send("GET /never HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\n");
    ASSERT_TRUE(Eventually([&] {
      const std::lock_guard lock(mutex_);
      return static_cast<int>(held_.size()) == i;
    }));
    client.Close();
    EXPECT_TRUE(Eventually([&] { return num_aborts_ == i; }));
  }
  EXPECT_TRUE(Eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, RefusesMoreConnectionsThanAllowed) {
  HttpServerConfig config;
  config.max_connections_per_address = 2;
  Start(config);
  Client first(port());
  Client second(port());
  EXPECT_EQ(first.Get("/echo").status, 200);
  EXPECT_EQ(second.Get("/echo").status, 200);
  Client third(port());
  EXPECT_EQ(third.Get("/echo").status, 503);
  first.Close();
  EXPECT_TRUE(Eventually([&] { return Client(port()).Get("/echo").status == 200; }));
}

TEST_F(HttpServerTest, BoundsTheBodiesOfAllConnectionsTogether) {
  HttpServerConfig config;
  config.max_buffered_body_bytes = 1000;
  Start(config);
  const std::string head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n";
  Client first(port());
  first.Send(head + std::string(600, 'a'));
  std::this_thread::sleep_for(milliseconds(30));
  Client second(port());
  second.Send(head + std::string(600, 'b'));
  EXPECT_EQ(second.Read().status, 503);
  first.Send(std::string(300, 'a'));
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(Client(port()).Post("/echo", std::string(900, 'c')).status, 200);
}

TEST_F(HttpServerTest, HoldsAThousandConnections) {
  Start();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 1000; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    if (!clients.back()->connected()) {
      GTEST_SKIP() << "this machine allows fewer than 1,000 sockets";
    }
    clients.back()->Send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
  }
  for (const auto& client : clients) {
    EXPECT_TRUE(client->Read().complete);
  }
  EXPECT_EQ(server_->num_connections(), 1000);
}

TEST_F(HttpServerTest, OutlivedWritersDoNothing) {
  Start();
  Client client(port());
  client.Send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
  ASSERT_TRUE(Eventually([&] {
    const std::lock_guard lock(mutex_);
    return held_.size() == 1;
  }));
  server_->Shutdown(milliseconds(0));
  server_.reset();
  bool ran = false;
  held_.front()->executor()->Post([&] { ran = true; });
  held_.front()->Respond({});
  EXPECT_FALSE(ran);
  EXPECT_EQ(num_aborts_, 1);
}

}  // namespace
}  // namespace nibble
